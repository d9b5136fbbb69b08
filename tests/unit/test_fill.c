// SPDX-License-Identifier: GPL-2.0-only
// All that the page source has comes by itself, into memory and into the swap image, while a real process goes on.
#include <limits.h>

#include "fill_suite.h"

#define NR_MIXED (60 * 256) // pages of a VM of which only a part has the home SOURCE

static void start(struct rig *r)
{
	start_with(r, BUDGET);
}

static void expect_nothing_out(const struct rig *r)
{
	struct pv_stats s = rig_stats(r);

	ck_assert_uint_eq(s.out_written + s.out_clean + s.out_zero + s.chunks_out + s.drains + r->drains, 0);
}

START_TEST(into_memory)
{
	struct pv_stats s;
	struct rig r;

	start_with(&r, NR_PAGES * PAGE_SIZE);
	ck_assert_uint_eq(rig_stats(&r).source, NR_PAGES);
	fill(&r);
	s = rig_stats(&r);
	ck_assert_uint_eq(s.filled_memory, NR_PAGES);
	ck_assert_uint_eq(s.filled_swap + s.in_source + s.faults, 0);
	ck_assert_uint_eq(s.queue[0], NR_CHUNKS); // as cold as can be
	ck_assert_uint_eq(rig_memory(&r), NR_PAGES * PAGE_SIZE);
	rig_do(&r, 0, GUEST_VERIFY, 0, NR_PAGES);
	s = rig_stats(&r);
	ck_assert_uint_eq(s.faults, NR_CHUNKS); // each chunk's first touch, and no more
	ck_assert_uint_eq(s.queue[0], 0);
	write_and_verify_all(&r);
	expect_nothing_out(&r);
	rig_end(&r);
}
END_TEST

START_TEST(into_memory_and_swap)
{
	struct pv_stats s;
	struct rig r;

	start(&r);
	fill(&r);
	s = rig_stats(&r);
	ck_assert_uint_eq(s.filled_memory + s.filled_swap, NR_PAGES);
	ck_assert_uint_eq(s.filled_memory, (BUDGET - TARGET - RESERVE) / PAGE_SIZE);
	ck_assert_uint_eq(s.swapped, s.filled_swap);
	expect_nothing_out(&r);
	ck_assert_uint_le(r.most, BUDGET - TARGET - RESERVE);
	verify_all(&r);
	write_and_verify_all(&r);
	rig_do(&r, 0, GUEST_DISCARD, 0, NR_PAGES);
	verify_all(&r);
	rig_end(&r);
}
END_TEST

// What it has written, a fill has to answer for.
START_TEST(space_is_given_back)
{
	struct stat st;
	struct rig r;

	start(&r);
	fill(&r);
	ck_assert_int_eq(fstat(r.swap.fd, &st), 0);
	ck_assert_uint_ge((uint64_t)st.st_blocks * 512, rig_stats(&r).swapped * PAGE_SIZE);
	rig_do(&r, 0, GUEST_DISCARD, 0, NR_PAGES);
	ck_assert_int_eq(fstat(r.swap.fd, &st), 0);
	ck_assert_uint_lt((uint64_t)st.st_blocks * 512, MiB);
	rig_end(&r);
}
END_TEST

// What the guest has brought in itself, and what is on standby, needs the source no longer either; nothing moves for that.
START_TEST(what_is_in_memory)
{
	struct pv_stats before, s;
	struct rig r;

	start(&r);
	rig_do(&r, 0, GUEST_VERIFY, 0, NR_PAGES);
	settle(&r);
	before = rig_stats(&r);
	ck_assert(before.standby && before.resident > before.standby && before.remote);
	ck_assert_uint_eq(before.source, NR_PAGES);
	fill(&r);
	s = rig_stats(&r);
	ck_assert_uint_eq(s.standby, before.standby);
	ck_assert_uint_eq(s.chunks_out, before.chunks_out);
	ck_assert_uint_eq(s.out_written, 0);
	ck_assert_uint_eq(s.filled_swap, before.remote + before.standby);
	ck_assert_uint_eq(s.filled_memory, 0); // there is no room
	verify_all(&r);
	write_and_verify_all(&r);
	rig_end(&r);
}
END_TEST

