// SPDX-License-Identifier: GPL-2.0-only
// What the engine does page by page, and ahead of the guest: what is hot stays, what comes unasked is no trouble.
#include "engine_suite.h"
#include "pvmem/engine_int.h"

#define BUDGET (16 * MiB)
#define NR_CHUNKS 64
#define NR_PAGES (NR_CHUNKS * PV_CHUNK_PAGES)
#define BLOCK_PAGES 16

// All of it has the home SWAP.
static void start_with(struct rig *r, int way, uint64_t budget)
{
	rig_init(r, NR_PAGES, 0, budget);
	rig_page_by(r, way);
	rig_put(r, 0, NR_PAGES, PV_HOME_SWAP);
	rig_start(r);
	pv_engine_run(r->e);
}

static void start(struct rig *r, int way)
{
	start_with(r, way, BUDGET);
}

static bool is_valid(const struct rig *r, size_t page)
{
	return bitmap_test(r->pages[page / PV_CHUNK_PAGES].valid, page % PV_CHUNK_PAGES);
}

static bool is_mapped(const struct rig *r, size_t page)
{
	uint64_t present[1] = { 0 };

	ck_assert_int_eq(mm_pagemap_scan(r->pagemap, r->block[0].hva + page * PAGE_SIZE, PAGE_SIZE, MM_SCAN_PRESENT, present), 0);
	return present[0] & 1;
}

// Reads that the guest caused by a fault, in this one order. Not what was on its way already.
static uint64_t nr_reads(struct rig *r)
{
	struct pv_stats s = rig_stats(r);

	return s.windows[PV_WINDOW_PAGE] + s.windows[PV_WINDOW_BLOCK] + s.windows[PV_WINDOW_CHUNK];
}

static uint64_t reads_of(struct rig *r, enum guest_order order, size_t first, size_t nr)
{
	uint64_t before = nr_reads(r);

	rig_do(r, 1, order, first, nr);
	return nr_reads(r) - before;
}

// ---- what is hot

#define NR_HOT 6
#define NR_COLD 120 // pieces of what is not, that are touched

static size_t hot_page(size_t i)
{
	return i * PV_CHUNK_PAGES + (i * 37 + 11) % PV_CHUNK_PAGES;
}

static uint64_t touch_hot(struct rig *r)
{
	uint64_t before = rig_stats(r).faults_on[PV_HOME_SWAP];

	for (size_t i = 0; i < NR_HOT; i++) {
		rig_order(r, 1 + i % 3, i % 2 ? GUEST_WRITE : GUEST_VERIFY, hot_page(i), 1);
		if (i % 3 == 2)
			rig_finish(r);
	}
	return rig_stats(r).faults_on[PV_HOME_SWAP] - before;
}

// Here and there, by pieces of 64 pages.
static void touch_others(struct rig *r, uint64_t random)
{
	size_t chunk = NR_HOT + random / 64 % (NR_CHUNKS - NR_HOT);

	rig_do(r, 0, random % 4 ? GUEST_VERIFY : GUEST_WRITE, chunk * PV_CHUNK_PAGES + random / 65536 % 4 * 64, 64);
}

// One page of each of the first chunks is in use, and nothing around it.
START_TEST(hot_page_in_a_cold_chunk)
{
	uint64_t reads = 0;
	size_t around = 0;
	struct rig r;

	start(&r, _i);
	rig_do(&r, 0, GUEST_VERIFY, 0, NR_HOT * PV_CHUNK_PAGES);
	touch_hot(&r);
	for (uint64_t i = 0; i < NR_COLD; i++) {
		touch_others(&r, guest_mix(i));
		reads += touch_hot(&r);
	}
	for (size_t i = 0; i < NR_HOT; i++) {
		ck_assert(is_valid(&r, hot_page(i)));
		around += bitmap_count(r.pages[i].valid, PV_CHUNK_PAGES);
	}
	ck_assert_uint_le(reads, _i ? NR_COLD * NR_HOT / 100 : 0); // where nothing tells what is in use, one may be too late
	ck_assert_uint_ge(rig_stats(&r).pages_kept, NR_HOT);
	ck_assert_uint_ge(rig_stats(&r).faults_on[PV_HOME_NONE], NR_HOT);
	ck_assert_uint_le(around, NR_HOT * PV_CHUNK_PAGES / 4);
	verify_all(&r);
	rig_end(&r);
}
END_TEST

