// SPDX-License-Identifier: GPL-2.0-only
// The paging engine at work: a real process is paged for real, to and from a real file.
#include <signal.h>
#include <sys/resource.h>

#include "engine_suite.h"

#define BUDGET (16 * MiB) // the smallest there is
#define RAM (32 * MiB)
#define TARGET (4 * MiB)  // of free memory, at this budget: page-out begins below
#define NR_PAGES (RAM / PAGE_SIZE)
#define FIRST (14 * MiB / PAGE_SIZE) // pages: writing so many starts page-out, and needs none to end

static void start(struct rig *r)
{
	rig_init(r, NR_PAGES, 0, BUDGET);
	rig_start(r);
	pv_engine_run(r->e);
}

// Pages that the guest has mapped are none of these.
static size_t zapped_pages(struct rig *r, size_t first, size_t nr, bool zapped[])
{
	uint64_t present[BITMAP_WORDS(NR_PAGES)];
	size_t n = 0;

	ck_assert_int_eq(mm_pagemap_scan(r->pagemap, r->block[0].hva + first * PAGE_SIZE, nr * PAGE_SIZE, MM_SCAN_PRESENT, present), 0);
	for (size_t i = 0; i < nr; i++)
		n += zapped[i] = !bitmap_test(present, i);
	return n;
}

static void write_until_drain_is_held(struct rig *r)
{
	r->drain = DRAIN_HOLD;
	rig_do(r, 0, GUEST_WRITE, 0, FIRST);
	ck_assert_msg(rig_until(r, r->drain_held, RIG_PATIENCE_MS), "%lu MiB are in memory, and no page-out begins", rig_memory(r) / MiB);
}

// What went wrong is over: before long, memory is within the budget, and there is nothing to complain of.
static void expect_all_well(struct rig *r)
{
	ck_assert_msg(rig_until(r, rig_memory(r) <= BUDGET, RIG_PATIENCE_MS), "%lu KiB in memory", rig_memory(r) / KiB);
	ck_assert(rig_until(r, !rig_stats(r).trouble, RIG_PATIENCE_MS));
	ck_assert_uint_eq(rig_stats(r).overdraft + rig_stats(r).reads_waiting + rig_stats(r).trouble_ns + rig_stats(r).faults_waiting, 0);
}

static void torture(struct rig *r, unsigned ms)
{
	pv_engine_run(r->e);
	for (size_t i = 0; i < GUEST_WORKERS; i++)
		rig_order(r, i, r->vcpu[i] || i == 2 ? GUEST_RANDOM : GUEST_DMA, 0, 0);
	rig_pass(r, ms);
	r->g->stop = true;
	rig_finish(r);
	r->g->stop = false;
	rig_do(r, 0, GUEST_VERIFY, 0, r->g->nr_pages);
}

// Pages of all homes, in two blocks of which one ends within a chunk.
static void init_torture(struct rig *r)
{
	size_t quarter;

	rig_init(r, 40 * 256 + 12, 24 * 256, BUDGET);
	r->g->zeros = false; // some are given back at the very moment in which their chunk is zapped
	quarter = r->g->nr_pages / 4;
	rig_put(r, 0, 2000, PV_HOME_NONE);
	rig_put(r, quarter, quarter, PV_HOME_SWAP);
	rig_put(r, 2 * quarter + 100, quarter - 200, PV_HOME_SOURCE);
}

static const enum mm_zap_method methods[] = { MM_ZAP_RING, MM_ZAP_PAGEOUT };
#define TORTURE_MS 700

