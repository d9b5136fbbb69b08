// SPDX-License-Identifier: GPL-2.0-only
// A page source that gives each page once, and knows which are zero; what comes first; and that it is let go at once.
#include "fill_suite.h"

#define ZEROS 3 // each so-manyth page of the source is zero
#define NR_ZEROS DIV_ROUND_UP(NR_PAGES, ZEROS)

static void init(struct rig *r, uint64_t budget, bool once)
{
	rig_init(r, NR_PAGES, 0, budget);
	rig_put(r, 0, NR_PAGES, PV_HOME_SOURCE);
	rig_put_zeros(r, 0, NR_PAGES, ZEROS);
	r->source_once = once;
}

static void start(struct rig *r, uint64_t budget, bool once)
{
	init(r, budget, once);
	rig_start(r);
	pv_engine_run(r->e);
}

static enum pv_home home_of(const struct rig *r, size_t page)
{
	return pv_page_home(&r->pages[page / 256], page % 256);
}

static bool is_valid(const struct rig *r, size_t page)
{
	return bitmap_test(r->pages[page / 256].valid, page % 256);
}

static void finish_and_verify(struct rig *r)
{
	r->source_hold = r->copy_hold = false;
	rig_finish(r);
	verify_all(r);
	write_and_verify_all(r);
	rig_end(r);
}

// All of it is touched, again and again, in a part of the memory: each page was asked for once, or time and again.
START_TEST(on_demand)
{
	struct rig r;

	start(&r, BUDGET, _i);
	ck_assert_uint_eq(pv_engine_missing(r.e), NR_PAGES);
	for (unsigned i = 0; i < 3; i++)
		rig_do(&r, 0, GUEST_VERIFY, 0, NR_PAGES);
	if (_i) {
		ck_assert_uint_eq(r.source_given, NR_PAGES);
		ck_assert_uint_eq(pv_engine_missing(r.e), 0);
		expect_source_gone(&r); // without a fill
	} else {
		ck_assert_uint_gt(r.source_given, NR_PAGES + NR_PAGES / 2);
		ck_assert_uint_eq(rig_stats(&r).source, NR_PAGES - NR_ZEROS); // of zeros it is the home no longer
		ck_assert(pv_engine_missing(r.e) && !r.source_gone);
	}
	ck_assert_uint_eq(rig_stats(&r).filled_memory + rig_stats(&r).filled_swap, 0);
	finish_and_verify(&r);
}
END_TEST

// The homes of pages that a fault has brought.
START_TEST(homes)
{
	struct rig r;

	start(&r, BUDGET, _i);
	rig_do(&r, 0, GUEST_VERIFY, 10 * 256 + 100, 1);
	ck_assert(is_valid(&r, 10 * 256 + 100));
	for (size_t page = 10 * 256; page < 11 * 256; page++)
		if (is_valid(&r, page))
			ck_assert_int_eq(home_of(&r, page), page % ZEROS == 0 ? PV_HOME_ZERO : _i ? PV_HOME_NONE : PV_HOME_SOURCE);
		else
			ck_assert_int_eq(home_of(&r, page), PV_HOME_SOURCE);
	rig_do(&r, 0, GUEST_WRITE, 10 * 256 + 96, 8); // what was zero is written out like anything else
	finish_and_verify(&r);
}
END_TEST

// What nobody has asked for, and is zero, takes neither memory nor a write.
START_TEST(zeros_into_memory)
{
	struct pv_stats s;
	struct rig r;

	start(&r, NR_PAGES * PAGE_SIZE, _i);
	fill(&r);
	s = rig_stats(&r);
	ck_assert_uint_eq(s.empty, NR_ZEROS);
	ck_assert_uint_eq(s.filled_memory, NR_PAGES - NR_ZEROS);
	ck_assert_uint_eq(s.charged, NR_PAGES - NR_ZEROS);
	ck_assert_uint_eq(rig_memory(&r), (NR_PAGES - NR_ZEROS) * PAGE_SIZE);
	ck_assert_uint_eq(s.swapped + s.faults, 0);
	finish_and_verify(&r);
}
END_TEST

