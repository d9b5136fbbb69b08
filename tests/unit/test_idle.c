// SPDX-License-Identifier: GPL-2.0-only
// What the bitmap of idle pages says of a process, and what the engine makes of it. `make nested` runs it in a guest whose kernel has
// that bitmap, where this one has not.
#include <sched.h>

#include "engine_suite.h"
#include "memory_child.h"
#include "mm/idle.h"
#include "pvmem/access_idle.h"
#include "pvmem/engine_int.h"

#define PAGES 8192UL // 32 MiB: more than TLBs hold
#define STEP 61UL    // between the pages that are looked at
#define SAMPLES (PAGES / STEP)

// A CPU writes down an access when it fills its TLB. With one CPU for all, others' turns in between empty it.
static void one_cpu(void)
{
	cpu_set_t one;

	CPU_ZERO(&one);
	CPU_SET(sched_getcpu(), &one);
	ck_assert_int_eq(sched_setaffinity(0, sizeof one, &one), 0);
}

// Marks each STEPth page of the child's; those that cannot be, have no hva then. Returns how many could.
static size_t mark(struct mm_idle *idle, const struct memory_child *c, struct mm_idle_page *page)
{
	size_t nr = 0;

	for (size_t i = 0; i < SAMPLES; i++) {
		int r = mm_idle_mark(idle, c->hva + i * STEP * PAGE_SIZE, &page[i]);

		ck_assert(!r || r == -EAGAIN);
		if (r)
			page[i].hva = 0;
		nr += !r;
	}
	return nr;
}

// Of the marked pages from sample `first` on, how many are said to be so.
static size_t count(struct mm_idle *idle, const struct mm_idle_page *page, size_t first, size_t end, enum mm_idle_answer so)
{
	size_t n = 0;

	for (size_t i = first; i < end; i++)
		n += page[i].hva && mm_idle_look(idle, &page[i]) == so;
	return n;
}

static size_t marked(const struct mm_idle_page *page, size_t first, size_t end)
{
	size_t n = 0;

	for (size_t i = first; i < end; i++)
		n += page[i].hva != 0;
	return n;
}

START_TEST(touched_and_untouched)
{
	struct mm_idle_page page[SAMPLES];
	struct memory_child c;
	struct mm_idle *idle;
	const size_t half = SAMPLES / 2;

	one_cpu();
	ck_assert(memory_start(&c, _i ? MEMFD : ANON, PAGES * PAGE_SIZE));
	memory_does(&c, WRITE, 0, PAGES);
	ck_assert_int_eq(mm_idle_open(c.pid, &idle), 0);
	ck_assert_uint_gt(mark(idle, &c, page), SAMPLES * 9 / 10);
	// Nobody touches anything, looking least of all.
	for (int i = 0; i < 2; i++)
		ck_assert_uint_eq(count(idle, page, 0, SAMPLES, MM_IDLE_UNTOUCHED), marked(page, 0, SAMPLES));
	memory_does(&c, READ, half * STEP, PAGES - half * STEP);
	ck_assert_uint_eq(count(idle, page, 0, half, MM_IDLE_UNTOUCHED), marked(page, 0, half));
	ck_assert_uint_eq(count(idle, page, half, SAMPLES, MM_IDLE_TOUCHED), marked(page, half, SAMPLES));
	// Writes, too; and what is marked again begins anew.
	ck_assert_uint_gt(mark(idle, &c, page), SAMPLES * 9 / 10);
	memory_does(&c, WRITE, 0, half * STEP);
	ck_assert_uint_eq(count(idle, page, 0, half, MM_IDLE_TOUCHED), marked(page, 0, half));
	ck_assert_uint_eq(count(idle, page, half, SAMPLES, MM_IDLE_UNTOUCHED), marked(page, half, SAMPLES));
	mm_idle_close(idle);
	memory_stop(&c);
}
END_TEST

