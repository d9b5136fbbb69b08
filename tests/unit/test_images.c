// SPDX-License-Identifier: GPL-2.0-only
// Checkpoints: what was written is what is read and shown, and a half one never appears.
#include <errno.h>
#include <jansson.h>
#include <sched.h>
#include <sys/mount.h>

#include "images/show.h"
#include "tests/unit/images_fixture.h"
#include "util/bitmap.h"

static void base_on_disk(void)
{
	make_base("/tmp");
}

// Four blocks: sparse with a short last chunk, full and larger than all buffers, zero, one page.
static void make_ram(struct ram ram[4])
{
	ram[0] = ram_new(5 * MiB + 3 * PAGE_SIZE);
	for (uint64_t off = 0; off < ram[0].len; off += PAGE_SIZE)
		if (off / MiB != 2 && random() % 3 == 0)
			ram[0].data[off + (uint64_t)random() % PAGE_SIZE] = 1;
	ram[0].data[ram[0].len - 1] = 7;
	ram[1] = ram_new(11 * MiB);
	fill_random(ram[1].data, ram[1].len);
	ram[2] = ram_new(3 * MiB);
	ram[3] = ram_new(PAGE_SIZE);
	ram[3].data[0] = 1;
}

// ---- round trips

static void check_chunk(const struct img_dir *d, uint32_t block, uint64_t chunk, const struct ram *r)
{
	const struct img_chunk *c = img_dir_chunk(d, block, chunk);
	static uint8_t packed[MiB] __attribute__((aligned(4096))), zero[PAGE_SIZE];
	size_t nr = bitmap_count(c->present, IMG_CHUNK_PAGES), n = 0;

	ok(io_pread_full(img_dir_pages_fd(d, block), packed, nr * PAGE_SIZE, c->off));
	for (size_t i = 0; i < IMG_CHUNK_PAGES; i++) {
		uint64_t off = chunk * MiB + i * PAGE_SIZE;
		bool stored = bitmap_test(c->present, i);

		ck_assert(stored == (off < r->len && memcmp(r->data + off, zero, PAGE_SIZE)));
		if (stored)
			ck_assert_mem_eq(packed + PAGE_SIZE * n++, r->data + off, PAGE_SIZE);
	}
	ck_assert(img_chunk_check(c, packed));
	if (nr) {
		packed[(size_t)random() % (nr * PAGE_SIZE)] ^= 1;
		ck_assert(!img_chunk_check(c, packed));
	}
}

START_TEST(round_trip)
{
	const DeviceStateEntry *ds;
	const VmEntry *vm;
	struct img_dir *d;
	struct ram ram[4];

	make_ram(ram);
	write_checkpoint(ram, 4);
	ok(img_dir_open(dir, &d));
	ck_assert_uint_eq(img_dir_nr_blocks(d), 4);
	for (uint32_t i = 0; i < 4; i++) {
		ck_assert(!(fcntl(img_dir_pages_fd(d, i), F_GETFL) & O_NONBLOCK));
		ck_assert_uint_eq(img_dir_block_len(d, i), ram[i].len);
		ck_assert_uint_eq(img_dir_block_chunks(d, i), DIV_ROUND_UP(ram[i].len, MiB));
		for (uint64_t c = 0; c < img_dir_block_chunks(d, i); c++)
			check_chunk(d, i, c, &ram[i]);
		free(ram[i].data);
	}
	vm = img_dir_vm(d);
	ck_assert_str_eq(vm->machine, "pc-i440fx-7.2");
	ck_assert_str_eq(vm->blocks[2]->name, "m2");
	ck_assert_str_eq(vm->argv[4], "a\033[31m\xff");
	ds = img_dir_device_state(d);
	ck_assert_str_eq((char *)ds->stream.data, "QEVM stream");
	ck_assert_uint_eq(ds->blocks[0]->runs[0]->off, PAGE_SIZE);
	ck_assert_uint_eq(ds->blocks[0]->runs[0]->data.len, 2 * PAGE_SIZE);
	img_dir_close(d);
}
END_TEST