// Pages of all homes in two blocks; the guest does whatever it likes while the rest comes.
static void torture(struct rig *r, int way, bool dma, bool once)
{
	rig_init(r, 36 * 256 + 12, 23 * 256 + 244, BUDGET);
	rig_page_by(r, way);
	r->g->zeros = false; // some are given back at the very moment in which their chunk is zapped
	rig_put(r, 0, 2000, PV_HOME_NONE);
	rig_put(r, 2000, 2000, PV_HOME_SWAP);
	rig_put(r, 4000, NR_MIXED - 4100, PV_HOME_SOURCE);
	rig_put_zeros(r, 4000, NR_MIXED - 4100, 3);
	r->source_once = once;
	r->vcpu[0] = r->vcpu[1] = true;
	rig_start(r);
	pv_engine_run(r->e);
	for (size_t i = 0; i < GUEST_WORKERS; i++)
		rig_order(r, i, dma && i == 3 ? GUEST_DMA : GUEST_RANDOM, 0, 0);
	rig_pass(r, 200);
	pv_fill_begin(r->e);
	ck_assert(rig_until(r, r->source_gone, RIG_PATIENCE_MS));
	rig_pass(r, 500);
	r->g->stop = true;
	rig_finish(r);
	r->g->stop = false;
}

START_TEST(under_load)
{
	struct pv_stats s;
	struct rig r;

	torture(&r, rig_way(_i), _i & 1, _i / 2 & 1);
	s = rig_stats(&r);
	ck_assert(s.filled_swap && s.in_source && s.out_written && s.discarded && s.pages_kept);
	verify_all(&r);
	rig_end(&r);
}
END_TEST

START_TEST(order)
{
	const uint64_t touched[] = { 30, 8, 20 }, cold[] = { 26, 37 };
	uint64_t came[NR_CHUNKS];
	struct rig r;

	start_with(&r, NR_PAGES * PAGE_SIZE);
	for (size_t i = 0; i < ARRAY_SIZE(cold); i++)
		rig_do(&r, 0, GUEST_VERIFY, cold[i] * 256 + 100, 1);
	for (size_t i = 0; i < 9; i++) { // periods in which something else is in use; at no fixed distance, so that nothing comes ahead
		rig_do(&r, 0, GUEST_VERIFY, touched[0] * 256 + i * (i + 15), 1);
		pv_tick(r.e);
	}
	for (size_t i = 0; i < ARRAY_SIZE(touched); i++)
		rig_do(&r, 0, GUEST_VERIFY, touched[i] * 256 + 220, 1);
	rig_pass(&r, 20); // no longer busy
	r.source_hold = true;
	pv_fill_begin(r.e);
	rig_pass(&r, 20);
	for (size_t i = 0; i < NR_CHUNKS; i++) {
		ck_assert(!list_empty(&r.source_queue));
		came[i] = answer_one(&r);
		ck_assert_int_eq(pv_page_home(&r.pages[came[i]], 255), PV_HOME_NONE);
	}
	for (size_t i = 0; i < 3; i++)
		ck_assert_uint_eq(came[i], touched[2 - i]); // the hottest first
	ck_assert_uint_eq(came[3], cold[0]); // one had to be chosen before those had come
	for (size_t i = 4; i < 10; i++) // what is beside them
		ck_assert(came[i] == 7 || came[i] == 9 || came[i] == 19 || came[i] == 21 || came[i] == 29 || came[i] == 31);
	ck_assert_uint_eq(came[10], cold[1]);
	for (size_t i = 12; i < NR_CHUNKS; i++)
		ck_assert_uint_gt(came[i], came[i - 1]);
	expect_source_gone(&r);
	rig_end(&r);
}
END_TEST

// Few at a time, fewer while the guest is paging, none while a fault waits for memory.
START_TEST(demand_comes_first)
{
	struct rig r;

	start(&r);
	r.source_hold = true;
	pv_fill_begin(r.e);
	rig_pass(&r, 50);
	ck_assert_ptr_eq(first_read(&r)->link.next->next->next->next, &r.source_queue); // four
	r.source_hold = false;
	expect_source_gone(&r);
	rig_end(&r);

	start(&r);
	r.source_hold = true;
	rig_order(&r, 0, GUEST_VERIFY, NR_PAGES - 1, 1);
	ck_assert(rig_until(&r, !list_empty(&r.source_queue), RIG_PATIENCE_MS));
	pv_fill_begin(r.e);
	r.more = pv_balance(r.e);
	ck_assert_ptr_eq(first_read(&r)->link.next->next, &r.source_queue); // its, and one more
	r.source_hold = false;
	rig_finish(&r);
	expect_source_gone(&r);
	rig_end(&r);
}
END_TEST