// A mark is not taken for that of a page which came there later.
START_TEST(gone)
{
	struct mm_idle_page page[SAMPLES], none;
	struct memory_child c;
	struct mm_idle *idle;
	size_t known;

	ck_assert(memory_start(&c, MEMFD, PAGES * PAGE_SIZE));
	ck_assert_int_eq(mm_idle_open(c.pid, &idle), 0);
	ck_assert_int_eq(mm_idle_mark(idle, c.hva, &none), -ENOENT);
	memory_does(&c, WRITE, 0, PAGES);
	ck_assert_uint_gt(mark(idle, &c, page), SAMPLES * 9 / 10);
	memory_does(&c, DISCARD, 0, PAGES);
	ck_assert_uint_eq(count(idle, page, 0, SAMPLES, MM_IDLE_UNKNOWN), marked(page, 0, SAMPLES));
	memory_does(&c, WRITE, 0, PAGES);
	known = marked(page, 0, SAMPLES) - count(idle, page, 0, SAMPLES, MM_IDLE_UNKNOWN);
	ck_assert_uint_lt(known, SAMPLES / 4); // the same frame again, by chance
	memory_stop(&c);
	ck_assert_uint_eq(count(idle, page, 0, SAMPLES, MM_IDLE_UNKNOWN), marked(page, 0, SAMPLES));
	mm_idle_close(idle);
}
END_TEST

// A folio is marked as a whole, at whatever page of it one marks.
START_TEST(folios)
{
	const size_t folio = 512, nr = PAGES / folio;
	struct mm_idle_page page[PAGES / 512];
	struct memory_child c;
	struct mm_idle *idle;

	one_cpu();
	ck_assert(memory_start(&c, HUGE, PAGES * PAGE_SIZE));
	memory_does(&c, WRITE, 0, PAGES);
	ck_assert_int_eq(mm_idle_open(c.pid, &idle), 0);
	for (size_t i = 0; i < nr; i++)
		ck_assert_int_eq(mm_idle_mark(idle, c.hva + (i * folio + 7 + i) * PAGE_SIZE, &page[i]), 0);
	if (page[1].head == page[1].frame) {
		mm_idle_close(idle);
		memory_stop(&c);
		SKIP_CASE("no huge pages here");
	}
	for (size_t i = 0; i < nr; i++)
		ck_assert_uint_eq(page[i].head, page[i].frame - 7 - i);
	ck_assert_uint_eq(count(idle, page, 0, nr, MM_IDLE_UNTOUCHED), nr);
	for (size_t i = 0; i < nr; i += 2)
		memory_does(&c, READ, i * folio + 300, 1);
	for (size_t i = 0; i < nr; i++)
		ck_assert_int_eq(mm_idle_look(idle, &page[i]), i % 2 ? MM_IDLE_UNTOUCHED : MM_IDLE_TOUCHED);
	mm_idle_close(idle);
	memory_stop(&c);
}
END_TEST

// What it costs, for whoever wants to know: nothing is expected of the figures but that they are not absurd.
START_TEST(cost)
{
	struct mm_idle_page page[SAMPLES];
	uint64_t begun, marks = 0, looks = 0;
	struct memory_child c;
	struct mm_idle *idle;

	ck_assert(memory_start(&c, MEMFD, PAGES * PAGE_SIZE));
	memory_does(&c, WRITE, 0, PAGES);
	ck_assert_int_eq(mm_idle_open(c.pid, &idle), 0);
	for (int i = 0; i < 10; i++) {
		begun = clock_now_ns();
		mark(idle, &c, page);
		marks += clock_now_ns() - begun;
		begun = clock_now_ns();
		count(idle, page, 0, SAMPLES, MM_IDLE_TOUCHED);
		looks += clock_now_ns() - begun;
	}
	printf("idle pages: %.1f us to mark one, %.1f us to look at it again\n", (double)marks / 1e4 / SAMPLES, (double)looks / 1e4 / SAMPLES);
	ck_assert_uint_lt(marks + looks, 10 * SAMPLES * NSEC_PER_MSEC);
	mm_idle_close(idle);
	memory_stop(&c);
}
END_TEST

