// SPDX-License-Identifier: GPL-2.0-only
// Checkpoints that are damaged, hostile or of somebody else are refused, and do no harm.
#include <errno.h>
#include <stdio.h>
#include <sys/file.h>
#include <zstd.h>

#include "images/criu.pb-c.h"
#include "images/file_int.h"
#include "images/inventory_int.h"
#include "images/show.h"
#include "tests/unit/images_fixture.h"
#include "util/bitmap.h"
#include "util/cleanup.h"

// Thousands of small synced files.
static void base_in_memory(void)
{
	make_base(access("/dev/shm", W_OK) ? "/tmp" : "/dev/shm");
}

static void show_quietly(const char *name)
{
	FILE *null = fopen("/dev/null", "w");

	img_show(in_dir(name), false, null);
	img_show(in_dir(name), true, null);
	fclose(null);
}

// Loops are over all metadata files of all kinds of sets.
#define NR_FILES ((int)ARRAY_SIZE(metadata))

START_TEST(every_truncation_is_refused)
{
	const char *name = metadata[_i % NR_FILES];
	char *buf;
	size_t len;

	write_small((enum small)(_i / NR_FILES));
	ok(io_read_file(in_dir(name), MiB, &buf, &len));
	for (size_t n = 0; n < len; n++) {
		put_file(name, buf, n);
		ck_assert_int_eq(open_status(), -EBADMSG);
		show_quietly(name);
	}
	put_file(name, buf, len + 1);
	ck_assert_int_eq(open_status(), -EBADMSG);
	put_file(name, buf, len);
	ok(open_status());
	ok(unlink(in_dir(name)));
	ck_assert_int_eq(open_status(), -ENOENT);
	free(buf);
}
END_TEST

START_TEST(every_flipped_bit_is_found)
{
	const char *name = metadata[_i % NR_FILES];
	char *buf;
	size_t len;

	write_small((enum small)(_i / NR_FILES));
	ok(io_read_file(in_dir(name), MiB, &buf, &len));
	for (size_t bit = 0; bit < len * 8; bit += len < 1000 ? 1 : 61) {
		int ret;

		buf[bit / 8] ^= (char)(1 << bit % 8);
		put_file(name, buf, len);
		ret = open_status();
		ck_assert_msg(ret == -EBADMSG || ret == -EINVAL, "%s, bit %zu: %d", name, bit, ret);
		show_quietly(name);
		buf[bit / 8] ^= (char)(1 << bit % 8);
	}
	free(buf);
}
END_TEST

// Whether all that is stored of the first block is what it should be.
static int read_status(void)
{
	static uint8_t stored[IMG_STORED_MAX] __attribute__((aligned(4096)));
	static char got[MiB];
	struct img_unpacker *u;
	struct img_dir *d;
	int ret = img_dir_open(dir, &d);

	if (ret)
		return ret;
	ok(img_unpacker_new(&u));
	for (uint64_t c = 0; !ret && c < img_dir_block_chunks(d, 0); c++) {
		uint64_t want[4];

		img_dir_pages(d, 0, c, want);
		ret = img_dir_read(d, u, 0, c, want, stored, got);
	}
	img_unpacker_free(u);
	img_dir_close(d);
	return ret;
}

// Also in the pages that an increment takes from its parent.
START_TEST(every_flipped_bit_of_the_pages_is_found)
{
	char path[PATH_MAX + 16], *buf;
	size_t len;
	int fd;

	write_small((enum small)_i);
	ok(read_status());
	snprintf(path, sizeof path, "%s/pages-1.img", _i >= SMALL_INCREMENT ? parent_dir : dir);
	ok(io_read_file(path, MiB, &buf, &len));
	fd = open(path, O_WRONLY);
	for (size_t bit = 0; bit < len * 8; bit += 101) {
		char bad = (char)(buf[bit / 8] ^ 1 << bit % 8);

		ok(io_pwrite_full(fd, &bad, 1, bit / 8));
		ck_assert_int_eq(read_status(), -EBADMSG);
		ok(io_pwrite_full(fd, &buf[bit / 8], 1, bit / 8));
	}
	ok(read_status());
	close(fd);
	free(buf);
}
END_TEST

