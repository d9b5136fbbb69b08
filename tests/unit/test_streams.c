// SPDX-License-Identifier: GPL-2.0-only
// Streams are found, followed and left, in the touches that a pager sees of a guest: those of pages that are not mapped.
#include <check.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "pvmem/streams.h"
#include "util/size.h"

#define NR_PAGES 786432 // 3 GiB
#define MAX_PAGES 1024

enum { MAPPED = 1, UNMAPPED = 2 }; // what is in memory

struct guest {
	struct pv_streams s;
	uint8_t *page; // 0: not in memory
	unsigned window; // pages that come with a missed one, aligned
	uint64_t random;
	size_t misses, seen, brought, windows, entered;
	struct pv_ahead ahead; // the last one
};

static uint64_t draw(struct guest *g, uint64_t below)
{
	g->random ^= g->random << 13;
	g->random ^= g->random >> 7;
	g->random ^= g->random << 17;
	return g->random % below;
}

static void guest_init(struct guest *g, unsigned window)
{
	*g = (struct guest){ .window = window, .random = 88172645463325252 };
	g->page = calloc(NR_PAGES, 1);
	ck_assert_ptr_nonnull(g->page);
	pv_streams_init(&g->s, NR_PAGES, MAX_PAGES);
}

static void guest_free(struct guest *g)
{
	free(g->page);
}

// The window of a missed page: one in 16 of what comes unasked is left unmapped, at least one.
static void bring_window(struct guest *g, uint64_t page)
{
	uint64_t first = page / g->window * g->window;

	for (uint64_t i = first; i < first + g->window; i++)
		if (!g->page[i])
			g->page[i] = MAPPED;
	for (unsigned k = 0; g->window > 1 && k < g->window / 16; k++) {
		uint64_t sample = first + k * 16 + draw(g, 16);

		if (sample != page)
			g->page[sample] = UNMAPPED;
	}
	g->page[page] = MAPPED;
}

static void bring_ahead(struct guest *g, const struct pv_ahead *a)
{
	bool sequential = a->stride == 1 || a->stride == -1, marked = false;

	ck_assert_uint_ge(a->nr, 1);
	ck_assert_uint_le(a->nr, sequential ? MAX_PAGES : 64);
	ck_assert(a->stride && llabs(a->stride) <= 1024);
	ck_assert_uint_lt(a->first, NR_PAGES);
	ck_assert_uint_lt(a->first + (a->nr - 1) * (uint64_t)a->stride, NR_PAGES); // before 0 is behind it, too
	g->windows++;
	g->ahead = *a;
	for (unsigned i = 0; i < a->nr; i++) {
		uint8_t *p = &g->page[a->first + i * (uint64_t)a->stride];

		g->brought += !*p;
		if (!*p)
			*p = marked ? MAPPED : UNMAPPED;
		if (!marked && *p == UNMAPPED)
			pv_streams_marked(&g->s, a, a->first + i * (uint64_t)a->stride);
		marked |= *p == UNMAPPED;
	}
}

static void touch(struct guest *g, uint64_t page)
{
	struct pv_ahead ahead;
	uint64_t end = page + 1;

	if (g->page[page] == MAPPED)
		return;
	g->seen++;
	if (!g->page[page]) {
		g->misses++;
		bring_window(g, page);
	}
	g->page[page] = MAPPED;
	while (end < NR_PAGES && g->page[end])
		end++;
	if (pv_streams_touch(&g->s, page, end, &ahead))
		bring_ahead(g, &ahead);
}

