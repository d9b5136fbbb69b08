// SPDX-License-Identifier: GPL-2.0-only
// Guest RAM is read beside an engine that pages it, again and again what the guest has changed: what was put together so is, in the
// end, what the guest has.
#include "reader_suite.h"


static struct pv_reader *new_reader(struct rig *r)
{
	struct pv_reader_opts o = { .pages = r->pages, .blocks = r->block, .nr_blocks = r->nr_blocks, .swap_fd = r->swap.fd, .ctx = r,
				    .source_read = read_source };
	struct pv_reader *reader;

	ck_assert_int_eq(pv_reader_new(&o, &reader), 0);
	return reader;
}

// ---- increments of a guest that runs

struct dump {
	struct rig *r;
	struct pv_reader *reader;
	uint64_t (*todo)[PV_WORDS]; // a chunk
	char *image;
	pthread_t thread;
	_Atomic bool reading;
	int err;
	size_t copied;
};

static void save_chunk(struct dump *d, uint64_t chunk, char *buf)
{
	uint64_t present[PV_WORDS];
	int err = pv_reader_read(d->reader, chunk, d->todo[chunk], buf);

	d->err = d->err ? d->err : err;
	pv_reader_present(d->reader, chunk, present);
	for (size_t i = 0; i < PV_CHUNK_PAGES; i++)
		if (bitmap_test(d->todo[chunk], i) && rig_page(d->r, chunk * PV_CHUNK_PAGES + i)) {
			memcpy(d->image + (chunk * PV_CHUNK_PAGES + i) * PAGE_SIZE, buf + i * PAGE_SIZE, PAGE_SIZE);
			d->copied++;
		}
}

static void *save(void *arg)
{
	struct dump *d = arg;
	char *buf = new_buffer(PV_CHUNK_PAGES);

	for (uint64_t chunk = 0; chunk < d->r->nr_chunks; chunk++)
		if (!bitmap_empty(d->todo[chunk], PV_CHUNK_PAGES))
			save_chunk(d, chunk, buf);
	free(buf);
	d->reading = false;
	return NULL;
}

// All direct I/O that has begun by now ends.
static void drain(struct rig *r)
{
	uint32_t now = ++r->g->drains;

	for (size_t i = 0; i < GUEST_WORKERS; i++)
		ck_assert(rig_until(r, (int32_t)(r->g->worker[i].drain_seen - now) >= 0 || r->g->worker[i].order == GUEST_RANDOM, RIG_PATIENCE_MS));
}

// whole: of all pages, else of what was changed.
static void increment(struct dump *d, bool whole)
{
	pv_engine_harvest(d->r->e);
	for (uint64_t chunk = 0; chunk < d->r->nr_chunks; chunk++) {
		pv_reader_take_dirty(d->reader, chunk, d->todo[chunk]);
		if (whole)
			memset(d->todo[chunk], 0xff, sizeof d->todo[chunk]);
	}
	drain(d->r);
	d->reading = true;
	ck_assert_int_eq(pthread_create(&d->thread, NULL, save, d), 0);
	ck_assert(rig_until(d->r, !d->reading, RIG_PATIENCE_MS));
	pthread_join(d->thread, NULL);
	ck_assert_int_eq(d->err, 0);
}

static void dump_init(struct dump *d, struct rig *r)
{
	*d = (struct dump){ .r = r, .reader = new_reader(r), .todo = calloc(r->nr_chunks, sizeof *d->todo), .image = new_buffer(r->g->nr_pages) };
}

static void dump_fini(struct dump *d)
{
	pv_reader_free(d->reader);
	free(d->todo);
	free(d->image);
}

// The guest stands still, and has told what its pages hold.
static void compare(const struct dump *d)
{
	const struct guest *g = d->r->g;

	for (size_t i = 0; i < g->nr_pages; i++)
		if (rig_page(d->r, i) && !page_is(d->image + i * PAGE_SIZE, g->seed[i]))
			ck_abort_msg("page %zu of chunk %zu: was saved as %lx, is %lx", i % PV_CHUNK_PAGES, i / PV_CHUNK_PAGES,
				     *(uint64_t *)(d->image + i * PAGE_SIZE), g->seed[i]);
}

static const struct variant {
	enum mm_zap_method method;
	bool fill, dma, take_over;
} variants[] = {
	{ MM_ZAP_RING, false, false, false }, { MM_ZAP_RING, false, true, false }, { MM_ZAP_PAGEOUT, false, true, false },
	{ MM_ZAP_RING, true, true, false },   { MM_ZAP_RING, false, true, true },
};