START_TEST(pages_of_another_length_are_refused)
{
	write_small_checkpoint();
	ok(truncate(in_dir("pages-1.img"), 11 * PAGE_SIZE));
	ck_assert_int_eq(open_status(), -EBADMSG);
	ok(truncate(in_dir("pages-1.img"), 13 * PAGE_SIZE));
	ck_assert_int_eq(open_status(), -EBADMSG);
	ok(truncate(in_dir("pages-1.img"), 12 * PAGE_SIZE));
	ok(open_status());
}
END_TEST

// Makes the inventory agree with a file that was changed: from here on only what the file says can be wrong.
static void change_inventory(const char *name, const void *buf, size_t len, uint64_t features)
{
	int fd = open(dir, O_RDONLY | O_DIRECTORY);
	InventoryEntry *inv;

	ok(img_inventory_get(fd, dir, &inv));
	for (size_t i = 0; i < inv->n_vm_files; i++)
		if (!strcmp(inv->vm_files[i]->name, name)) {
			inv->vm_files[i]->len = len;
			inv->vm_files[i]->xxh3 = XXH3_64bits(buf, len);
		}
	ok(unlink(in_dir("inventory.img")));
	inv->vm_features |= features;
	inv->has_vm_features = inv->vm_features != 0;
	ok(img_inventory_put(fd, dir, inv));
	inventory_entry__free_unpacked(inv, NULL);
	close(fd);
}

static void sign(const char *name, const void *buf, size_t len)
{
	change_inventory(name, buf, len, 0);
	put_file(name, buf, len);
}

static void set_features(uint64_t features)
{
	change_inventory("", "", 0, features);
}

START_TEST(hostile_bytes_do_no_harm)
{
	const char *name = metadata[_i % NR_FILES];
	char *buf, *bad;
	struct stat st;
	size_t len;

	// An inventory that is changed at random is never signed right.
	if (_i % NR_FILES == 0)
		return;
	write_small((enum small)(_i / NR_FILES));
	ok(stat(in_dir("pages-1.img"), &st));
	ok(io_read_file(in_dir(name), MiB, &buf, &len));
	bad = malloc(len);
	for (int round = 0; round < 1000; round++) {
		struct img_dir *d;

		memcpy(bad, buf, len);
		for (long n = random() % 4; n >= 0; n--)
			bad[(size_t)random() % (len < 400 ? len : 400)] = (char)(random() % 3 ? random() : random() % 2 ? 0xff : 0);
		sign(name, bad, len);
		show_quietly(name);
		if (img_dir_open(dir, &d))
			continue;
		// Taken for good: then its pages are where they say.
		for (uint64_t c = 0; c < img_dir_block_chunks(d, 0); c++)
			ck_assert_uint_le(img_dir_chunk(d, 0, c)->off + img_dir_chunk(d, 0, c)->stored, (uint64_t)st.st_size);
		img_dir_close(d);
		read_status();
	}
	free(bad);
	free(buf);
}
END_TEST

// at, of the last one of a chunk: where it is stored, in pages; -1: behind all before. stored: 0: all its pages.
struct entry {
	uint64_t vaddr;
	uint32_t nr, flags;
	bool last;
	int at;
	uint32_t stored;
};

