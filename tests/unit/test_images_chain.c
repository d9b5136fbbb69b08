// SPDX-License-Identifier: GPL-2.0-only
// Increments: what a chain of checkpoints gives is what the last of them was, or it is refused.
#include <errno.h>
#include <sys/file.h>

#include "images/criu.pb-c.h"
#include "images/inventory_int.h"
#include "tests/unit/images_fixture.h"
#include "util/bitmap.h"

#define NR_LAYERS 5

static void base_in_memory(void)
{
	make_base(access("/dev/shm", W_OK) ? "/tmp" : "/dev/shm");
}

static const char *layer_dir(unsigned layer)
{
	static char path[PATH_MAX];

	snprintf(path, sizeof path, "%s/layer%u", tmp, layer);
	return path;
}

// ---- a chain of random changes

struct changes {
	struct ram ram[2];
	uint64_t *changed[2]; // a bit a page, since the last checkpoint
};

static void change(struct changes *c)
{
	for (unsigned b = 0; b < 2; b++)
		for (uint64_t page = 0; page < c->ram[b].len / PAGE_SIZE; page++) {
			uint8_t *p = c->ram[b].data + page * PAGE_SIZE;

			if (random() % 4)
				continue;
			bitmap_set(c->changed[b], page);
			if (random() % 3)
				memset(p, (int)(random() % 255 + 1), PAGE_SIZE);
			else
				memset(p, 0, PAGE_SIZE);
		}
}

// The chunk's pages that were not changed are as in the parent, and what the buffer holds of them is not looked at.
static int write_changed(struct img_writer *w, const struct changes *c, bool increment)
{
	static uint8_t buf[MiB];
	int ret = give_blocks(w, c->ram, 2);

	for (uint32_t b = 0; b < 2; b++)
		for (uint64_t off = 0; !ret && off < c->ram[b].len; off += MiB) {
			uint64_t len = c->ram[b].len - off < MiB ? c->ram[b].len - off : MiB, as_parent[4] = { 0 };

			memcpy(buf, c->ram[b].data + off, len);
			for (size_t i = 0; increment && i < len / PAGE_SIZE; i++)
				if (!bitmap_test(c->changed[b], off / PAGE_SIZE + i)) {
					bitmap_set(as_parent, i);
					memset(buf + i * PAGE_SIZE, 0xee, PAGE_SIZE);
				}
			ret = img_writer_chunk(w, b, off / MiB, buf, all_pages, increment ? as_parent : NULL);
		}
	return ret ? ret : img_writer_end_pages(w);
}

static void write_layer(struct changes *c, unsigned layer, int zstd_level)
{
	struct img_writer_opts o = { .zstd_level = zstd_level, .ram_only = layer + 1 < NR_LAYERS };
	struct img_dir *parent = NULL;
	struct img_writer *w;

	if (layer)
		ok(img_dir_open(layer_dir(layer - 1), &parent));
	o.parent = parent;
	o.dir = layer_dir(layer);
	ok(img_writer_open(&o, &w));
	ok(write_changed(w, c, parent));
	write_meta(w, c->ram, 2, o.ram_only);
	ok(img_writer_commit(w, NULL));
	img_writer_free(w);
	img_dir_close(parent);
	for (unsigned b = 0; b < 2; b++)
		memset(c->changed[b], 0, BITMAP_WORDS(c->ram[b].len / PAGE_SIZE) * 8);
}

static void changes_init(struct changes *c)
{
	c->ram[0] = ram_new(3 * MiB + 5 * PAGE_SIZE);
	c->ram[1] = ram_new(2 * MiB);
	for (unsigned b = 0; b < 2; b++)
		c->changed[b] = calloc(BITMAP_WORDS(c->ram[b].len / PAGE_SIZE), 8);
}

static void changes_fini(struct changes *c)
{
	for (unsigned b = 0; b < 2; b++) {
		free(c->ram[b].data);
		free(c->changed[b]);
	}
}

