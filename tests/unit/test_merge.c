// SPDX-License-Identifier: GPL-2.0-only
// A chain of checkpoints becomes one that has the same pages; and verify finds what is wrong with a chain.
#include <check.h>
#include <errno.h>
#include <fcntl.h>
#include <ftw.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

#include "criu-vm/merge.h"
#include "criu-vm/verify.h"
#include "images/format.h"
#include "images/reader.h"
#include "images/writer.h"
#include "util/bitmap.h"
#include "util/io.h"
#include "util/log.h"

#define ok(expr) ck_assert_int_eq(expr, 0)

// Two blocks, the second ends within a chunk.
#define NR_CHUNKS 7
static const uint64_t lens[] = { 4 * MiB, 2 * MiB + 8 * PAGE_SIZE };
static char base[40], dir[48]; // of all tests, in memory, since all is synced; of one
static uint8_t *ram[2];

static const char *path(const char *name)
{
	static char paths[4][80];
	static unsigned next;
	char *p = paths[next++ % 4];

	snprintf(p, sizeof paths[0], "%s/%s", dir, name);
	return p;
}

static int remove_one(const char *name, const struct stat *st, int type, struct FTW *ftw)
{
	(void)st, (void)type, (void)ftw;
	return remove(name);
}

static void make_base(void)
{
	snprintf(base, sizeof base, "%s/test_merge.XXXXXX", access("/dev/shm", W_OK) ? "/tmp" : "/dev/shm");
	ck_assert_ptr_nonnull(mkdtemp(base));
}

// Goes also when a test dies.
static void remove_base(void)
{
	nftw(base, remove_one, 16, FTW_DEPTH | FTW_PHYS);
}

static void setup(void)
{
	log_init(getenv("VERBOSE") ? 2 : -1, LOG_WARN, NULL, false); // the messages are expected
	snprintf(dir, sizeof dir, "%s/XXXXXX", base);
	ck_assert_ptr_nonnull(mkdtemp(dir));
	srandom(1);
	for (int b = 0; b < 2; b++)
		ram[b] = calloc(1, ROUND_UP(lens[b], MiB));
}

static void teardown(void)
{
	nftw(dir, remove_one, 16, FTW_DEPTH | FTW_PHYS);
	free(ram[0]);
	free(ram[1]);
}

static void scribble(uint8_t *page)
{
	unsigned seed = (unsigned)random();

	for (size_t i = 0; i < PAGE_SIZE; i++)
		page[i] = (uint8_t)((i * seed) >> 5 | 1);
}

static void put_meta(struct img_writer *w, bool ram_only)
{
	static char *argv[] = { "qemu-system-x86_64", "-m", "4M", "-nodefaults" };
	static uint8_t stream[] = "not what QEMU saves";
	VmBlockEntry b0 = VM_BLOCK_ENTRY__INIT, b1 = VM_BLOCK_ENTRY__INIT, *blocks[] = { &b0, &b1 };
	DeviceStateEntry ds = DEVICE_STATE_ENTRY__INIT;
	VmEntry vm = VM_ENTRY__INIT;

	b0.name = "pc.ram";
	b1.name = "m1";
	b0.len = lens[0];
	b1.len = lens[1];
	b0.page_size = b1.page_size = PAGE_SIZE;
	vm.qemu_version = "7.2.22";
	vm.machine = "pc-i440fx-7.2";
	vm.qemu_path = "/usr/bin/qemu-system-x86_64";
	vm.cwd = "/";
	vm.run_state = "running";
	vm.n_argv = ARRAY_SIZE(argv);
	vm.argv = argv;
	vm.n_blocks = 2;
	vm.blocks = blocks;
	ok(img_writer_vm(w, &vm));
	ds.stream = (ProtobufCBinaryData){ sizeof stream, stream };
	if (!ram_only)
		ok(img_writer_device_state(w, &ds));
}

