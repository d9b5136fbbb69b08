// SPDX-License-Identifier: GPL-2.0-only
// The parsers of what QEMU's human monitor and the kernel print, each over the same text.
#include "qemu/ramblock_int.h"
#include "tests/fuzz/fuzz.h"
#include "util/size.h"

int LLVMFuzzerInitialize(int *argc, char ***argv)
{
	(void)argc, (void)argv;
	fuzz_quiet();
	return 0;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t len)
{
	char *text = fuzz_text(data, len), region[256];
	struct qemu_ram_info *info = NULL;
	struct qemu_flat_range *flat = NULL;
	struct qemu_mapping *maps = NULL;
	uint64_t hva;
	size_t nr;

	if (!qemu_parse_ramblocks(text, &info, &nr))
		for (size_t i = 0; i < nr; i++)
			FUZZ_HOLDS(strlen(info[i].name) < sizeof info[i].name);
	if (!qemu_parse_mtree(text, &flat, &nr))
		for (size_t i = 0; i < nr; i++)
			FUZZ_HOLDS(strlen(flat[i].region) < sizeof flat[i].region);
	if (!qemu_parse_smaps(text, &maps, &nr))
		for (size_t i = 0; i < nr; i++)
			FUZZ_HOLDS(strlen(maps[i].path) < sizeof maps[i].path);
	if (!qemu_parse_gpa2hva(text, region, &hva))
		FUZZ_HOLDS(strlen(region) < sizeof region);
	free(info);
	free(flat);
	free(maps);
	free(text);
	return 0;
}