// vCPUs only, and no drain takes any time: there is no excuse for going beyond the budget.
START_TEST(vcpus)
{
	struct pv_stats s;
	struct rig r;

	SKIP_UNLESS_ZAP(methods[_i >= rig_nr_ways()]); // once more with the other method
	init_torture(&r);
	rig_page_by(&r, rig_way(_i));
	r.method = methods[_i >= rig_nr_ways()];
	r.drain = DRAIN_NOW;
	for (size_t i = 0; i < GUEST_WORKERS; i++)
		r.vcpu[i] = true;
	rig_start(&r);
	torture(&r, TORTURE_MS);
	s = rig_stats(&r);
	ck_assert_uint_eq(s.vcpu_faults, s.faults);
	ck_assert(s.in_zero && s.in_swap && s.in_source && s.out_written && s.out_clean && s.chunks_out && s.discarded && s.minor_faults);
	ck_assert(s.faults_on[PV_HOME_NONE] && s.faults_on[PV_HOME_ZERO] && s.faults_on[PV_HOME_SWAP] && s.faults_on[PV_HOME_SOURCE]);
	ck_assert_uint_eq(s.faults_on[PV_HOME_NONE] + s.faults_on[PV_HOME_ZERO] + s.faults_on[PV_HOME_SWAP] + s.faults_on[PV_HOME_SOURCE], s.faults);
	ck_assert_msg(r.most <= BUDGET, "%lu KiB too many, overdraft %lu", (r.most - BUDGET) / KiB, s.overdraft_max);
	rig_end(&r);
}
END_TEST

// Direct I/O into scattered pages, and drains that wait for it.
START_TEST(dma)
{
	struct pv_stats s;
	struct rig r;

	init_torture(&r);
	rig_page_by(&r, rig_way(_i));
	r.vcpu[0] = r.vcpu[1] = true;
	rig_start(&r);
	torture(&r, TORTURE_MS);
	s = rig_stats(&r);
	ck_assert_uint_lt(s.vcpu_faults, s.faults);
	ck_assert(s.drains && s.drain_ns && s.drain_ns_max <= s.drain_ns && s.out_written && s.pages_kept);
	ck_assert_msg(r.most <= BUDGET + s.overdraft_max * PAGE_SIZE, "%lu KiB too many", (r.most - BUDGET) / KiB - s.overdraft_max * 4);
	expect_all_well(&r);
	rig_end(&r);
}
END_TEST

START_TEST(reads_of_a_source_write_nothing)
{
	struct pv_stats s;
	struct stat st;
	struct rig r;

	rig_init(&r, NR_PAGES, 0, BUDGET);
	rig_page_by(&r, rig_way(_i));
	rig_put(&r, 0, NR_PAGES - 2000, PV_HOME_SOURCE);
	r.g->reads_only = true;
	rig_start(&r);
	pv_engine_run(r.e);
	for (size_t i = 0; i < GUEST_WORKERS; i++)
		rig_order(&r, i, GUEST_RANDOM, 0, 0);
	rig_pass(&r, 300);
	r.g->stop = true;
	rig_finish(&r);
	verify_all(&r);
	s = rig_stats(&r);
	ck_assert(s.chunks_out && s.out_clean && s.in_source > NR_PAGES - 2000);
	ck_assert(s.pages_kept && s.faults_on[PV_HOME_NONE]);
	ck_assert_uint_eq(s.out_written + s.in_swap + s.out_zero + s.swapped, 0);
	ck_assert_int_eq(fstat(r.swap.fd, &st), 0);
	ck_assert_int_le(st.st_blocks * 512, 2 * PAGE_SIZE); // what it ends with
	rig_end(&r);
}
END_TEST

START_TEST(clean_pages_are_dropped)
{
	struct pv_stats before, s;
	struct rig r;

	start(&r);
	rig_do(&r, 0, GUEST_WRITE, 0, NR_PAGES);
	verify_all(&r); // now everything has been written out
	before = rig_stats(&r);
	ck_assert_uint_ge(before.out_written, NR_PAGES);
	verify_all(&r);
	s = rig_stats(&r);
	ck_assert_uint_eq(s.out_written, before.out_written);
	ck_assert(s.out_clean > before.out_clean && s.chunks_out > before.chunks_out);

	// One page is written, one is stale.
	rig_do(&r, 0, GUEST_WRITE, 1000, 1);
	verify_all(&r);
	s = rig_stats(&r);
	ck_assert_uint_le(s.out_written, before.out_written + 1);
	ck_assert(s.out_written > before.out_written || bitmap_test(r.pages[1000 / PV_CHUNK_PAGES].valid, 1000 % PV_CHUNK_PAGES));
	rig_end(&r);
}
END_TEST

