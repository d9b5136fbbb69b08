// SPDX-License-Identifier: GPL-2.0-only
// A directory for each test, and checkpoints to put into it.
#pragma once
#include <check.h>
#include <dirent.h>
#include <fcntl.h>
#include <ftw.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "images/format.h"
#include "images/reader.h"
#include "images/writer.h"
#include "util/io.h"
#include "util/log.h"

#define ok(expr) ck_assert_int_eq(expr, 0)

static const uint64_t all_pages[4] = { ~0ULL, ~0ULL, ~0ULL, ~0ULL };
static const char *const metadata[] = { "inventory.img", "vm.img", "device-state.img", "pagemap-1.img", "stats-dump.img" };
static char base[64], tmp[80], dir[PATH_MAX], parent_dir[PATH_MAX];

static inline int remove_one(const char *path, const struct stat *st, int type, struct FTW *ftw)
{
	(void)st, (void)type, (void)ftw;
	return remove(path);
}

// Around all tests of a case, in the parent: goes also when a test dies.
static inline void make_base(const char *place)
{
	snprintf(base, sizeof base, "%s/test_images.XXXXXX", place);
	ck_assert_ptr_nonnull(mkdtemp(base));
}

static inline void remove_base(void)
{
	nftw(base, remove_one, 16, FTW_DEPTH | FTW_PHYS);
}

// A fresh directory for each test.
static inline void setup(void)
{
	// The messages are expected; VERBOSE=1 shows them.
	log_init(getenv("VERBOSE") ? 2 : open("/dev/null", O_WRONLY | O_CLOEXEC), LOG_WARN, NULL, false);
	snprintf(tmp, sizeof tmp, "%s/XXXXXX", base);
	ck_assert_ptr_nonnull(mkdtemp(tmp));
	snprintf(dir, sizeof dir, "%s/ckpt", tmp);
	srandom(1);
}

static inline const char *in_dir(const char *name)
{
	static char path[PATH_MAX + 64];

	snprintf(path, sizeof path, "%s/%s", dir, name);
	return path;
}

static inline int nr_entries(const char *path)
{
	struct dirent **names = NULL;
	// cppcheck-suppress nullPointer ; no filter and no order are allowed
	int n = scandir(path, &names, NULL, NULL);

	for (int i = 0; i < n; i++)
		free(names[i]);
	free(names);
	return n - 2;
}

// ---- a VM to write

struct ram {
	uint64_t len;
	uint8_t *data;
};

static inline void fill_random(uint8_t *p, size_t len)
{
	for (size_t i = 0; i < len; i += 4)
		*(uint32_t *)(p + i) = (uint32_t)random() | 1;
}

static inline struct ram ram_new(uint64_t len)
{
	return (struct ram){ len, calloc(1, len) };
}

static inline struct img_writer *writer_open(const char *place, const struct img_dir *parent, int zstd_level)
{
	struct img_writer *w;

	ok(img_writer_open(&(struct img_writer_opts){ .dir = place, .parent = parent, .zstd_level = zstd_level }, &w));
	return w;
}

static inline int give_blocks(struct img_writer *w, const struct ram *ram, uint32_t nr)
{
	uint64_t lens[4];

	for (uint32_t i = 0; i < nr; i++)
		lens[i] = ram[i].len;
	return img_writer_blocks(w, lens, nr);
}

// As a whole, last chunk first.
static inline int write_pages(struct img_writer *w, const struct ram *ram, uint32_t nr)
{
	int ret = give_blocks(w, ram, nr);

	for (uint32_t i = nr; !ret && i--;)
		for (uint64_t c = DIV_ROUND_UP(ram[i].len, MiB); !ret && c--;)
			ret = img_writer_chunk(w, i, c, ram[i].data + c * MiB, all_pages, NULL);
	return ret ? ret : img_writer_end_pages(w);
}