START_TEST(windows_double)
{
	static const unsigned sizes[] = { 4, 8, 16, 32, 64, 128, 256, 512, 1024, 1024, 1024 };
	struct pv_streams s;
	struct pv_ahead a = { .nr = 0 };
	uint64_t at = 1003;

	pv_streams_init(&s, NR_PAGES, MAX_PAGES);
	ck_assert(!pv_streams_touch(&s, 1000, 1001, &a));
	ck_assert(!pv_streams_touch(&s, 1001, 1002, &a));
	ck_assert(pv_streams_touch(&s, 1002, 1003, &a));
	for (unsigned i = 0; i < ARRAY_SIZE(sizes); i++) {
		ck_assert_uint_eq(a.first, at);
		ck_assert_uint_eq(a.nr, sizes[i]);
		ck_assert_int_eq(a.stride, 1);
		at += a.nr;
		ck_assert(pv_streams_has(&s, at - 1));
		ck_assert(!pv_streams_has(&s, at + 1));
		ck_assert(pv_streams_touch(&s, a.first, at, &a)); // the marker
		ck_assert(!pv_streams_touch(&s, a.first - 1, at, &a)); // one that had yet to arrive
	}
	ck_assert(!pv_streams_has(&s, 5));
	ck_assert(!pv_streams_has(&s, at + 100000));
}
END_TEST

// Three blocks one behind the other: a scan if what came with them was looked at; else an access to each 16th page.
START_TEST(scan_or_stride)
{
	for (unsigned looked_at = 0; looked_at < 2; looked_at++) {
		struct pv_streams s;
		struct pv_ahead a;

		pv_streams_init(&s, NR_PAGES, MAX_PAGES);
		for (uint64_t p = 1600; p < 1632; p += 16) {
			ck_assert(!pv_streams_touch(&s, p, p + 16, &a));
			if (looked_at)
				ck_assert(!pv_streams_touch(&s, p + 7, p + 16, &a));
		}
		ck_assert(pv_streams_touch(&s, 1632, 1648, &a));
		ck_assert_int_eq(a.stride, looked_at ? 1 : 16);
		ck_assert_uint_eq(a.first, 1648);
		ck_assert_uint_eq(a.nr, looked_at ? 16 : 4);
		if (!looked_at)
			continue;
		ck_assert(pv_streams_touch(&s, 1664, 1700, &a)); // a miss: of what comes next, some is in memory
		ck_assert_uint_eq(a.first, 1700);
	}
}
END_TEST

static const unsigned window_sizes[] = { 1, 16, 256 };

// Up and down, from the middle of whatever comes with a touch.
START_TEST(scan)
{
	for (int up = 0; up < 2; up++) {
		struct guest g;

		guest_init(&g, window_sizes[_i]);
		for (uint64_t i = 0; i < 100000; i++)
			touch(&g, up ? 200007 + i : 600007 - i);
		ck_assert_msg(g.misses <= 6, "%u %d: %zu misses", g.window, up, g.misses);
		ck_assert_msg(g.seen <= 160 + g.window / 8, "%u %d: %zu touches seen", g.window, up, g.seen);
		ck_assert_uint_eq(g.ahead.nr, MAX_PAGES);
		ck_assert_uint_le(g.brought, 100000 + 2 * MAX_PAGES);
		guest_free(&g);
	}
}
END_TEST

static const int64_t strides[] = { 2, 3, 7, 15, 16, 17, 32, 64, 100, 256, 1024, -2, -5, -16, -17, -64, -256, -1000 };

// With single pages, and while whole blocks still come with a touch: what comes ahead is of the stride, and nothing between.
START_TEST(strided)
{
	int64_t stride = strides[_i];
	uint64_t nr = NR_PAGES / (uint64_t)llabs(stride) / 2;

	nr = nr < 2000 ? nr : 2000;
	for (unsigned w = 0; w < 2; w++) {
		struct guest g;
		uint64_t first = stride > 0 ? 5003 : NR_PAGES - 5003;

		guest_init(&g, window_sizes[w]);
		if (w && llabs(stride) < 16)
			g.window = 1; // all pages would come
		for (uint64_t i = 0; i < nr; i++)
			touch(&g, first + i * (uint64_t)stride);
		ck_assert_msg(g.misses <= 6, "%d %u: %zu misses", (int)stride, g.window, g.misses);
		ck_assert_msg(g.ahead.stride == stride, "%d %u: %d", (int)stride, g.window, (int)g.ahead.stride);
		ck_assert_uint_le(g.brought, nr + 2 * 64);
		guest_free(&g);
	}
}
END_TEST

