// SPDX-License-Identifier: GPL-2.0-only
// What is on its way for a fill, and the guest wants now: it does not wait for that, and what it does meanwhile is not undone
// when that comes.
#include <signal.h>
#include <sys/resource.h>

#include "fill_suite.h"

#define ZEROS 3 // each so-manyth page of the source is zero
#define AT 64   // page of the chunk that is on its way
#define OLD_MS 40 // it should have come

enum { SWAP = 1, ONCE = 2, OTHER = 4 }; // what the cases of a test differ in

// All that is unasked is held, and some is on its way: into memory, or into swap, since memory is full. The first of it.
static struct pv_source_read *start(struct rig *r, int variant)
{
	rig_init(r, NR_PAGES, 0, variant & SWAP ? BUDGET : NR_PAGES * PAGE_SIZE);
	rig_put(r, 0, NR_PAGES, PV_HOME_SOURCE);
	rig_put_zeros(r, 0, NR_PAGES, ZEROS);
	r->source_once = variant & ONCE;
	rig_start(r);
	pv_engine_run(r->e);
	if (variant & SWAP) {
		rig_do(r, 0, GUEST_WRITE, 0, BUDGET / PAGE_SIZE);
		settle(r);
	}
	r->copy_hold = true;
	pv_fill_begin(r->e);
	ck_assert(rig_until(r, !list_empty(&r->source_queue), RIG_PATIENCE_MS));
	ck_assert(first_read(r)->unasked);
	return first_read(r);
}

// The last read that somebody waits for, or NULL.
static struct pv_source_read *demand(const struct rig *r)
{
	struct pv_source_read *found = NULL;

	for (const struct list *node = r->source_queue.next; node != &r->source_queue; node = node->next) {
		struct pv_source_read *rd = list_entry(node, struct pv_source_read, link);

		found = rd->unasked ? found : rd;
	}
	return found;
}

static void answer(struct rig *r, struct pv_source_read *rd)
{
	list_remove(&rd->link);
	rig_source_answer(r, rd);
	rig_pass(r, 20);
}

// What the engine has booked is what there is; but for pages that were brought back between the guest's word that they are discarded and the
// end of that: these are gone once more, and found so when touched.
static void expect_books_right(struct rig *r, bool all_touched)
{
	uint64_t valid = 0;

	settle(r);
	for (size_t i = 0; i < NR_CHUNKS; i++)
		valid += bitmap_count(r->pages[i].valid, PV_CHUNK_PAGES);
	ck_assert_uint_eq(rig_stats(r).reads, 0);
	ck_assert_uint_eq(rig_stats(r).charged, valid);
	ck_assert_uint_le(rig_memory(r), valid * PAGE_SIZE);
	if (all_touched)
		ck_assert_uint_eq(rig_memory(r), valid * PAGE_SIZE);
}

static void finish(struct rig *r)
{
	r->source_hold = r->copy_hold = false;
	rig_finish(r);
	expect_source_gone(r);
	expect_books_right(r, false);
	verify_all(r);
	write_and_verify_all(r);
	expect_books_right(r, true);
	rig_end(r);
}

// The guest gets everything of the chunk while it is on its way, be that with or without what is around a page.
START_TEST(no_waiting)
{
	struct rig r;
	size_t first = start(&r, _i)->chunk * 256;

	rig_do(&r, 0, GUEST_VERIFY, first + 200, 1);
	rig_do(&r, 1, GUEST_WRITE, first + 3, 10);
	rig_pass(&r, OLD_MS);
	rig_do(&r, 0, GUEST_VERIFY, first + 100, 1);
	rig_do(&r, 1, GUEST_WRITE, first + 140, 20);
	ck_assert_uint_eq(rig_stats(&r).filled_memory + rig_stats(&r).filled_swap, 0);
	finish(&r);
}
END_TEST

// What is around a page is asked for with it if that should be there by now.
START_TEST(little_comes_twice)
{
	struct pv_source_read *rd;
	uint64_t begun;
	struct rig r;
	size_t first;

	first = start(&r, _i)->chunk * 256;
	begun = clock_now_ns();
	r.source_hold = true;
	rig_order(&r, 0, GUEST_VERIFY, first + AT, 1);
	ck_assert(rig_until(&r, (rd = demand(&r)), RIG_PATIENCE_MS));
	ck_assert(bitmap_test(rd->pages, AT));
	if (clock_now_ns() - begun < 15 * NSEC_PER_MSEC) // else the test was not quick enough
		ck_assert_uint_eq(bitmap_count(rd->pages, PV_CHUNK_PAGES), 1);
	rig_pass(&r, OLD_MS);
	rig_order(&r, 1, GUEST_VERIFY, first + AT + 50, 1);
	ck_assert(rig_until(&r, (rd = demand(&r)) && bitmap_test(rd->pages, AT + 50), RIG_PATIENCE_MS));
	ck_assert_uint_eq(bitmap_count(rd->pages, PV_CHUNK_PAGES), 8);
	finish(&r);
}
END_TEST

