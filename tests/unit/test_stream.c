// SPDX-License-Identifier: GPL-2.0-only
// A checkpoint as a stream: what was written is read, and what is not exactly that is refused.
#include <check.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>
#include <xxhash.h>
#include <zstd.h>

#include "images/format.h"
#include "images/stream.h"
#include "images/stream_int.h"
#include "images/writer.h"
#include "util/bitmap.h"
#include "util/io.h"
#include "util/log.h"

#define ok(expr) ck_assert_int_eq(expr, 0)

// Two blocks, the second ends within a chunk.
#define LEN_0 (3 * MiB)
#define LEN_1 (MiB + 8 * PAGE_SIZE)

static const uint64_t lens[] = { LEN_0, LEN_1 };
static uint8_t *ram[2];
static uint64_t chunks_offset; // in the stream: behind the VM's record

static void fill(uint8_t *page, unsigned seed)
{
	for (size_t i = 0; i < PAGE_SIZE; i++)
		page[i] = (uint8_t)((i * seed) >> 3 | 1);
}

static void setup(void)
{
	log_init(getenv("VERBOSE") ? 2 : -1, LOG_WARN, NULL, false); // the messages are expected
	srandom(1);
	signal(SIGPIPE, SIG_IGN);
	for (int b = 0; b < 2; b++) {
		ram[b] = calloc(1, ROUND_UP(lens[b], MiB));
		for (uint64_t page = 0; page < lens[b] / PAGE_SIZE; page += 1 + (unsigned)b)
			if (page % 7 && (b || page / 256 != 1)) // a chunk of zeros
				fill(ram[b] + page * PAGE_SIZE, (unsigned)page + 2);
	}
}

static void teardown(void)
{
	free(ram[0]);
	free(ram[1]);
}

static VmEntry *vm_of_two_blocks(void)
{
	static char *argv[] = { "qemu-system-x86_64" };
	static VmBlockEntry b0 = VM_BLOCK_ENTRY__INIT, b1 = VM_BLOCK_ENTRY__INIT, *blocks[] = { &b0, &b1 };
	static VmEntry vm = VM_ENTRY__INIT;

	b0.name = "pc.ram";
	b1.name = "m1";
	b0.len = LEN_0;
	b1.len = LEN_1;
	b0.page_size = b1.page_size = PAGE_SIZE;
	vm.qemu_version = "7.2.22";
	vm.machine = "pc-i440fx-7.2";
	vm.qemu_path = "/usr/bin/qemu-system-x86_64";
	vm.cwd = "/";
	vm.run_state = "running";
	vm.n_argv = 1;
	vm.argv = argv;
	vm.n_blocks = 2;
	vm.blocks = blocks;
	return &vm;
}

static int put_device_state(struct img_stream_out *s)
{
	static uint8_t stream[] = "QEVM stream";
	DeviceStateEntry ds = DEVICE_STATE_ENTRY__INIT;

	ds.stream = (ProtobufCBinaryData){ sizeof stream, stream };
	return img_stream_out_device_state(s, &ds);
}

static int put_chunk(struct img_stream_out *s, uint32_t block, uint64_t chunk, bool zstd)
{
	static uint8_t packed[MiB], frame[2 * MiB];
	struct img_chunk c = { 0 };
	size_t len = 0;

	for (size_t i = 0; i < 256 && chunk * MiB + i * PAGE_SIZE < lens[block]; i++) {
		const uint8_t *page = ram[block] + chunk * MiB + i * PAGE_SIZE;

		if (!*page)
			continue;
		memcpy(packed + len, page, PAGE_SIZE);
		len += PAGE_SIZE;
		bitmap_set(c.present, i);
	}
	if (!len)
		return 0;
	c.stored = (uint32_t)len;
	if (zstd) {
		ZSTD_CCtx *z = ZSTD_createCCtx();
		size_t n;

		ZSTD_CCtx_setParameter(z, ZSTD_c_checksumFlag, 1);
		n = ZSTD_compress2(z, frame, sizeof frame, packed, len);
		ZSTD_freeCCtx(z);
		memset(frame + n, 0, ROUND_UP(n, PAGE_SIZE) - n);
		if (ROUND_UP(n, PAGE_SIZE) < len)
			c.stored = (uint32_t)ROUND_UP(n, PAGE_SIZE);
	}
	c.checksum = XXH3_64bits(c.stored < len ? frame : packed, c.stored);
	return img_stream_out_chunk(s, block, chunk, &c, c.stored < len ? frame : packed);
}

