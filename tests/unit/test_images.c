// SPDX-License-Identifier: GPL-2.0-only
// Checkpoints: what was written is what is read and shown, and a half one never appears.
#include <errno.h>
#include <jansson.h>
#include <sched.h>
#include <sys/mount.h>
#include <sys/syscall.h>

#include "images/show.h"
#include "tests/unit/images_fixture.h"
#include "tests/unit/skip.h"
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

static uint8_t stored[IMG_STORED_MAX] __attribute__((aligned(4096)));
static char got[MiB], zero[PAGE_SIZE];

static void check_chunk(const struct img_dir *d, struct img_unpacker *u, uint32_t block, uint64_t chunk, const struct ram *r)
{
	uint64_t off = chunk * MiB, len = r->len - off < MiB ? r->len - off : MiB, map[4];
	uint64_t all[4] = { 0 };

	bitmap_set_range(all, 0, len / PAGE_SIZE);
	memset(got, 0x5a, sizeof got);
	ok(img_dir_read(d, u, block, chunk, all, stored, got));
	ck_assert(!memcmp(got, r->data + off, len));
	img_dir_pages(d, block, chunk, map);
	for (size_t i = 0; i < IMG_CHUNK_PAGES; i++)
		ck_assert(bitmap_test(map, i) <= (i < len / PAGE_SIZE));
	for (size_t i = 0; i < len / PAGE_SIZE; i++)
		ck_assert(bitmap_test(map, i) || !memcmp(r->data + off + i * PAGE_SIZE, zero, PAGE_SIZE));
}

// Each part by itself: only the wanted pages are touched, and nothing when a bit of what is stored is wrong.
static void check_parts(const struct img_dir *d, struct img_unpacker *u, uint32_t block, uint64_t chunk, const struct ram *r)
{
	const uint64_t some[4] = { 0xf0f0f0f0f0f0f0f0, 0x8000000000000001, 0, 0x5555555555555555 };
	struct img_part parts[4];
	unsigned nr = img_dir_parts(d, block, chunk, some, parts);

	ck_assert_uint_le(nr, img_dir_layers(d));
	for (unsigned i = 0; i < nr; i++) {
		const struct img_part *p = &parts[i];

		memset(got, 0x5a, sizeof got);
		ok(io_pread_full(img_part_fd(p), stored, p->entry->stored, p->entry->off));
		ok(img_part_unpack(u, p, stored, got));
		for (size_t page = 0; page < IMG_CHUNK_PAGES; page++) {
			const char *is = got + page * PAGE_SIZE;

			ck_assert(!bitmap_test(p->pages, page) || bitmap_test(some, page));
			if (bitmap_test(p->pages, page))
				ck_assert(!memcmp(is, r->data + chunk * MiB + page * PAGE_SIZE, PAGE_SIZE));
			else
				ck_assert(is[0] == 0x5a && !memcmp(is, is + 1, PAGE_SIZE - 1));
		}
		memset(got, 0x5a, sizeof got);
		stored[(size_t)random() % p->entry->stored] ^= (uint8_t)(1 << random() % 8);
		ck_assert_int_eq(img_part_unpack(u, p, stored, got), -EBADMSG);
		ck_assert(got[0] == 0x5a && !memcmp(got, got + 1, sizeof got - 1));
	}
}

static void check_all(const struct img_dir *d, const struct ram *ram, uint32_t nr)
{
	struct img_unpacker *u;

	ok(img_unpacker_new(&u));
	ck_assert_uint_eq(img_dir_nr_blocks(d), nr);
	for (uint32_t i = 0; i < nr; i++) {
		ck_assert_uint_eq(img_dir_block_len(d, i), ram[i].len);
		ck_assert_uint_eq(img_dir_block_chunks(d, i), DIV_ROUND_UP(ram[i].len, MiB));
		for (uint64_t c = 0; c < img_dir_block_chunks(d, i); c++) {
			check_chunk(d, u, i, c, &ram[i]);
			check_parts(d, u, i, c, &ram[i]);
		}
	}
	img_unpacker_free(u);
}

static void free_ram(struct ram *ram, size_t nr)
{
	for (size_t i = 0; i < nr; i++)
		free(ram[i].data);
}