// A pagemap of these entries for the small block, 12 pages in all unless the case is about that.
static int status_of_pagemap(uint32_t id, const struct entry *entries, size_t nr)
{
	PagemapHead head = PAGEMAP_HEAD__INIT;
	int fd = open(dir, O_RDONLY | O_DIRECTORY);
	uint64_t end = 0, pages = 0;
	struct img_out o;
	char *buf;
	size_t len;

	head.pages_id = id;
	ok(unlink(in_dir("pagemap-1.img")));
	ok(img_out_open(&o, fd, dir, "pagemap-1.img", IMG_MAGIC_PAGEMAP));
	ok(img_out_put(&o, &head.base));
	for (size_t i = 0; i < nr; i++) {
		PagemapEntry e = PAGEMAP_ENTRY__INIT;

		e.vaddr = entries[i].vaddr;
		e.nr_pages = entries[i].nr;
		e.has_flags = true;
		e.flags = entries[i].flags;
		e.has_in_parent = e.in_parent = e.flags & IMG_PE_PARENT;
		e.has_vm_checksum = e.has_vm_offset = e.has_vm_stored = entries[i].last;
		pages += e.in_parent ? 0 : e.nr_pages;
		e.vm_offset = (entries[i].at < 0 ? end : (uint64_t)entries[i].at) * PAGE_SIZE;
		e.vm_stored = entries[i].stored ? entries[i].stored : (uint32_t)(pages * PAGE_SIZE);
		if (entries[i].last) {
			end += pages;
			pages = 0;
		}
		ok(img_out_put(&o, &e.base));
	}
	ok(img_out_close(&o));
	img_out_fini(&o);
	close(fd);
	ok(io_read_file(in_dir("pagemap-1.img"), MiB, &buf, &len));
	sign("pagemap-1.img", buf, len);
	free(buf);
	return open_status();
}

#define PAGEMAP(...) \
	({ \
		const struct entry entries_[] = { __VA_ARGS__ }; \
		status_of_pagemap(1, entries_, ARRAY_SIZE(entries_)); \
	})

START_TEST(pagemap_rules)
{
	const uint32_t p = IMG_PE_PRESENT;

	write_small_checkpoint();
	ok(PAGEMAP({ 0, 4, p, false, -1, 0 }, { 8 * PAGE_SIZE, 4, p, true, -1, 0 }, { 3 * MiB, 4, p, true, -1, 0 }));
	ok(PAGEMAP({ SMALL_LEN - 12 * PAGE_SIZE, 12, p, true, -1, 0 }));
	ck_assert_int_eq(status_of_pagemap(2, (struct entry[]){ { 0, 12, p, true, -1, 0 } }, 1), -EBADMSG);
	ck_assert_int_eq(PAGEMAP({ 0, 11, p, true, -1, 0 }), -EBADMSG);					// pages too few
	ck_assert_int_eq(PAGEMAP({ 0, 13, p, true, -1, 0 }), -EBADMSG);					// too many
	ck_assert_int_eq(PAGEMAP({ 0, 12, p, false, -1, 0 }), -EBADMSG);					// no checksum
	ck_assert_int_eq(PAGEMAP({ 0, 6, p, false, -1, 0 }, { MiB, 6, p, true, -1, 0 }), -EBADMSG);
	ck_assert_int_eq(PAGEMAP({ 0, 6, p, true, -1, 0 }, { 9 * PAGE_SIZE, 6, p, true, -1, 0 }), -EBADMSG);		// behind its checksum
	ck_assert_int_eq(PAGEMAP({ 0, 6, p, false, -1, 0 }, { 5 * PAGE_SIZE, 6, p, true, -1, 0 }), -EBADMSG);		// overlap
	ck_assert_int_eq(PAGEMAP({ MiB, 6, p, true, -1, 0 }, { 0, 6, p, true, -1, 0 }), -EBADMSG);			// order
	ck_assert_int_eq(PAGEMAP({ MiB - 4 * PAGE_SIZE, 12, p, true, -1, 0 }), -EBADMSG);			// two chunks
	ck_assert_int_eq(PAGEMAP({ SMALL_LEN, 12, p, true, -1, 0 }), -EBADMSG);				// beyond the block
	ck_assert_int_eq(PAGEMAP({ SMALL_LEN - 11 * PAGE_SIZE, 12, p, true, -1, 0 }), -EBADMSG);
	ck_assert_int_eq(PAGEMAP({ -PAGE_SIZE, 12, p, true, -1, 0 }), -EBADMSG);
	ck_assert_int_eq(PAGEMAP({ 0, 12, p, true, -1, 0 }, { MiB + PAGE_SIZE, 0, p, true, -1, 0 }), -EBADMSG);			// nothing
	ck_assert_int_eq(PAGEMAP({ 0, UINT32_MAX, p, true, -1, 0 }), -EBADMSG);
	ck_assert_int_eq(PAGEMAP({ 512, 12, p, true, -1, 0 }), -EBADMSG);					// no page's offset
	ck_assert_int_eq(PAGEMAP({ 0, 12, p | 1, true, -1, 0 }), -EBADMSG);					// both
	ck_assert_int_eq(PAGEMAP({ 0, 12, p, true, -1, 0 }, { MiB, 4, IMG_PE_PARENT, false, -1, 0 }), -EBADMSG);	// no parent
}
END_TEST