static uint64_t position(int fd)
{
	return (uint64_t)lseek(fd, 0, SEEK_CUR);
}

static void put_all(int fd, bool zstd)
{
	struct img_stream_out *s;

	ok(img_stream_out_open(fd, zstd ? IMG_FEATURE_ZSTD : 0, NULL, &s));
	ok(img_stream_out_vm(s, vm_of_two_blocks()));
	chunks_offset = position(fd);
	for (uint64_t c = 3; c--;)
		ok(put_chunk(s, 0, c, zstd));
	ok(put_device_state(s));
	for (uint64_t c = 0; c < 2; c++)
		ok(put_chunk(s, 1, c, zstd));
	ok(img_stream_out_commit(s));
	img_stream_out_free(s);
}

static int make(bool zstd)
{
	int fd = memfd_create("stream", MFD_CLOEXEC);

	ck_assert_int_ge(fd, 0);
	put_all(fd, zstd);
	return fd;
}

// Reads all of it. got (may be NULL): where the blocks go.
static int take_from(int fd, bool (*interrupted)(void), uint8_t *const *got)
{
	_Alignas(4096) static uint8_t packed[MiB];
	struct img_stream_chunk c;
	struct img_stream_in *s;
	int ret = img_stream_in_open(fd, interrupted, &s);

	if (ret)
		return ret;
	while ((ret = img_stream_in_next(s, &c, packed)) == 1) {
		const uint8_t *from = packed;

		for (size_t i = 0; (i = bitmap_next(c.present, 256, i, true)) < 256; i++, from += PAGE_SIZE)
			if (got)
				memcpy(got[c.block] + c.chunk * MiB + i * PAGE_SIZE, from, PAGE_SIZE);
	}
	if (!ret)
		ck_assert_ptr_nonnull(img_stream_in_device_state(s));
	img_stream_in_free(s);
	return ret;
}

static int take(int fd)
{
	lseek(fd, 0, SEEK_SET);
	return take_from(fd, NULL, NULL);
}

static void compare(int fd)
{
	uint8_t *got[2] = { calloc(1, LEN_0), calloc(1, ROUND_UP(LEN_1, MiB)) };

	ok(take_from(fd, NULL, got));
	for (int b = 0; b < 2; b++) {
		ok(memcmp(got[b], ram[b], lens[b]));
		free(got[b]);
	}
}

START_TEST(what_was_written_is_read)
{
	int fd = make(_i);

	lseek(fd, 0, SEEK_SET);
	compare(fd);
	close(fd);
}
END_TEST

START_TEST(it_goes_through_a_pipe)
{
	int fds[2];
	pid_t pid;

	ok(pipe2(fds, O_CLOEXEC));
	pid = fork();
	if (!pid) {
		close(fds[0]);
		put_all(fds[1], _i);
		_exit(0);
	}
	close(fds[1]);
	compare(fds[0]);
	close(fds[0]);
}
END_TEST

START_TEST(every_flip_is_found)
{
	int fd = make(_i);
	uint64_t len = position(fd);

	ok(take(fd));
	for (int round = 0; round < 3000; round++) {
		// Half of them where it is not all pages.
		uint64_t at = (round % 2 ? (uint64_t)random() % len : (uint64_t)random() % (chunks_offset + 200)), bit = (uint64_t)random() % 8;
		uint8_t byte;

		ok(io_pread_full(fd, &byte, 1, at));
		byte ^= (uint8_t)(1 << bit);
		ok(io_pwrite_full(fd, &byte, 1, at));
		ck_assert_msg(take(fd) < 0, "bit %lu of byte %lu of %lu", bit, at, len);
		byte ^= (uint8_t)(1 << bit);
		ok(io_pwrite_full(fd, &byte, 1, at));
	}
	ok(take(fd));
	close(fd);
}
END_TEST