// Of level 0, 1 and 19: the first block compresses, the second does not.
START_TEST(round_trip)
{
	static const int levels[] = { 0, 1, 19 };
	const DeviceStateEntry *ds;
	struct img_part part;
	const VmEntry *vm;
	struct img_dir *d;
	struct ram ram[4];
	struct stat st;

	make_ram(ram);
	write_checkpoint(ram, 4, levels[_i]);
	ok(img_dir_open(dir, &d));
	check_all(d, ram, 4);
	ck_assert_uint_eq(img_dir_parts(d, 1, 0, all_pages, &part), 1);
	ck_assert(!(fcntl(img_part_fd(&part), F_GETFL) & O_NONBLOCK));
	ck_assert(img_part_is_raw(&part));
	ck_assert_uint_eq(img_dir_parts(d, 0, 0, all_pages, &part), 1);
	ck_assert(img_part_is_raw(&part) == !levels[_i]);
	ok(stat(in_dir("pages-1.img"), &st));
	if (levels[_i])
		ck_assert_int_lt(st.st_size, 11 * (off_t)MiB + 100 * (off_t)PAGE_SIZE);
	vm = img_dir_vm(d);
	ck_assert_str_eq(vm->machine, "pc-i440fx-7.2");
	ck_assert_str_eq(vm->blocks[2]->name, "m2");
	ck_assert_str_eq(vm->argv[4], "a\033[31m\xff");
	ck_assert(!img_dir_ram_only(d) && !img_dir_parent(d) && img_dir_layers(d) == 1);
	ds = img_dir_device_state(d);
	ck_assert_str_eq((char *)ds->stream.data, "QEVM stream");
	ck_assert_uint_eq(ds->blocks[0]->runs[0]->off, PAGE_SIZE);
	ck_assert_uint_eq(ds->blocks[0]->runs[0]->data.len, 2 * PAGE_SIZE);
	img_dir_close(d);
	free_ram(ram, 4);
}
END_TEST

START_TEST(known_zero_pages_are_not_looked_at)
{
	const uint64_t maybe[4] = { 1ULL << 3, 0, 1, 0 };
	struct ram r = ram_new(2 * MiB);
	struct img_writer *w = writer_open(dir, NULL, 0);
	struct img_dir *d;
	uint64_t id = 0;

	fill_random(r.data, r.len);
	ok(give_blocks(w, &r, 1));
	// The first chunk is left out.
	ok(img_writer_chunk(w, 0, 1, r.data, maybe, NULL));
	ok(img_writer_end_pages(w));
	ck_assert_uint_eq(img_writer_pages(w), 2);
	ck_assert_uint_eq(img_writer_bytes(w), 2 * PAGE_SIZE);
	write_meta(w, &r, 1, false);
	ok(img_writer_commit(w, &id));
	img_writer_free(w);

	ok(img_dir_open(dir, &d));
	ck_assert(img_dir_id(d) == id);
	ck_assert(bitmap_empty(img_dir_chunk(d, 0, 0)->present, IMG_CHUNK_PAGES));
	ck_assert_mem_eq(img_dir_chunk(d, 0, 1)->present, maybe, sizeof maybe);
	img_dir_close(d);
	free(r.data);
}
END_TEST

// Whatever is wrong is the end of it.
START_TEST(misuse_is_refused)
{
	struct ram r = ram_new(2 * MiB);

	for (int i = 0; i < 6; i++) {
		struct img_writer *w = writer_open(dir, NULL, i % 2);
		int ret = 0;

		if (i != 0)
			ok(give_blocks(w, &r, 1));
		if (i == 0)
			ret = img_writer_chunk(w, 0, 0, r.data, all_pages, NULL);
		if (i == 1)
			ret = give_blocks(w, &r, 1);
		if (i == 2)
			ret = img_writer_chunk(w, 0, 2, r.data, all_pages, NULL);
		if (i == 3)
			ret = img_writer_chunk(w, 1, 0, r.data, all_pages, NULL);
		if (i == 4)
			ret = img_writer_chunk(w, 0, 0, r.data, all_pages, all_pages);
		if (i == 5) {
			ok(img_writer_chunk(w, 0, 0, r.data, all_pages, NULL));
			ret = img_writer_chunk(w, 0, 0, r.data, all_pages, NULL);
		}
		ck_assert_int_eq(ret, -EINVAL);
		ck_assert_int_eq(img_writer_end_pages(w), -EINVAL);
		ck_assert_int_eq(img_writer_commit(w, NULL), -EINVAL);
		img_writer_free(w);
		ck_assert_int_eq(nr_entries(tmp), 0);
	}
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
	w = writer_open(dir, NULL, _i);
	ok(give_blocks(w, &r, 1));
	for (uint64_t c = 0; c < 8; c++)
		ok(img_writer_chunk(w, 0, c, r.data + c * MiB, all_pages, NULL));
	ck_assert_int_eq(nr_entries(tmp), 1);
	ck_assert_int_eq(stat(dir, &st), -1);
	ck_assert_int_eq(img_writer_commit(w, NULL), -EINVAL);
	img_writer_free(w);
	ck_assert_int_eq(nr_entries(tmp), 0);
	img_writer_free(NULL);
	free(r.data);
}
END_TEST

