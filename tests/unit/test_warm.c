// SPDX-License-Identifier: GPL-2.0-only
// What was in memory once comes back in the background: just that, in its order, for nobody's sake, and after everybody else.
#include "fill_suite.h"

static const struct pv_warm_chunk list[] = {
	{ 30, { ~0ULL, ~0ULL, ~0ULL, ~0ULL }, 255 }, { 3, { 0xff, 1, 0, 1ULL << 63 }, 200 }, { 20, { ~0ULL, 0, ~0ULL, 0 }, 200 },
	{ 8, { 1, 0, 0, 0 }, 100 },                  { 9, { 0, 0, 0, ~0ULL }, 100 },         { 21, { 7, 7, 7, 7 }, 1 },
};

static void warm_up(struct rig *r, const struct pv_warm_chunk *warm, size_t nr, uint64_t budget)
{
	rig_init(r, NR_PAGES, 0, budget);
	rig_put(r, 0, NR_PAGES, PV_HOME_SOURCE);
	r->warm = warm;
	r->nr_warm = nr;
}

// The source does not answer yet.
static void start_held(struct rig *r)
{
	rig_start(r);
	r->source_hold = true;
	pv_engine_run(r->e);
}

static unsigned nr_held(const struct rig *r)
{
	unsigned n = 0;

	for (const struct list *node = r->source_queue.next; node != &r->source_queue; node = node->next)
		n++;
	return n;
}

static void expect_end(struct rig *r)
{
	ck_assert(rig_until(r, !pv_warm_is_active(r->e, NULL, NULL), RIG_PATIENCE_MS));
}

static size_t nr_listed(const struct pv_warm_chunk *warm, size_t nr)
{
	size_t pages = 0;

	for (size_t i = 0; i < nr; i++)
		pages += bitmap_count(warm[i].pages, PV_CHUNK_PAGES);
	return pages;
}

// These pages are in memory, and no others.
static void expect_valid(const struct rig *r, const struct pv_warm_chunk *warm, size_t nr)
{
	size_t all = 0;

	for (size_t i = 0; i < r->nr_chunks; i++)
		all += bitmap_count(r->pages[i].valid, PV_CHUNK_PAGES);
	for (size_t i = 0; i < nr; i++)
		ck_assert(!memcmp(r->pages[warm[i].chunk].valid, warm[i].pages, sizeof warm[i].pages));
	ck_assert_uint_eq(all, nr_listed(warm, nr));
}

static void write_verify_end(struct rig *r)
{
	verify_all(r);
	write_and_verify_all(r);
	rig_end(r);
}

// Just these pages, with nobody having touched them; and who touches them then reads nothing.
START_TEST(comes_back)
{
	uint64_t brought, left;
	struct pv_stats s;
	struct rig r;

	warm_up(&r, list, ARRAY_SIZE(list), NR_PAGES * PAGE_SIZE);
	rig_start(&r);
	rig_pass(&r, 50);
	ck_assert(pv_warm_is_active(r.e, &brought, &left)); // page-out is held: nobody knows yet whether the VM will run
	ck_assert_uint_eq(left, nr_listed(list, ARRAY_SIZE(list)));
	ck_assert_uint_eq(brought, 0);
	pv_engine_run(r.e);
	expect_end(&r);
	ck_assert(!pv_warm_is_active(r.e, &brought, &left));
	ck_assert_uint_eq(brought, nr_listed(list, ARRAY_SIZE(list)));
	ck_assert_uint_eq(left, 0);
	expect_valid(&r, list, ARRAY_SIZE(list));
	ck_assert_uint_eq(rig_stats(&r).faults, 0);
	rig_do(&r, 0, GUEST_VERIFY, 30 * 256, 256);
	rig_do(&r, 1, GUEST_WRITE, 9 * 256 + 192, 64);
	s = rig_stats(&r);
	ck_assert_uint_eq(s.faults_on[PV_HOME_SOURCE], 0);
	ck_assert_uint_eq(r.demand_reads, 0);
	write_verify_end(&r);
}
END_TEST

