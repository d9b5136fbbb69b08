// SPDX-License-Identifier: GPL-2.0-only
// In which order what the page source has comes, how much of it at a time, and that the search for it keeps nobody waiting.
#include "fill_suite.h"

static unsigned nr_reads(const struct rig *r)
{
	unsigned n = 0;

	for (const struct list *node = r->source_queue.next; node != &r->source_queue; node = node->next)
		n++;
	return n;
}

static void finish_and_verify(struct rig *r)
{
	r->source_hold = false;
	rig_finish(r);
	expect_source_gone(r);
	verify_all(r);
	rig_end(r);
}

// By hotness, but for what was accessed, and what is in memory in part.
START_TEST(by_hotness)
{
	static const uint8_t hotness[NR_CHUNKS] = { [3] = 255, [7] = 1, [8] = 1, [20] = 200, [21] = 7, [22] = 200, [30] = 255, [39] = 2 };
	// While one that was accessed is on its way, what is beside it is not seen to be.
	static const uint64_t want[] = { 12, 5, 3, 30, 13, 6, 4, 11, 20, 22, 21, 39, 7, 8, 0, 1, 2, 9, 10, 14 };
	struct rig r;

	rig_init(&r, NR_PAGES, 0, NR_PAGES * PAGE_SIZE);
	r.no_ticks = true; // what was accessed longer ago by one comes later
	rig_put(&r, 0, NR_PAGES, PV_HOME_SOURCE);
	rig_put(&r, 5 * 256 + 7, 1, PV_HOME_NONE);
	r.hotness = hotness;
	rig_start(&r);
	pv_engine_run(r.e);
	rig_do(&r, 0, GUEST_VERIFY, 12 * 256 + 100, 1);
	rig_pass(&r, 20);
	r.source_hold = true;
	pv_fill_begin(r.e);
	for (size_t i = 0; i < ARRAY_SIZE(want); i++) {
		rig_pass(&r, 20);
		ck_assert(!list_empty(&r.source_queue));
		ck_assert_uint_eq(answer_one(&r), want[i]);
	}
	finish_and_verify(&r);
}
END_TEST

// As many more chunks at a time, while the guest pages in, as the source takes milliseconds to answer.
START_TEST(slow_source)
{
	static const unsigned ms[] = { 0, 2, 30 }, copies[] = { 1, 3, 4 };
	uint64_t begun, took;
	struct rig r;

	start_with(&r, BUDGET);
	r.source_hold = true;
	begun = clock_now_ns();
	rig_order(&r, 0, GUEST_VERIFY, 20 * 256 + 100, 1);
	ck_assert(rig_until(&r, !list_empty(&r.source_queue), RIG_PATIENCE_MS));
	usleep(ms[_i] * 1000);
	took = clock_now_ns() - begun;
	answer_one(&r);
	rig_finish(&r);
	pv_tick(r.e);
	begun = clock_now_ns();
	rig_order(&r, 0, GUEST_VERIFY, 30 * 256 + 100, 1);
	ck_assert(rig_until(&r, !list_empty(&r.source_queue), RIG_PATIENCE_MS));
	pv_fill_begin(r.e);
	r.more = pv_balance(r.e);
	ck_assert_uint_ge(nr_reads(&r), 1 + copies[_i]);
	if (took < (ms[_i] + 1) * NSEC_PER_MSEC && clock_now_ns() - begun < 5 * NSEC_PER_MSEC) // else the test was not quick enough
		ck_assert_uint_eq(nr_reads(&r), 1 + copies[_i]);
	finish_and_verify(&r);
}
END_TEST

// A guest of 64 GiB that does nothing, all of it empty but for a page here and there.

#define BIG_CHUNKS (64 * 1024UL)
#define STEP_CHUNKS 256 // are looked at in a step
#define STEP_BYTES (64 * 1024UL) // of hotness

struct big {
	struct loop loop;
	struct pv_swap swap;
	struct pv_block block;
	struct pv_pages *pages;
	uint8_t *hotness;
	struct pv_ops ops;
	struct pv_engine *e;
	struct list reads;
	bool gone;
	unsigned waits; // rounds in which there was nothing to be done
};

static void big_read(void *ctx, struct pv_source_read *rd)
{
	struct big *b = ctx;

	list_append(&b->reads, &rd->link);
}

static void big_done(void *ctx)
{
	struct big *b = ctx;

	ck_assert(!b->gone);
	b->gone = true;
}

static void big_init(struct big *b)
{
	*b = (struct big){ .swap = PV_SWAP_NONE, .block = { .len = BIG_CHUNKS * PV_CHUNK_SIZE, .hva = GiB },
			   .pages = calloc(BIG_CHUNKS, sizeof *b->pages), .hotness = calloc(BIG_CHUNKS, 1),
			   .ops = { .ctx = b, .source_read = big_read, .source_done = big_done } };
	quiet();
	list_init(&b->reads);
	ck_assert_int_eq(loop_init(&b->loop, 16), 0);
	b->block.memfd = memfd_create("big", MFD_CLOEXEC);
	ck_assert(b->block.memfd >= 0 && !ftruncate(b->block.memfd, (off_t)b->block.len));
	for (uint64_t i = 0; i < BIG_CHUNKS; i++)
		memset(b->pages[i].zero, 0xff, sizeof b->pages[i].zero);
}

