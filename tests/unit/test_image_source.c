// SPDX-License-Identifier: GPL-2.0-only
// Images as the page source of a running VM: what is asked for and nothing else, checked, from whichever checkpoint of a chain.
#include <errno.h>

#include "lazy-pages/image_source.h"
#include "tests/unit/images_fixture.h"

#define NR_READS 20 // more than the source has buffers

struct question {
	struct pv_source_read rd;
	int err;
	bool answered;
};

static struct loop loop;
static struct img_dir *images;
static struct lp_image_source *source;
static struct ram ram;
static struct question questions[NR_READS];

static void base_on_disk(void)
{
	make_base("/tmp");
}

static void answered(struct pv_source_read *rd, int err, const char *what)
{
	struct question *q = list_entry(rd, struct question, rd);

	(void)what;
	ck_assert(!q->answered);
	q->answered = true;
	q->err = err;
}

// A checkpoint of 5 MiB and an increment in which each third page is another, and each sixth is zero.
static void open_source(int zstd_level)
{
	struct img_dir *parent;
	struct img_writer *w;

	ram = ram_new(5 * MiB);
	for (uint64_t i = 0; i < ram.len / PAGE_SIZE; i++)
		fill_random(ram.data + i * PAGE_SIZE, 512);
	write_checkpoint(&ram, 1, zstd_level);
	strcat(strcpy(parent_dir, tmp), "/parent");
	ok(rename(dir, parent_dir));
	ok(img_dir_open(parent_dir, &parent));
	w = writer_open(dir, parent, zstd_level);
	ok(give_blocks(w, &ram, 1));
	for (uint64_t c = 0; c < 5; c++) {
		uint64_t as_parent[4] = { 0 };

		for (uint64_t i = c * 256; i < (c + 1) * 256; i++)
			if (i % 3)
				bitmap_set(as_parent, i % 256);
			else
				memset(ram.data + i * PAGE_SIZE, i % 2 ? (int)(i % 255) + 1 : 0, PAGE_SIZE);
		ok(img_writer_chunk(w, 0, c, ram.data + c * MiB, all_pages, as_parent));
	}
	ok(img_writer_end_pages(w));
	write_meta(w, &ram, 1, false);
	ok(img_writer_commit(w, NULL));
	img_writer_free(w);
	img_dir_close(parent);

	ok(img_dir_open(dir, &images));
	ok(loop_init(&loop, 64));
	ok(lp_image_source_new(&loop, images, &source));
}

static void close_source(void)
{
	loop_fini(&loop);
	lp_image_source_free(source);
	img_dir_close(images);
	free(ram.data);
}

static void ask(struct question *q, uint64_t chunk, const uint64_t pages[4])
{
	if (!q->rd.dest)
		q->rd.dest = malloc(MiB);
	memset(q->rd.dest, 0x5a, MiB);
	q->rd.chunk = chunk;
	q->rd.done = answered;
	q->answered = false;
	memcpy(q->rd.pages, pages, sizeof q->rd.pages);
	lp_image_source_read(source, &q->rd);
	ck_assert(!q->answered);
}

static int await(struct question *q)
{
	while (!q->answered)
		ok(loop_round(&loop, true));
	return q->err;
}

static void check_pages(const struct question *q)
{
	for (uint64_t i = 0; i < 256; i++) {
		const char *is = q->rd.dest + i * PAGE_SIZE;

		if (!q->err && bitmap_test(q->rd.pages, i))
			ck_assert(!memcmp(is, ram.data + q->rd.chunk * MiB + i * PAGE_SIZE, PAGE_SIZE));
		else
			ck_assert(is[0] == 0x5a && !memcmp(is, is + 1, PAGE_SIZE - 1));
	}
}

static void free_questions(void)
{
	for (unsigned i = 0; i < NR_READS; i++)
		free(questions[i].rd.dest);
}

START_TEST(gives_what_is_asked_for)
{
	open_source(_i);
	for (int round = 0; round < 30; round++) {
		for (unsigned i = 0; i < NR_READS; i++) {
			uint64_t chunk = (uint64_t)random() % 5, want[4], map[4];

			img_dir_pages(images, 0, chunk, map);
			for (unsigned w = 0; w < 4; w++)
				want[w] = map[w] & (i % 4 ? (uint64_t)random() << 33 : ~0ULL);
			bitmap_set(want, 1); // at least one
			ask(&questions[i], chunk, want);
		}
		for (unsigned i = 0; i < NR_READS; i++) {
			ok(await(&questions[i]));
			check_pages(&questions[i]);
		}
	}
	close_source();
	free_questions();
}
END_TEST

START_TEST(a_page_that_is_not_there_is_no_zero)
{
	const uint64_t zero_page[4] = { 1 }, beside[4] = { 3 };

	open_source(_i);
	ask(&questions[0], 0, zero_page);
	ck_assert_int_eq(await(&questions[0]), -EBADMSG);
	ask(&questions[1], 0, beside);
	ck_assert_int_eq(await(&questions[1]), -EBADMSG);
	check_pages(&questions[0]);
	check_pages(&questions[1]);
	close_source();
	free_questions();
}
END_TEST

// A bit of the parent's chunk 2, at one of its last pages.
static void flip(void)
{
	const struct img_chunk *c = img_dir_chunk(img_dir_parent(images), 0, 2);
	char path[PATH_MAX + 16], byte;
	uint64_t off = c->off + c->stored - PAGE_SIZE;
	int fd;

	snprintf(path, sizeof path, "%s/pages-1.img", parent_dir);
	fd = open(path, O_RDWR);
	ok(io_pread_full(fd, &byte, 1, off));
	byte ^= 4;
	ok(io_pwrite_full(fd, &byte, 1, off));
	ok(fsync(fd));
	close(fd);
}

START_TEST(a_damaged_chunk_is_not_handed_on)
{
	const uint64_t first[4] = { 4 }; // one that the parent has
	const uint64_t own[4] = { 2 };

	open_source(_i);
	flip();
	ask(&questions[0], 2, own);
	ok(await(&questions[0]));
	check_pages(&questions[0]);
	ask(&questions[0], 2, first);
	ck_assert_int_eq(await(&questions[0]), -EBADMSG);
	check_pages(&questions[0]);
	ask(&questions[0], 3, first);
	ok(await(&questions[0]));
	check_pages(&questions[0]);
	// It was not checked yet, so it is checked again.
	ask(&questions[0], 2, first);
	ck_assert_int_eq(await(&questions[0]), -EBADMSG);
	flip();
	ask(&questions[0], 2, first);
	ok(await(&questions[0]));
	check_pages(&questions[0]);
	// Now that it is checked, a page is read by itself where that can be.
	flip();
	ask(&questions[0], 2, first);
	ck_assert_int_eq(await(&questions[0]), _i ? -EBADMSG : 0);
	check_pages(&questions[0]);
	close_source();
	free_questions();
}
END_TEST

int main(void)
{
	TCase *tc = tcase_create("source");

	tcase_add_loop_test(tc, gives_what_is_asked_for, 0, 2);
	tcase_add_loop_test(tc, a_page_that_is_not_there_is_no_zero, 0, 2);
	tcase_add_loop_test(tc, a_damaged_chunk_is_not_handed_on, 0, 2);
	return run_case("image_source", tc, base_on_disk);
}