START_TEST(known_zero_pages_are_not_looked_at)
{
	const uint64_t maybe[4] = { 1ULL << 3, 0, 1, 0 };
	struct ram r = ram_new(2 * MiB);
	struct img_writer *w;
	struct img_dir *d;

	fill_random(r.data, r.len);
	ok(img_writer_open(dir, &w));
	ok(img_writer_begin_block(w, 0, r.len));
	// The first chunk is left out.
	ok(img_writer_chunk(w, 1, r.data, maybe));
	ck_assert_int_eq(img_writer_chunk(w, 1, r.data, maybe), -EINVAL);
	ck_assert_int_eq(img_writer_chunk(w, 2, r.data, maybe), -EINVAL);
	ok(img_writer_end_block(w));
	ck_assert_uint_eq(img_writer_pages(w), 2);
	write_meta(w, &r, 1);
	ok(img_writer_commit(w));
	img_writer_free(w);

	ok(img_dir_open(dir, &d));
	ck_assert(bitmap_empty(img_dir_chunk(d, 0, 0)->present, IMG_CHUNK_PAGES));
	ck_assert_mem_eq(img_dir_chunk(d, 0, 1)->present, maybe, sizeof maybe);
	img_dir_close(d);
	free(r.data);
}
END_TEST

// ---- whole or not at all

START_TEST(uncommitted_leaves_nothing)
{
	struct ram r = ram_new(9 * MiB);
	struct img_writer *w;
	struct stat st;

	fill_random(r.data, r.len);
	ok(img_writer_open(dir, &w));
	ok(img_writer_begin_block(w, 0, r.len));
	for (uint64_t c = 0; c < 8; c++)
		ok(img_writer_chunk(w, c, r.data + c * MiB, all_pages));
	ck_assert_int_eq(nr_entries(tmp), 1);
	ck_assert_int_eq(stat(dir, &st), -1);
	ck_assert_int_eq(img_writer_commit(w), -EINVAL);
	img_writer_free(w);
	ck_assert_int_eq(nr_entries(tmp), 0);
	img_writer_free(NULL);
	free(r.data);
}
END_TEST

START_TEST(blocks_must_be_those_of_the_vm)
{
	struct ram r = ram_new(2 * MiB), other = ram_new(MiB);
	struct img_writer *w;

	ok(img_writer_open(dir, &w));
	ok(write_block(w, 0, &r));
	write_meta(w, &other, 1);
	ck_assert_int_eq(img_writer_commit(w), -EINVAL);
	img_writer_free(w);
	ck_assert_int_eq(nr_entries(tmp), 0);
	free(r.data);
	free(other.data);
}
END_TEST

START_TEST(taken_places_are_refused)
{
	struct ram r = ram_new(PAGE_SIZE);
	struct img_writer *w;
	struct stat st;

	ok(mkdir(dir, 0755));
	ok(close(creat(in_dir("something"), 0600)));
	ck_assert_int_eq(img_writer_open(dir, &w), -ENOTEMPTY);
	ck_assert_int_eq(img_writer_open(in_dir("something"), &w), -ENOTDIR);
	ck_assert_int_eq(img_writer_open(in_dir("no/where"), &w), -ENOENT);
	ck_assert_int_eq(img_writer_open("", &w), -ENOENT);
	ck_assert_int_eq(img_writer_open("/proc", &w), -EBUSY);
	ok(symlink("nowhere", in_dir("dangling")));
	ck_assert_int_eq(img_writer_open(in_dir("dangling"), &w), -ENOTDIR);
	ck_assert_int_eq(nr_entries(tmp), 1);
	ck_assert_int_eq(nr_entries(dir), 2);

	// Somebody puts a file in while we write: theirs stays, ours goes.
	ok(unlink(in_dir("something")));
	ok(unlink(in_dir("dangling")));
	ok(img_writer_open(dir, &w));
	ok(write_block(w, 0, &r));
	write_meta(w, &r, 1);
	free(r.data);
	ok(close(creat(in_dir("something"), 0600)));
	ck_assert_int_lt(img_writer_commit(w), 0);
	img_writer_free(w);
	ck_assert_int_eq(nr_entries(tmp), 1);
	ok(stat(in_dir("something"), &st));
}
END_TEST