// Also while a read for the guest fails, or a fault waits for memory: what cannot be read holds nothing else up.
START_TEST(guest_in_need)
{
	struct pv_stats s;
	struct rig r;

	quiet();
	rig_init(&r, NR_PAGES, 0, BUDGET);
	rig_put(&r, NR_PAGES - 512, 512, PV_HOME_SOURCE);
	r.vcpu[0] = true;
	rig_start(&r);
	pv_engine_run(r.e);
	if (_i) {
		r.drain = DRAIN_HOLD;
		rig_order(&r, 0, GUEST_WRITE, 0, NR_PAGES - 512);
		ck_assert(rig_until(&r, rig_stats(&r).faults_waiting, RIG_PATIENCE_MS));
	} else {
		r.broken_page = NR_PAGES - 1;
		rig_order(&r, 0, GUEST_VERIFY, NR_PAGES - 1, 1);
		ck_assert(rig_until(&r, rig_stats(&r).reads_waiting, RIG_PATIENCE_MS));
	}
	pv_fill_begin(r.e);
	ck_assert(rig_until(&r, rig_stats(&r).filled_memory + rig_stats(&r).filled_swap >= (_i ? 512 : 256), RIG_PATIENCE_MS));
	s = rig_stats(&r);
	ck_assert(s.faults_waiting || s.reads_waiting);
	ck_assert_uint_eq(s.filled_memory, _i ? 0 : 256);
	r.broken_page = 0;
	rig_release_drain(&r);
	rig_finish(&r);
	expect_source_gone(&r);
	verify_all(&r);
	rig_end(&r);
}
END_TEST

// Memory is full, so that a fill goes to swap; the reads for that are held. `chunk`, the first of them, is remote but for a page.
static void hold_copies(struct rig *r, uint64_t chunk)
{
	start(r);
	rig_do(r, 0, GUEST_WRITE, 0, BUDGET / PAGE_SIZE);
	settle(r);
	rig_do(r, 1, GUEST_VERIFY, chunk * 256, 1);
	r->copy_hold = true;
	rig_pass(r, 20);
	pv_fill_begin(r->e);
	ck_assert(rig_until(r, !list_empty(&r->source_queue), RIG_PATIENCE_MS));
	ck_assert_uint_eq(first_read(r)->chunk, chunk);
}

static void finish_held(struct rig *r)
{
	r->source_hold = r->copy_hold = false;
	rig_finish(r);
	expect_source_gone(r);
	verify_all(r);
	write_and_verify_all(r);
	rig_end(r);
}

// While another worker waits.
static void do_alone(struct rig *r, size_t worker, enum guest_order what, size_t first, size_t nr)
{
	rig_order(r, worker, what, first, nr);
	ck_assert(rig_until(r, r->g->worker[worker].order == GUEST_IDLE, RIG_PATIENCE_MS));
}

// Of the pages around it each comes when it is touched, whoever touched one of them first.
START_TEST(bad_page)
{
	struct rig r;

	quiet();
	rig_init(&r, NR_PAGES, 0, NR_PAGES * PAGE_SIZE);
	rig_put(&r, 0, NR_PAGES, PV_HOME_SOURCE);
	r.broken_page = 1000;
	rig_start(&r);
	pv_engine_run(r.e);
	r.source_hold = true;
	rig_order(&r, 0, GUEST_VERIFY, _i ? 1001 : 1000, 1);
	rig_pass(&r, 10);
	rig_order(&r, 1, GUEST_WRITE, _i ? 1000 : 1001, 1); // comes with that, or would
	rig_order(&r, 2, GUEST_DISCARD, 1003, 1);
	rig_pass(&r, 10);
	r.source_hold = false;
	ck_assert(rig_until(&r, r.g->worker[_i ? 0 : 1].order == GUEST_IDLE, 400)); // not by a second attempt
	do_alone(&r, 3, GUEST_VERIFY, 500, 500);
	do_alone(&r, 3, GUEST_WRITE, 1002, 500);
	expect_trouble(&r, "the test's source has a bad page", -EIO, 0);
	ck_assert_uint_eq(rig_stats(&r).reads_waiting, 1);
	ck_assert(!r.g->worker[_i].touched);
	r.broken_page = 0;
	pv_fill_begin(r.e);
	finish_held(&r);
}
END_TEST

