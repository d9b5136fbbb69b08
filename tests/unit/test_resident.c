// SPDX-License-Identifier: GPL-2.0-only
// resident.img: what was written is what is read, and nothing that must not be in it is taken.
#include <errno.h>
#include <jansson.h>
#include <zstd.h>

#include "images/resident.h"
#include "images/resident_int.h"
#include "images/show.h"
#include "images/writer_int.h"
#include "tests/unit/images_fixture.h"
#include "util/bitmap.h"

// More than two groups and a short last chunk; one page; less than a group.
static const struct ram blocks[] = { { 2500 * MiB + 3 * PAGE_SIZE, NULL }, { PAGE_SIZE, NULL }, { 3 * MiB, NULL } };
#define LAST_CHUNK 2500

static void base_on_disk(void)
{
	make_base("/tmp");
}

static struct img_writer *begin(bool ram_only)
{
	struct img_writer *w;

	ok(img_writer_open(&(struct img_writer_opts){ .dir = dir, .ram_only = ram_only }, &w));
	ok(give_blocks(w, blocks, ARRAY_SIZE(blocks)));
	return w;
}

static void commit(struct img_writer *w)
{
	ok(img_writer_end_pages(w));
	write_meta(w, blocks, ARRAY_SIZE(blocks), false);
	ok(img_writer_commit(w, NULL));
	img_writer_free(w);
}

static void write_list(const struct img_resident *r)
{
	struct img_writer *w = begin(false);

	ok(img_writer_resident(w, r));
	commit(w);
}

static struct img_resident read_list(void)
{
	struct img_resident r;
	struct img_dir *d;

	ok(img_dir_open(dir, &d));
	ok(img_dir_resident(d, &r));
	img_dir_close(d);
	return r;
}

// About each so-manyth chunk, its pages, its age.
static struct img_resident random_list(unsigned each)
{
	struct img_resident r = { calloc(LAST_CHUNK + 5, sizeof *r.chunks), 0 };

	for (uint32_t b = 0; b < ARRAY_SIZE(blocks); b++)
		for (uint64_t i = 0; i < DIV_ROUND_UP(blocks[b].len, MiB); i++) {
			struct img_resident_chunk *c = &r.chunks[r.nr];
			uint64_t left = blocks[b].len / PAGE_SIZE - i * 256;

			*c = (struct img_resident_chunk){ .block = b, .chunk = i, .age = (uint8_t)(1 + random() % 255) };
			for (size_t page = 0; page < 256 && page < left; page++)
				if (random() % 3 == 0)
					bitmap_set(c->pages, page);
			r.nr += random() % each == 0 && !bitmap_empty(c->pages, 256);
		}
	return r;
}

static void expect_same(const struct img_resident *want, const struct img_resident *got)
{
	ck_assert_uint_eq(want->nr, got->nr);
	for (size_t i = 0; i < want->nr; i++) {
		const struct img_resident_chunk *a = &want->chunks[i], *b = &got->chunks[i];

		ck_assert(a->block == b->block && a->chunk == b->chunk && a->age == b->age && !memcmp(a->pages, b->pages, sizeof a->pages));
	}
}

START_TEST(round_trip)
{
	static const unsigned each[] = { 1, 2, 100, 2000 };
	struct img_resident r = random_list(each[_i]), got;

	if (!r.nr)
		r.chunks[r.nr++] = (struct img_resident_chunk){ .block = 0, .chunk = LAST_CHUNK, .age = 255, .pages = { 7 } };
	write_list(&r);
	got = read_list();
	expect_same(&r, &got);
	img_resident_fini(&got);
	img_resident_fini(&r);
}
END_TEST

// Neither a file nor a feature that earlier versions do not know.
START_TEST(nothing_resident)
{
	struct img_resident none = { 0 }, got;
	struct img_dir *d;

	write_list(&none);
	ck_assert(access(in_dir(IMG_NAME_RESIDENT), F_OK));
	ok(img_dir_open(dir, &d));
	ck_assert(!d->inv->has_vm_features);
	img_dir_close(d);
	got = read_list();
	ck_assert_uint_eq(got.nr, 0);
}
END_TEST

START_TEST(refused)
{
	static const struct img_resident_chunk good = { .chunk = 5, .pages = { 1 }, .age = 1 };
	static const struct img_resident_chunk bad[][2] = {
		{ good, good },
		{ good, { .chunk = 4, .pages = { 1 }, .age = 1 } },
		{ good, { .chunk = 6, .pages = { 1 } } },
		{ good, { .chunk = 6, .age = 1 } },
		{ good, { .chunk = LAST_CHUNK + 1, .pages = { 1 }, .age = 1 } },
		{ good, { .chunk = LAST_CHUNK, .pages = { 8 }, .age = 1 } },
		{ good, { .block = 1, .pages = { 2 }, .age = 1 } },
		{ good, { .block = 3, .pages = { 1 }, .age = 1 } },
		{ { .block = 2, .pages = { 1 }, .age = 1 }, good },
	};
	struct img_resident r = { (struct img_resident_chunk *)bad[_i], 2 };
	struct img_writer *w = begin(false);

	ck_assert_int_eq(img_writer_resident(w, &r), -EINVAL);
	img_writer_free(w);
}
END_TEST