START_TEST(extent_rules)
{
	const uint32_t p = IMG_PE_PRESENT, n = PAGE_SIZE;

	write_small_checkpoint();
	ok(PAGEMAP({ 0, 4, p, true, 8, 0 }, { MiB, 8, p, true, 0, 0 }));				// any order
	ck_assert_int_eq(PAGEMAP({ 0, 4, p, true, 7, 0 }, { MiB, 8, p, true, 0, 0 }), -EBADMSG);	// overlap
	ck_assert_int_eq(PAGEMAP({ 0, 4, p, true, 9, 0 }, { MiB, 8, p, true, 0, 0 }), -EBADMSG);	// beyond the end
	ck_assert_int_eq(PAGEMAP({ 0, 4, p, true, 1 << 30, 0 }, { MiB, 8, p, true, 0, 0 }), -EBADMSG);
	ck_assert_int_eq(PAGEMAP({ 0, 4, p, true, 8, 3 * n }, { MiB, 8, p, true, 0, 0 }), -EBADMSG);	// a hole
	ck_assert_int_eq(PAGEMAP({ 0, 4, p, true, 8, 3 * n }, { MiB, 8, p, true, 0, 9 * n }), -EBADMSG);
	ck_assert_int_eq(PAGEMAP({ 0, 12, p, true, 0, 12 * n - 1 }), -EBADMSG);
	ck_assert_int_eq(PAGEMAP({ 0, 6, p, true, 0, 0 }, { 6 * n, 6, p, true, 0, 12 * n }), -EBADMSG);	// two for one chunk
	// In a compressed set less may be stored, but never more.
	set_features(IMG_FEATURE_ZSTD);
	ok(PAGEMAP({ 0, 100, p, true, 4, 8 * n }, { MiB, 4, p, true, 0, 0 }));
	ck_assert_int_eq(PAGEMAP({ 0, 100, p, true, 4, 8 * n + 512 }, { MiB, 4, p, true, 0, 0 }), -EBADMSG);
	ck_assert_int_eq(PAGEMAP({ 0, 7, p, true, 4, 8 * n }, { MiB, 4, p, true, 0, 0 }), -EBADMSG);
}
END_TEST


// The same for a file of one message, changed in memory by whoever calls this.
static int status_of_message(const char *name, uint32_t magic, const ProtobufCMessage *m)
{
	int fd = open(dir, O_RDONLY | O_DIRECTORY);
	struct img_out o;
	char *buf;
	size_t len;

	ok(unlink(in_dir(name)));
	ok(img_out_open(&o, fd, dir, name, magic));
	ok(img_out_put(&o, m));
	ok(img_out_close(&o));
	img_out_fini(&o);
	close(fd);
	ok(io_read_file(in_dir(name), MiB, &buf, &len));
	sign(name, buf, len);
	free(buf);
	return open_status();
}