START_TEST(zeros_are_not_written)
{
	struct rig r;

	start(&r);
	for (unsigned i = 0; i < 2; i++) { // read as zeros, then written with zeros
		rig_do(&r, 0, GUEST_VERIFY, 0, NR_PAGES);
		for (size_t page = 0; page < NR_PAGES && !i; page += 10) {
			r.g->seed[page] = 1;
			r.g->seq[page] += 2;
		}
		if (!i)
			for (size_t page = 0; page < NR_PAGES; page += 10)
				r.g->seed[page] = 0;
	}
	ck_assert(rig_stats(&r).chunks_out);
	ck_assert_uint_eq(rig_stats(&r).out_written, 0);
	rig_end(&r);
}
END_TEST

// What DMA brings after a page was zapped, and before the drain has ended, is not lost.
START_TEST(drain_before_write)
{
	static bool zapped[FIRST];
	struct rig r;
	size_t n;

	start(&r);
	write_until_drain_is_held(&r);
	rig_pass(&r, 100); // time enough to do wrong
	n = zapped_pages(&r, 0, FIRST, zapped);
	ck_assert_uint_gt(n, 0);
	for (size_t i = 0; i < FIRST; i++)
		if (zapped[i]) {
			r.g->seed[i] = guest_mix(r.g->seed[i]);
			guest_fill(rig_page(&r, i), r.g->seed[i]);
		}
	ck_assert_uint_eq(rig_stats(&r).out_written, 0);
	rig_release_drain(&r);
	rig_do(&r, 1, GUEST_WRITE, FIRST, NR_PAGES - FIRST);
	verify_all(&r);
	ck_assert_uint_ge(rig_stats(&r).out_written, n);
	rig_end(&r);
}
END_TEST

START_TEST(rescue)
{
	static bool zapped[FIRST];
	struct pv_stats s;
	struct rig r;

	start(&r);
	write_until_drain_is_held(&r);
	ck_assert_uint_gt(zapped_pages(&r, 0, FIRST, zapped), 0);
	rig_do(&r, 1, GUEST_VERIFY, 0, FIRST); // while the drain takes its time
	s = rig_stats(&r);
	ck_assert(s.pages_kept && s.minor_faults);
	ck_assert_uint_eq(s.in_swap + s.out_written + s.chunks_out, 0);
	for (size_t i = 0; i < 200; i++) // what was saved is written to again
		rig_do(&r, 0, GUEST_WRITE, i * FIRST / 200, 1);
	rig_release_drain(&r);
	rig_do(&r, 1, GUEST_WRITE, FIRST, NR_PAGES - FIRST);
	verify_all(&r);
	rig_end(&r);
}
END_TEST

// Of the first chunks those that were zapped, and have left memory since.
static size_t nr_gone(const struct rig *r, const bool zapped[FIRST])
{
	uint8_t age[RAM / PV_CHUNK_SIZE];
	size_t n = 0;

	pv_engine_ages(r->e, age);
	for (size_t i = 0; i < FIRST / PV_CHUNK_PAGES; i++)
		n += zapped[i * PV_CHUNK_PAGES] && !age[i] && bitmap_empty(r->pages[i].valid, PV_CHUNK_PAGES);
	return n;
}