// Many at once, each touched when chance says so; without and with a touch at random for each touch that is seen.
START_TEST(interleaved)
{
	static const unsigned nr_of[] = { 2, 5, 10, 20 };
	static const int64_t kind[] = { 1, 1, 16, -1, 40, 1, -16, 64 };
	unsigned nr = nr_of[_i % 4], window = window_sizes[_i / 4 % 2];
	bool noise = _i / 8;
	uint64_t step[20] = { 0 }, space = NR_PAGES / nr;
	struct guest g;

	guest_init(&g, window);
	for (unsigned turn = 0; turn < 500 * nr; turn++) {
		unsigned i = (unsigned)draw(&g, nr);
		int64_t stride = kind[i % 8];
		uint64_t first = space * i + (stride > 0 ? 100 : space - 100);
		size_t missed;

		if (step[i] * (uint64_t)llabs(stride) < space - 300)
			touch(&g, first + step[i]++ * (uint64_t)stride);
		missed = g.misses;
		if (noise && !draw(&g, window))
			touch(&g, draw(&g, NR_PAGES));
		g.misses = missed;
	}
	ck_assert_msg(g.misses <= nr * (noise ? 16 : 8), "%u streams, window %u, noise %d: %zu misses", nr, window, noise, g.misses);
	guest_free(&g);
}
END_TEST

// The oldest page leaves.
static void enter(struct guest *g, uint64_t *memory, uint64_t nr, uint64_t page)
{
	uint64_t *place = &memory[g->entered++ % nr];

	g->page[*place] = 0;
	*place = page;
}

// Touches at random, of so many pages, a third of which are in memory: how much comes ahead of them. In the smallest ones, any
// touch is near the last ones.
START_TEST(random_touches)
{
	static const struct {
		uint64_t pages;
		double at_most; // pages brought ahead, a touch
	} spaces[] = { { NR_PAGES - 4096, 3e-4 }, { 131072, .03 }, { 16384, .15 }, { 2048, 1.5 } };
	static uint64_t memory[NR_PAGES / 3];
	struct guest g;

	guest_init(&g, 1);
	for (size_t i = 0; i < 400000; i++) {
		uint64_t p = 4096 + draw(&g, spaces[_i].pages);
		size_t before = g.windows, missed = g.misses;

		touch(&g, p);
		if (g.misses > missed)
			enter(&g, memory, spaces[_i].pages / 3, p);
		for (unsigned k = 0; g.windows > before && k < g.ahead.nr; k++)
			enter(&g, memory, spaces[_i].pages / 3, g.ahead.first + k * (uint64_t)g.ahead.stride);
	}
	if (getenv("VERBOSE"))
		printf("%lu pages: %zu misses, %zu windows, %zu pages\n", spaces[_i].pages, g.misses, g.windows, g.brought);
	ck_assert_msg((double)g.brought <= (double)g.misses * spaces[_i].at_most, "%zu pages for %zu touches", g.brought, g.misses);
	guest_free(&g);
}
END_TEST

START_TEST(ends_of_ram)
{
	for (unsigned w = 0; w < ARRAY_SIZE(window_sizes); w++)
		for (uint64_t from = 1; from < 3000; from += 97) {
			struct guest g;

			guest_init(&g, window_sizes[w]);
			for (uint64_t i = 0; i < from; i++)
				touch(&g, from - 1 - i);
			for (uint64_t i = 0; i < from; i++)
				touch(&g, NR_PAGES - from + i);
			for (uint64_t i = 16; i < 64; i++)
				touch(&g, NR_PAGES - 1 - (63 - i) * 16);
			ck_assert_uint_le(g.misses, 20);
			guest_free(&g);
		}
}
END_TEST