static void big_start(struct big *b)
{
	struct pv_opts o = { .loop = &b->loop, .uffd = -1, .zap_own = true, .swap = &b->swap, .blocks = &b->block, .nr_blocks = 1,
			     .pages = b->pages, .budget = b->block.len, .hotness = b->hotness, .ops = &b->ops };

	ck_assert_int_eq(pv_engine_new(&o, &b->e), 0);
	pv_engine_run(b->e);
	pv_fill_begin(b->e);
}

static void big_fini(struct big *b)
{
	loop_fini(&b->loop);
	pv_engine_free(b->e);
	close(b->block.memfd);
	free(b->pages);
	free(b->hotness);
}

// All that it is asked for is zero. The chunk.
static uint64_t big_answer(struct big *b)
{
	struct pv_source_read *rd = list_first(&b->reads, struct pv_source_read, link);
	uint64_t chunk = rd->chunk;

	list_remove(&rd->link);
	memcpy(rd->zero, rd->pages, sizeof rd->zero);
	pv_source_done(b->e, rd, 0, NULL);
	return chunk;
}

// The next chunk that is read; BIG_CHUNKS: the source is gone. *steps: that it took.
static uint64_t big_next(struct big *b, unsigned *steps)
{
	for (*steps = 0; list_empty(&b->reads) && !b->gone; ++*steps)
		if (!pv_balance(b->e) && list_empty(&b->reads) && !b->gone) {
			b->waits++;
			loop_round(&b->loop, true);
		}
	return b->gone ? BIG_CHUNKS : big_answer(b);
}

// A search takes as many steps as the guest is large, so that a fault never waits for more than one of them.
START_TEST(in_steps)
{
	const uint64_t last = BIG_CHUNKS - 1, other = 12345;
	const uint64_t level = BIG_CHUNKS - other; // chunks to be searched, for each hotness that there is
	unsigned steps, levels = 100;
	struct big b;

	big_init(&b);
	for (unsigned i = 0; i < levels; i++)
		b.hotness[100 + i] = (uint8_t)(2 * i + 2);
	b.hotness[other] = 111;
	pv_page_set_home(&b.pages[other], 77, PV_HOME_SOURCE);
	pv_page_set_home(&b.pages[last], 255, PV_HOME_SOURCE);
	big_start(&b);
	ck_assert_uint_eq(pv_engine_missing(b.e), 2);
	ck_assert_uint_eq(big_next(&b, &steps), other);
	ck_assert_uint_ge(steps, BIG_CHUNKS / STEP_CHUNKS + 44 * level / STEP_BYTES); // 112 to 200
	ck_assert_uint_le(steps, BIG_CHUNKS / STEP_CHUNKS + 46 * level / STEP_BYTES + 2);
	for (steps = 0; list_empty(&b.reads); steps++)
		pv_balance(b.e);
	ck_assert_uint_ge(steps, 54 * level / STEP_BYTES);
	for (steps = 0; pv_balance(b.e); steps++) // on, until there is nothing but to wait for it
		;
	ck_assert_uint_ge(steps, level / STEP_CHUNKS);
	ck_assert_uint_eq(big_answer(&b), last);
	ck_assert_uint_eq(pv_engine_missing(b.e), 0);
	b.waits = 0;
	ck_assert_uint_eq(big_next(&b, &steps), BIG_CHUNKS);
	ck_assert_uint_eq(b.waits, 0);
	ck_assert_uint_le(steps, 2); // it was known where there was something left
	big_fini(&b);
}
END_TEST

// Whatever the hotness of its chunks, a guest is filled from the hottest to the coldest, and of equals from the first to the last.
START_TEST(in_order)
{
	uint64_t chunk, before = 0, n = 0, nr = 0;
	unsigned steps;
	struct big b;

	big_init(&b);
	srand(7);
	for (uint64_t i = 0; i < BIG_CHUNKS; i++)
		b.hotness[i] = (uint8_t)(rand() % 256);
	for (uint64_t i = 0; i < BIG_CHUNKS; i += 1 + (uint64_t)rand() % 100, nr++)
		pv_page_set_home(&b.pages[i], i % 256, PV_HOME_SOURCE);
	big_start(&b);
	for (; (chunk = big_next(&b, &steps)) < BIG_CHUNKS; before = chunk, n++)
		if (n && (b.hotness[chunk] > b.hotness[before] || (b.hotness[chunk] == b.hotness[before] && chunk < before)))
			ck_abort_msg("chunk %lu (%u) after %lu (%u)", chunk, b.hotness[chunk], before, b.hotness[before]);
	ck_assert_uint_eq(n, nr);
	ck_assert_uint_eq(pv_engine_missing(b.e), 0);
	big_fini(&b);
}
END_TEST

int main(void)
{
	Suite *s = suite_create("fill_order");

	add(s, by_hotness, 1);
	add(s, slow_source, 3);
	add(s, in_steps, 1);
	add(s, in_order, 1);
	return run(s);
}