// The hottest first, then by address; two at a time when the guest does nothing.
START_TEST(in_order)
{
	struct rig r;

	warm_up(&r, list, ARRAY_SIZE(list), NR_PAGES * PAGE_SIZE);
	start_held(&r);
	for (size_t i = 0; i < ARRAY_SIZE(list); i++) {
		rig_pass(&r, 20);
		ck_assert_uint_eq(nr_held(&r), i + 1 < ARRAY_SIZE(list) ? 2 : 1);
		ck_assert_uint_eq(answer_one(&r), list[i].chunk);
	}
	r.source_hold = false;
	expect_end(&r);
	write_verify_end(&r);
}
END_TEST

// A guest that faults is served while nothing of this comes; also on a page that is on its way, once that has come.
START_TEST(demand_first)
{
	struct rig r;

	warm_up(&r, list, ARRAY_SIZE(list), NR_PAGES * PAGE_SIZE);
	rig_start(&r);
	r.warm_hold = true;
	pv_engine_run(r.e);
	rig_pass(&r, 20);
	ck_assert_uint_eq(nr_held(&r), 2);
	rig_do(&r, 0, GUEST_VERIFY, 10 * 256, 4 * 256);
	rig_do(&r, 1, GUEST_WRITE, 3 * 256 + 16, 40); // of a chunk that is on its way, other pages
	ck_assert_uint_eq(nr_held(&r), 2);
	rig_order(&r, 0, GUEST_VERIFY, 30 * 256 + 7, 3);
	rig_pass(&r, 50);
	ck_assert(!rig_idle(&r));
	r.warm_hold = false;
	rig_finish(&r);
	expect_end(&r);
	write_verify_end(&r);
}
END_TEST

static unsigned nr_warm_held(const struct rig *r)
{
	unsigned n = 0;

	for (const struct list *node = r->source_queue.next; node != &r->source_queue; node = node->next)
		n += rig_is_warm(r, list_entry(node, struct pv_source_read, link));
	return n;
}

// A round of a guest that faults. False: it has not for too long, so that nothing can be said.
static bool busy_round(struct rig *r, uint64_t *fault_ns)
{
	uint64_t before = clock_now_ns();
	unsigned reads = r->demand_reads;

	rig_round(r);
	if (r->demand_reads > reads)
		*fault_ns = before;
	return clock_now_ns() - *fault_ns < 5 * NSEC_PER_MSEC;
}

static void answer_warm(struct rig *r)
{
	list_for_each(&r->source_queue, node) {
		struct pv_source_read *rd = list_entry(node, struct pv_source_read, link);

		if (!rig_is_warm(r, rd))
			continue;
		list_remove(node);
		rig_source_answer(r, rd);
	}
}

// A chunk that is long on its way. Was it all the while one only, and was the guest seen to fault when it came?
static bool one_slow(struct rig *r, uint64_t *fault_ns, uint64_t *took_ns)
{
	uint64_t begun;
	bool sure;

	while (!nr_warm_held(r)) {
		sure = busy_round(r, fault_ns);
		ck_assert(!sure || nr_warm_held(r) <= 1);
	}
	begun = clock_now_ns();
	while (clock_now_ns() - begun < 15 * NSEC_PER_MSEC) {
		unsigned before = nr_warm_held(r);

		sure = busy_round(r, fault_ns);
		ck_assert(!sure || nr_warm_held(r) <= 1 || nr_warm_held(r) <= before);
	}
	*took_ns = clock_now_ns() - begun;
	sure = nr_warm_held(r) == 1;
	answer_warm(r);
	return busy_round(r, fault_ns) && sure;
}

// While it faults, one at a time; and when that has come, nothing for as long as it took.
START_TEST(steps_back)
{
	uint64_t fault_ns = 0, begun, took;
	unsigned nr_sure = 0;
	struct rig r;

	warm_up(&r, list, ARRAY_SIZE(list), NR_PAGES * PAGE_SIZE);
	rig_start(&r);
	r.warm_hold = r.g->reads_only = r.g->keeps = true;
	rig_order(&r, 0, GUEST_RANDOM, 10 * 256, 30 * 256);
	ck_assert(rig_until(&r, r.demand_reads > 2, RIG_PATIENCE_MS));
	pv_engine_run(r.e);
	for (unsigned i = 0; i < 3; i++) {
		bool sure = one_slow(&r, &fault_ns, &took);

		nr_sure += sure;
		for (begun = clock_now_ns(); sure && clock_now_ns() - begun < took - NSEC_PER_MSEC;) {
			ck_assert_uint_eq(nr_warm_held(&r), 0);
			rig_round(&r);
		}
	}
	if (!nr_sure)
		printf("the machine was too slow to tell whether a guest that faults comes first\n");
	r.g->stop = true;
	r.warm_hold = false;
	rig_finish(&r);
	r.g->stop = false;
	expect_end(&r);
	write_verify_end(&r);
}
END_TEST