// A checkpoint of ram. changed: the pages that are not as in the parent, a bit each, of all chunks; NULL: it has none.
static void put(const char *name, const char *parent, uint64_t (*changed)[4], int zstd, bool ram_only)
{
	struct img_writer_opts o = { .dir = path(name), .zstd_level = zstd, .ram_only = ram_only };
	struct img_dir *p = NULL;
	struct img_writer *w;
	uint64_t all[4], as_parent[4];

	memset(all, 0xff, sizeof all);
	if (parent)
		ok(img_dir_open(path(parent), &p));
	o.parent = p;
	ok(img_writer_open(&o, &w));
	ok(img_writer_blocks(w, lens, 2));
	for (uint64_t c = 0; c < NR_CHUNKS; c++) {
		uint32_t block = c >= 4;
		uint64_t in_block = block ? c - 4 : c;

		for (int i = 0; i < 4; i++)
			as_parent[i] = p ? ~changed[c][i] : 0;
		ok(img_writer_chunk(w, block, in_block, ram[block] + in_block * MiB, all, p ? as_parent : NULL));
	}
	ok(img_writer_end_pages(w));
	put_meta(w, ram_only);
	ok(img_writer_commit(w, NULL));
	img_writer_free(w);
	img_dir_close(p);
}

static void change(uint64_t (*changed)[4], unsigned percent)
{
	memset(changed, 0, NR_CHUNKS * sizeof *changed);
	for (uint64_t c = 0; c < NR_CHUNKS; c++) {
		uint32_t block = c >= 4;
		uint64_t off = (block ? c - 4 : c) * MiB;

		// Chunk 1 is never written again, chunk 2 as a whole, chunk 3 has pages that become zero, and no others.
		for (size_t i = 0; c != 1 && i < 256 && off + i * PAGE_SIZE < lens[block]; i++) {
			if (c != 2 && (unsigned)random() % 100 >= percent)
				continue;
			bitmap_set(changed[c], i);
			if (c != 3 && random() % 5)
				scribble(ram[block] + off + i * PAGE_SIZE);
			else
				memset(ram[block] + off + i * PAGE_SIZE, 0, PAGE_SIZE);
		}
	}
}

static void compare(const char *name)
{
	char *scratch = aligned_alloc(PAGE_SIZE, IMG_STORED_MAX), *got = malloc(MiB);
	struct img_unpacker *u;
	struct img_dir *d;

	ok(img_dir_open(path(name), &d));
	ok(img_unpacker_new(&u));
	for (uint32_t b = 0; b < 2; b++)
		for (uint64_t c = 0; c < img_dir_block_chunks(d, b); c++) {
			uint64_t want[4] = { 0 }, len = lens[b] - c * MiB < MiB ? lens[b] - c * MiB : MiB;

			bitmap_set_range(want, 0, len / PAGE_SIZE);
			ok(img_dir_read(d, u, b, c, want, scratch, got));
			ok(memcmp(got, ram[b] + c * MiB, len));
		}
	img_unpacker_free(u);
	img_dir_close(d);
	free(scratch);
	free(got);
}

// Three of them; zstd: a bit for each that is compressed.
static void make_chain(int zstd, bool ram_only)
{
	uint64_t changed[NR_CHUNKS][4];

	for (uint64_t page = 0; page < lens[0] / PAGE_SIZE; page++)
		if (random() % 4)
			scribble(ram[0] + page * PAGE_SIZE);
	scribble(ram[1]);
	put("a", NULL, NULL, zstd & 1 ? 1 : 0, true);
	change(changed, 30);
	put("b", "a", changed, zstd & 2 ? 1 : 0, true);
	change(changed, 10);
	put("c", "b", changed, zstd & 4 ? 1 : 0, ram_only);
}

START_TEST(a_chain_becomes_one)
{
	struct merge_result m;
	struct img_dir *d;
	struct stat st;

	make_chain(_i, false);
	compare("c");
	ok(merge_run(path("c"), path("one"), &m));
	ck_assert_uint_eq(m.layers, 3);
	nftw(path("a"), remove_one, 16, FTW_DEPTH | FTW_PHYS);
	nftw(path("b"), remove_one, 16, FTW_DEPTH | FTW_PHYS);
	compare("one");
	ok(img_dir_open(path("one"), &d));
	ck_assert_ptr_null(img_dir_parent(d));
	ck_assert(!img_dir_ram_only(d));
	ck_assert_ptr_nonnull(img_dir_device_state(d));
	img_dir_close(d);
	ok(stat(path("one/pages-1.img"), &st));
	ck_assert_uint_eq((uint64_t)st.st_size, m.bytes);
	ck_assert_uint_le(m.bytes, m.pages * PAGE_SIZE);
}
END_TEST

START_TEST(pre_dumps_become_one)
{
	struct merge_result m;
	struct img_dir *d;

	make_chain(0, true);
	ok(merge_run(path("c"), path("one"), &m));
	compare("one");
	ok(img_dir_open(path("one"), &d));
	ck_assert(img_dir_ram_only(d));
	img_dir_close(d);
}
END_TEST