// The engine's part of it.

#define CHUNKS 32
#define HOT_FIRST 8 // chunks
#define HOT_END 16
#define PLENTY_NS NSEC_PER_SEC

// All of it in memory and mapped, and so long unused that nothing is known of it. The engine's periods end when the test says, and it
// has no provider of its own.
static void start(struct rig *r, struct pv_access_idle **a)
{
	struct pv_tuning t = PV_TUNING_DEFAULT;

	one_cpu();
	rig_init(r, CHUNKS * PV_CHUNK_PAGES, 0, CHUNKS * PV_CHUNK_SIZE);
	rig_start(r);
	t.method = PV_METHOD_1;
	t.access = PV_ACCESS_NONE;
	pv_engine_tune(r->e, &t);
	r->no_ticks = true;
	pv_engine_run(r->e);
	rig_do(r, 0, GUEST_WRITE, 0, CHUNKS * PV_CHUNK_PAGES);
	for (unsigned i = 0; i < r->e->queues.bits; i++)
		pv_queues_age(&r->e->queues);
	ck_assert_int_eq(pv_access_idle_new(r->e, a), 0);
}

static void end(struct rig *r, struct pv_access_idle *a)
{
	pv_access_idle_free(a);
	rig_end(r);
}

static unsigned index_of(const struct rig *r, uint64_t chunk)
{
	ck_assert(r->e->chunks[chunk].queued);
	return pv_queues_index(&r->e->queues, &r->e->chunks[chunk]);
}

// One in which something was paged.
static void tick(struct rig *r, struct pv_access_idle *a, uint64_t budget_ns)
{
	r->e->active = true;
	pv_access_idle_tick(a, budget_ns);
}

static void period(struct rig *r, struct pv_access_idle *a, uint64_t budget_ns)
{
	tick(r, a, budget_ns);
	pv_queues_age(&r->e->queues);
}

// Chunks that are used move away from those that are not, and no fault was needed for it.
START_TEST(used_chunks_move_up)
{
	struct pv_access_idle *a;
	uint64_t faults;
	struct rig r;

	start(&r, &a);
	period(&r, a, PLENTY_NS);
	faults = rig_stats(&r).faults;
	for (int i = 0; i < 3; i++) {
		rig_do(&r, 0, i % 2 ? GUEST_WRITE : GUEST_VERIFY, HOT_FIRST * PV_CHUNK_PAGES, (HOT_END - HOT_FIRST) * PV_CHUNK_PAGES);
		period(&r, a, PLENTY_NS);
		for (uint64_t chunk = 0; chunk < CHUNKS; chunk++)
			if (chunk >= HOT_FIRST && chunk < HOT_END)
				ck_assert_uint_ge(index_of(&r, chunk), pv_queues_nr(&r.e->queues) / 4);
			else
				ck_assert_uint_eq(index_of(&r, chunk), 0);
	}
	ck_assert_uint_eq(rig_stats(&r).faults, faults);
	end(&r, a);
}
END_TEST

// Of what a scan went through, those that are used again are not what is used once.
START_TEST(used_after_a_scan)
{
	struct pv_access_idle *a;
	struct rig r;

	start(&r, &a);
	for (uint64_t chunk = 0; chunk < CHUNKS; chunk++) { // as if it had been one
		pv_chunk_unlist(r.e, &r.e->chunks[chunk]);
		r.e->chunks[chunk].streamed = true;
		pv_chunk_settle(r.e, chunk);
	}
	ck_assert_uint_eq(r.e->nr_once, CHUNKS);
	period(&r, a, PLENTY_NS);
	rig_do(&r, 0, GUEST_VERIFY, HOT_FIRST * PV_CHUNK_PAGES, (HOT_END - HOT_FIRST) * PV_CHUNK_PAGES);
	period(&r, a, PLENTY_NS);
	for (uint64_t chunk = 0; chunk < CHUNKS; chunk++)
		ck_assert_int_eq(r.e->chunks[chunk].once, chunk < HOT_FIRST || chunk >= HOT_END);
	end(&r, a);
}
END_TEST