// As far as there is room, and nothing is paged out for it.
START_TEST(no_room)
{
	struct pv_warm_chunk all[NR_CHUNKS] = { 0 };
	uint64_t left;
	struct pv_stats s;
	struct rig r;

	for (size_t i = 0; i < NR_CHUNKS; i++) {
		all[i] = (struct pv_warm_chunk){ .chunk = (i * 7 + 5) % NR_CHUNKS, .age = (uint8_t)(200 - i) };
		memset(all[i].pages, 0xff, sizeof all[i].pages);
	}
	warm_up(&r, all, NR_CHUNKS, BUDGET);
	rig_start(&r);
	pv_engine_run(r.e);
	expect_end(&r);
	pv_warm_is_active(r.e, NULL, &left);
	ck_assert_uint_eq(left, 0);
	rig_pass(&r, 200);
	s = rig_stats(&r);
	ck_assert_uint_eq(s.chunks_out + s.out_written + s.out_clean + s.out_zero + s.page_out_under_way + s.standby, 0);
	ck_assert_uint_eq(s.charged, (BUDGET - TARGET - RESERVE) / PAGE_SIZE);
	expect_valid(&r, all, (BUDGET - TARGET - RESERVE) / PV_CHUNK_SIZE);
	write_verify_end(&r);
}
END_TEST

// From wherever the pages are. Those of zeros are nowhere, and stay there.
START_TEST(any_home)
{
	static const struct pv_warm_chunk warm[] = { { 4, { ~0ULL, ~0ULL, ~0ULL, ~0ULL }, 9 }, { 5, { 0, 0xf0f0, 1, 0 }, 9 } };
	uint64_t want[PV_WORDS] = { 0 };
	struct pv_stats s;
	struct rig r;

	rig_init(&r, NR_PAGES, 0, NR_PAGES * PAGE_SIZE);
	rig_put(&r, 4 * 256, 50, PV_HOME_SOURCE);
	rig_put(&r, 4 * 256 + 100, 50, PV_HOME_SWAP);
	rig_put(&r, 4 * 256 + 200, 20, PV_HOME_NONE);
	rig_put(&r, 5 * 256, 256, PV_HOME_SWAP);
	r.warm = warm;
	r.nr_warm = ARRAY_SIZE(warm);
	rig_start(&r);
	pv_engine_run(r.e);
	expect_end(&r);
	bitmap_set_range(want, 0, 50);
	bitmap_set_range(want, 100, 50);
	bitmap_set_range(want, 200, 20);
	ck_assert(!memcmp(r.pages[4].valid, want, sizeof want));
	ck_assert(!memcmp(r.pages[5].valid, warm[1].pages, sizeof want));
	s = rig_stats(&r);
	ck_assert_uint_eq(s.faults, 0);
	ck_assert_uint_eq(s.resident, 120 + bitmap_count(warm[1].pages, 256));
	write_verify_end(&r);
}
END_TEST

// What cannot be read is left to who touches it, and the others come.
START_TEST(source_fails)
{
	struct rig r;

	quiet();
	warm_up(&r, list, ARRAY_SIZE(list), NR_PAGES * PAGE_SIZE);
	r.source_errors = 2;
	rig_start(&r);
	pv_engine_run(r.e);
	expect_end(&r);
	ck_assert_uint_eq(r.source_errors, 0);
	ck_assert_uint_eq(bitmap_count(r.pages[30].valid, 256) + bitmap_count(r.pages[3].valid, 256), 0);
	expect_valid(&r, list + 2, ARRAY_SIZE(list) - 2);
	write_verify_end(&r);
}
END_TEST