// What goes out is the least of what is in memory, what comes in the most.
START_TEST(ages)
{
	static bool zapped[FIRST];
	uint8_t age[RAM / PV_CHUNK_SIZE];
	const size_t last = ARRAY_SIZE(age) - 1;
	struct rig r;
	size_t out = 0;

	rig_init(&r, NR_PAGES, 0, BUDGET);
	rig_put(&r, last * PV_CHUNK_PAGES, PV_CHUNK_PAGES, PV_HOME_SOURCE);
	rig_start(&r);
	pv_engine_run(r.e);
	r.source_hold = true; // from here on: a stream may come so far ahead, and what is in memory of it go out again
	write_until_drain_is_held(&r);
	ck_assert_uint_gt(zapped_pages(&r, 0, FIRST, zapped), 0);
	while (!zapped[out * PV_CHUNK_PAGES])
		out++;
	rig_order(&r, 1, GUEST_VERIFY, last * PV_CHUNK_PAGES, 1);
	ck_assert(rig_until(&r, !list_empty(&r.source_queue), RIG_PATIENCE_MS));
	pv_engine_ages(r.e, age);
	for (size_t i = 0; i < last; i++)
		ck_assert(age[i] || bitmap_empty(r.pages[i].valid, PV_CHUNK_PAGES));
	ck_assert_uint_eq(age[out], 1);
	ck_assert_uint_eq(age[last], 255);
	r.source_hold = false;
	rig_release_drain(&r);
	rig_finish(&r);
	rig_do(&r, 0, GUEST_WRITE, FIRST, NR_PAGES - FIRST); // there must be room for it
	ck_assert(rig_until(&r, nr_gone(&r, zapped), RIG_PATIENCE_MS));
	rig_end(&r);
}
END_TEST

START_TEST(withheld_drain)
{
	struct pv_stats s;
	struct rig r;

	rig_init(&r, NR_PAGES, 0, BUDGET);
	r.vcpu[0] = true;
	rig_start(&r);
	pv_engine_run(r.e);
	r.drain = DRAIN_HOLD;
	rig_do(&r, 1, GUEST_WRITE, 0, NR_PAGES - 1000); // a device: the drain may depend on it
	s = rig_stats(&r);
	ck_assert_uint_le(s.faults_delayed, 2); // until the drain was under way, not after
	ck_assert_uint_ge(s.overdraft, NR_PAGES - 1000 - BUDGET / PAGE_SIZE);
	ck_assert_uint_ge(s.overdraft_max, s.overdraft);
	ck_assert_uint_ge(rig_memory(&r), s.budget * PAGE_SIZE + s.overdraft * PAGE_SIZE);
	rig_do(&r, 0, GUEST_WRITE, NR_PAGES - 100, 10); // a vCPU waits, but not for ever
	ck_assert_uint_gt(rig_stats(&r).faults_delayed, 0);
	ck_assert(r.drain_held);
	ck_assert_uint_ge(rig_stats(&r).drain_now_ns, NSEC_PER_SEC);
	rig_release_drain(&r);
	expect_all_well(&r);
	ck_assert_uint_gt(rig_stats(&r).overdraft_max, 0);
	verify_all(&r);
	rig_end(&r);
}
END_TEST

START_TEST(failing_drain)
{
	struct rig r;

	start(&r);
	r.drain = DRAIN_FAIL;
	rig_do(&r, 0, GUEST_WRITE, 0, NR_PAGES);
	rig_do(&r, 1, GUEST_VERIFY, 0, NR_PAGES);
	ck_assert_uint_gt(r.drains, 0);
	ck_assert_uint_eq(rig_stats(&r).out_written + rig_stats(&r).chunks_out, 0);
	rig_pass(&r, 1200); // others have failed, too
	expect_trouble(&r, "QEMU's block I/O cannot be drained", -EIO, 1000);
	r.drain = DRAIN_WAIT;
	expect_all_well(&r);
	verify_all(&r);
	rig_end(&r);
}
END_TEST

START_TEST(write_error)
{
	int good, bad;
	struct rig r;

	rig_init(&r, NR_PAGES, 0, BUDGET);
	r.vcpu[0] = true;
	rig_start(&r);
	pv_engine_run(r.e);
	rig_do(&r, 0, GUEST_WRITE, 0, NR_PAGES);
	verify_all(&r);
	good = r.swap.fd;
	r.swap.fd = bad = broken_swap(&r, O_RDONLY);
	rig_do(&r, 0, GUEST_WRITE, 0, FIRST);
	ck_assert(rig_until(&r, rig_stats(&r).writes_failed, RIG_PATIENCE_MS));
	rig_do(&r, 1, GUEST_VERIFY, 0, FIRST);
	rig_order(&r, 0, GUEST_WRITE, FIRST, NR_PAGES - FIRST); // more than there is room for: it waits
	ck_assert(!rig_until(&r, rig_idle(&r), 1300));
	expect_trouble(&r, "the swap image cannot be written", -EBADF, 1300);
	ck_assert_uint_eq(rig_stats(&r).faults_waiting, 1);
	ck_assert_uint_le(r.most, BUDGET);
	r.swap.fd = good;
	rig_finish(&r);
	expect_all_well(&r);
	verify_all(&r);
	close(bad);
	rig_end(&r);
}
END_TEST