START_TEST(every_truncation_is_found)
{
	int fd = make(_i);
	uint64_t len = position(fd);

	ok(ftruncate(fd, (off_t)len + 1));
	ck_assert_int_eq(take(fd), -EBADMSG);
	for (uint64_t n = len; n--; n = n > len - 200 || n < 600 ? n : n > 60000 ? n - (uint64_t)random() % 60000 : 599) {
		ok(ftruncate(fd, (off_t)n));
		ck_assert_msg(take(fd) == -ENODATA, "%lu of %lu bytes", n, len);
	}
	close(fd);
}
END_TEST

// ---- whoever has made the checksums right

struct bytes {
	uint8_t *p;
	size_t len;
};

static struct bytes all_of(int fd)
{
	struct bytes b = { .len = (size_t)lseek(fd, 0, SEEK_END) };

	b.p = malloc(b.len);
	ok(io_pread_full(fd, b.p, b.len, 0));
	return b;
}

static size_t record_end(const uint8_t *p)
{
	size_t len = STREAM_RECORD_LEN + get_le64(p + 8);

	return get_le32(p) == STREAM_CHUNK ? len + get_le32(p + STREAM_RECORD_LEN + 4) : len;
}

static uint8_t *nth_record(const struct bytes *b, unsigned n)
{
	size_t at = STREAM_HEADER_LEN;

	while (n--)
		at += record_end(b->p + at);
	return b->p + at;
}

// All checksums of a stream, and the counts and the digest at its end.
static void sign(struct bytes *b)
{
	XXH3_state_t *digest = XXH3_createState();
	uint64_t nr = 0, pages = 0, stored = 0;
	size_t at = STREAM_HEADER_LEN;

	XXH3_64bits_reset(digest);
	put_le64(b->p + 24, XXH3_64bits(b->p, 24));
	XXH3_64bits_update(digest, b->p, STREAM_HEADER_LEN);
	for (; at < b->len; at += record_end(b->p + at)) {
		uint8_t *r = b->p + at, *payload = r + STREAM_RECORD_LEN;

		if (get_le32(r) == STREAM_CHUNK) {
			nr++;
			stored += get_le32(payload + 4);
			for (unsigned w = 0; w < 4; w++)
				pages += (uint64_t)__builtin_popcountll(get_le64(payload + 24 + 8 * w));
			put_le64(payload + 16, XXH3_64bits(payload + STREAM_CHUNK_LEN, get_le32(payload + 4)));
		} else if (get_le32(r) == STREAM_END) {
			put_le64(payload, nr);
			put_le64(payload + 8, pages);
			put_le64(payload + 16, stored);
			put_le64(payload + 24, XXH3_64bits_digest(digest));
		}
		put_le64(r + 16, XXH3_64bits(payload, get_le64(r + 8)));
		put_le64(r + 24, XXH3_64bits(r, 24));
		XXH3_64bits_update(digest, r, STREAM_RECORD_LEN);
	}
	XXH3_freeState(digest);
}

static int open_bytes(const struct bytes *b)
{
	int fd = memfd_create("bytes", MFD_CLOEXEC);

	ok(io_write_full(fd, b->p, b->len));
	lseek(fd, 0, SEEK_SET);
	return fd;
}

static int take_bytes(const struct bytes *b)
{
	int fd = open_bytes(b), ret = take_from(fd, NULL, NULL);

	close(fd);
	return ret;
}

// The records: 0 VM, 1 and 2 chunks of block 0, 3 device state, 4 and 5 chunks of block 1 (the last one short), 6 END.
static void another_version(struct bytes *b) { put_le32(b->p + 8, STREAM_VERSION + 1); }
static void unknown_feature(struct bytes *b) { put_le64(b->p + 16, IMG_FEATURE_PARENT); }
static void unknown_record(struct bytes *b) { put_le32(nth_record(b, 3), 9); }
static void no_such_block(struct bytes *b) { put_le32(nth_record(b, 1) + STREAM_RECORD_LEN, 2); }
static void no_such_chunk(struct bytes *b) { put_le64(nth_record(b, 4) + STREAM_RECORD_LEN + 8, 2); }
static void chunk_twice(struct bytes *b) { put_le64(nth_record(b, 2) + STREAM_RECORD_LEN + 8, 2); }

// Its record's checksum is right; the records behind it cannot be found any more.
static void stored(struct bytes *b, uint32_t len)
{
	uint8_t *r = nth_record(b, 1);

	put_le32(r + STREAM_RECORD_LEN + 4, len);
	put_le64(r + 16, XXH3_64bits(r + STREAM_RECORD_LEN, STREAM_CHUNK_LEN));
	put_le64(r + 24, XXH3_64bits(r, 24));
}

