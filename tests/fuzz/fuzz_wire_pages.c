// SPDX-License-Identifier: GPL-2.0-only
// A frame of a data channel or a page line: a byte of flags, the header, the payload. Unless the flags say that they are as they are,
// length and checksum are put right, behind which nothing would be reached otherwise.
#include "tests/fuzz/fuzz.h"
#include "util/bitmap.h"
#include "util/size.h"
#include "wire/pages_int.h"

#define LENGTH_AS_IS 1 // flags
#define CHECKSUM_AS_IS 2
#define AT_PRESENT 24 // in a header
#define UNTOUCHED 0xa5

static struct wire_pages *pages;
static uint8_t *payload, *dest, untouched[WIRE_CHUNK_SIZE];

int LLVMFuzzerInitialize(int *argc, char ***argv)
{
	(void)argc, (void)argv;
	fuzz_quiet();
	dest = malloc(WIRE_CHUNK_SIZE);
	FUZZ_HOLDS(dest && !wire_pages_new(NULL, &pages));
	memset(untouched, UNTOUCHED, sizeof untouched);
	return 0;
}

// A header that is accepted is one that can be made.
static void pack_again(const uint8_t *head, const struct wire_frame *f, uint64_t checksum)
{
	uint8_t again[WIRE_FRAME_LEN];

	wire_frame_pack(f, checksum, again);
	FUZZ_HOLDS(!memcmp(head, again, sizeof again));
	for (unsigned i = 0; i < WIRE_CHUNK_PAGES; i++)
		FUZZ_HOLDS(!bitmap_test(f->present, i) || !bitmap_test(f->zero, i));
	FUZZ_HOLDS(f->length <= wire_frame_pages_len(f));
	FUZZ_HOLDS(wire_line_id_is(f, head + AT_PRESENT) == (f->type == WIRE_LEFT));
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t len)
{
	uint8_t head[WIRE_FRAME_LEN];
	struct wire_frame f;
	uint64_t checksum;
	const char *fault;
	size_t touched;

	if (len < 1 + sizeof head || len - 1 - sizeof head > WIRE_PAYLOAD_MAX)
		return 0;
	memcpy(head, data + 1, sizeof head);
	wire_frame_parse(head, &f, &checksum);
	if (!(*data & LENGTH_AS_IS))
		f.length = (uint32_t)(len - 1 - sizeof head);
	wire_frame_pack(&f, checksum, head);
	if (wire_frame_parse(head, &f, &checksum))
		return 0;
	pack_again(head, &f, checksum);
	if (f.length > len - 1 - sizeof head)
		return 0;
	payload = malloc(f.length + 1); // so that reading behind it is seen
	FUZZ_HOLDS(payload);
	memcpy(payload, data + 1 + sizeof head, f.length);
	if (!(*data & CHECKSUM_AS_IS))
		wire_frame_pack(&f, wire_frame_checksum(pages, head, payload, f.length), head);
	memset(dest, UNTOUCHED, WIRE_CHUNK_SIZE);
	fault = wire_frame_unpack(pages, head, payload, dest);
	touched = wire_frame_pages_len(&f);
	FUZZ_HOLDS(!memcmp(dest + touched, untouched, WIRE_CHUNK_SIZE - touched));
	if (!fault && !(f.flags & WIRE_FLAG_ZSTD))
		FUZZ_HOLDS(!memcmp(dest, payload, touched));
	free(payload);
	return 0;
}
