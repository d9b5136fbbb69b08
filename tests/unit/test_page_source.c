// SPDX-License-Identifier: GPL-2.0-only
// Each page comes from where it is: a checkpoint's images, or another host.
#include "tests/unit/images_fixture.h"
#include "tests/unit/remote_rig.h"

#include "lazy-pages/source.h"

#define NR_QUESTIONS 60

static struct rig rig;
static struct question q[NR_QUESTIONS];
static struct ram ram[NR_BLOCKS];
static struct img_dir *images;
static struct lp_source *source;
static uint64_t in_images[NR_CHUNKS][PV_WORDS];

static void base_on_disk(void)
{
	make_base("/var/tmp");
}

// Half of the pages are in the images, where none is zero; chunk 1 is there as a whole, chunk 2 not at all.
static void open_source(enum manner manner)
{
	rig_open(&rig, 2, manner);
	for (unsigned i = 0; i < NR_BLOCKS; i++) {
		ram[i] = ram_new(rig.blocks[i].len);
		for (uint64_t at = 0; at < ram[i].len; at += PAGE_SIZE)
			fill_random(ram[i].data + at, 512);
	}
	write_checkpoint(ram, NR_BLOCKS, 1);
	ok(img_dir_open(dir, &images));
	for (unsigned i = 0; i < NR_CHUNKS; i++)
		for (unsigned w = 0; w < PV_WORDS; w++)
			in_images[i][w] = i == 1 ? ~0ULL : i == 2 ? 0 : (uint64_t)random() << 33 | (uint64_t)random();
	ok(lp_source_new(&(struct lp_source_opts){ .loop = &rig.loop, .images = images, .remote = rig.remote,
						   .in_images = (const uint64_t (*)[PV_WORDS])in_images }, &source));
}

static void close_source(void)
{
	rig_close(&rig);
	lp_source_free(source);
	img_dir_close(images);
	for (unsigned i = 0; i < NR_BLOCKS; i++)
		free(ram[i].data);
}

// Of these pages, those of one side, if there are any.
static void ask_source(unsigned i, uint64_t chunk, bool side, const uint64_t pages[PV_WORDS])
{
	q[i].rd = (struct pv_source_read){ .chunk = chunk, .dest = malloc(MiB), .unasked = i % 2, .done = answered };
	q[i].answered = 0;
	q[i].err = 0;
	memset(q[i].rd.dest, UNTOUCHED, MiB);
	memcpy(q[i].rd.pages, pages, sizeof q[i].rd.pages);
	bitmap_clear_range(q[i].rd.pages, chunk_pages(chunk), 256 - chunk_pages(chunk));
	for (unsigned w = 0; w < PV_WORDS; w++)
		q[i].rd.pages[w] &= side ? in_images[chunk][w] : ~in_images[chunk][w];
	if (bitmap_empty(q[i].rd.pages, 256)) {
		q[i].answered = 1;
		return;
	}
	lp_source_read(source, &q[i].rd);
	ck_assert(!q[i].answered);
}

static void check_sources(unsigned i)
{
	struct question *a = &q[i];
	uint32_t block = a->rd.chunk >= 4;
	uint64_t chunk = block ? a->rd.chunk - 4 : a->rd.chunk;
	char page[PAGE_SIZE];

	ck_assert_uint_eq(a->answered, 1);
	ok(a->err);
	for (size_t n = 0; n < 256; n++) {
		bool wanted = bitmap_test(a->rd.pages, n), here = bitmap_test(in_images[a->rd.chunk], n);
		bool zero = wanted && !here && page_is_zero(block, chunk, n);

		ck_assert_int_eq(bitmap_test(a->rd.zero, n), zero);
		if (wanted && here)
			memcpy(page, ram[block].data + chunk * MiB + n * PAGE_SIZE, PAGE_SIZE);
		else if (wanted && !zero)
			page_fill(page, block, chunk, n);
		else
			memset(page, UNTOUCHED, sizeof page);
		ck_assert_int_eq(memcmp(a->rd.dest + n * PAGE_SIZE, page, PAGE_SIZE), 0);
	}
	free(a->rd.dest);
}

static bool all_answered(unsigned from, unsigned to)
{
	while (from < to && q[from].answered)
		from++;
	return from == to;
}

START_TEST(from_both)
{
	open_source(ANSWERS);
	for (unsigned i = 0; i < NR_QUESTIONS; i++) {
		uint64_t pages[PV_WORDS] = { i % 7 ? 1U << i % 20 : ~0ULL, (uint64_t)random(), 0, i % 5 ? 0 : ~0ULL };

		ask_source(i, i % NR_CHUNKS, i / NR_CHUNKS % 2, pages);
	}
	must_be(&rig, all_answered(0, NR_QUESTIONS));
	for (unsigned i = 0; i < NR_QUESTIONS; i++)
		check_sources(i);
	close_source();
}
END_TEST

// What is here comes while what is there does not.
START_TEST(the_other_host_waits)
{
	open_source(HOLDS);
	for (unsigned i = 0; i < 40; i++)
		ask_source(i, 4 + i % 2, false, all_pages);
	for (unsigned i = 40; i < 50; i++)
		ask_source(i, 1, true, all_pages);
	for (unsigned i = 50; i < NR_QUESTIONS; i++)
		ask_source(i, 5, true, all_pages);
	must_be(&rig, all_answered(40, NR_QUESTIONS));
	rig_pass(&rig, 50);
	for (unsigned i = 0; i < 40; i++)
		ck_assert_uint_eq(q[i].answered, 0);
	rig.far[0].manner = rig.far[1].manner = ANSWERS;
	must_be(&rig, all_answered(0, NR_QUESTIONS));
	for (unsigned i = 0; i < NR_QUESTIONS; i++)
		check_sources(i);
	close_source();
}
END_TEST

int main(void)
{
	TCase *tc = tcase_create("source");

	tcase_add_test(tc, from_both);
	tcase_add_test(tc, the_other_host_waits);
	return run_case("page_source", tc, base_on_disk);
}