static void stored_0(struct bytes *b) { stored(b, 0); }
static void stored_too_much(struct bytes *b) { stored(b, IMG_CHUNK_SIZE + PAGE_SIZE); }
static void stored_no_pages(struct bytes *b) { stored(b, 4097); }

static void page_too_many(struct bytes *b)
{
	uint8_t *present = nth_record(b, 1) + STREAM_RECORD_LEN + 24;

	put_le64(present, get_le64(present) | 1ULL << (__builtin_ctzll(~get_le64(present))));
}

static void page_beyond(struct bytes *b)
{
	uint8_t *present = nth_record(b, 5) + STREAM_RECORD_LEN + 24;
	uint64_t bits = get_le64(present);

	put_le64(present, (bits & (bits - 1)) | 1ULL << 60);
}

static void remove_record(struct bytes *b, unsigned n)
{
	uint8_t *r = nth_record(b, n);
	size_t len = record_end(r);

	memmove(r, r + len, (size_t)(b->p + b->len - (r + len)));
	b->len -= len;
}

static void no_vm(struct bytes *b) { remove_record(b, 0); }
static void no_device_state(struct bytes *b) { remove_record(b, 3); }

static void two_device_states(struct bytes *b)
{
	size_t len = record_end(nth_record(b, 3)), at = (size_t)(nth_record(b, 3) - b->p);

	b->p = realloc(b->p, b->len + len);
	memmove(b->p + at + len, b->p + at, b->len - at);
	b->len += len;
}

static const struct {
	void (*change)(struct bytes *b);
	int err;
} hostile[] = {
	{ another_version, -EOPNOTSUPP }, { unknown_feature, -EOPNOTSUPP }, { unknown_record, -EBADMSG }, { no_such_block, -EBADMSG },
	{ no_such_chunk, -EBADMSG }, { chunk_twice, -EBADMSG }, { page_too_many, -EBADMSG }, { page_beyond, -EBADMSG }, { no_vm, -EBADMSG },
	{ no_device_state, -EBADMSG }, { two_device_states, -EBADMSG }, { stored_0, -EBADMSG },
	{ stored_too_much, -EBADMSG }, { stored_no_pages, -EBADMSG },
};

#define FIRST_STORED (int)(ARRAY_SIZE(hostile) - 3)

START_TEST(what_cannot_be_is_refused)
{
	int fd = make(false);
	struct bytes b = all_of(fd);

	sign(&b);
	ok(take_bytes(&b));
	hostile[_i].change(&b);
	if (_i < FIRST_STORED)
		sign(&b);
	ck_assert_int_eq(take_bytes(&b), hostile[_i].err);
	free(b.p);
	close(fd);
}
END_TEST

// Each record is right by itself.
START_TEST(missing_and_exchanged_records_are_found)
{
	int fd = make(false);
	struct bytes b = all_of(fd);
	size_t len1 = record_end(nth_record(&b, 1)), len2 = record_end(nth_record(&b, 2));
	uint8_t *r = nth_record(&b, 1), *first = malloc(len1);

	memcpy(first, r, len1);
	memmove(r, r + len1, len2);
	memcpy(r + len2, first, len1);
	ck_assert_int_eq(take_bytes(&b), -EBADMSG);
	remove_record(&b, 2);
	ck_assert_int_eq(take_bytes(&b), -EBADMSG);
	free(first);
	free(b.p);
	close(fd);
}
END_TEST

// A bit that does not change what a frame holds may be otherwise: zstd has some.
static bool refused_or_the_same(const struct bytes *b)
{
	uint8_t *got[2] = { calloc(1, LEN_0), calloc(1, ROUND_UP(LEN_1, MiB)) };
	int fd = open_bytes(b), ret = take_from(fd, NULL, got);
	bool same = !memcmp(got[0], ram[0], LEN_0);

	close(fd);
	free(got[0]);
	free(got[1]);
	return ret == -EBADMSG || (!ret && same);
}

