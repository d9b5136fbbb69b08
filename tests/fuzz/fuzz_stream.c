// SPDX-License-Identifier: GPL-2.0-only
// A stream of a checkpoint, whose checksums and sums are put right before it is read, as far as its records can be told apart.
#include <errno.h>
#include <sys/mman.h>
#include <unistd.h>
#include <xxhash.h>

#include "images/format.h"
#include "images/stream.h"
#include "images/stream_int.h"
#include "tests/fuzz/fuzz.h"
#include "util/bitmap.h"
#include "util/io.h"

#define CHUNKS_MAX 64 // that are read of an input

static int fd = -1;
static void *packed;

int LLVMFuzzerInitialize(int *argc, char ***argv)
{
	(void)argc, (void)argv;
	fuzz_quiet();
	fd = memfd_create("fuzz", MFD_CLOEXEC);
	packed = aligned_alloc(PAGE_SIZE, IMG_CHUNK_SIZE);
	FUZZ_HOLDS(fd >= 0 && packed);
	return 0;
}

struct sums {
	uint64_t chunks, pages, stored;
	XXH3_state_t *digest;
};

// The stored bytes behind a CHUNK. Returns their number, as far as they are there.
static size_t fix_chunk(uint8_t *p, size_t left, struct sums *sums)
{
	uint64_t present[4];
	size_t stored = get_le32(p + 4);

	if (stored > left - STREAM_CHUNK_LEN)
		stored = left - STREAM_CHUNK_LEN;
	put_le64(p + 16, XXH3_64bits(p + STREAM_CHUNK_LEN, stored));
	memcpy(present, p + 24, sizeof present);
	sums->chunks++;
	sums->pages += bitmap_count(present, IMG_CHUNK_PAGES);
	sums->stored += stored;
	return stored;
}

// One record. Returns its length with all that follows it, 0 if it is not there as a whole.
static size_t fix_record(uint8_t *p, size_t left, struct sums *sums)
{
	size_t len, behind = 0;
	uint32_t type;

	if (left < STREAM_RECORD_LEN)
		return 0;
	type = get_le32(p);
	len = get_le64(p + 8);
	left -= STREAM_RECORD_LEN;
	if (len > left)
		return 0;
	if (type == STREAM_CHUNK && len == STREAM_CHUNK_LEN)
		behind = fix_chunk(p + STREAM_RECORD_LEN, left, sums);
	if (type == STREAM_END && len == STREAM_END_LEN) {
		put_le64(p + STREAM_RECORD_LEN, sums->chunks);
		put_le64(p + STREAM_RECORD_LEN + 8, sums->pages);
		put_le64(p + STREAM_RECORD_LEN + 16, sums->stored);
		put_le64(p + STREAM_RECORD_LEN + 24, XXH3_64bits_digest(sums->digest));
	}
	put_le64(p + 16, XXH3_64bits(p + STREAM_RECORD_LEN, len));
	put_le64(p + 24, XXH3_64bits(p, 24));
	XXH3_64bits_update(sums->digest, p, STREAM_RECORD_LEN);
	return STREAM_RECORD_LEN + len + behind;
}

static void fix(uint8_t *p, size_t len)
{
	struct sums sums = { .digest = XXH3_createState() };

	FUZZ_HOLDS(sums.digest);
	XXH3_64bits_reset(sums.digest);
	if (len >= STREAM_HEADER_LEN) {
		put_le64(p + 24, XXH3_64bits(p, 24));
		XXH3_64bits_update(sums.digest, p, STREAM_HEADER_LEN);
		for (size_t at = STREAM_HEADER_LEN, n; (n = fix_record(p + at, len - at, &sums)); at += n)
			;
	}
	XXH3_freeState(sums.digest);
}

static void read_all(struct img_stream_in *s)
{
	const VmEntry *vm = img_stream_in_vm(s);
	struct img_stream_chunk c;
	int ret = 1;

	for (unsigned i = 0; i < CHUNKS_MAX && ret == 1; i++) {
		ret = img_stream_in_next(s, &c, packed);
		if (ret != 1)
			break;
		FUZZ_HOLDS(c.block < vm->n_blocks && !bitmap_empty(c.present, IMG_CHUNK_PAGES));
		for (unsigned page = 0; page < IMG_CHUNK_PAGES; page++)
			FUZZ_HOLDS(!bitmap_test(c.present, page) ||
				   (c.chunk * IMG_CHUNK_PAGES + page) * PAGE_SIZE < vm->blocks[c.block]->len);
	}
	if (!ret)
		FUZZ_HOLDS(img_stream_in_device_state(s));
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t len)
{
	struct img_stream_in *s;
	uint8_t *copy = malloc(len + 1);

	FUZZ_HOLDS(copy);
	memcpy(copy, data, len);
	fix(copy, len);
	FUZZ_HOLDS(!ftruncate(fd, 0) && !io_pwrite_full(fd, copy, len, 0) && !lseek(fd, 0, SEEK_SET));
	free(copy);
	if (!img_stream_in_open(fd, NULL, &s)) {
		read_all(s);
		img_stream_in_free(s);
	}
	return 0;
}