START_TEST(increments)
{
	const struct variant *v = &variants[_i];
	uint64_t end = clock_now_ns() + 3 * NSEC_PER_SEC;
	unsigned rounds = 0;
	struct dump d;
	struct rig r;

	SKIP_UNLESS_ZAP(v->method);
	init_mixed(&r);
	r.method = v->method;
	rig_start(&r);
	pv_engine_run(r.e);
	if (v->fill)
		pv_fill_begin(r.e);
	dump_init(&d, &r);
	begin_work(&r, v->dma);
	increment(&d, true);
	for (; clock_now_ns() < end; rounds++) {
		rig_pass(&r, rounds % 8);
		increment(&d, false);
		if (v->take_over && rounds % 32 == 9) {
			end_work(&r);
			replace_engine(&r);
			begin_work(&r, v->dma);
		}
	}
	end_work(&r);
	increment(&d, false);
	ck_assert(rig_stats(&r).out_written && rounds > 5 && d.copied > r.g->nr_pages);
	rig_do(&r, 0, GUEST_VERIFY, 0, r.g->nr_pages); // of what may be two things, one is found
	compare(&d);
	dump_fini(&d);
	rig_end(&r);
}
END_TEST

// ---- what a harvest finds

static size_t take_all(struct rig *r, struct pv_reader *reader, uint64_t *map)
{
	size_t n = 0;

	for (uint64_t chunk = 0; chunk < r->nr_chunks; chunk++) {
		pv_reader_take_dirty(reader, chunk, map + chunk * PV_WORDS);
		n += bitmap_count(map + chunk * PV_WORDS, PV_CHUNK_PAGES);
	}
	return n;
}

START_TEST(harvest_is_exact)
{
	uint64_t map[BITMAP_WORDS(GUEST_MAX_PAGES)];
	struct pv_reader *reader;
	struct rig r;

	rig_init(&r, 8 * 256, 256, pv_min_budget((8 + 1) * MiB));
	rig_put(&r, 256, 256, PV_HOME_SOURCE);
	rig_put(&r, 512, 256, PV_HOME_SWAP);
	rig_put(&r, 768, 256, PV_HOME_NONE);
	rig_start(&r);
	pv_engine_run(r.e);
	reader = new_reader(&r);
	rig_do(&r, 0, GUEST_VERIFY, 0, r.g->nr_pages);
	rig_do(&r, 1, GUEST_WRITE, 2000, 3);
	ck_assert_uint_ge(pv_engine_harvest(r.e), 3);
	take_all(&r, reader, map);
	for (size_t i = 0; i < 3; i++)
		ck_assert(bitmap_test(map, 2000 + i));
	for (size_t i = 0; i < 2; i++) { // reading is not writing
		rig_do(&r, 0, GUEST_VERIFY, 0, r.g->nr_pages);
		ck_assert_uint_eq(pv_engine_harvest(r.e), 0);
		ck_assert_uint_eq(take_all(&r, reader, map), 0);
	}
	for (size_t page = 0; page < r.g->nr_pages; page += 7)
		rig_do(&r, page % GUEST_WORKERS, GUEST_WRITE, page, 1);
	ck_assert_uint_eq(pv_engine_harvest(r.e), DIV_ROUND_UP(r.g->nr_pages, 7));
	ck_assert_uint_eq(pv_engine_harvest(r.e), 0); // it stays dirty until it is taken
	ck_assert_uint_eq(take_all(&r, reader, map), DIV_ROUND_UP(r.g->nr_pages, 7));
	for (size_t page = 0; page < r.g->nr_pages; page++)
		ck_assert(bitmap_test(map, page) == !(page % 7));
	rig_do(&r, 0, GUEST_DISCARD, 300, 20);
	pv_engine_harvest(r.e);
	ck_assert_uint_ge(take_all(&r, reader, map), 20);
	for (size_t i = 0; i < 20; i++)
		ck_assert(bitmap_test(map, 300 + i));
	pv_reader_free(reader);
	rig_end(&r);
}
END_TEST

// Where the kernel cannot tell, all counts as written.
START_TEST(harvest_not_known)
{
	uint64_t map[BITMAP_WORDS(GUEST_MAX_PAGES)];
	struct mm_pagemap *good, *of_another;
	struct pv_reader *reader;
	struct rig r;

	quiet();
	rig_init(&r, 4 * 256, 0, 4 * MiB);
	rig_start(&r);
	reader = new_reader(&r);
	pv_engine_free(r.e);
	good = r.pagemap;
	ck_assert_int_eq(mm_pagemap_open(getpid(), &of_another), 0);
	r.pagemap = of_another;
	r.deaf = r.watch.poll.busy = r.look.op.busy = false;
	loop_fini(&r.loop);
	rig_new_loop(&r);
	rig_new_engine(&r);
	r.deaf = false;
	pv_engine_run(r.e);
	rig_do(&r, 0, GUEST_VERIFY, 0, 300);
	pv_engine_harvest(r.e);
	ck_assert_uint_ge(take_all(&r, reader, map), 300);
	mm_pagemap_close(of_another);
	r.pagemap = good;
	pv_reader_free(reader);
	rig_end(&r);
}
END_TEST