START_TEST(damaged_frames_are_refused)
{
	int fd = make(true);
	struct bytes b = all_of(fd);
	uint8_t *stored = nth_record(&b, 1) + STREAM_RECORD_LEN + STREAM_CHUNK_LEN;
	uint32_t len = get_le32(stored - STREAM_CHUNK_LEN + 4);

	ck_assert_uint_lt(ZSTD_findFrameCompressedSize(stored, len), len);
	stored[len - 1] = 1; // behind the frame
	sign(&b);
	ck_assert_int_eq(take_bytes(&b), -EBADMSG);
	stored[len - 1] = 0;
	for (int round = 0; round < 500; round++) {
		uint32_t at = (uint32_t)random() % len;
		uint8_t was = stored[at];

		stored[at] ^= (uint8_t)(1 << random() % 8);
		sign(&b);
		ck_assert(refused_or_the_same(&b));
		stored[at] = was;
	}
	sign(&b);
	ok(take_bytes(&b));
	free(b.p);
	close(fd);
}
END_TEST

START_TEST(hostile_bytes_do_no_harm)
{
	int fd = make(_i);
	struct bytes b = all_of(fd), bad = { malloc(b.len), b.len };

	for (int round = 0; round < 1000; round++) {
		memcpy(bad.p, b.p, b.len);
		for (long n = random() % 4; n >= 0; n--)
			bad.p[STREAM_HEADER_LEN + STREAM_RECORD_LEN + (uint64_t)random() % (chunks_offset - 64)] = (uint8_t)random();
		sign(&bad);
		take_bytes(&bad);
	}
	free(bad.p);
	free(b.p);
	close(fd);
}
END_TEST

// ---- images/writer.h

static void put_by_writer(int fd, int level)
{
	struct img_writer_opts o = { .stream_fd = fd, .zstd_level = level };
	static uint8_t state[] = "QEVM stream";
	DeviceStateEntry ds = DEVICE_STATE_ENTRY__INIT;
	uint64_t all[4], pages = 0, id;
	VmEntry *vm = vm_of_two_blocks();
	struct img_writer *w;

	memset(all, 0xff, sizeof all);
	ok(img_writer_open(&o, &w));
	ok(img_writer_blocks(w, lens, 2));
	ok(img_writer_vm(w, vm));
	for (uint32_t b = 0; b < 2; b++)
		for (uint64_t c = DIV_ROUND_UP(lens[b], MiB); c--;)
			ok(img_writer_chunk(w, b, c, ram[b] + c * MiB, all, NULL));
	ok(img_writer_end_pages(w));
	for (int b = 0; b < 2; b++)
		for (uint64_t off = 0; off < lens[b]; off += PAGE_SIZE)
			pages += ram[b][off] != 0;
	ck_assert_uint_eq(img_writer_pages(w), pages);
	ck_assert(level ? img_writer_bytes(w) < pages * PAGE_SIZE : img_writer_bytes(w) == pages * PAGE_SIZE);
	ds.stream = (ProtobufCBinaryData){ sizeof state, state };
	ok(img_writer_device_state(w, &ds));
	ok(img_writer_stats(w, &(struct img_times){ 0 }));
	ok(img_writer_commit(w, &id));
	img_writer_free(w);
}

START_TEST(a_writer_makes_a_stream)
{
	int fd = memfd_create("stream", MFD_CLOEXEC);

	put_by_writer(fd, _i);
	lseek(fd, 0, SEEK_SET);
	compare(fd);
	close(fd);
}
END_TEST

START_TEST(a_writer_without_commit_makes_none)
{
	int fd = memfd_create("stream", MFD_CLOEXEC);
	struct img_writer_opts o = { .stream_fd = fd };
	uint64_t all[4];
	struct img_writer *w;

	memset(all, 0xff, sizeof all);
	ok(img_writer_open(&o, &w));
	ok(img_writer_blocks(w, lens, 2));
	ok(img_writer_vm(w, vm_of_two_blocks()));
	ok(img_writer_chunk(w, 0, 0, ram[0], all, NULL));
	ok(img_writer_end_pages(w));
	img_writer_free(w);
	ck_assert_int_eq(take(fd), -ENODATA);
	o.ram_only = true;
	ck_assert_int_eq(img_writer_open(&o, &w), -EINVAL);
	close(fd);
}
END_TEST