START_TEST(once_and_of_a_dump)
{
	struct img_resident_chunk one = { .chunk = 5, .pages = { 1 }, .age = 1 };
	struct img_resident r = { &one, 1 };
	struct img_writer *w = begin(true);

	ck_assert_int_eq(img_writer_resident(w, &r), -EINVAL);
	img_writer_free(w);
	w = begin(false);
	ok(img_writer_resident(w, &r));
	ck_assert_int_eq(img_writer_resident(w, &r), -EINVAL);
	img_writer_free(w);
}
END_TEST

// Each byte that differs, and each length, is seen before anything of the checkpoint is used.
START_TEST(damaged)
{
	struct img_resident r = random_list(50);
	struct stat st;
	uint8_t *file;
	int fd;

	write_list(&r);
	img_resident_fini(&r);
	ok(stat(in_dir(IMG_NAME_RESIDENT), &st));
	file = malloc((size_t)st.st_size + 1);
	fd = open(in_dir(IMG_NAME_RESIDENT), O_RDONLY);
	ok(io_read_full(fd, file, (size_t)st.st_size));
	close(fd);
	for (size_t i = 0; i < (size_t)st.st_size; i += i < 200 ? 1 : 37) {
		uint8_t was = file[i];

		file[i] ^= (uint8_t)(1 << random() % 8);
		put_file(IMG_NAME_RESIDENT, file, (size_t)st.st_size);
		ck_assert_int_eq(open_status(), -EBADMSG);
		put_file(IMG_NAME_RESIDENT, file, i);
		ck_assert_int_eq(open_status(), -EBADMSG);
		file[i] = was;
	}
	unlink(in_dir(IMG_NAME_RESIDENT));
	ck_assert_int_eq(open_status(), -ENOENT);
	free(file);
}
END_TEST

// ---- files whose checksums are right, and that are not what they have to be

struct entry {
	uint32_t block;
	uint64_t chunk;
	unsigned nr;  // chunks
	uint8_t age;  // of the first
	uint8_t bits; // and its first pages
	size_t page;  // and one more
	bool no_frame, more, cut;
};

static int put_entry(struct img_out *o, const struct entry *in)
{
	uint8_t raw[1025 * IMG_RESIDENT_LEN] = { in->age }, packed[2 * sizeof raw];
	ResidentEntry e = RESIDENT_ENTRY__INIT;
	size_t len;

	raw[in->nr] = in->bits;
	raw[in->nr + in->page / 8] |= (uint8_t)(in->page ? 1 << in->page % 8 : 0);
	len = ZSTD_compress(packed, sizeof packed, raw, in->nr * IMG_RESIDENT_LEN, 1);
	ck_assert(!ZSTD_isError(len));
	if (in->more) { // that zstd passes over
		memcpy(packed + len, (const uint8_t[]){ 0x50, 0x2a, 0x4d, 0x18, 1, 0, 0, 0, 7 }, 9);
		len += 9;
	}
	if (in->no_frame)
		packed[0]++;
	e.block = in->block;
	e.chunk = in->chunk;
	e.packed = (ProtobufCBinaryData){ in->cut ? len - 1 : len, packed };
	return img_out_put(o, &e.base);
}

static void write_entries(const struct entry *entries, size_t nr)
{
	struct img_writer *w = begin(false);
	struct img_out o;

	ok(img_out_open(&o, w->dir.fd, dir, IMG_NAME_RESIDENT, IMG_MAGIC_RESIDENT));
	for (size_t i = 0; i < nr; i++)
		ok(put_entry(&o, &entries[i]));
	ok(img_writer_finish_file(w, &o, IMG_NAME_RESIDENT));
	img_out_fini(&o);
	w->features |= IMG_FEATURE_RESIDENT;
	commit(w);
}

#define FIRST { .nr = 1024, .age = 9, .bits = 1 }