// The place on the queues is that of the age, of what is in memory from the start and of what comes back, but of what was touched.
START_TEST(begins_by_age)
{
	uint8_t before[NR_CHUNKS] = { [0] = 255, [1] = 1, [12] = 77, [39] = 130 }, ages[NR_CHUNKS];
	struct rig r;

	warm_up(&r, list, ARRAY_SIZE(list), NR_PAGES * PAGE_SIZE);
	for (size_t i = 0; i < NR_CHUNKS; i++)
		if (before[i] || i == 2)
			rig_put(&r, i * 256 + 3, 9, PV_HOME_NONE);
	r.ages = before;
	r.no_ticks = true;
	start_held(&r);
	rig_pass(&r, 20);
	rig_order(&r, 0, GUEST_VERIFY, 3 * 256 + 2, 1); // on its way
	rig_pass(&r, 20);
	r.source_hold = false;
	rig_finish(&r);
	expect_end(&r);
	pv_engine_ages(r.e, ages);
	for (size_t i = 0; i < ARRAY_SIZE(list); i++)
		before[list[i].chunk] = list[i].chunk == 3 ? 255 : list[i].age;
	before[2] = 1;
	for (size_t i = 0; i < NR_CHUNKS; i++)
		ck_assert_msg(before[i] == ages[i], "chunk %zu: age %u, not %u", i, ages[i], before[i]);
	write_verify_end(&r);
}
END_TEST

// A pager that is killed in the middle: the next one has all pages, and does not go on with it.
START_TEST(killed)
{
	struct rig r;

	warm_up(&r, list, ARRAY_SIZE(list), NR_PAGES * PAGE_SIZE);
	start_held(&r);
	rig_pass(&r, 20);
	answer_one(&r);
	r.warm = NULL;
	r.nr_warm = 0;
	r.source_hold = false;
	replace_engine(&r);
	rig_pass(&r, 100);
	expect_valid(&r, list, 1);
	write_verify_end(&r);
}
END_TEST

// What else is filled waits for it.
START_TEST(before_fill)
{
	struct rig r;

	warm_up(&r, list, ARRAY_SIZE(list), NR_PAGES * PAGE_SIZE);
	start_held(&r);
	pv_fill_begin(r.e);
	rig_pass(&r, 20);
	ck_assert_uint_eq(nr_held(&r), 2);
	r.source_hold = false;
	expect_source_gone(&r);
	write_verify_end(&r);
}
END_TEST

// Everybody at once: the guest reads, writes and gives back at random in little memory, while all that it had comes back.
START_TEST(storm)
{
	struct pv_warm_chunk all[NR_CHUNKS];
	struct rig r;

	for (size_t i = 0; i < NR_CHUNKS; i++) {
		all[i] = (struct pv_warm_chunk){ .chunk = (i * 11 + 3) % NR_CHUNKS, .age = (uint8_t)(255 - i) };
		for (unsigned w = 0; w < PV_WORDS; w++)
			all[i].pages[w] = guest_mix(i * PV_WORDS + w) | guest_mix(i + 77 * w);
	}
	warm_up(&r, all, NR_CHUNKS, _i ? BUDGET : NR_PAGES * PAGE_SIZE);
	rig_start(&r);
	pv_engine_run(r.e);
	for (size_t i = 0; i < GUEST_WORKERS; i++)
		rig_order(&r, i, GUEST_RANDOM, 0, r.g->nr_pages);
	expect_end(&r);
	rig_pass(&r, 500);
	r.g->stop = true;
	rig_finish(&r);
	r.g->stop = false;
	write_verify_end(&r);
}
END_TEST

int main(void)
{
	Suite *s = suite_create("warm");

	add(s, comes_back, 1);
	add(s, in_order, 1);
	add(s, demand_first, 1);
	add(s, steps_back, 1);
	add(s, no_room, 1);
	add(s, any_home, 1);
	add(s, source_fails, 1);
	add(s, begins_by_age, 1);
	add(s, killed, 1);
	add(s, before_fill, 1);
	add(s, storm, 2);
	return run(s);
}
