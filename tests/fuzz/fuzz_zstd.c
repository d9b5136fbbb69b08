// SPDX-License-Identifier: GPL-2.0-only
// What is stored of a chunk, after its checksum was found right: the number of pages less one (a byte), how far apart they are (a
// byte), then the stored bytes, padded here to whole pages.
#include <errno.h>
#include <xxhash.h>

#include "images/dir_int.h"
#include "images/format.h"
#include "tests/fuzz/fuzz.h"
#include "util/bitmap.h"

#define HEAD 2
#define UNTOUCHED 0xa5

static struct img_dir dir = { .path = "fuzz", .pages_fd = -1 };
static struct img_unpacker *unpacker;
static uint8_t *stored, *dest, untouched[PAGE_SIZE];

int LLVMFuzzerInitialize(int *argc, char ***argv)
{
	(void)argc, (void)argv;
	fuzz_quiet();
	stored = aligned_alloc(PAGE_SIZE, IMG_STORED_MAX);
	dest = malloc(IMG_CHUNK_SIZE);
	FUZZ_HOLDS(stored && dest && !img_unpacker_new(&unpacker));
	memset(untouched, UNTOUCHED, sizeof untouched);
	return 0;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t len)
{
	struct img_chunk entry = { .off = 0 };
	struct img_part part = { .dir = &dir, .entry = &entry };
	int ret;

	if (len <= HEAD || len - HEAD > IMG_STORED_MAX)
		return 0;
	for (unsigned i = 0, page = 0; i <= data[0] && page < IMG_CHUNK_PAGES; i++, page += 1 + data[1])
		bitmap_set(entry.present, page);
	entry.stored = ROUND_UP((uint32_t)(len - HEAD), PAGE_SIZE);
	memset(stored, 0, entry.stored);
	memcpy(stored, data + HEAD, len - HEAD);
	entry.checksum = XXH3_64bits(stored, entry.stored);
	memcpy(part.pages, entry.present, sizeof part.pages);
	memset(dest, UNTOUCHED, IMG_CHUNK_SIZE);
	ret = img_part_unpack(unpacker, &part, stored, (char *)dest);
	FUZZ_HOLDS(!ret || ret == -EBADMSG);
	for (unsigned i = 0; i < IMG_CHUNK_PAGES; i++)
		FUZZ_HOLDS((!ret && bitmap_test(part.pages, i)) || !memcmp(dest + i * PAGE_SIZE, untouched, PAGE_SIZE));
	return 0;
}