START_TEST(zeros_into_swap)
{
	struct pv_stats s;
	struct stat st;
	struct rig r;

	init(&r, BUDGET, _i);
	rig_put_zeros(&r, 0, NR_PAGES / 2, 1); // whole chunks of them
	rig_start(&r);
	pv_engine_run(r.e);
	fill(&r);
	s = rig_stats(&r);
	ck_assert_uint_gt(s.filled_swap, 0);
	ck_assert_uint_eq(s.empty, NR_PAGES / 2 + NR_ZEROS / 2);
	ck_assert_uint_eq(s.filled_swap + s.filled_memory + s.empty, NR_PAGES);
	ck_assert_int_eq(fstat(r.swap.fd, &st), 0);
	ck_assert_uint_le((uint64_t)st.st_blocks * 512, s.filled_swap * PAGE_SIZE + MiB / 2);
	finish_and_verify(&r);
}
END_TEST

// The guest waits for a page that is on its way, unasked, and turns out to be zero; for one that does not.
START_TEST(touched_on_its_way)
{
	struct rig r;
	size_t first;

	start(&r, NR_PAGES * PAGE_SIZE, true);
	r.source_hold = true;
	pv_fill_begin(r.e);
	rig_pass(&r, 20);
	first = first_read(&r)->chunk * 256;
	for (size_t worker = 0; worker < 2; worker++)
		rig_order(&r, worker, _i ? GUEST_WRITE : GUEST_VERIFY, ROUND_UP(first, ZEROS) + 30 * ZEROS + worker, 1);
	rig_pass(&r, 20);
	ck_assert_uint_eq(r.g->worker[0].touched + r.g->worker[1].touched, 0);
	r.source_hold = false;
	rig_finish(&r);
	expect_source_gone(&r);
	finish_and_verify(&r);
}
END_TEST

// Memory is full, the reads for a copy into swap are held; `chunk` is the first of these.
static void hold_copies(struct rig *r, uint64_t chunk)
{
	start(r, BUDGET, true);
	rig_do(r, 0, GUEST_WRITE, 0, BUDGET / PAGE_SIZE);
	settle(r);
	rig_do(r, 1, GUEST_VERIFY, chunk * 256, 1);
	r->copy_hold = true;
	rig_pass(r, 20);
	pv_fill_begin(r->e);
	ck_assert(rig_until(r, !list_empty(&r->source_queue), RIG_PATIENCE_MS));
	ck_assert_uint_eq(first_read(r)->chunk, chunk);
	ck_assert(first_read(r)->unasked);
}

// The same page is on its way twice, for a fault and into swap; either comes first. Then some of it is given back, or written, or both.
START_TEST(twice_on_its_way)
{
	const size_t at = 30 * 256 + 120; // a page of zeros
	struct pv_source_read *copy, *fault;
	struct rig r;

	hold_copies(&r, 30);
	rig_pass(&r, 40); // it should have come, so what is around a page is asked for with it
	r.source_hold = true;
	rig_order(&r, 0, GUEST_VERIFY, at, 4);
	copy = first_read(&r);
	ck_assert(rig_until(&r, !list_entry(r.source_queue.prev, struct pv_source_read, link)->unasked, RIG_PATIENCE_MS));
	fault = list_entry(r.source_queue.prev, struct pv_source_read, link);
	ck_assert(fault->chunk == 30 && bitmap_test(fault->pages, 120) && bitmap_test(copy->pages, 120));
	list_remove(_i & 1 ? &copy->link : &fault->link);
	rig_source_answer(&r, _i & 1 ? copy : fault);
	ck_assert(rig_until(&r, home_of(&r, at) != PV_HOME_SOURCE, RIG_PATIENCE_MS));
	ck_assert_int_eq(home_of(&r, at), PV_HOME_ZERO);
	ck_assert_int_eq(home_of(&r, at + 1), _i & 1 ? PV_HOME_SWAP : PV_HOME_NONE);
	ck_assert_int_eq(is_valid(&r, at), !(_i & 1));
	if (_i & 2)
		rig_order(&r, 1, GUEST_DISCARD, at + 20, 6);
	rig_pass(&r, 20);
	if (_i & 4)
		rig_order(&r, 2, GUEST_WRITE, at + 22, 6);
	rig_pass(&r, 20);
	r.source_hold = r.copy_hold = false;
	rig_finish(&r);
	if (_i == 1)
		ck_assert_int_eq(home_of(&r, at + 1), PV_HOME_SWAP); // a copy is a copy
	expect_source_gone(&r);
	rig_do(&r, 0, GUEST_VERIFY, 0, NR_PAGES);
	rig_end(&r);
}
END_TEST