// The directory around it is somebody else's, who puts another one into the place of the one that was just made.
static enum { NOT, LINK, FULL, OTHER_USERS, OPEN } swapped;

int mkdirat(int fd, const char *name, mode_t mode)
{
	int ret = (int)syscall(SYS_mkdirat, fd, name, mode);

	if (ret || !swapped)
		return ret;
	ok(renameat(fd, name, fd, "gone"));
	if (swapped == LINK)
		ok(symlinkat("full", fd, name));
	else
		ok(renameat(fd, swapped == FULL ? "full" : "empty", fd, name));
	return 0;
}

START_TEST(another_directory_in_its_place)
{
	char full[PATH_MAX], empty[PATH_MAX], line[PATH_MAX + 64];
	struct img_writer_opts o = { .dir = dir };
	struct img_writer *w = NULL;

	snprintf(full, sizeof full, "%s/full", tmp);
	ok(mkdir(full, 0700));
	snprintf(line, sizeof line, "touch %s/file", full);
	ok(system(line));
	snprintf(empty, sizeof empty, "%s/empty", tmp);
	ok(mkdir(empty, 0700));
	if (_i == OTHER_USERS && chown(empty, 65534, 65534))
		return; // only root can
	ok(chmod(empty, _i == OPEN ? 0777 : 0700));
	swapped = (typeof(swapped))_i;
	ck_assert_int_lt(img_writer_open(&o, &w), 0);
	swapped = NOT;
	img_writer_free(w);
	snprintf(line, sizeof line, "test $(find %s -type f | wc -l) = 1", tmp);
	ck_assert_msg(!system(line), "a file was made in, or deleted from, another directory");
}
END_TEST

START_TEST(blocks_must_be_those_of_the_vm)
{
	struct ram r = ram_new(2 * MiB), other = ram_new(MiB);
	struct img_writer *w;

	w = writer_open(dir, NULL, 0);
	ok(write_pages(w, &r, 1));
	write_meta(w, &other, 1, false);
	ck_assert_int_eq(img_writer_commit(w, NULL), -EINVAL);
	img_writer_free(w);
	ck_assert_int_eq(nr_entries(tmp), 0);
	free(r.data);
	free(other.data);
}
END_TEST

static int open_writer(const char *place)
{
	struct img_writer *w;

	return img_writer_open(&(struct img_writer_opts){ .dir = place }, &w);
}

START_TEST(taken_places_are_refused)
{
	struct ram r = ram_new(PAGE_SIZE);
	struct img_writer *w;
	struct stat st;

	ok(mkdir(dir, 0755));
	ok(close(creat(in_dir("something"), 0600)));
	ck_assert_int_eq(open_writer(dir), -ENOTEMPTY);
	ck_assert_int_eq(open_writer(in_dir("something")), -ENOTDIR);
	ck_assert_int_eq(open_writer(in_dir("no/where")), -ENOENT);
	ck_assert_int_eq(open_writer(""), -ENOENT);
	ck_assert_int_eq(open_writer("/proc"), -EBUSY);
	ok(symlink("nowhere", in_dir("dangling")));
	ck_assert_int_eq(open_writer(in_dir("dangling")), -ENOTDIR);
	ck_assert_int_eq(nr_entries(tmp), 1);
	ck_assert_int_eq(nr_entries(dir), 2);

	// Somebody puts a file in while we write: theirs stays, ours goes.
	ok(unlink(in_dir("something")));
	ok(unlink(in_dir("dangling")));
	w = writer_open(dir, NULL, 0);
	ok(write_pages(w, &r, 1));
	write_meta(w, &r, 1, false);
	free(r.data);
	ok(close(creat(in_dir("something"), 0600)));
	ck_assert_int_lt(img_writer_commit(w, NULL), 0);
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
		free(r.data);
		SKIP_CASE("a tmpfs cannot be mounted here");
	}
	fill_random(r.data, r.len);
	w = writer_open(dir, NULL, _i);
	ret = write_pages(w, &r, 1);
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

	tcase_add_loop_test(tc, round_trip, 0, 3);
	tcase_add_test(tc, known_zero_pages_are_not_looked_at);
	tcase_add_test(tc, misuse_is_refused);
	tcase_add_loop_test(tc, uncommitted_leaves_nothing, 0, 2);
	tcase_add_loop_test(tc, another_directory_in_its_place, LINK, OPEN + 1);
	tcase_add_test(tc, blocks_must_be_those_of_the_vm);
	tcase_add_test(tc, taken_places_are_refused);
	tcase_add_test(tc, empty_places_are_taken);
	tcase_add_loop_test(tc, full_disk, 0, 2);
	tcase_add_test(tc, show_prints_every_file);
	return run_case("images", tc, base_on_disk);
}