// Who needs what is in the images does not wait for the other host, whatever is around it.
START_TEST(two_sides)
{
	static uint64_t in_images[NR_CHUNKS][PV_WORDS];
	struct rig r;

	memset(in_images, 0x55, sizeof in_images);
	in_images[1][2] = ~0ULL;
	rig_init(&r, NR_PAGES, 0, _i ? BUDGET : NR_PAGES * PAGE_SIZE);
	rig_put(&r, 0, NR_PAGES, PV_HOME_SOURCE);
	rig_put(&r, 5000, 3, PV_HOME_SWAP);
	r.in_images = (const uint64_t (*)[PV_WORDS])in_images;
	r.remote_hold = true;
	rig_start(&r);
	pv_engine_run(r.e);
	for (size_t page = 0; page < 3000; page += 2)
		rig_do(&r, 0, GUEST_VERIFY, page, 1);
	rig_do(&r, 0, GUEST_WRITE, 5001, 1);
	rig_order(&r, 1, GUEST_VERIFY, 0, 3000);
	pv_fill_begin(r.e);
	rig_pass(&r, 50);
	for (size_t page = 3000; page < 4000; page += 2)
		do_alone(&r, 0, GUEST_WRITE, page, 1);
	ck_assert_uint_eq(r.g->worker[1].touched, 1);
	r.remote_hold = false;
	finish_held(&r);
}
END_TEST

// A chunk on its way into the swap image is as near to the guest as before.
START_TEST(demand_in_a_chunk_being_copied)
{
	struct rig r;

	hold_copies(&r, 30);
	rig_do(&r, 0, GUEST_VERIFY, 30 * 256 + 100, 10);
	rig_do(&r, 0, GUEST_WRITE, 30 * 256 + 140, 10);
	rig_do(&r, 0, GUEST_DISCARD, 30 * 256 + 180, 10);
	rig_do(&r, 0, GUEST_VERIFY, 30 * 256 + 180, 5);
	rig_do(&r, 0, GUEST_WRITE, 30 * 256 + 185, 5);
	ck_assert_uint_eq(rig_stats(&r).filled_swap, 0);
	finish_held(&r);
}
END_TEST

// Were a chunk written out while it is being copied, older data could land on newer.
START_TEST(no_page_out_of_a_chunk_being_copied)
{
	uint64_t chunks_out;
	struct rig r;

	hold_copies(&r, 30);
	rig_do(&r, 0, GUEST_WRITE, 30 * 256 + 100, 2);
	chunks_out = rig_stats(&r).chunks_out;
	for (unsigned i = 0; i < 3; i++)
		rig_do(&r, 1, GUEST_WRITE, 0, BUDGET / PAGE_SIZE);
	ck_assert_uint_gt(rig_stats(&r).chunks_out, chunks_out + BUDGET / MiB);
	ck_assert(bitmap_test(r.pages[30].valid, 100) && bitmap_test(r.pages[30].valid, 101));
	finish_held(&r);
}
END_TEST

START_TEST(source_error)
{
	struct rig r;

	quiet();
	if (_i)
		hold_copies(&r, 30);
	else
		start(&r);
	r.source_errors = 5;
	r.copy_hold = false;
	pv_fill_begin(r.e);
	expect_trouble(&r, "the test's source fails", -EIO, 0);
	ck_assert(rig_until(&r, !r.source_errors, RIG_PATIENCE_MS));
	finish_held(&r);
}
END_TEST

// The guest has no use for it any more.
START_TEST(needless_trouble)
{
	struct rig r;

	quiet();
	start(&r);
	r.source_errors = UINT_MAX;
	pv_fill_begin(r.e);
	expect_trouble(&r, "the test's source fails", -EIO, 0);
	rig_do(&r, 0, GUEST_DISCARD, 0, NR_PAGES);
	expect_source_gone(&r);
	ck_assert_ptr_null(rig_stats(&r).trouble);
	finish_held(&r);
}
END_TEST