static void check_is(const struct img_dir *d, const struct ram *ram)
{
	static uint8_t stored[IMG_STORED_MAX] __attribute__((aligned(4096)));
	static char got[MiB];
	struct img_unpacker *u;

	ok(img_unpacker_new(&u));
	for (uint32_t b = 0; b < 2; b++)
		for (uint64_t off = 0; off < ram[b].len; off += MiB) {
			uint64_t len = ram[b].len - off < MiB ? ram[b].len - off : MiB, all[4] = { 0 }, map[4];

			bitmap_set_range(all, 0, len / PAGE_SIZE);
			memset(got, 0x5a, sizeof got);
			ok(img_dir_read(d, u, b, off / MiB, all, stored, got));
			ck_assert(!memcmp(got, ram[b].data + off, len));
			img_dir_pages(d, b, off / MiB, map);
			for (size_t i = 0; i < len / PAGE_SIZE; i++)
				ck_assert(bitmap_test(map, i) == (ram[b].data[off + i * PAGE_SIZE] != 0));
		}
	img_unpacker_free(u);
}

// Raw, compressed, and each second one compressed.
START_TEST(a_chain_is_what_the_vm_was)
{
	struct changes c;
	struct img_dir *d;

	changes_init(&c);
	for (unsigned i = 0; i < NR_LAYERS; i++) {
		change(&c);
		write_layer(&c, i, _i == 2 ? (int)i % 2 : _i);
		ok(img_dir_open(layer_dir(i), &d));
		ck_assert_uint_eq(img_dir_layers(d), i + 1);
		ck_assert(img_dir_ram_only(d) == (i + 1 < NR_LAYERS));
		ck_assert(!img_dir_device_state(d) == img_dir_ram_only(d));
		check_is(d, c.ram);
		img_dir_close(d);
	}
	changes_fini(&c);
}
END_TEST

START_TEST(the_writer_keeps_to_the_parent)
{
	struct ram r = small_ram(), other = ram_new(MiB);
	struct img_dir *parent;
	struct img_writer *w;

	write_small_checkpoint();
	ok(img_dir_open(dir, &parent));
	w = writer_open(layer_dir(1), parent, 0);
	ck_assert_int_eq(give_blocks(w, &other, 1), -EINVAL);
	img_writer_free(w);
	w = writer_open(layer_dir(1), parent, 0);
	ck_assert_int_eq(give_blocks(w, (struct ram[]){ r, other }, 2), -EINVAL);
	img_writer_free(w);

	// A pre-dump has no device state, anything else has.
	ok(img_writer_open(&(struct img_writer_opts){ .dir = layer_dir(1), .parent = parent, .ram_only = true }, &w));
	ok(write_pages(w, &r, 1));
	ck_assert_int_eq(img_writer_device_state(w, img_dir_device_state(parent)), -EINVAL);
	img_writer_free(w);
	w = writer_open(layer_dir(1), parent, 0);
	ok(write_pages(w, &r, 1));
	write_meta(w, &r, 1, true);
	ck_assert_int_eq(img_writer_commit(w, NULL), -EINVAL);
	img_writer_free(w);
	ck_assert_int_eq(nr_entries(tmp), 1);
	img_dir_close(parent);
	free(r.data);
	free(other.data);
}
END_TEST

// ---- links

static void move_set(const char *from, const char *to)
{
	char path[PATH_MAX];

	snprintf(path, sizeof path, "%s/%s", tmp, to);
	ok(rename(from, path));
}

// Whose a checkpoint is, is asked of the directories that are read, not of what their names lead to by now.
START_TEST(the_owner_is_that_of_what_is_read)
{
	struct stat before, now;
	struct img_dir *d;

	write_small_increment(0);
	ok(stat(parent_dir, &before));
	ok(img_dir_open(dir, &d));
	move_set(parent_dir, "away");
	ok(mkdir(parent_dir, 0777));
	ok(img_dir_stat(img_dir_parent(d), &now));
	ck_assert_uint_eq(now.st_ino, before.st_ino);
	img_dir_close(d);
}
END_TEST

START_TEST(links_survive_a_move_of_both)
{
	char elsewhere[PATH_MAX], link[PATH_MAX] = "";
	struct img_dir *d;

	write_small_increment(0);
	ck_assert_int_gt(readlink(in_dir("parent"), link, sizeof link - 1), 0);
	ck_assert_str_eq(link, "../parent");
	snprintf(elsewhere, sizeof elsewhere, "%s/elsewhere", tmp);
	ok(mkdir(elsewhere, 0700));
	move_set(parent_dir, "elsewhere/parent");
	ck_assert_int_eq(open_status(), -ENOENT);
	move_set(dir, "elsewhere/ckpt");
	strcat(strcpy(dir, elsewhere), "/ckpt");
	ok(img_dir_open(dir, &d));
	ck_assert_uint_eq(img_dir_layers(d), 2);
	ck_assert_str_eq(img_dir_path(d), dir);
	ck_assert_ptr_nonnull(strstr(img_dir_path(img_dir_parent(d)), "ckpt/../parent"));
	img_dir_close(d);
}
END_TEST