START_TEST(a_writer_whose_reader_goes_fails)
{
	struct img_writer_opts o = { .zstd_level = _i };
	struct img_writer *w;
	uint64_t all[4];
	int fds[2], ret;

	memset(all, 0xff, sizeof all);
	ok(pipe2(fds, O_CLOEXEC));
	o.stream_fd = fds[1];
	ok(img_writer_open(&o, &w));
	ok(img_writer_blocks(w, lens, 2));
	ok(img_writer_vm(w, vm_of_two_blocks()));
	close(fds[0]);
	ret = img_writer_chunk(w, 0, 0, ram[0], all, NULL);
	if (!ret)
		ret = img_writer_end_pages(w);
	ck_assert_int_eq(ret, -EPIPE);
	ck_assert_int_eq(img_writer_commit(w, NULL), -EPIPE);
	img_writer_free(w);
	close(fds[1]);
}
END_TEST

// ---- pipes

static bool yes(void)
{
	return true;
}

START_TEST(a_reader_that_goes_is_told)
{
	struct img_stream_out *s;
	int fds[2];

	ok(pipe2(fds, O_CLOEXEC));
	ok(img_stream_out_open(fds[1], 0, NULL, &s));
	close(fds[0]);
	ck_assert_int_eq(img_stream_out_vm(s, vm_of_two_blocks()), -EPIPE);
	ck_assert_int_eq(img_stream_out_commit(s), -EPIPE); // and stays so
	img_stream_out_free(s);
	close(fds[1]);
}
END_TEST

START_TEST(who_waits_can_be_interrupted)
{
	int fds[2], fd = make(false);

	ok(pipe2(fds, O_CLOEXEC));
	ck_assert_int_eq(take_from(fds[0], yes, NULL), -EINTR);
	close(fds[0]);
	close(fds[1]);
	close(fd);
}
END_TEST

// Be it shorter than a header or not; a stream that was cut off there is another thing.
static const struct {
	const char *text;
	int err;
	const char *says;
} no_streams[] = {
	{ "hello\n", -EINVAL, "no stream" },
	{ "CRIUVMSX", -EINVAL, "no stream" },
	{ "-----BEGIN SOMETHING ELSE, LONG ENOUGH-----", -EINVAL, "no stream" },
	{ "", -ENODATA, "too early" },
	{ "CRIU", -ENODATA, "too early" },
	{ STREAM_MAGIC "\1", -ENODATA, "too early" },
};

START_TEST(something_else_is_no_stream)
{
	struct bytes b = { (uint8_t *)no_streams[_i].text, strlen(no_streams[_i].text) };

	ck_assert_int_eq(take_bytes(&b), no_streams[_i].err);
	ck_assert_ptr_nonnull(strstr(log_last_error(), no_streams[_i].says));
}
END_TEST

int main(void)
{
	Suite *s = suite_create("stream");
	TCase *tc = tcase_create("stream");
	SRunner *sr = srunner_create(s);
	int failed;

	tcase_add_checked_fixture(tc, setup, teardown);
	tcase_set_timeout(tc, 60);
	tcase_add_loop_test(tc, what_was_written_is_read, 0, 2);
	tcase_add_loop_test(tc, it_goes_through_a_pipe, 0, 2);
	tcase_add_loop_test(tc, every_flip_is_found, 0, 2);
	tcase_add_loop_test(tc, every_truncation_is_found, 0, 2);
	tcase_add_loop_test(tc, what_cannot_be_is_refused, 0, (int)ARRAY_SIZE(hostile));
	tcase_add_test(tc, missing_and_exchanged_records_are_found);
	tcase_add_test(tc, damaged_frames_are_refused);
	tcase_add_loop_test(tc, hostile_bytes_do_no_harm, 0, 2);
	tcase_add_loop_test(tc, a_writer_makes_a_stream, 0, 2);
	tcase_add_test(tc, a_writer_without_commit_makes_none);
	tcase_add_loop_test(tc, a_writer_whose_reader_goes_fails, 0, 2);
	tcase_add_test(tc, a_reader_that_goes_is_told);
	tcase_add_test(tc, who_waits_can_be_interrupted);
	tcase_add_loop_test(tc, something_else_is_no_stream, 0, (int)ARRAY_SIZE(no_streams));
	suite_add_tcase(s, tc);
	srunner_run_all(sr, CK_ENV);
	failed = srunner_ntests_failed(sr);
	srunner_free(sr);
	return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