// A disk that is full still takes what it has blocks for: the guest waits, and stat says why for as long as it does.
START_TEST(write_error_of_some)
{
	const size_t good = NR_PAGES / 4; // pages; the others are more than there is room for
	struct rlimit all, some;
	struct rig r;

	quiet();
	signal(SIGXFSZ, SIG_IGN);
	ck_assert_int_eq(getrlimit(RLIMIT_FSIZE, &all), 0);
	some = (struct rlimit){ .rlim_cur = good * PAGE_SIZE, .rlim_max = all.rlim_max };
	rig_init(&r, NR_PAGES, 0, BUDGET);
	r.vcpu[0] = true;
	rig_start(&r);
	pv_engine_run(r.e);
	ck_assert_int_eq(setrlimit(RLIMIT_FSIZE, &some), 0);
	rig_do(&r, 0, GUEST_WRITE, good, 2 * PV_CHUNK_PAGES); // to go first, and to fail, together with some that do not
	rig_do(&r, 0, GUEST_WRITE, 0, 2 * PV_CHUNK_PAGES);
	rig_order(&r, 0, GUEST_WRITE, good, NR_PAGES - good);
	ck_assert(rig_until(&r, rig_stats(&r).writes_failed, RIG_PATIENCE_MS));
	ck_assert_msg(!rig_until(&r, rig_stats(&r).faults_waiting && !rig_stats(&r).trouble, 3500), "it waits, and stat does not say why");
	ck_assert(rig_stats(&r).trouble && !rig_idle(&r));
	ck_assert_int_eq(setrlimit(RLIMIT_FSIZE, &all), 0);
	rig_finish(&r);
	expect_all_well(&r);
	verify_all(&r);
	rig_end(&r);
}
END_TEST

START_TEST(read_error)
{
	size_t swapped = 0;
	int good, bad;
	struct rig r;

	start(&r);
	rig_do(&r, 0, GUEST_WRITE, 0, NR_PAGES);
	rig_do(&r, 0, GUEST_DISCARD, NR_PAGES - 100, 100);
	good = r.swap.fd;
	r.swap.fd = bad = broken_swap(&r, O_WRONLY);
	while (bitmap_test(r.pages[swapped / PV_CHUNK_PAGES].valid, swapped % PV_CHUNK_PAGES))
		swapped++;
	rig_order(&r, 0, GUEST_VERIFY, swapped, 10);
	ck_assert(rig_until(&r, rig_stats(&r).reads_waiting, RIG_PATIENCE_MS));
	rig_order(&r, 1, GUEST_WRITE, NR_PAGES - 100, 100); // others need not wait
	ck_assert(rig_until(&r, r.g->worker[1].order == GUEST_IDLE, RIG_PATIENCE_MS));
	rig_pass(&r, 700); // a second attempt has failed, too
	ck_assert_uint_eq(r.g->worker[0].touched, 0);
	expect_trouble(&r, "the swap image cannot be read", -EBADF, 700);
	ck_assert_uint_gt(rig_stats(&r).reads_waiting, 0);
	ck_assert_uint_ge(rig_stats(&r).read_ns, 700 * NSEC_PER_MSEC);
	r.swap.fd = good;
	rig_finish(&r);
	expect_all_well(&r);
	verify_all(&r);
	close(bad);
	rig_end(&r);
}
END_TEST