// A scan of all else comes ahead of the guest, and leaves what was in use where it is: though nobody touches it meanwhile, and though it
// is.
START_TEST(hot_set_and_a_scan)
{
	const size_t nr_hot = 4 * PV_CHUNK_PAGES, piece = 2 * PV_CHUNK_PAGES;
	uint64_t scan = 0, hot = 0, ahead;
	struct rig r;

	start_with(&r, _i / 2 ? 3 : 0, 2 * BUDGET);
	for (size_t i = 0; i < nr_hot / 4; i++) // in no order, so that it is no scan, nor strided
		rig_do(&r, 1, GUEST_VERIFY, guest_mix(i) / 64 % nr_hot, 1);
	rig_do(&r, 1, GUEST_VERIFY, 0, nr_hot);
	ahead = rig_stats(&r).in_ahead;
	for (size_t page = nr_hot; page < NR_PAGES; page += piece) {
		scan += reads_of(&r, GUEST_VERIFY, page, piece);
		hot += _i % 2 ? reads_of(&r, GUEST_VERIFY, 0, nr_hot) : 0;
	}
	hot += reads_of(&r, GUEST_VERIFY, 0, nr_hot);
	ck_assert_uint_ge(rig_stats(&r).in_ahead - ahead, (NR_PAGES - nr_hot) / 2);
	ck_assert_msg(scan <= (NR_PAGES - nr_hot) / BLOCK_PAGES / 4, "%lu touches of the scan waited for a read of their own", scan);
	ck_assert_msg(hot <= nr_hot / BLOCK_PAGES / 8, "%lu reads of the hot set", hot);
	rig_end(&r);
}
END_TEST

// ---- what comes unasked

// Of a block that came with its page, the one that was left unmapped.
static size_t sample_of(const struct rig *r, size_t page)
{
	for (size_t i = page / BLOCK_PAGES * BLOCK_PAGES; i < ROUND_UP(page + 1, BLOCK_PAGES); i++)
		if (is_valid(r, i) && !is_mapped(r, i))
			return i;
	ck_abort_msg("there is no sample around page %zu", page);
	return 0;
}

static void start_with_source(struct rig *r)
{
	rig_init(r, NR_PAGES, 0, BUDGET);
	rig_put(r, 0, NR_PAGES, PV_HOME_SOURCE);
	rig_start(r);
	pv_engine_run(r->e);
}

// Touched while it is being read: whoever waits for it goes on when it has come.
START_TEST(sample_that_is_waited_for)
{
	const size_t page = 1000;
	struct rig r;
	size_t sample;

	start_with_source(&r);
	rig_do(&r, 0, GUEST_VERIFY, page, 1);
	sample = sample_of(&r, page);
	rig_end(&r);

	start_with_source(&r); // the same once more
	r.source_hold = true;
	rig_order(&r, 0, GUEST_VERIFY, page, 1);
	ck_assert(rig_until(&r, !list_empty(&r.source_queue), RIG_PATIENCE_MS));
	rig_order(&r, 1, GUEST_VERIFY, sample, 1);
	rig_pass(&r, 20);
	ck_assert_uint_eq(rig_stats(&r).faults, 2);
	r.source_hold = false;
	rig_finish(&r);
	ck_assert(is_mapped(&r, sample) && is_mapped(&r, page));
	ck_assert_uint_eq(rig_stats(&r).faults, 2); // not by another one
	ck_assert_uint_eq(rig_stats(&r).minor_faults, 0);
	rig_end(&r);
}
END_TEST

// A sample that is touched later is a minor fault, and counts as used.
START_TEST(sample_that_is_used)
{
	const size_t page = 1000;
	struct pv_stats before, s;
	struct rig r;
	size_t sample;

	start_with_source(&r);
	rig_do(&r, 0, GUEST_VERIFY, page, 1);
	sample = sample_of(&r, page);
	before = rig_stats(&r);
	rig_do(&r, 0, GUEST_WRITE, sample, 1);
	s = rig_stats(&r);
	ck_assert_uint_eq(s.faults - before.faults, 1);
	ck_assert_uint_eq(s.faults_on[PV_HOME_NONE] - before.faults_on[PV_HOME_NONE], 1);
	ck_assert_uint_eq(s.sampled_used - before.sampled_used, 1);
	ck_assert_uint_eq(s.in_source, before.in_source);
	verify_all(&r);
	rig_end(&r);
}
END_TEST