// ---- where pages lie

static void expect_chunk(const struct rig *r, uint64_t chunk, const uint64_t want[PV_WORDS], const char *buf)
{
	for (size_t i = 0; i < PV_CHUNK_PAGES; i++) {
		size_t page = chunk * PV_CHUNK_PAGES + i;

		if (bitmap_test(want, i) && rig_page(r, page))
			ck_assert_msg(page_is(buf + i * PAGE_SIZE, r->g->seed[page]), "page %zu", page);
		else
			ck_assert_msg(*(const uint64_t *)(buf + i * PAGE_SIZE) == 0xa5a5a5a5a5a5a5a5, "page %zu was not asked for", page);
	}
}

// Nobody pages; pages of all homes in one chunk, and a block that ends within one.
static void put_mixed(struct rig *r)
{
	rig_init(r, 256 + 100, 256, BUDGET);
	for (size_t i = 0; i < r->g->nr_pages; i++)
		if (i * 11 / 5 % 4 != PV_HOME_ZERO)
			rig_put(r, i, 1, (enum pv_home)(i * 11 / 5 % 4));
}

static void rig_forget(struct rig *r)
{
	for (size_t i = 0; i < r->nr_blocks; i++) {
		munmap(r->block[i].map, r->block[i].len);
		close(r->block[i].memfd);
	}
	pv_swap_close(&r->swap);
	close(r->g->dma_fd);
	munmap(r->g, sizeof *r->g);
	free(r->pages);
	free(r->source_seed);
}

START_TEST(homes)
{
	uint64_t want[PV_WORDS], present[PV_WORDS];
	struct pv_reader *reader;
	struct rig r;

	put_mixed(&r);
	reader = new_reader(&r);
	for (uint64_t chunk = 0; chunk < r.nr_chunks; chunk++)
		for (unsigned pattern = 0; pattern < 3; pattern++) {
			char *buf = new_buffer(PV_CHUNK_PAGES);

			memset(want, pattern ? pattern * 0x5b : 0xff, sizeof want);
			ck_assert_int_eq(pv_reader_read(reader, chunk, want, buf), 0);
			expect_chunk(&r, chunk, want, buf);
			free(buf);
			pv_reader_present(reader, chunk, present);
			for (size_t i = 0; i < PV_CHUNK_PAGES; i++)
				ck_assert(bitmap_test(present, i) == (r.g->seed[chunk * PV_CHUNK_PAGES + i] != 0));
		}
	pv_reader_free(reader);
	rig_forget(&r);
}
END_TEST

static int fail_source(void *ctx, uint64_t chunk, const uint64_t pages[PV_WORDS], char *dest)
{
	(void)ctx, (void)chunk, (void)pages, (void)dest;
	return -EBADMSG;
}

START_TEST(errors)
{
	char *buf = new_buffer(PV_CHUNK_PAGES);
	uint64_t all[PV_WORDS];
	struct rig r;

	quiet();
	put_mixed(&r);
	memset(all, 0xff, sizeof all);
	for (unsigned i = 0; i < 4; i++) {
		struct pv_reader_opts o = { .pages = r.pages, .blocks = r.block, .nr_blocks = r.nr_blocks, .swap_fd = r.swap.fd, .ctx = &r,
					    .source_read = i == 0 ? NULL : i == 1 ? fail_source : read_source };
		int broken = i == 2 ? broken_swap(&r, O_WRONLY) : -1;
		struct pv_reader *reader;

		if (i >= 2)
			o.swap_fd = broken;
		ck_assert_int_eq(pv_reader_new(&o, &reader), 0);
		ck_assert_int_eq(pv_reader_read(reader, 0, all, buf), i == 1 ? -EBADMSG : -EBADF);
		pv_reader_free(reader);
		if (broken >= 0)
			close(broken);
	}
	free(buf);
	rig_forget(&r);
}
END_TEST

// ---- the table changes while it is read: the source is read first, and changes it

struct changing {
	struct rig r;
	size_t times;
	void (*change)(struct rig *r);
};

static int change_and_read(void *ctx, uint64_t chunk, const uint64_t pages[PV_WORDS], char *dest)
{
	struct changing *c = ctx;

	if (c->times) {
		c->times--;
		c->change(&c->r);
	}
	return read_source(&c->r, chunk, pages, dest);
}

#define IN_MEMORY 1 // pages of chunk 0
#define IN_SWAP 2
#define IN_SOURCE 3

static void write_page(const struct rig *r, size_t page, uint64_t seed)
{
	char *buf = new_buffer(1);

	guest_fill(buf, seed);
	ck_assert_int_eq(pwrite(r->swap.fd, buf, PAGE_SIZE, (off_t)(page * PAGE_SIZE)), PAGE_SIZE);
	free(buf);
}