// A guest that goes through all of the chunk while it is on its way gets no more with its pages, as a scan would.
START_TEST(a_scan)
{
	struct rig r;
	size_t first = start(&r, _i)->chunk * 256, given = r.source_given, reads = r.demand_reads;

	rig_pass(&r, OLD_MS);
	rig_do(&r, 0, GUEST_VERIFY, first, 256);
	ck_assert_uint_eq(r.source_given - given, 256);
	ck_assert_uint_eq(r.demand_reads - reads, 1 + 256 - 8);
	finish(&r);
}
END_TEST

// Who waits for a page goes on when it is his read that comes; what he has done then stays.
START_TEST(either_comes_first)
{
	struct rig r;
	struct pv_source_read *copy = start(&r, _i), *fault;
	size_t at = copy->chunk * 256 + AT;

	rig_pass(&r, OLD_MS);
	r.source_hold = true;
	rig_order(&r, 0, GUEST_WRITE, at, 8);
	ck_assert(rig_until(&r, (fault = demand(&r)), RIG_PATIENCE_MS));
	ck_assert_uint_eq(bitmap_count(fault->pages, PV_CHUNK_PAGES), 8);
	answer(&r, _i & OTHER ? copy : fault);
	if (_i & OTHER)
		ck_assert(!r.g->worker[0].touched && !bitmap_test(r.pages[at / 256].valid, at % 256));
	else
		rig_finish(&r);
	answer(&r, _i & OTHER ? fault : copy);
	r.source_hold = false; // nothing has been written to swap yet, maybe
	rig_finish(&r);
	rig_do(&r, 1, GUEST_VERIFY, at / 256 * 256, 256);
	finish(&r);
}
END_TEST

// What was given back, before it was asked for, while it is asked for, or after; and used again or not.
START_TEST(discards)
{
	struct rig r;
	struct pv_source_read *copy = start(&r, _i), *fault;
	size_t at = copy->chunk * 256 + AT;

	rig_pass(&r, OLD_MS);
	rig_do(&r, 0, GUEST_DISCARD, at - 30, 10);
	rig_do(&r, 0, GUEST_WRITE, at - 25, 5);
	rig_do(&r, 0, GUEST_WRITE, at + 80, 10);
	rig_do(&r, 0, GUEST_DISCARD, at + 85, 10);
	rig_do(&r, 0, GUEST_VERIFY, at + 90, 2);
	rig_do(&r, 0, GUEST_DISCARD, at + 150, 10);
	r.source_hold = true;
	rig_order(&r, 1, GUEST_WRITE, at, 8);
	ck_assert(rig_until(&r, (fault = demand(&r)), RIG_PATIENCE_MS));
	rig_order(&r, 0, GUEST_DISCARD, at + 2, 3);
	rig_pass(&r, 20);
	answer(&r, _i & OTHER ? copy : fault);
	answer(&r, _i & OTHER ? fault : copy);
	finish(&r);
}
END_TEST

// One of the two fails: the other does what it was for.
START_TEST(errors)
{
	struct rig r;
	struct pv_source_read *copy, *fault;
	size_t at;

	quiet();
	copy = start(&r, _i);
	at = copy->chunk * 256 + AT;
	rig_pass(&r, OLD_MS);
	r.source_hold = true;
	rig_order(&r, 0, GUEST_WRITE, at, 8);
	ck_assert(rig_until(&r, (fault = demand(&r)), RIG_PATIENCE_MS));
	r.source_errors = 1;
	answer(&r, _i & OTHER ? copy : fault);
	if (!(_i & OTHER)) { // the page alone, once more
		fault = demand(&r);
		ck_assert_uint_eq(bitmap_count(fault->pages, PV_CHUNK_PAGES), 1);
		ck_assert_uint_eq(rig_stats(&r).reads_waiting, 0);
		r.source_errors = 1;
		answer(&r, fault);
	}
	ck_assert_uint_eq(rig_stats(&r).reads_waiting, !(_i & OTHER));
	answer(&r, _i & OTHER ? fault : copy);
	if (_i & OTHER) {
		rig_finish(&r);
	} else {
		ck_assert(rig_until(&r, rig_stats(&r).filled_memory + rig_stats(&r).filled_swap, RIG_PATIENCE_MS));
		ck_assert(!r.g->worker[0].touched && rig_stats(&r).reads_waiting == 1);
	}
	finish(&r);
}
END_TEST