static const struct {
	struct entry e[3];
	size_t nr;
	bool good;
} files[] = {
	{ { FIRST, { .chunk = 2048, .nr = 453, .age = 1, .bits = 1 }, { .block = 2, .nr = 3, .age = 1, .bits = 1 } }, 3, true },
	{ { { .nr = 0 } }, 0, false },
	{ { FIRST, FIRST }, 2, false },
	{ { { .chunk = 1024, .nr = 1024, .age = 9, .bits = 1 }, FIRST }, 2, false },
	{ { { .block = 1, .nr = 1, .age = 1, .bits = 1 }, FIRST }, 2, false },
	{ { FIRST, { .block = 3, .nr = 3, .age = 1, .bits = 1 } }, 2, false },
	{ { FIRST, { .chunk = 3072, .nr = 453, .age = 1, .bits = 1 } }, 2, false },
	{ { { .chunk = 1, .nr = 1024, .age = 1, .bits = 1 } }, 1, false },
	{ { { .chunk = 2048, .nr = 454, .age = 1, .bits = 1 } }, 1, false },
	{ { { .chunk = 2048, .nr = 452, .age = 1, .bits = 1 } }, 1, false },
	{ { { .nr = 1025, .age = 1, .bits = 1 } }, 1, false },
	{ { { .nr = 1024 } }, 1, false },                                                     // nothing was in memory
	{ { { .nr = 1024, .age = 1 } }, 1, false },                                           // an age and no page
	{ { { .nr = 1024, .bits = 1 } }, 1, false },                                          // a page and no age
	{ { { .block = 1, .nr = 1, .age = 1, .bits = 3 } }, 1, false },                       // two pages of a block of one
	{ { { .block = 1, .nr = 1, .age = 1, .bits = 1, .page = 255 } }, 1, false },
	{ { { .nr = 1024, .age = 9, .bits = 1, .no_frame = true } }, 1, false },
	{ { { .nr = 1024, .age = 9, .bits = 1, .more = true } }, 1, false },
	{ { { .nr = 1024, .age = 9, .bits = 1, .cut = true } }, 1, false },
};

START_TEST(wrong)
{
	write_entries(files[_i].e, files[_i].nr);
	ck_assert_int_eq(open_status(), files[_i].good ? 0 : -EBADMSG);
}
END_TEST

// A list that nobody said is there.
START_TEST(without_its_feature)
{
	struct img_resident_chunk one = { .chunk = 5, .pages = { 1 }, .age = 1 };
	struct img_writer *w = begin(false);

	ok(img_writer_resident(w, &(struct img_resident){ &one, 1 }));
	w->features = 0;
	commit(w);
	ck_assert_int_eq(open_status(), -EBADMSG);
}
END_TEST

// What a parent says is old.
START_TEST(of_an_increment)
{
	struct img_resident_chunk one = { .chunk = 5, .pages = { 1 }, .age = 1 }, other = { .chunk = 7, .pages = { 4 }, .age = 2 };
	struct img_resident got, want = { &other, 1 };
	struct img_dir *parent;
	struct img_writer *w;

	for (int has = 0; has < 2; has++) {
		write_list(&(struct img_resident){ &one, 1 });
		snprintf(parent_dir, sizeof parent_dir, "%s/parent%d", tmp, has);
		ok(rename(dir, parent_dir));
		ok(img_dir_open(parent_dir, &parent));
		w = writer_open(dir, parent, 0);
		ok(give_blocks(w, blocks, ARRAY_SIZE(blocks)));
		if (has)
			ok(img_writer_resident(w, &want));
		commit(w);
		img_dir_close(parent);
		got = read_list();
		ck_assert_uint_eq(got.nr, has);
		if (has)
			expect_same(&want, &got);
		img_resident_fini(&got);
		snprintf(parent_dir, sizeof parent_dir, "%s/child%d", tmp, has);
		ok(rename(dir, parent_dir));
	}
}
END_TEST

static json_int_t shown(const json_t *entry, const char *key)
{
	return json_integer_value(json_object_get(entry, key));
}

START_TEST(show)
{
	struct img_resident_chunk two[] = { { .chunk = 1030, .pages = { 7 }, .age = 3 },
					    { .chunk = 1031, .pages = { 0, ~0ULL }, .age = 200 } };
	FILE *out = tmpfile();
	json_t *root, *e;

	write_list(&(struct img_resident){ two, 2 });
	ok(img_show(in_dir(IMG_NAME_RESIDENT), true, out));
	rewind(out);
	root = json_loadf(out, 0, NULL);
	ck_assert_str_eq(json_string_value(json_object_get(root, "magic")), "RESIDENT");
	ck_assert_uint_eq(json_array_size(json_object_get(root, "entries")), 1);
	e = json_array_get(json_object_get(root, "entries"), 0);
	ck_assert_int_eq(shown(e, "block"), 0);
	ck_assert_int_eq(shown(e, "chunk"), 1024);
	ck_assert_int_eq(shown(e, "resident_chunks"), 2);
	ck_assert_int_eq(shown(e, "resident_pages"), 67);
	ck_assert_int_eq(shown(e, "age_min"), 3);
	ck_assert_int_eq(shown(e, "age_max"), 200);
	json_decref(root);
	fclose(out);
}
END_TEST

int main(void)
{
	TCase *tc = tcase_create("resident");

	tcase_add_loop_test(tc, round_trip, 0, 4);
	tcase_add_test(tc, nothing_resident);
	tcase_add_loop_test(tc, refused, 0, 9);
	tcase_add_test(tc, once_and_of_a_dump);
	tcase_add_test(tc, damaged);
	tcase_add_loop_test(tc, wrong, 0, ARRAY_SIZE(files));
	tcase_add_test(tc, without_its_feature);
	tcase_add_test(tc, of_an_increment);
	tcase_add_test(tc, show);
	return run_case("resident", tc, base_on_disk);
}