START_TEST(source_error)
{
	struct rig r;

	quiet();
	rig_init(&r, NR_PAGES, 0, BUDGET);
	rig_put(&r, 0, 1000, PV_HOME_SOURCE);
	r.source_errors = 3; // the page with what is around it, then alone
	rig_start(&r);
	pv_engine_run(r.e);
	rig_order(&r, 0, GUEST_VERIFY, 300, 1);
	rig_order(&r, 1, GUEST_VERIFY, 300, 1); // to be served by the same read
	ck_assert(rig_until(&r, !r.source_errors, RIG_PATIENCE_MS));
	ck_assert_uint_eq(rig_stats(&r).reads_waiting, 1);
	ck_assert_uint_eq(r.g->worker[0].touched + r.g->worker[1].touched, 0);
	expect_trouble(&r, "the test's source fails", -EIO, 500);
	rig_finish(&r);
	expect_all_well(&r);
	verify_all(&r);
	rig_end(&r);
}
END_TEST

// What the guest gives back is zero from then on and takes no memory, wherever it was.
static void discard_and_verify(struct rig *r, size_t first, size_t nr)
{
	uint64_t before, discarded = rig_stats(r).discarded;

	ck_assert(rig_until(r, !rig_stats(r).reads, RIG_PATIENCE_MS)); // what comes ahead
	before = rig_memory(r);
	rig_do(r, 0, GUEST_DISCARD, first, nr);
	ck_assert_uint_le(rig_memory(r), before);
	ck_assert_uint_ge(rig_stats(r).discarded, discarded + nr);
	rig_do(r, 1, GUEST_VERIFY, first, nr);
}

START_TEST(discards)
{
	static bool zapped[FIRST];
	uint64_t memory;
	struct stat st;
	size_t at = 0;
	struct rig r;

	rig_init(&r, NR_PAGES, 0, BUDGET);
	rig_put(&r, 1024, 1024, PV_HOME_SOURCE);
	rig_put(&r, 2048, 1024, PV_HOME_SWAP);
	rig_start(&r);
	pv_engine_run(r.e);
	discard_and_verify(&r, 0, 1000);    // empty
	discard_and_verify(&r, 1300, 7);    // remote
	discard_and_verify(&r, 2300, 7);    // swapped
	discard_and_verify(&r, 2560, 256);  // a chunk
	discard_and_verify(&r, 1600, 1200); // some
	rig_do(&r, 0, GUEST_WRITE, 0, 1024);
	ck_assert(rig_until(&r, !rig_stats(&r).reads, RIG_PATIENCE_MS));
	memory = rig_memory(&r);
	rig_do(&r, 0, GUEST_DISCARD, 0, 1024); // resident
	ck_assert_uint_le(rig_memory(&r), memory - 1024 * PAGE_SIZE);
	rig_do(&r, 0, GUEST_VERIFY, 0, 1024);

	do { // what was read ahead of that, behind FIRST, may go before all else
		rig_release_drain(&r);
		write_until_drain_is_held(&r);
	} while (!zapped_pages(&r, 0, FIRST, zapped));
	while (!zapped[at])
		at++;
	discard_and_verify(&r, at, 100); // on its way out
	rig_release_drain(&r);
	verify_all(&r);
	verify_all(&r);
	rig_do(&r, 0, GUEST_DISCARD, 0, NR_PAGES);
	ck_assert(rig_until(&r, rig_stats(&r).empty == NR_PAGES && rig_memory(&r) == 0, RIG_PATIENCE_MS));
	ck_assert(rig_until(&r, !fstat(r.swap.fd, &st) && st.st_blocks * 512 <= 2 * (blkcnt_t)PAGE_SIZE, RIG_PATIENCE_MS)); // it gives back what it has
	rig_end(&r);
}
END_TEST

// The guest gives a page back that is being read for another of its threads.
START_TEST(discard_while_read)
{
	struct rig r;

	rig_init(&r, NR_PAGES, 0, BUDGET);
	rig_put(&r, 0, 256, PV_HOME_SOURCE);
	r.source_hold = true;
	rig_start(&r);
	pv_engine_run(r.e);
	rig_order(&r, 0, GUEST_VERIFY, 10, 1);
	ck_assert(rig_until(&r, !list_empty(&r.source_queue), RIG_PATIENCE_MS));
	rig_order(&r, 1, GUEST_DISCARD, 5, 20);
	ck_assert(rig_until(&r, r.g->worker[1].order == GUEST_IDLE, RIG_PATIENCE_MS));
	r.source_hold = false;
	rig_finish(&r);
	verify_all(&r);
	rig_end(&r);
}
END_TEST