static inline void write_meta(struct img_writer *w, const struct ram *ram, size_t nr, bool ram_only)
{
	static char *argv[] = { "qemu-system-x86_64", "-m", "4G", "-name", "a\033[31m\xff", "\xc2\x9b" };
	static uint8_t stream[] = "QEVM stream", rom[2 * PAGE_SIZE] = { 1 };
	static char names[4][8] = { "pc.ram", "m1", "m2", "m3" };
	VmBlockEntry blocks[4], *block_ptrs[4];
	SmallRunEntry run = SMALL_RUN_ENTRY__INIT, *runs[] = { &run };
	SmallBlockEntry small = SMALL_BLOCK_ENTRY__INIT, *smalls[] = { &small };
	DeviceStateEntry ds = DEVICE_STATE_ENTRY__INIT;
	VmEntry vm = VM_ENTRY__INIT;

	for (size_t i = 0; i < nr; i++) {
		vm_block_entry__init(block_ptrs[i] = &blocks[i]);
		blocks[i].name = names[i];
		blocks[i].len = ram[i].len;
		blocks[i].page_size = PAGE_SIZE;
	}
	vm.qemu_version = "7.2.22";
	vm.machine = "pc-i440fx-7.2";
	vm.qemu_path = "/usr/bin/qemu-system-x86_64";
	vm.cwd = "/";
	vm.run_state = "running";
	vm.n_argv = ARRAY_SIZE(argv);
	vm.argv = argv;
	vm.n_blocks = nr;
	vm.blocks = block_ptrs;
	ok(img_writer_vm(w, &vm));

	run.off = PAGE_SIZE;
	run.data = (ProtobufCBinaryData){ sizeof rom, rom };
	small.name = "pc.bios";
	small.len = 4 * PAGE_SIZE;
	small.n_runs = 1;
	small.runs = runs;
	ds.stream = (ProtobufCBinaryData){ sizeof stream, stream };
	ds.n_blocks = 1;
	ds.blocks = smalls;
	if (!ram_only)
		ok(img_writer_device_state(w, &ds));
	ok(img_writer_stats(w, &(struct img_times){ 1, 2, 3, UINT64_MAX }));
}

static inline void write_checkpoint(const struct ram *ram, size_t nr, int zstd_level)
{
	struct img_writer *w = writer_open(dir, NULL, zstd_level);

	ok(write_pages(w, ram, (uint32_t)nr));
	write_meta(w, ram, nr, false);
	ok(img_writer_commit(w, NULL));
	img_writer_free(w);
}

// Twelve single pages in three chunks, of a block of four chunks with a short last one: some 500 bytes of pagemap.
#define SMALL_LEN (4 * MiB - 4 * PAGE_SIZE)

static inline struct ram small_ram(void)
{
	struct ram r = ram_new(SMALL_LEN);

	for (uint64_t page = 0; page < 700; page += 60)
		r.data[page * PAGE_SIZE] = 1;
	return r;
}

// The same RAM as an increment: 700 pages as in the parent, but for one in the second chunk; the rest zero.
static inline void write_small_increment(int zstd_level)
{
	struct ram r = small_ram();
	struct img_dir *parent;
	struct img_writer *w;

	write_checkpoint(&r, 1, zstd_level);
	ok(rename(dir, strcat(strcpy(parent_dir, tmp), "/parent")));
	ok(img_dir_open(parent_dir, &parent));
	w = writer_open(dir, parent, zstd_level);
	ok(give_blocks(w, &r, 1));
	for (uint64_t c = 0; c < 3; c++) {
		uint64_t as_parent[4] = { ~0ULL, c == 1 ? ~(1ULL << 44) : ~0ULL, ~0ULL, c == 2 ? 0 : ~0ULL };

		ok(img_writer_chunk(w, 0, c, r.data + c * MiB, all_pages, as_parent));
	}
	ok(img_writer_end_pages(w));
	write_meta(w, &r, 1, false);
	ok(img_writer_commit(w, NULL));
	img_writer_free(w);
	img_dir_close(parent);
	free(r.data);
}

enum small { SMALL_RAW, SMALL_ZSTD, SMALL_INCREMENT, SMALL_ZSTD_INCREMENT, SMALL_KINDS };

static inline void write_small(enum small kind)
{
	struct ram r = small_ram();

	if (kind >= SMALL_INCREMENT)
		write_small_increment(kind == SMALL_ZSTD_INCREMENT);
	else
		write_checkpoint(&r, 1, kind == SMALL_ZSTD);
	free(r.data);
}

static inline void write_small_checkpoint(void)
{
	write_small(SMALL_RAW);
}

static inline int open_status(void)
{
	struct img_dir *d;
	int ret = img_dir_open(dir, &d);

	if (!ret)
		img_dir_close(d);
	return ret;
}

static inline void put_file(const char *name, const void *buf, size_t len)
{
	int fd = open(in_dir(name), O_WRONLY | O_CREAT | O_TRUNC, 0600);

	ck_assert_int_ge(fd, 0);
	ok(io_write_full(fd, buf, len));
	ok(close(fd));
}

// Runs the one case of a program: its exit status.
static inline int run_case(const char *name, TCase *tc, void (*make)(void))
{
	Suite *s = suite_create(name);
	SRunner *sr = srunner_create(s);
	int failed;

	tcase_add_unchecked_fixture(tc, make, remove_base);
	tcase_add_checked_fixture(tc, setup, NULL);
	tcase_set_timeout(tc, 120);
	suite_add_tcase(s, tc);
	srunner_run_all(sr, CK_ENV);
	failed = srunner_ntests_failed(sr);
	srunner_free(sr);
	return failed ? 1 : 0;
}