START_TEST(empty_places_are_taken)
{
	static const char *const spellings[] = { "ckpt", "ckpt/", "./ckpt//", ".", "link" };
	struct stat st;

	ok(chdir(tmp));
	for (size_t i = 0; i < ARRAY_SIZE(spellings); i++) {
		char whole[PATH_MAX];

		strcpy(whole, dir);
		ok(mkdir(dir, 0755));
		if (i == 3)
			ok(chdir(dir));
		if (i == 4)
			ok(symlink("ckpt", "link"));
		strcpy(dir, spellings[i]);
		write_small_checkpoint();
		strcpy(dir, whole);
		ok(chdir(tmp));
		ok(open_status());
		ok(stat(dir, &st));
		ck_assert_uint_eq(st.st_mode & 07777, 0700);
		ok(stat(in_dir("pages-1.img"), &st));
		ck_assert_uint_eq(st.st_mode & 07777, 0600);
		ck_assert_int_eq(nr_entries(tmp), 1 + (i == 4));
		nftw(dir, remove_one, 16, FTW_DEPTH | FTW_PHYS);
	}
	// Not there yet.
	strcat(dir, "//");
	write_small_checkpoint();
	ok(open_status());
}
END_TEST

START_TEST(full_disk)
{
	struct ram r = ram_new(24 * MiB);
	struct img_writer *w;
	int ret;

	if (unshare(CLONE_NEWNS) || mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL) || mount("none", tmp, "tmpfs", 0, "size=10M")) {
		fprintf(stderr, "full_disk: skipped, a tmpfs cannot be mounted here\n");
		free(r.data);
		return;
	}
	fill_random(r.data, r.len);
	ok(img_writer_open(dir, &w));
	ret = write_block(w, 0, &r);
	ck_assert_int_eq(ret, -ENOSPC);
	ck_assert_ptr_nonnull(strstr(log_last_error(), "pages-1.img"));
	ck_assert_ptr_nonnull(strstr(log_last_error(), "missing"));
	img_writer_free(w);
	ck_assert_int_eq(nr_entries(tmp), 0);
	ok(umount2(tmp, MNT_DETACH));
	free(r.data);
}
END_TEST

// ---- show

static char *shown(const char *name, bool json)
{
	char *text;
	size_t len;
	FILE *f = open_memstream(&text, &len);

	ok(img_show(in_dir(name), json, f));
	fclose(f);
	return text;
}

START_TEST(show_prints_every_file)
{
	static const char *const magic[] = { "INVENTORY", "VM", "DEVICE_STATE", "PAGEMAP", "STATS" };
	char *text;

	write_small_checkpoint();
	for (size_t i = 0; i < ARRAY_SIZE(metadata); i++) {
		json_t *o;

		text = shown(metadata[i], true);
		o = json_loads(text, 0, NULL);
		ck_assert_msg(o != NULL, "%s", text);
		ck_assert_str_eq(json_string_value(json_object_get(o, "magic")), magic[i]);
		// Of the pagemap the head and, with a page each, twelve entries.
		ck_assert_uint_eq(json_array_size(json_object_get(o, "entries")), i == 3 ? 13 : 1);
		json_decref(o);
		free(text);
	}
	text = shown("pages-1.img", false);
	ck_assert_ptr_nonnull(strstr(text, "48 KiB"));
	free(text);
	text = shown("device-state.img", false);
	ck_assert_ptr_nonnull(strstr(text, "name: \"pc.bios\"  len: 16384  runs: 1  stored: 8192"));
	free(text);
	// A terminal is not to be steered by a command line.
	text = shown("vm.img", false);
	ck_assert_ptr_nonnull(strstr(text, "\\xff"));
	for (const char *c = text; *c; c++)
		ck_assert(*c == '\n' || (*c >= ' ' && *c <= '~'));
	free(text);
	put_file("foreign", "\177ELF and so on", 14);
	ck_assert_int_eq(img_show(in_dir("foreign"), false, stdout), -EBADMSG);
}
END_TEST

int main(void)
{
	TCase *tc = tcase_create("images");

	tcase_add_test(tc, round_trip);
	tcase_add_test(tc, known_zero_pages_are_not_looked_at);
	tcase_add_test(tc, uncommitted_leaves_nothing);
	tcase_add_test(tc, blocks_must_be_those_of_the_vm);
	tcase_add_test(tc, taken_places_are_refused);
	tcase_add_test(tc, empty_places_are_taken);
	tcase_add_test(tc, full_disk);
	tcase_add_test(tc, show_prints_every_file);
	return run_case("images", tc, base_on_disk);
}