// As page-out does it.
static void page_out(struct rig *r)
{
	uint64_t one[PV_WORDS] = { 1 << IN_MEMORY };

	write_page(r, IN_MEMORY, r->g->seed[IN_MEMORY]);
	pv_page_set_home(r->pages, IN_MEMORY, PV_HOME_SWAP);
	pv_pages_set_valid(r->pages, one, false);
	pv_pages_count_drop(r->pages);
	ck_assert_int_eq(fallocate(r->block[0].memfd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, IN_MEMORY * PAGE_SIZE, PAGE_SIZE), 0);
}

static void out_and_in(struct rig *r)
{
	uint64_t one[PV_WORDS] = { 1 << IN_MEMORY };

	page_out(r);
	guest_fill(rig_page(r, IN_MEMORY), r->g->seed[IN_MEMORY]);
	pv_pages_set_valid(r->pages, one, true);
}

// It comes in, is written to, and its place in the image is overwritten with something else, not whole yet.
static void overwrite(struct rig *r)
{
	uint64_t one[PV_WORDS] = { 1 << IN_SWAP };

	guest_fill(rig_page(r, IN_SWAP), r->g->seed[IN_SWAP]);
	pv_pages_set_valid(r->pages, one, true);
	pv_page_set_home(r->pages, IN_SWAP, PV_HOME_NONE);
	write_page(r, IN_SWAP, 12345);
}

static void discard(struct rig *r)
{
	pv_page_set_home(r->pages, IN_SWAP, PV_HOME_ZERO);
	write_page(r, IN_SWAP, 12345);
	r->g->seed[IN_SWAP] = 0;
}

static void start_changing(struct changing *c, struct pv_reader **reader, void (*change)(struct rig *r), size_t times)
{
	struct pv_reader_opts o;

	*c = (struct changing){ .change = change, .times = times };
	rig_init(&c->r, 256, 0, MiB);
	rig_put(&c->r, IN_MEMORY, 1, PV_HOME_NONE);
	rig_put(&c->r, IN_SWAP, 1, PV_HOME_SWAP);
	rig_put(&c->r, IN_SOURCE, 1, PV_HOME_SOURCE);
	o = (struct pv_reader_opts){ .pages = c->r.pages, .blocks = c->r.block, .nr_blocks = 1, .swap_fd = c->r.swap.fd, .ctx = c,
				     .source_read = change_and_read };
	ck_assert_int_eq(pv_reader_new(&o, reader), 0);
}

static void (*const changes[])(struct rig *r) = { page_out, out_and_in, overwrite, discard };

START_TEST(changes_meanwhile)
{
	char *buf = new_buffer(PV_CHUNK_PAGES);
	uint64_t all[PV_WORDS];
	struct pv_reader *reader;
	struct changing c;

	memset(all, 0xff, sizeof all);
	start_changing(&c, &reader, changes[_i], 1);
	ck_assert_int_eq(pv_reader_read(reader, 0, all, buf), 0);
	expect_chunk(&c.r, 0, all, buf);
	ck_assert_uint_eq(c.times, 0);
	pv_reader_free(reader);
	rig_forget(&c.r);
	free(buf);
}
END_TEST

// A page is nowhere: that can be so for a moment only.
START_TEST(changes_for_ever)
{
	char *buf = new_buffer(PV_CHUNK_PAGES);
	uint64_t all[PV_WORDS], begun = clock_now_ns();
	struct pv_reader *reader;
	struct changing c;

	memset(all, 0xff, sizeof all);
	start_changing(&c, &reader, NULL, 0);
	pv_page_set_home(c.r.pages, 99, PV_HOME_NONE);
	ck_assert_int_eq(pv_reader_read(reader, 0, all, buf), -EAGAIN);
	ck_assert_ptr_nonnull(strstr(log_last_error(), "more memory"));
	ck_assert_uint_ge(clock_now_ns() - begun, NSEC_PER_SEC / 10);
	pv_page_set_home(c.r.pages, 99, PV_HOME_ZERO);
	ck_assert_int_eq(pv_reader_read(reader, 0, all, buf), 0);
	expect_chunk(&c.r, 0, all, buf);
	pv_reader_free(reader);
	rig_forget(&c.r);
	free(buf);
}
END_TEST

int main(void)
{
	Suite *s = suite_create("pv_reader");

	add(s, homes, 1);
	add(s, errors, 1);
	add(s, changes_meanwhile, ARRAY_SIZE(changes));
	add(s, changes_for_ever, 1);
	add(s, harvest_is_exact, 1);
	add(s, harvest_not_known, 1);
	add(s, increments, ARRAY_SIZE(variants));
	return run(s);
}