// What has got into the memfd when writing to it fails is taken out again.
START_TEST(memory_error)
{
	struct rlimit few = { .rlim_cur = 100 * PAGE_SIZE, .rlim_max = RLIM_INFINITY }, all = { RLIM_INFINITY, RLIM_INFINITY };
	struct rig r;

	quiet();
	ck_assert_uint_eq(start(&r, ONCE)->chunk, 0);
	ck_assert(signal(SIGXFSZ, SIG_IGN) != SIG_ERR && !setrlimit(RLIMIT_FSIZE, &few));
	r.copy_hold = false;
	expect_trouble(&r, "guest RAM cannot be written", -EFBIG, 0);
	rig_pass(&r, 20);
	ck_assert_uint_eq(rig_memory(&r) + rig_stats(&r).charged, 0);
	rig_do(&r, 0, GUEST_VERIFY, 50, 100); // it is no worse for that
	ck_assert_int_eq(setrlimit(RLIMIT_FSIZE, &all), 0);
	finish(&r);
}
END_TEST

// There was room when it was asked for, and there is none when it comes: or the other way round.
START_TEST(room_is_gone)
{
	uint64_t chunk, before;
	struct rig r;

	rig_init(&r, NR_PAGES, 0, BUDGET);
	rig_put(&r, 0, NR_PAGES, PV_HOME_SOURCE);
	rig_start(&r);
	pv_engine_run(r.e);
	if (_i)
		rig_do(&r, 0, GUEST_WRITE, 0, BUDGET / PAGE_SIZE);
	settle(&r);
	r.copy_hold = true;
	pv_fill_begin(r.e);
	ck_assert(rig_until(&r, !list_empty(&r.source_queue), RIG_PATIENCE_MS));
	chunk = first_read(&r)->chunk;
	if (!_i)
		rig_do(&r, 0, GUEST_WRITE, NR_PAGES / 2, BUDGET / PAGE_SIZE);
	else
		rig_do(&r, 0, GUEST_DISCARD, 0, BUDGET / PAGE_SIZE);
	settle(&r);
	before = rig_stats(&r).out_written + rig_stats(&r).out_clean;
	answer(&r, first_read(&r));
	ck_assert(rig_until(&r, pv_page_home(&r.pages[chunk], 255) != PV_HOME_SOURCE, RIG_PATIENCE_MS));
	ck_assert_int_eq(pv_page_home(&r.pages[chunk], 255), _i ? PV_HOME_NONE : PV_HOME_SWAP);
	ck_assert_uint_eq(rig_stats(&r).out_written + rig_stats(&r).out_clean, before);
	ck_assert_uint_le(r.most, BUDGET);
	finish(&r);
}
END_TEST

// The guest does whatever it likes with what is on its way, which comes late, or is refused, time and again.
START_TEST(under_load)
{
	struct rig r;

	quiet();
	start(&r, _i);
	r.g->zeros = false; // some are given back at the very moment in which their chunk is zapped
	for (unsigned i = 0; i < 4; i++)
		rig_order(&r, i, GUEST_RANDOM, 0, 0);
	while (!r.source_gone) {
		r.copy_hold = true;
		rig_pass(&r, 25);
		r.source_errors = (unsigned)random() % 8 == 0;
		r.copy_hold = false;
		rig_pass(&r, 2);
	}
	r.g->stop = true;
	rig_finish(&r);
	r.g->stop = false;
	ck_assert(rig_stats(&r).in_source && rig_stats(&r).discarded);
	finish(&r);
}
END_TEST

int main(void)
{
	Suite *s = suite_create("fill_overtaken");

	add(s, no_waiting, 4);
	add(s, little_comes_twice, 4);
	add(s, a_scan, 4);
	add(s, either_comes_first, 8);
	add(s, discards, 8);
	add(s, errors, 8);
	add(s, memory_error, 1);
	add(s, room_is_gone, 2);
	add(s, under_load, 4);
	return run(s);
}