// The same, but the read ends before the engine hears of it: the page cannot be mapped then, nor is it there afterwards.
START_TEST(discard_when_read)
{
	struct pv_source_read *rd;
	struct rig r;

	rig_init(&r, NR_PAGES, 0, BUDGET);
	rig_put(&r, 0, 256, PV_HOME_SOURCE);
	r.source_hold = true;
	rig_start(&r);
	pv_engine_run(r.e);
	rig_order(&r, 0, GUEST_VERIFY, 10, 1);
	ck_assert(rig_until(&r, !list_empty(&r.source_queue), RIG_PATIENCE_MS));
	r.deaf = true;
	rig_order(&r, 1, GUEST_DISCARD, 5, 20);
	rig_pass(&r, 50); // it waits for its event to be read
	rd = list_first(&r.source_queue, struct pv_source_read, link);
	list_remove(&rd->link);
	rig_source_answer(&r, rd);
	r.deaf = r.source_hold = false;
	rig_listen(&r);
	rig_finish(&r);
	verify_all(&r);
	rig_end(&r);
}
END_TEST

// The guest gives pages back whose write-out has begun, but may not have looked at them yet.
START_TEST(discard_while_written)
{
	static bool zapped[FIRST];
	size_t at = 0;
	struct rig r;

	start(&r);
	write_until_drain_is_held(&r);
	ck_assert_uint_gt(zapped_pages(&r, 0, FIRST, zapped), 0);
	while (!zapped[at])
		at++;
	r.deaf = true;
	rig_order(&r, 1, GUEST_DISCARD, at, 100);
	rig_pass(&r, 50); // it waits for its event to be read
	rig_release_drain(&r);
	r.more = pv_balance(r.e); // writes
	r.deaf = false;
	rig_listen(&r);
	rig_finish(&r);
	rig_end(&r);
}
END_TEST

// The guest gives exactly the chunk back that the engine is zapping: one REMOVE event is the guest's.
START_TEST(discard_meets_zap)
{
	struct rig r;

	SKIP_UNLESS_ZAP(methods[_i]);
	rig_init(&r, NR_PAGES, 0, BUDGET);
	r.method = methods[_i];
	rig_put(&r, 0, 256, PV_HOME_SWAP);
	rig_start(&r);
	rig_do(&r, 0, GUEST_VERIFY, 0, 256);
	rig_do(&r, 0, GUEST_WRITE, 256, FIRST); // no page-out yet
	r.hold_removed = true;
	rig_do(&r, 0, GUEST_DISCARD, 0, 256);
	ck_assert_uint_eq(r.removed.len, PV_CHUNK_SIZE);
	pv_engine_run(r.e);
	r.more = pv_balance(r.e); // chunk 0 is the oldest
	ck_assert_uint_gt(rig_stats(&r).idle, 0);
	pv_removed(r.e, r.removed.off, r.removed.len);
	rig_do(&r, 0, GUEST_WRITE, FIRST, NR_PAGES - FIRST); // it goes out, if anything is left of it
	verify_all(&r);
	rig_end(&r);
}
END_TEST

// A handler before us mapped a page, and died before it woke who waits for it.
START_TEST(mapped_already)
{
	struct uffd_msg m;
	uint64_t done;
	struct rig r;

	start(&r);
	r.deaf = true;
	rig_order(&r, 0, GUEST_VERIFY, 40, 1);
	while (read(r.plant.uffd, &m, sizeof m) != sizeof m)
		usleep(100);
	memset(rig_page(&r, 40), 0, PAGE_SIZE);
	ck_assert_int_eq(mm_uffd_continue(r.plant.uffd, r.block[0].hva + 40 * PAGE_SIZE, PAGE_SIZE, true, false, &done), 0);
	rig_event(&r, &m);
	r.deaf = false;
	rig_listen(&r);
	rig_finish(&r);
	rig_end(&r);
}
END_TEST