// What the guest gives back while it is on its way, and uses again, is not what comes, be that zeros or not.
START_TEST(discards)
{
	struct rig r;

	if (_i)
		hold_copies(&r, 30);
	else
		start(&r, NR_PAGES * PAGE_SIZE, true);
	r.source_hold = true;
	pv_fill_begin(r.e);
	rig_pass(&r, 20);
	for (const struct list *node = r.source_queue.next; node != &r.source_queue; node = node->next)
		rig_do(&r, 0, GUEST_DISCARD, list_entry(node, struct pv_source_read, link)->chunk * 256 + 30, 100);
	rig_order(&r, 0, GUEST_WRITE, first_read(&r)->chunk * 256 + 50, 10);
	rig_pass(&r, 20);
	if (_i) {
		rig_finish(&r);
		pv_engine_harvest(r.e); // the only copy is in memory, and the table knows it
		ck_assert_int_eq(home_of(&r, first_read(&r)->chunk * 256 + 55), PV_HOME_NONE);
	}
	r.source_hold = r.copy_hold = false;
	rig_finish(&r);
	expect_source_gone(&r);
	finish_and_verify(&r);
}
END_TEST

// As soon as nothing is left, and not when a period ends; and not before the last read has ended.
START_TEST(gone_at_once)
{
	struct pv_source_read *last;
	struct rig r;

	start(&r, _i ? NR_PAGES * PAGE_SIZE : BUDGET, true);
	r.no_ticks = r.source_hold = true;
	pv_fill_begin(r.e);
	ck_assert(rig_until(&r, !list_empty(&r.source_queue), RIG_PATIENCE_MS));
	last = first_read(&r);
	list_remove(&last->link);
	r.source_hold = false;
	ck_assert(rig_until(&r, pv_engine_missing(r.e) == 256, RIG_PATIENCE_MS));
	rig_do(&r, 0, GUEST_DISCARD, last->chunk * 256, 256);
	ck_assert_uint_eq(pv_engine_missing(r.e), 0);
	rig_pass(&r, 100);
	ck_assert(!r.source_gone);
	rig_source_answer(&r, last);
	expect_source_gone(&r);
	ck_assert_uint_eq(rig_stats(&r).in_source, 0);
	r.no_ticks = false;
	finish_and_verify(&r);
}
END_TEST

// A pager is killed in the middle of it, and the next one goes on from the table.
START_TEST(next_engine)
{
	struct rig r;

	start(&r, BUDGET, true);
	pv_fill_begin(r.e);
	for (unsigned i = 0; i < 4; i++) {
		uint64_t before = pv_engine_missing(r.e);

		ck_assert(rig_until(&r, pv_engine_missing(r.e) < before, RIG_PATIENCE_MS));
		r.source_hold = true;
		rig_order(&r, 0, i & 1 ? GUEST_WRITE : GUEST_VERIFY, i * 3000, 500);
		ck_assert(rig_until(&r, !list_empty(&r.source_queue) && !rig_stats(&r).page_out_under_way, RIG_PATIENCE_MS));
		replace_engine(&r);
		pv_fill_begin(r.e);
		r.source_hold = false;
		rig_finish(&r);
	}
	expect_source_gone(&r);
	finish_and_verify(&r);
}
END_TEST

// One is killed between two writes to the table: what has come is valid and has the home SOURCE still, or is in memory and not valid.
START_TEST(killed_between)
{
	struct rig r;

	init(&r, BUDGET, true);
	for (size_t page = 256; page < 3 * 256; page++) {
		guest_fill(rig_page(&r, page), page < 2 * 256 ? r.source_seed[page] : 5);
		if (page < 2 * 256)
			bitmap_set(r.pages[1].valid, page % 256);
	}
	rig_start(&r);
	replace_engine(&r);
	ck_assert_uint_eq(pv_engine_missing(r.e), NR_PAGES - 256);
	ck_assert_uint_eq(rig_stats(&r).charged, 256);
	for (size_t page = 256; page < 2 * 256; page++)
		ck_assert_int_eq(home_of(&r, page), PV_HOME_NONE);
	rig_do(&r, 0, GUEST_VERIFY, 0, NR_PAGES);
	ck_assert_uint_eq(r.source_given, NR_PAGES - 256);
	expect_source_gone(&r);
	finish_and_verify(&r);
}
END_TEST

int main(void)
{
	Suite *s = suite_create("fill_once");

	add(s, on_demand, 2);
	add(s, homes, 2);
	add(s, zeros_into_memory, 2);
	add(s, zeros_into_swap, 2);
	add(s, touched_on_its_way, 2);
	add(s, twice_on_its_way, 8);
	add(s, discards, 2);
	add(s, gone_at_once, 2);
	add(s, next_engine, 1);
	add(s, killed_between, 1);
	return run(s);
}