#define NR_MISSED_CHUNKS 12

// A page here and there is missed, and nothing beside it. While memory is short, this is learnt of a chunk that has not left yet; where all
// of it fits, what comes beside a page costs nobody his place.
START_TEST(blocks_of_no_use)
{
	bool fits = _i;
	struct pv_stats before, s;
	struct rig r;

	start_with(&r, 0, (fits ? NR_CHUNKS : 2 * NR_MISSED_CHUNKS) * MiB);
	r.no_ticks = true; // so that memory stays short
	rig_do(&r, 0, GUEST_VERIFY, NR_MISSED_CHUNKS * PV_CHUNK_PAGES, NR_PAGES - NR_MISSED_CHUNKS * PV_CHUNK_PAGES);
	before = rig_stats(&r);
	for (uint64_t i = 0; i < NR_MISSED_CHUNKS * PV_CHUNK_PAGES / BLOCK_PAGES * 4; i++)
		rig_do(&r, 0, GUEST_VERIFY, guest_mix(i) % (NR_MISSED_CHUNKS * PV_CHUNK_PAGES) / BLOCK_PAGES * BLOCK_PAGES + 5, 1);
	s = rig_stats(&r);
	if (fits)
		ck_assert_uint_eq(s.windows[PV_WINDOW_PAGE], before.windows[PV_WINDOW_PAGE]);
	else
		ck_assert_uint_ge(s.windows[PV_WINDOW_PAGE] - before.windows[PV_WINDOW_PAGE], NR_MISSED_CHUNKS);
	verify_all(&r);
	rig_end(&r);
}
END_TEST

// Many pages at a time are read by another thread, or into a buffer first. What the guest gives back meanwhile is not there afterwards;
// the engine hears of it before the read has ended, or behind.
START_TEST(discard_while_many_are_read)
{
	bool late = _i & 1, buffer = _i & 2;
	struct uffd_msg m;
	struct rig r;

	start(&r, PV_METHOD_1); // all of the chunk
	r.deaf = true;
	rig_order(&r, 0, GUEST_VERIFY, 310, 1);
	while (read(r.plant.uffd, &m, sizeof m) != sizeof m)
		usleep(100);
	r.e->nr_writes += buffer;
	rig_event(&r, &m);
	r.e->nr_writes -= buffer;
	ck_assert_int_eq(r.e->bounces_busy != 0, buffer);
	rig_order(&r, 1, GUEST_DISCARD, 280, 20);
	rig_order(&r, 2, GUEST_DISCARD, 320, 150);
	usleep(20000); // they wait for their events to be read
	if (late)
		ck_assert(rig_until(&r, is_valid(&r, 290), RIG_PATIENCE_MS));
	ck_assert_int_eq(is_valid(&r, 310), late);
	r.deaf = false;
	rig_listen(&r);
	rig_finish(&r);
	ck_assert(!is_valid(&r, 290) && !is_valid(&r, 400));
	ck_assert(is_valid(&r, 300) && is_valid(&r, 500));
	ck_assert_uint_eq(rig_stats(&r).charged, rig_stats(&r).resident);
	ck_assert_uint_eq(rig_stats(&r).charged, rig_memory(&r) / PAGE_SIZE);
	verify_all(&r);
	rig_end(&r);
}
END_TEST

// ---- what goes out

// Of chunk 0, which is clean, three pages are written, few enough apart to be written as one.
static const size_t stale[] = { 10, 14, 20 };
#define NR_BRIDGED 11
#define MANY 4000 // blocks, after which chunk 0 must have gone

static void write_some(struct rig *r)
{
	rig_do(r, 0, GUEST_VERIFY, 0, PV_CHUNK_PAGES);
	ck_assert(bitmap_next(r->pages[0].valid, PV_CHUNK_PAGES, 0, false) == PV_CHUNK_PAGES);
	for (size_t i = 0; i < ARRAY_SIZE(stale); i++)
		rig_do(r, 0, GUEST_WRITE, stale[i], 1);
}

// Blocks of other chunks are read, in no order, so that it is no scan.
static void read_others(struct rig *r, uint64_t random)
{
	size_t chunk = 1 + random / 64 % (NR_CHUNKS - 1);

	rig_do(r, 0, GUEST_VERIFY, chunk * PV_CHUNK_PAGES + random / 65536 % (PV_CHUNK_PAGES / BLOCK_PAGES) * BLOCK_PAGES, BLOCK_PAGES);
}

