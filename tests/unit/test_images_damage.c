// SPDX-License-Identifier: GPL-2.0-only
// Checkpoints that are damaged, hostile or of somebody else are refused, and do no harm.
#include <errno.h>
#include <stdio.h>
#include <sys/file.h>

#include "images/criu.pb-c.h"
#include "images/file_int.h"
#include "images/inventory_int.h"
#include "images/show.h"
#include "tests/unit/images_fixture.h"
#include "util/bitmap.h"

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

START_TEST(every_truncation_is_refused)
{
	char *buf;
	size_t len;

	write_small_checkpoint();
	ok(io_read_file(in_dir(metadata[_i]), MiB, &buf, &len));
	for (size_t n = 0; n < len; n++) {
		put_file(metadata[_i], buf, n);
		ck_assert_int_eq(open_status(), -EBADMSG);
		show_quietly(metadata[_i]);
	}
	put_file(metadata[_i], buf, len + 1);
	ck_assert_int_eq(open_status(), -EBADMSG);
	put_file(metadata[_i], buf, len);
	ok(open_status());
	ok(unlink(in_dir(metadata[_i])));
	ck_assert_int_eq(open_status(), -ENOENT);
	free(buf);
}
END_TEST

START_TEST(every_flipped_bit_is_found)
{
	char *buf;
	size_t len;

	write_small_checkpoint();
	ok(io_read_file(in_dir(metadata[_i]), MiB, &buf, &len));
	for (size_t bit = 0; bit < len * 8; bit += len < 1000 ? 1 : 61) {
		int ret;

		buf[bit / 8] ^= (char)(1 << bit % 8);
		put_file(metadata[_i], buf, len);
		ret = open_status();
		ck_assert_msg(ret == -EBADMSG || ret == -EINVAL, "%s, bit %zu: %d", metadata[_i], bit, ret);
		show_quietly(metadata[_i]);
		buf[bit / 8] ^= (char)(1 << bit % 8);
	}
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
static void sign(const char *name, const void *buf, size_t len)
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
	ok(img_inventory_put(fd, dir, inv->vm_files, inv->n_vm_files));
	inventory_entry__free_unpacked(inv, NULL);
	put_file(name, buf, len);
	close(fd);
}

START_TEST(hostile_bytes_do_no_harm)
{
	char *buf, *bad;
	size_t len;

	write_small_checkpoint();
	ok(io_read_file(in_dir(metadata[_i]), MiB, &buf, &len));
	bad = malloc(len);
	for (int round = 0; round < 1000; round++) {
		struct img_dir *d;

		memcpy(bad, buf, len);
		for (long n = random() % 4; n >= 0; n--)
			bad[(size_t)random() % (len < 400 ? len : 400)] = (char)(random() % 3 ? random() : random() % 2 ? 0xff : 0);
		sign(metadata[_i], bad, len);
		show_quietly(metadata[_i]);
		if (img_dir_open(dir, &d))
			continue;
		// Taken for good: then its pages are where they say.
		for (uint64_t c = 0; c < img_dir_block_chunks(d, 0); c++)
			ck_assert_uint_le(img_dir_chunk(d, 0, c)->off +
					  bitmap_count(img_dir_chunk(d, 0, c)->present, IMG_CHUNK_PAGES) * PAGE_SIZE, 12 * PAGE_SIZE);
		img_dir_close(d);
	}
	free(bad);
	free(buf);
}
END_TEST

struct entry {
	uint64_t vaddr;
	uint32_t nr, flags;
	bool last;
};

// A pagemap of these entries for the small block, 12 pages in all unless the case is about that.
static int status_of_pagemap(uint32_t id, const struct entry *entries, size_t nr)
{
	PagemapHead head = PAGEMAP_HEAD__INIT;
	int fd = open(dir, O_RDONLY | O_DIRECTORY);
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
		e.has_vm_checksum = entries[i].last;
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
	ok(PAGEMAP({ 0, 4, p, false }, { 8 * PAGE_SIZE, 4, p, true }, { 3 * MiB, 4, p, true }));
	ok(PAGEMAP({ SMALL_LEN - 12 * PAGE_SIZE, 12, p, true }));
	ck_assert_int_eq(status_of_pagemap(2, (struct entry[]){ { 0, 12, p, true } }, 1), -EBADMSG);
	ck_assert_int_eq(PAGEMAP({ 0, 11, p, true }), -EBADMSG);					// pages too few
	ck_assert_int_eq(PAGEMAP({ 0, 13, p, true }), -EBADMSG);					// too many
	ck_assert_int_eq(PAGEMAP({ 0, 12, p, false }), -EBADMSG);					// no checksum
	ck_assert_int_eq(PAGEMAP({ 0, 6, p, false }, { MiB, 6, p, true }), -EBADMSG);
	ck_assert_int_eq(PAGEMAP({ 0, 6, p, true }, { 9 * PAGE_SIZE, 6, p, true }), -EBADMSG);		// behind its checksum
	ck_assert_int_eq(PAGEMAP({ 0, 6, p, false }, { 5 * PAGE_SIZE, 6, p, true }), -EBADMSG);		// overlap
	ck_assert_int_eq(PAGEMAP({ MiB, 6, p, true }, { 0, 6, p, true }), -EBADMSG);			// order
	ck_assert_int_eq(PAGEMAP({ MiB - 4 * PAGE_SIZE, 12, p, true }), -EBADMSG);			// two chunks
	ck_assert_int_eq(PAGEMAP({ SMALL_LEN, 12, p, true }), -EBADMSG);				// beyond the block
	ck_assert_int_eq(PAGEMAP({ SMALL_LEN - 11 * PAGE_SIZE, 12, p, true }), -EBADMSG);
	ck_assert_int_eq(PAGEMAP({ -PAGE_SIZE, 12, p, true }), -EBADMSG);
	ck_assert_int_eq(PAGEMAP({ 0, 12, p, true }, { MiB + PAGE_SIZE, 0, p, true }), -EBADMSG);			// nothing
	ck_assert_int_eq(PAGEMAP({ 0, UINT32_MAX, p, true }), -EBADMSG);
	ck_assert_int_eq(PAGEMAP({ 512, 12, p, true }), -EBADMSG);					// no page's offset
	ck_assert_int_eq(PAGEMAP({ 0, 12, p | 1, true }), -EBADMSG);					// in a parent
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

	tcase_add_loop_test(tc, every_truncation_is_refused, 0, ARRAY_SIZE(metadata));
	tcase_add_loop_test(tc, every_flipped_bit_is_found, 0, ARRAY_SIZE(metadata));
	tcase_add_test(tc, pages_of_another_length_are_refused);
	// From 1: an inventory that is changed at random is never signed right.
	tcase_add_loop_test(tc, hostile_bytes_do_no_harm, 1, ARRAY_SIZE(metadata));
	tcase_add_test(tc, pagemap_rules);
	tcase_add_test(tc, nothing_follows_the_only_entry);
	tcase_add_test(tc, vm_rules);
	tcase_add_test(tc, device_state_rules);
	tcase_add_test(tc, foreign_directories_are_refused);
	return run_case("images_damage", tc, base_in_memory);
}