static uint64_t cpu_ns(void)
{
	struct timespec t;

	clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
	return (uint64_t)t.tv_sec * NSEC_PER_SEC + (uint64_t)t.tv_nsec;
}

// Whatever time there is, it is kept to; and with little of it, all chunks get their turn.
START_TEST(little_time)
{
	const uint64_t budget = 2 * NSEC_PER_MSEC;
	struct pv_access_idle *a;
	uint64_t begun, worst = 0;
	unsigned seen = 0;
	struct rig r;

	start(&r, &a);
	for (int i = 0; i < 200 && seen < CHUNKS; i++) {
		rig_do(&r, 0, GUEST_VERIFY, 0, CHUNKS * PV_CHUNK_PAGES);
		begun = cpu_ns(); // others may have the CPU meanwhile
		tick(&r, a, i ? budget : 0);
		worst = cpu_ns() - begun > worst ? cpu_ns() - begun : worst;
		seen = 0;
		for (uint64_t chunk = 0; chunk < CHUNKS; chunk++)
			seen += index_of(&r, chunk) >= pv_queues_nr(&r.e->queues) / 2;
	}
	ck_assert_uint_eq(seen, CHUNKS);
	ck_assert_uint_lt(worst, 20 * budget); // in a guest, whose host does other things, too
	end(&r, a);
}
END_TEST

// Chunks leave and come while they are watched.
START_TEST(while_it_pages)
{
	struct pv_access_idle *a;
	struct rig r;

	rig_init(&r, CHUNKS * PV_CHUNK_PAGES, 0, CHUNKS / 2 * PV_CHUNK_SIZE);
	rig_start(&r);
	pv_engine_run(r.e);
	ck_assert_int_eq(pv_access_idle_new(r.e, &a), 0);
	for (size_t i = 0; i < GUEST_WORKERS; i++)
		rig_order(&r, i, GUEST_RANDOM, 0, 0);
	for (int i = 0; i < 60; i++) {
		rig_pass(&r, 50);
		pv_access_idle_tick(a, NSEC_PER_MSEC);
	}
	r.g->stop = true;
	rig_finish(&r);
	r.g->stop = false;
	rig_do(&r, 0, GUEST_VERIFY, 0, CHUNKS * PV_CHUNK_PAGES);
	end(&r, a);
}
END_TEST

static bool can(void)
{
	struct mm_idle *idle;
	int r = mm_idle_open(getpid(), &idle);

	if (!r)
		mm_idle_close(idle);
	else
		printf("%s\n", r == -EOPNOTSUPP ? "this kernel has no bitmap of idle pages (CONFIG_IDLE_PAGE_TRACKING)" : strerror(-r));
	return !r;
}

int main(void)
{
	TCase *t, *e;
	SRunner *sr;
	Suite *s;
	int failed;

	quiet();
	if (!can())
		return 77;
	s = suite_create("idle");
	t = tcase_create("pages");
	e = tcase_create("chunks");
	tcase_set_timeout(t, 60);
	tcase_set_timeout(e, 120);
	tcase_add_loop_test(t, touched_and_untouched, 0, 2);
	tcase_add_test(t, gone);
	tcase_add_test(t, folios);
	tcase_add_test(t, cost);
	tcase_add_test(e, used_chunks_move_up);
	tcase_add_test(e, used_after_a_scan);
	tcase_add_test(e, little_time);
	tcase_add_test(e, while_it_pages);
	suite_add_tcase(s, t);
	suite_add_tcase(s, e);
	sr = srunner_create(s);
	srunner_run_all(sr, CK_NORMAL);
	failed = srunner_ntests_failed(sr);
	srunner_free(sr);
	return failed ? 1 : 0;
}