static void expect_homes(const struct rig *r, enum pv_home home)
{
	for (unsigned i = 0; i < PV_CHUNK_PAGES; i++)
		ck_assert_int_eq(pv_page_home(&r->pages[0], i), i >= stale[0] && i < stale[0] + NR_BRIDGED ? home : PV_HOME_SWAP);
}

static void expect_in_swap(const struct rig *r)
{
	char *buf = aligned_alloc(PAGE_SIZE, PAGE_SIZE), *want = aligned_alloc(PAGE_SIZE, PAGE_SIZE);

	for (size_t i = 0; i < PV_CHUNK_PAGES; i++) {
		ck_assert_int_eq(pread(r->swap.fd, buf, PAGE_SIZE, (off_t)(i * PAGE_SIZE)), PAGE_SIZE);
		guest_fill(want, r->g->seed[i]);
		ck_assert_msg(!memcmp(buf, want, PAGE_SIZE), "page %zu of the swap image", i);
	}
	free(buf);
	free(want);
}

START_TEST(bridged_write)
{
	struct rig r;

	start(&r, _i == PV_NR_METHODS ? RIG_WAYS / 2 + PV_METHOD_1 : _i); // the last one: out of a folio
	write_some(&r);
	for (uint64_t i = 0; is_valid(&r, stale[0]) && i < MANY; i++)
		read_others(&r, guest_mix(i));
	ck_assert(!is_valid(&r, stale[0]));
	ck_assert_uint_eq(rig_stats(&r).out_written, NR_BRIDGED);
	expect_homes(&r, PV_HOME_SWAP);
	expect_in_swap(&r);
	verify_all(&r);
	rig_end(&r);
}
END_TEST

// What was right in the swap image may be destroyed then: it stays in memory, too.
START_TEST(bridged_write_that_fails)
{
	struct rig r;
	int good, bad;

	start(&r, _i);
	write_some(&r);
	good = r.swap.fd;
	bad = broken_swap(&r, O_RDONLY);
	r.swap.fd = bad;
	for (uint64_t i = 0; !rig_stats(&r).writes_failed && i < MANY; i++)
		read_others(&r, guest_mix(i));
	ck_assert(rig_stats(&r).writes_failed);
	expect_homes(&r, PV_HOME_NONE);
	for (size_t i = stale[0]; i < stale[0] + NR_BRIDGED; i++)
		ck_assert(is_valid(&r, i));
	ck_assert_uint_eq(rig_stats(&r).out_written, 0);
	r.swap.fd = good;
	verify_all(&r);
	verify_all(&r);
	expect_in_swap(&r);
	close(bad);
	rig_end(&r);
}
END_TEST

// The guest gives back all of what is on its way out: its place in the swap image is given back, too, though nobody is short of memory.
START_TEST(nothing_is_left_to_go)
{
	struct stat st;
	struct rig r;

	start(&r, _i);
	rig_do(&r, 0, GUEST_WRITE, 0, NR_PAGES);
	ck_assert(rig_until(&r, rig_stats(&r).standby, RIG_PATIENCE_MS));
	rig_do(&r, 0, GUEST_DISCARD, 0, NR_PAGES);
	ck_assert(rig_until(&r, rig_stats(&r).empty == NR_PAGES && !rig_memory(&r), RIG_PATIENCE_MS));
	ck_assert(rig_until(&r, !fstat(r.swap.fd, &st) && st.st_blocks * 512 <= 2 * (blkcnt_t)PAGE_SIZE, RIG_PATIENCE_MS)); // what it ends with
	rig_end(&r);
}
END_TEST

int main(void)
{
	Suite *s = suite_create("engine_pages");

	add(s, hot_page_in_a_cold_chunk, getenv("CRIU_VM_LONG") ? RIG_WAYS / 2 : 2);
	add(s, hot_set_and_a_scan, 4);
	add(s, sample_that_is_waited_for, 1);
	add(s, sample_that_is_used, 1);
	add(s, blocks_of_no_use, 2);
	add(s, discard_while_many_are_read, 4);
	add(s, bridged_write, PV_NR_METHODS + 1);
	add(s, bridged_write_that_fails, PV_NR_METHODS);
	add(s, nothing_is_left_to_go, 1);
	return run(s);
}