START_TEST(one_can_be_merged)
{
	struct merge_result m;

	make_chain(0, true);
	ok(merge_run(path("a"), path("one"), &m));
	ck_assert_uint_eq(m.layers, 1);
	ck_assert_int_eq(merge_run(path("a"), path("one"), &m), -ENOTEMPTY);
	ck_assert_int_eq(merge_run(path("gone"), path("two"), &m), -ENOENT);
	ck_assert_int_eq(access(path("two"), F_OK), -1);
}
END_TEST

static void flip(const char *file, uint64_t at, int bit)
{
	int fd = open(file, O_RDWR);
	uint8_t byte;

	ok(io_pread_full(fd, &byte, 1, at));
	byte ^= (uint8_t)(1 << bit);
	ok(io_pwrite_full(fd, &byte, 1, at));
	close(fd);
}

static unsigned problems(const char *name, bool whole)
{
	struct verify v;
	unsigned nr;

	ok(verify_run(path(name), &v));
	ck_assert_int_eq(v.whole, whole);
	ck_assert(!v.restorable); // the device state is none
	nr = v.nr_problems;
	verify_fini(&v);
	return nr;
}

// Damage is found by verify, and not carried on. That which no page of the newest needs is found by verify only.
START_TEST(damage_is_found)
{
	static const char *const layers[] = { "a/pages-1.img", "b/pages-1.img", "c/pages-1.img" };
	struct merge_result m;

	make_chain(_i ? 7 : 0, true);
	ok(problems("c", true));
	for (int round = 0; round < 60; round++) {
		const char *file = layers[round % 3];
		struct stat st;
		uint64_t at;
		int bit = (int)random() % 8;

		ok(stat(path(file), &st));
		at = (uint64_t)random() % (uint64_t)st.st_size;
		flip(path(file), at, bit);
		ck_assert_uint_eq(problems("c", false), 1);
		if (round % 3 == 2) {
			ck_assert_int_eq(merge_run(path("c"), path("one"), &m), -EBADMSG);
			ck_assert_int_eq(access(path("one"), F_OK), -1);
		}
		flip(path(file), at, bit);
	}
	ok(problems("c", true));
}
END_TEST

START_TEST(all_damage_is_told)
{
	struct stat st;

	make_chain(0, true);
	ok(stat(path("a/pages-1.img"), &st));
	flip(path("a/pages-1.img"), 0, 0);
	flip(path("a/pages-1.img"), (uint64_t)st.st_size - 1, 7);
	flip(path("c/pages-1.img"), 4096, 3);
	ck_assert_uint_eq(problems("c", false), 3);
}
END_TEST

START_TEST(a_device_state_that_is_none_is_found)
{
	struct verify v;

	make_chain(0, false);
	ok(verify_run(path("c"), &v));
	ck_assert(!v.whole && !v.restorable);
	ck_assert_uint_ge(v.nr_problems, 1);
	ck_assert_uint_eq(v.nr_layers, 3);
	verify_fini(&v);
}
END_TEST

START_TEST(what_cannot_be_opened_is_told)
{
	struct verify v;

	make_chain(0, false);
	flip(path("b/vm.img"), 20, 1);
	ok(verify_run(path("c"), &v));
	ck_assert(!v.whole && !v.images);
	ck_assert_uint_eq(v.nr_problems, 1);
	verify_fini(&v);
}
END_TEST

int main(void)
{
	Suite *s = suite_create("merge");
	TCase *tc = tcase_create("merge");
	SRunner *sr = srunner_create(s);
	int failed;

	tcase_add_unchecked_fixture(tc, make_base, remove_base);
	tcase_add_checked_fixture(tc, setup, teardown);
	tcase_set_timeout(tc, 60);
	tcase_add_loop_test(tc, a_chain_becomes_one, 0, 8);
	tcase_add_test(tc, pre_dumps_become_one);
	tcase_add_test(tc, one_can_be_merged);
	tcase_add_loop_test(tc, damage_is_found, 0, 2);
	tcase_add_test(tc, all_damage_is_told);
	tcase_add_test(tc, a_device_state_that_is_none_is_found);
	tcase_add_test(tc, what_cannot_be_opened_is_told);
	suite_add_tcase(s, tc);
	srunner_run_all(sr, CK_ENV);
	failed = srunner_ntests_failed(sr);
	srunner_free(sr);
	return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