#define WITH(entry, field, value, name, magic) \
	({ \
		typeof((entry)->field) old_ = (entry)->field; \
		(entry)->field = value; \
		ck_assert_int_eq(status_of_message(name, magic, &top->base), -EBADMSG); \
		(entry)->field = old_; \
	})

START_TEST(nothing_follows_the_only_entry)
{
	FILE *null = fopen("/dev/null", "w");
	char *buf, *bigger;
	size_t len;

	write_small_checkpoint();
	ok(io_read_file(in_dir("vm.img"), MiB, &buf, &len));
	bigger = realloc(buf, 2 * len);
	ck_assert_ptr_nonnull(bigger);
	buf = bigger;
	memcpy(buf + len, buf + 8, len - 8);
	sign("vm.img", buf, 2 * len - 8);
	ck_assert_int_eq(open_status(), -EBADMSG);
	ck_assert_int_eq(img_show(in_dir("vm.img"), false, null), -EBADMSG);
	fclose(null);
	sign("vm.img", buf, len);
	ok(open_status());
	free(buf);
}
END_TEST

START_TEST(vm_rules)
{
	struct img_dir *d;
	VmEntry *top;

	write_small_checkpoint();
	ok(img_dir_open(dir, &d));
	top = (VmEntry *)img_dir_vm(d);
	WITH(top, run_state, "crashed", "vm.img", IMG_MAGIC_VM);
	WITH(top, n_blocks, 0, "vm.img", IMG_MAGIC_VM);
	WITH(top, n_argv, 0, "vm.img", IMG_MAGIC_VM);
	WITH(top, machine, "", "vm.img", IMG_MAGIC_VM);
	WITH(top->blocks[0], len, 0, "vm.img", IMG_MAGIC_VM);
	WITH(top->blocks[0], len, MiB, "vm.img", IMG_MAGIC_VM);
	WITH(top->blocks[0], len, 4 * MiB + 1, "vm.img", IMG_MAGIC_VM);
	WITH(top->blocks[0], len, 1ULL << 63, "vm.img", IMG_MAGIC_VM);
	WITH(top->blocks[0], page_size, 3 * PAGE_SIZE, "vm.img", IMG_MAGIC_VM);
	ck_assert_int_eq(status_of_message("vm.img", IMG_MAGIC_DEVICE_STATE, &top->base), -EBADMSG);
	ok(status_of_message("vm.img", IMG_MAGIC_VM, &top->base));
	img_dir_close(d);
}
END_TEST

START_TEST(device_state_rules)
{
	const char *name = "device-state.img";
	DeviceStateEntry *top;
	struct img_dir *d;

	write_small_checkpoint();
	ok(img_dir_open(dir, &d));
	top = (DeviceStateEntry *)img_dir_device_state(d);
	WITH(top, stream.len, 0, name, IMG_MAGIC_DEVICE_STATE);
	WITH(top->blocks[0], len, 2 * PAGE_SIZE, name, IMG_MAGIC_DEVICE_STATE);
	WITH(top->blocks[0], len, 1ULL << 63, name, IMG_MAGIC_DEVICE_STATE);
	WITH(top->blocks[0]->runs[0], off, 3 * PAGE_SIZE, name, IMG_MAGIC_DEVICE_STATE);
	WITH(top->blocks[0]->runs[0], off, -PAGE_SIZE, name, IMG_MAGIC_DEVICE_STATE);
	WITH(top->blocks[0]->runs[0], off, 1, name, IMG_MAGIC_DEVICE_STATE);
	WITH(top->blocks[0]->runs[0], data.len, 100, name, IMG_MAGIC_DEVICE_STATE);
	ok(status_of_message(name, IMG_MAGIC_DEVICE_STATE, &top->base));
	img_dir_close(d);
}
END_TEST

// ---- zstd frames

#define FRAME_PAGES 12

struct frame_opts {
	size_t content; // bytes
	bool no_checksum, no_size;
};

