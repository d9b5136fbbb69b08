// SPDX-License-Identifier: GPL-2.0-only
// A device state out of a file: checked, and made into the stream that QEMU loads.
#include "qemu/devstate.h"
#include "tests/fuzz/fuzz.h"

#define HEADER_LEN 8

int LLVMFuzzerInitialize(int *argc, char ***argv)
{
	(void)argc, (void)argv;
	fuzz_quiet();
	return 0;
}

// The stream has the saved sections as they were, whatever stands before and behind them.
static void build(const uint8_t *data, size_t len, const char *machine, const struct qemu_small_block *small, size_t nr, int expected)
{
	uint8_t *out = NULL;
	size_t out_len = 0;
	int ret = qemu_devstate_build(data, len, machine, small, nr, &out, &out_len);

	FUZZ_HOLDS(ret == expected);
	if (ret)
		return;
	FUZZ_HOLDS(out_len > len);
	FUZZ_HOLDS(!memcmp(out, data, HEADER_LEN));
	FUZZ_HOLDS(memmem(out + HEADER_LEN, out_len - HEADER_LEN, data + HEADER_LEN, len - HEADER_LEN));
	free(out);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t len)
{
	static const uint8_t pages[2 * 4096] = { 1 };
	const struct qemu_small_block small[] = { { "pc.bios", sizeof pages, pages }, { "vga.vram", 4096, pages } };
	int ret = qemu_devstate_check(data, len);

	build(data, len, "pc-i440fx-7.2", small, 2, ret);
	build(data, len, "pc", NULL, 0, ret);
	return 0;
}