// A scan of memory that is partly present and mapped: only the misses between are seen.
START_TEST(partly_present)
{
	static const struct {
		unsigned percent, run;
		double missed; // of the pages that were absent, at most
	} cases[] = { { 20, 1, .01 }, { 50, 1, .01 }, { 90, 1, .05 }, { 50, 16, .05 }, { 50, 64, .05 }, { 80, 100, .05 }, { 50, 1000, .02 } };

	for (unsigned c = 0; c < ARRAY_SIZE(cases); c++)
		for (int up = 0; up < 2; up++) {
			struct guest g;
			size_t absent = 0;

			guest_init(&g, 1);
			for (uint64_t i = 0; i < 200000;) {
				bool present = draw(&g, 100) < cases[c].percent;

				for (uint64_t n = cases[c].run == 1 ? 1 : 1 + draw(&g, 2 * cases[c].run); n && i < 200000; n--, i++) {
					g.page[i] = present ? MAPPED : 0;
					absent += !present;
				}
			}
			for (uint64_t i = 0; i < 200000; i++)
				touch(&g, up ? i : 199999 - i);
			if (getenv("VERBOSE"))
				printf("%u %% in runs of %u, %s: %zu of %zu missed\n", cases[c].percent, cases[c].run, up ? "up" : "down",
				       g.misses, absent);
			ck_assert_msg((double)g.misses <= (double)absent * cases[c].missed, "%u %% in runs of %u, %d: %zu of %zu missed",
				      cases[c].percent, cases[c].run, up, g.misses, absent);
			guest_free(&g);
		}
}
END_TEST

// More streams than the table holds, one after the other: each is found, and those not followed any more make room.
START_TEST(replaced)
{
	struct guest g;

	guest_init(&g, 1);
	for (uint64_t i = 0; i < 3 * PV_NR_STREAMS; i++) {
		size_t before = g.misses;

		for (uint64_t p = 0; p < 300; p++) {
			touch(&g, 1000 + i * 5000 + p);
			if (i)
				touch(&g, 700000 + (i - 1) * 300 + p); // one goes on all the time
		}
		ck_assert_uint_le(g.misses - before, i == 1 ? 6 : 3);
	}
	ck_assert(!pv_streams_has(&g.s, 1300));
	ck_assert(pv_streams_has(&g.s, 700000 + (3 * PV_NR_STREAMS - 1) * 300));
	guest_free(&g);
}
END_TEST

// What could not be brought is asked for when it is touched, and the stream goes on with less.
START_TEST(not_all_brought)
{
	struct pv_streams s;
	struct pv_ahead a = { .nr = 0 };
	uint64_t half;

	pv_streams_init(&s, NR_PAGES, MAX_PAGES);
	for (uint64_t page = 1000; page < 1002; page++)
		ck_assert(!pv_streams_touch(&s, page, page + 1, &a));
	ck_assert(pv_streams_touch(&s, 1002, 1003, &a));
	for (unsigned i = 0; i < 4; i++)
		ck_assert(pv_streams_touch(&s, a.first, a.first + a.nr, &a));
	ck_assert_uint_eq(a.nr, 64);
	half = a.first + 32;
	pv_streams_brought(&s, &a, half);
	ck_assert(pv_streams_touch(&s, half, half + 1, &a));
	ck_assert_uint_eq(a.first, half + 1);
	ck_assert_uint_eq(a.nr, 64);
	pv_streams_brought(&s, &a, a.first); // none of it, and again none
	half = a.first;
	ck_assert(pv_streams_touch(&s, half, half + 1, &a));
	ck_assert_uint_eq(a.first, half + 1);
}
END_TEST

int main(void)
{
	Suite *s = suite_create("streams");
	TCase *t = tcase_create("streams");
	SRunner *sr;
	int failed;

	tcase_set_timeout(t, 60);
	tcase_add_test(t, windows_double);
	tcase_add_test(t, scan_or_stride);
	tcase_add_loop_test(t, scan, 0, ARRAY_SIZE(window_sizes));
	tcase_add_loop_test(t, strided, 0, ARRAY_SIZE(strides));
	tcase_add_loop_test(t, interleaved, 0, 16);
	tcase_add_loop_test(t, random_touches, 0, 4);
	tcase_add_test(t, ends_of_ram);
	tcase_add_test(t, partly_present);
	tcase_add_test(t, replaced);
	tcase_add_test(t, not_all_brought);
	suite_add_tcase(s, t);
	sr = srunner_create(s);
	srunner_run_all(sr, CK_ENV);
	failed = srunner_ntests_failed(sr);
	srunner_free(sr);
	return failed ? 1 : 0;
}