static size_t make_frame(struct frame_opts o, uint8_t *to, size_t room)
{
	_cleanup_free_ uint8_t *pages = calloc(FRAME_PAGES + 1, PAGE_SIZE);
	ZSTD_CCtx *z = ZSTD_createCCtx();
	size_t len;

	for (size_t i = 0; i <= FRAME_PAGES; i++)
		pages[i * PAGE_SIZE] = 1;
	fill_random(pages, PAGE_SIZE);
	ZSTD_CCtx_setParameter(z, ZSTD_c_checksumFlag, !o.no_checksum);
	ZSTD_CCtx_setParameter(z, ZSTD_c_contentSizeFlag, !o.no_size);
	len = ZSTD_compress2(z, to, room, pages, o.content);
	ck_assert(!ZSTD_isError(len));
	ZSTD_freeCCtx(z);
	return len;
}

// Of a set whose one chunk is stored as this.
static int status_of_stored(const uint8_t *stored, uint32_t len)
{
	PagemapHead head = PAGEMAP_HEAD__INIT;
	PagemapEntry e = PAGEMAP_ENTRY__INIT;
	int fd = open(dir, O_RDONLY | O_DIRECTORY);
	struct img_out o;
	size_t map_len;
	char *buf;

	head.pages_id = 1;
	e.nr_pages = FRAME_PAGES;
	e.has_flags = e.has_vm_checksum = e.has_vm_offset = e.has_vm_stored = true;
	e.flags = IMG_PE_PRESENT;
	e.vm_stored = len;
	e.vm_checksum = XXH3_64bits(stored, len);
	ok(unlink(in_dir("pagemap-1.img")));
	ok(img_out_open(&o, fd, dir, "pagemap-1.img", IMG_MAGIC_PAGEMAP));
	ok(img_out_put(&o, &head.base));
	ok(img_out_put(&o, &e.base));
	ok(img_out_close(&o));
	img_out_fini(&o);
	close(fd);
	ok(io_read_file(in_dir("pagemap-1.img"), MiB, &buf, &map_len));
	sign("pagemap-1.img", buf, map_len);
	free(buf);
	sign("pages-1.img", stored, len);
	ok(open_status());
	return read_status();
}

START_TEST(frame_rules)
{
	static uint8_t b[4 * PAGE_SIZE];
	const size_t whole = FRAME_PAGES * PAGE_SIZE, two = 2 * PAGE_SIZE;
	size_t len;

	write_small(SMALL_ZSTD);
#define FRAME(...) (memset(b, 0, sizeof b), len = make_frame((struct frame_opts){ .content = __VA_ARGS__ }, b, sizeof b))
	FRAME(whole);
	ck_assert_uint_eq(ROUND_UP(len, PAGE_SIZE), two); // one that is random, the others next to nothing
	ok(status_of_stored(b, two));
	ck_assert_int_eq(status_of_stored(b, PAGE_SIZE), -EBADMSG);		// cut off
	ck_assert_int_eq(status_of_stored(b, 3 * PAGE_SIZE), -EBADMSG);		// more than padding
	b[two - 1] = 1;
	ck_assert_int_eq(status_of_stored(b, two), -EBADMSG);			// padding that is no zero
	FRAME(whole);
	b[len] = 1;
	ck_assert_int_eq(status_of_stored(b, two), -EBADMSG);
	FRAME(whole);
	b[len - 1] ^= 1;
	ck_assert_int_eq(status_of_stored(b, two), -EBADMSG);			// the frame's own checksum
	FRAME(whole - PAGE_SIZE);
	ck_assert_int_eq(status_of_stored(b, two), -EBADMSG);			// too short
	FRAME(whole + PAGE_SIZE);
	ck_assert_int_eq(status_of_stored(b, two), -EBADMSG);			// too long
	FRAME(whole, .no_checksum = true);
	ck_assert_int_eq(status_of_stored(b, two), -EBADMSG);
	FRAME(whole, .no_size = true);
	ck_assert_int_eq(status_of_stored(b, two), -EBADMSG);
	FRAME(whole / 2);
	len += make_frame((struct frame_opts){ whole / 2, false, false }, b + len, sizeof b - len);
	ck_assert_int_eq(status_of_stored(b, (uint32_t)ROUND_UP(len, PAGE_SIZE)), -EBADMSG);	// two of them
	memset(b, 0, sizeof b);
	memcpy(b, "\x50\x2a\x4d\x18\x04\x00\x00\x00", 8);
	ck_assert_int_eq(status_of_stored(b, PAGE_SIZE), -EBADMSG);		// one to be skipped
	memset(b, 0, sizeof b);
	ck_assert_int_eq(status_of_stored(b, two), -EBADMSG);			// none
}
END_TEST