// Another engine goes on from the page table alone.
START_TEST(next_engine)
{
	struct rig r;

	start(&r);
	rig_do(&r, 0, GUEST_WRITE, 0, NR_PAGES);
	ck_assert(rig_until(&r, !rig_stats(&r).page_out_under_way, RIG_PATIENCE_MS));
	rig_order(&r, 1, GUEST_VERIFY, 0, 600);
	replace_engine(&r);
	rig_finish(&r);
	for (size_t i = 0; i < 50; i++)
		rig_do(&r, 0, GUEST_WRITE, i * NR_PAGES / 50, 1);
	verify_all(&r);
	rig_end(&r);
}
END_TEST

START_TEST(roomy)
{
	struct rig r;

	rig_init(&r, NR_PAGES, 0, RAM);
	rig_start(&r);
	pv_engine_run(r.e);
	rig_do(&r, 0, GUEST_WRITE, 0, NR_PAGES);
	rig_do(&r, 0, GUEST_VERIFY, 0, NR_PAGES);
	ck_assert_uint_eq(rig_stats(&r).chunks_out + r.drains, 0);
	ck_assert_uint_eq(rig_memory(&r), RAM);
	rig_end(&r);
}
END_TEST

START_TEST(refused)
{
	struct pv_block block[2] = { { .off = 0, .len = RAM }, { .off = RAM, .len = PAGE_SIZE } };
	static struct pv_pages pages[RAM / MiB + 1];
	struct loop loop;
	struct pv_opts o = { .loop = &loop, .blocks = block, .nr_blocks = 2, .pages = pages, .budget = pv_min_budget(RAM + PAGE_SIZE), .tuning = { .queue_bits = 8, .access = PV_ACCESS_NONE } };
	struct pv_engine *e = NULL;

	quiet();
	for (size_t i = 0; i < ARRAY_SIZE(pages) * PV_CHUNK_PAGES; i++)
		pv_page_set_home(&pages[i / PV_CHUNK_PAGES], i % PV_CHUNK_PAGES, PV_HOME_ZERO);
	ck_assert_int_eq(loop_init(&loop, 8), 0);
	ck_assert_int_eq(pv_engine_new(&o, &e), 0);
	loop_fini(&loop);
	pv_engine_free(e);
	o.budget--;
	ck_assert_int_eq(pv_engine_new(&o, &e), -EINVAL);
	o.budget++;
	block[1].off -= PV_CHUNK_SIZE;
	ck_assert_int_eq(pv_engine_new(&o, &e), -EINVAL);
	block[1].off += PV_CHUNK_SIZE;
	block[1].len--;
	ck_assert_int_eq(pv_engine_new(&o, &e), -EINVAL);
	block[1].len++;
	pv_page_set_home(&pages[7], 100, PV_HOME_NONE); // and not valid: it would be nowhere
	ck_assert_int_eq(pv_engine_new(&o, &e), -EINVAL);
}
END_TEST

int main(void)
{
	Suite *s = suite_create("engine");

	add(s, vcpus, rig_nr_ways() + 1);
	add(s, dma, rig_nr_ways());
	add(s, reads_of_a_source_write_nothing, rig_nr_ways());
	add(s, clean_pages_are_dropped, 1);
	add(s, zeros_are_not_written, 1);
	add(s, drain_before_write, 1);
	add(s, rescue, 1);
	add(s, ages, 1);
	add(s, withheld_drain, 1);
	add(s, failing_drain, 1);
	add(s, write_error, 1);
	add(s, write_error_of_some, 1);
	add(s, read_error, 1);
	add(s, source_error, 1);
	add(s, discards, 1);
	add(s, discard_while_read, 1);
	add(s, discard_when_read, 1);
	add(s, discard_while_written, 1);
	add(s, discard_meets_zap, ARRAY_SIZE(methods));
	add(s, mapped_already, 1);
	add(s, next_engine, 1);
	add(s, roomy, 1);
	add(s, refused, 1);
	return run(s);
}