START_TEST(a_parent_elsewhere_is_named_as_a_whole)
{
	char below[PATH_MAX], link[PATH_MAX] = "";
	struct ram r = small_ram();
	struct img_dir *parent;
	struct img_writer *w;

	write_small_checkpoint();
	snprintf(below, sizeof below, "%s/below", tmp);
	ok(mkdir(below, 0700));
	strcat(below, "/increment");
	ok(chdir(tmp));
	ok(img_dir_open("ckpt", &parent));
	w = writer_open(below, parent, 0);
	ok(write_pages(w, &r, 1));
	write_meta(w, &r, 1, false);
	ok(img_writer_commit(w, NULL));
	img_writer_free(w);
	img_dir_close(parent);
	free(r.data);
	strcat(below, "/parent");
	ck_assert_int_gt(readlink(below, link, sizeof link - 1), 0);
	ck_assert_str_eq(link, dir);
	*strrchr(below, '/') = 0;
	ok(chdir("/"));
	ok(img_dir_open(below, &parent));
	img_dir_close(parent);
}
END_TEST

static void relink(const char *to)
{
	ok(unlink(in_dir("parent")));
	ok(symlink(to, in_dir("parent")));
}

START_TEST(wrong_parents_are_refused)
{
	struct ram other = ram_new(SMALL_LEN);
	char own[PATH_MAX];
	struct img_dir *d;
	int fd;

	write_small_increment(0);
	ok(open_status());
	relink(".");
	ck_assert_int_eq(open_status(), -EBADMSG);
	relink("nowhere");
	ck_assert_int_eq(open_status(), -ENOENT);
	ck_assert_ptr_nonnull(strstr(log_last_error(), "nowhere"));
	relink("/proc/self/status");
	ck_assert_int_eq(open_status(), -ENOTDIR);
	relink(tmp);
	ck_assert_int_eq(open_status(), -ENOENT);
	ok(unlink(in_dir("parent")));
	ck_assert_int_eq(open_status(), -ENOENT);
	ok(symlink("../parent", in_dir("parent")));
	ok(open_status());

	// Another checkpoint of the same VM in its place.
	strcpy(own, dir);
	strcpy(dir, layer_dir(7));
	write_checkpoint(&other, 1, 0);
	free(other.data);
	strcpy(dir, own);
	relink(layer_dir(7));
	ck_assert_int_eq(open_status(), -ESTALE);
	ck_assert_ptr_nonnull(strstr(log_last_error(), "layer7"));
	relink("../parent");

	// While it is in use, its parent is locked as well.
	ok(img_dir_open(dir, &d));
	fd = open(parent_dir, O_RDONLY | O_DIRECTORY);
	ck_assert_int_eq(flock(fd, LOCK_EX | LOCK_NB), -1);
	img_dir_close(d);
	ok(flock(fd, LOCK_EX | LOCK_NB));
	ck_assert_int_eq(open_status(), -EBUSY);
	close(fd);
}
END_TEST

// With inventories that agree to everything: from here on only their contents can be wrong.
static void resign(const char *path, uint64_t features, const uint64_t *parent)
{
	int fd = open(path, O_RDONLY | O_DIRECTORY);
	InventoryEntry *inv;

	ok(img_inventory_get(fd, path, &inv));
	inv->vm_features = features;
	inv->has_vm_features = features != 0;
	inv->has_vm_parent = parent != NULL;
	inv->vm_parent = parent ? *parent : 0;
	ok(unlinkat(fd, "inventory.img", 0));
	ok(img_inventory_put(fd, path, inv));
	inventory_entry__free_unpacked(inv, NULL);
	close(fd);
}

static uint64_t id_of(const char *path)
{
	struct img_dir *d;
	uint64_t id;

	ok(img_dir_open(path, &d));
	id = img_dir_id(d);
	img_dir_close(d);
	return id;
}