START_TEST(hostile_frames_do_no_harm)
{
	static uint8_t good[2 * PAGE_SIZE], bad[2 * PAGE_SIZE];
	size_t len = make_frame((struct frame_opts){ FRAME_PAGES * PAGE_SIZE, false, false }, good, sizeof good);

	write_small(SMALL_ZSTD);
	for (int round = 0; round < 500; round++) {
		memcpy(bad, good, sizeof bad);
		for (long n = random() % 4; n >= 0; n--)
			bad[(size_t)random() % (round % 2 ? 32 : len)] = (uint8_t)(random() % 3 ? random() : random() % 2 ? 0xff : 0);
		ck_assert(status_of_stored(bad, sizeof bad) == -EBADMSG || !memcmp(good, bad, sizeof bad));
	}
}
END_TEST

START_TEST(foreign_directories_are_refused)
{
	static const uint8_t criu[] = { 0x16, 0x31, 0x31, 0x58, 2, 0, 0, 0, 0x08, 2 };	// img_version 2, and nothing of ours
	int fd;

	ck_assert_int_eq(open_status(), -ENOENT);
	ok(mkdir(dir, 0700));
	ck_assert_int_eq(open_status(), -ENOENT);
	ok(mkfifo(in_dir("inventory.img"), 0600));
	ck_assert_int_eq(open_status(), -EINVAL);
	ok(unlink(in_dir("inventory.img")));
	put_file("inventory.img", criu, sizeof criu);
	ck_assert_int_eq(open_status(), -EINVAL);
	ok(unlink(in_dir("inventory.img")));
	ok(rmdir(dir));

	write_small_checkpoint();
	fd = open(dir, O_RDONLY | O_DIRECTORY);
	ok(flock(fd, LOCK_EX));
	ck_assert_int_eq(open_status(), -EBUSY);
	close(fd);
	ok(open_status());
}
END_TEST

int main(void)
{
	TCase *tc = tcase_create("damage");

	tcase_add_loop_test(tc, every_truncation_is_refused, 0, SMALL_KINDS * NR_FILES);
	tcase_add_loop_test(tc, every_flipped_bit_is_found, 0, SMALL_KINDS * NR_FILES);
	tcase_add_loop_test(tc, every_flipped_bit_of_the_pages_is_found, 0, SMALL_KINDS);
	tcase_add_test(tc, pages_of_another_length_are_refused);
	tcase_add_loop_test(tc, hostile_bytes_do_no_harm, 0, SMALL_KINDS * NR_FILES);
	tcase_add_test(tc, pagemap_rules);
	tcase_add_test(tc, extent_rules);
	tcase_add_test(tc, nothing_follows_the_only_entry);
	tcase_add_test(tc, vm_rules);
	tcase_add_test(tc, device_state_rules);
	tcase_add_test(tc, frame_rules);
	tcase_add_test(tc, hostile_frames_do_no_harm);
	tcase_add_test(tc, foreign_directories_are_refused);
	return run_case("images_damage", tc, base_in_memory);
}