START_TEST(write_error)
{
	int good, bad;
	struct rig r;

	hold_copies(&r, 30);
	good = r.swap.fd;
	r.swap.fd = bad = broken_swap(&r, O_RDONLY);
	r.copy_hold = false;
	ck_assert(rig_until(&r, rig_stats(&r).writes_failed, RIG_PATIENCE_MS));
	rig_pass(&r, 700); // a second attempt has failed, too
	ck_assert_uint_gt(rig_stats(&r).writes_failed, 1);
	expect_trouble(&r, "the swap image cannot be written", -EBADF, 700);
	ck_assert(rig_stats(&r).filling);
	rig_do(&r, 0, GUEST_VERIFY, 30 * 256, 256); // it is no worse for that
	r.swap.fd = good;
	expect_source_gone(&r);
	ck_assert(rig_until(&r, !rig_stats(&r).trouble, RIG_PATIENCE_MS)); // what the guest had brought in could not go out, either
	finish_held(&r);
	close(bad);
}
END_TEST

// What the guest gives back while it comes is not there when it has come.
START_TEST(discards)
{
	struct rig r;

	if (_i)
		hold_copies(&r, 30);
	else
		start(&r);
	r.source_hold = true;
	pv_fill_begin(r.e);
	rig_pass(&r, 20);
	ck_assert(!list_empty(&r.source_queue));
	for (const struct list *node = r.source_queue.next; node != &r.source_queue; node = node->next)
		rig_do(&r, 0, GUEST_DISCARD, list_entry(node, struct pv_source_read, link)->chunk * 256 + 30, 100);
	rig_order(&r, 0, GUEST_WRITE, first_read(&r)->chunk * 256 + 50, 10); // and is something else soon
	rig_pass(&r, 20);
	finish_held(&r);
}
END_TEST

// The source is needed as long as something is read from it, wanted or not.
START_TEST(time_makes_it_so)
{
	struct rig r;

	rig_init(&r, NR_PAGES, 0, BUDGET);
	rig_put(&r, 256, 256, PV_HOME_SOURCE);
	r.source_hold = true;
	rig_start(&r);
	pv_engine_run(r.e);
	rig_order(&r, 0, GUEST_VERIFY, 300, 1);
	ck_assert(rig_until(&r, !list_empty(&r.source_queue), RIG_PATIENCE_MS));
	rig_order(&r, 1, GUEST_DISCARD, 256, 256);
	ck_assert(rig_until(&r, !rig_stats(&r).source, RIG_PATIENCE_MS));
	rig_pass(&r, 200);
	ck_assert(!r.source_gone);
	r.source_hold = false;
	rig_finish(&r);
	expect_source_gone(&r);
	pv_fill_begin(r.e); // nothing to do
	ck_assert(!rig_stats(&r).filling);
	rig_end(&r);
}
END_TEST

// A pager ends in the middle of it, another one goes on.
START_TEST(next_engine)
{
	unsigned ended = 0;
	struct rig r;

	start(&r);
	pv_fill_begin(r.e);
	for (unsigned i = 0; i < 4; i++) {
		ck_assert(rig_until(&r, rig_stats(&r).filled_memory + rig_stats(&r).filled_swap, RIG_PATIENCE_MS));
		r.source_hold = true;
		rig_order(&r, 0, GUEST_WRITE, i * 3000, 500);
		ck_assert(rig_until(&r, r.source_gone || (!list_empty(&r.source_queue) && !rig_stats(&r).page_out_under_way), RIG_PATIENCE_MS));
		if (r.source_gone) // it was quick
			break;
		ended++;
		replace_engine(&r);
		pv_fill_begin(r.e);
		r.source_hold = false;
		rig_finish(&r);
	}
	ck_assert_uint_gt(ended, 0);
	finish_held(&r);
}
END_TEST

int main(void)
{
	Suite *s = suite_create("fill");

	add(s, into_memory, 1);
	add(s, into_memory_and_swap, 1);
	add(s, space_is_given_back, 1);
	add(s, what_is_in_memory, 1);
	add(s, under_load, rig_nr_ways());
	add(s, order, 1);
	add(s, demand_comes_first, 1);
	add(s, guest_in_need, 2);
	add(s, bad_page, 2);
	add(s, two_sides, 2);
	add(s, demand_in_a_chunk_being_copied, 1);
	add(s, no_page_out_of_a_chunk_being_copied, 1);
	add(s, source_error, 2);
	add(s, needless_trouble, 1);
	add(s, write_error, 1);
	add(s, discards, 2);
	add(s, time_makes_it_so, 1);
	add(s, next_engine, 1);
	return run(s);
}