START_TEST(features_and_parent_agree)
{
	const uint64_t feature = IMG_FEATURE_PARENT;
	uint64_t id;

	write_small_increment(0);
	id = id_of(parent_dir);
	resign(dir, feature, &id);
	ok(open_status());
	resign(dir, feature, NULL);
	ck_assert_int_eq(open_status(), -EBADMSG);
	remove_base();
	ok(mkdir(base, 0700));
	ok(mkdir(tmp, 0700));

	write_small_increment(0);
	resign(dir, 0, &id);
	ck_assert_int_eq(open_status(), -EBADMSG);
	remove_base();
	ok(mkdir(base, 0700));
	ok(mkdir(tmp, 0700));

	// Pages of a parent, and no parent.
	write_small_increment(0);
	resign(dir, 0, NULL);
	ck_assert_int_eq(open_status(), -EBADMSG);
	resign(dir, 1ULL << 40, NULL);
	ck_assert_int_eq(open_status(), -EOPNOTSUPP);
}
END_TEST

START_TEST(a_parent_has_the_same_blocks)
{
	struct ram r[2] = { small_ram(), ram_new(MiB) };
	uint64_t id;

	write_small_increment(0);
	nftw(parent_dir, remove_one, 16, FTW_DEPTH | FTW_PHYS);
	strcat(dir, "x");
	write_checkpoint(r, 2, 0);
	move_set(dir, "parent");
	dir[strlen(dir) - 1] = 0;
	id = id_of(parent_dir);
	resign(dir, IMG_FEATURE_PARENT, &id);
	ck_assert_int_eq(open_status(), -EBADMSG);
	free(r[0].data);
	free(r[1].data);
}
END_TEST

// An increment of nothing but what the parent has, on and on.
START_TEST(a_chain_has_an_end)
{
	struct ram r = ram_new(PAGE_SIZE);
	struct img_dir *parent = NULL;
	struct img_writer *w;

	for (unsigned i = 0; i < IMG_CHAIN_MAX; i++) {
		w = writer_open(layer_dir(i), parent, 0);
		ok(give_blocks(w, &r, 1));
		if (parent)
			ok(img_writer_chunk(w, 0, 0, r.data, all_pages, all_pages));
		ok(img_writer_end_pages(w));
		write_meta(w, &r, 1, false);
		ok(img_writer_commit(w, NULL));
		img_writer_free(w);
		img_dir_close(parent);
		ok(img_dir_open(layer_dir(i), &parent));
	}
	ck_assert_int_eq(img_writer_open(&(struct img_writer_opts){ .dir = dir, .parent = parent }, &w), -EMLINK);
	img_dir_close(parent);
	free(r.data);
}
END_TEST

// A chain whose end is changed to go on is too long at whatever it goes on with.
START_TEST(a_chain_made_longer_is_refused)
{
	struct img_dir *d;
	char to[PATH_MAX];
	uint64_t id = 0;

	for (unsigned i = 0; i <= IMG_CHAIN_MAX; i++) {
		strcpy(dir, layer_dir(i));
		write_small_checkpoint();
		if (i) {
			snprintf(to, sizeof to, "../layer%u", i - 1);
			ok(symlink(to, in_dir("parent")));
			resign(dir, IMG_FEATURE_PARENT, &id);
		}
		if (i < IMG_CHAIN_MAX)
			id = id_of(dir);
	}
	ck_assert_int_eq(img_dir_open(dir, &d), -EBADMSG);
	ok(img_dir_open(layer_dir(IMG_CHAIN_MAX - 1), &d));
	img_dir_close(d);
}
END_TEST

int main(void)
{
	TCase *tc = tcase_create("chain");

	tcase_add_loop_test(tc, a_chain_is_what_the_vm_was, 0, 3);
	tcase_add_test(tc, the_writer_keeps_to_the_parent);
	tcase_add_test(tc, the_owner_is_that_of_what_is_read);
	tcase_add_test(tc, links_survive_a_move_of_both);
	tcase_add_test(tc, a_parent_elsewhere_is_named_as_a_whole);
	tcase_add_test(tc, wrong_parents_are_refused);
	tcase_add_test(tc, features_and_parent_agree);
	tcase_add_test(tc, a_parent_has_the_same_blocks);
	tcase_add_test(tc, a_chain_has_an_end);
	tcase_add_test(tc, a_chain_made_longer_is_refused);
	return run_case("images_chain", tc, base_in_memory);
}
