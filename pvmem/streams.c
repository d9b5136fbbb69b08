// SPDX-License-Identifier: GPL-2.0-only
#include "pvmem/streams.h"

#include <stdlib.h>

#define MAX_STRIDE   1024 // pages
#define MAX_STRIDED  64   // pages that a strided stream brings at a time
#define FIRST_WINDOW 4
#define SLACK        8  // strides behind what was brought, of pages that may have been in memory
#define SLACK_SCAN   64 // where the stride is one
#define IDLE_TURNS   4096 // without a touch: a stream has ended
#define MAX_SKIPS    3    // touches behind what was brought, of which nothing was touched: so it has, too

// What was seen beside a touch since: a page of those that came with it, behind it; before it, in its block; in its chunk.
enum { SEEN_BEHIND = 1, SEEN_IN_BLOCK = 2, SEEN_IN_CHUNK = 4 };

static const struct unit {
	int64_t pages;
	unsigned seen;
} units[] = { { 16, SEEN_IN_BLOCK }, { 256, SEEN_IN_CHUNK } };

void pv_streams_init(struct pv_streams *s, uint64_t nr_pages, unsigned max_pages)
{
	*s = (struct pv_streams){ .nr_pages = (int64_t)nr_pages, .max_pages = max_pages };
}

static unsigned nr_known(const struct pv_streams *s)
{
	return s->nr_touches < PV_NR_TOUCHES ? (unsigned)s->nr_touches : PV_NR_TOUCHES;
}

static bool is_sequential(int64_t stride)
{
	return stride == 1 || stride == -1;
}

static unsigned limit(const struct pv_streams *s, int64_t stride)
{
	return is_sequential(stride) || s->max_pages < MAX_STRIDED ? s->max_pages : MAX_STRIDED;
}

// How many strides the page is behind the stream's `from`; negative if it is before it, or between its pages.
static int64_t steps(const struct pv_stream *st, int64_t from, int64_t page)
{
	return (page - from) % st->stride ? -1 : (page - from) / st->stride;
}

enum place { ELSEWHERE, AMONG, NEXT };

// Where a touched page is of this stream. Next: it is its marker, or right behind what was brought. Among: what is on its way may be waited
// for, but most was mapped; such a touch keeps no stream alive, since at random there would always be one. Most are elsewhere, which is
// found out without a division.
static enum place place_of(const struct pv_stream *st, uint64_t turn, int64_t page)
{
	int64_t to = st->next + (is_sequential(st->stride) ? SLACK_SCAN : SLACK) * st->stride;

	if (!st->stride || turn - st->used > IDLE_TURNS || (st->stride > 0 ? page < st->last || page > to : page > st->last || page < to) || steps(st, st->last, page) < 0)
		return ELSEWHERE;
	return page == st->marker || steps(st, st->next, page) >= 0 ? NEXT : AMONG;
}

// Another window, of st->nr pages from st->next on. False: RAM ends here.
static bool bring(const struct pv_streams *s, struct pv_stream *st, struct pv_ahead *ahead)
{
	int64_t room = st->stride > 0 ? s->nr_pages - 1 - st->next : st->next;
	unsigned nr = st->nr;

	if (st->next < 0 || st->next >= s->nr_pages)
		return false;
	room = room / llabs(st->stride) + 1;
	if (nr > room)
		nr = (unsigned)room;
	*ahead = (struct pv_ahead){ .first = (uint64_t)st->next, .stride = st->stride, .nr = nr, .stream = (unsigned)(st - s->stream) };
	st->marker = st->next;
	st->next += nr * st->stride;
	return nr;
}

static bool advance(const struct pv_streams *s, struct pv_stream *st, int64_t page, int64_t end, struct pv_ahead *ahead)
{
	unsigned max = limit(s, st->stride);

	st->last = page;
	st->skips = steps(st, st->next, page) > 0 ? st->skips + 1 : 0;
	if (steps(st, st->marker, page) < 0)
		return false; // the window that the marker stands for is still ahead
	if (steps(st, st->next, page) <= 0)
		st->nr = st->nr < max / 2 ? st->nr * 2 : max;
	else
		st->nr = st->nr > 2 * FIRST_WINDOW ? st->nr / 2 : st->nr; // not quite where it was expected
	if (steps(st, st->next, page) >= 0)
		st->next = page + st->stride;
	if (st->stride == 1 && st->next > page && st->next < end)
		st->next = end;
	return bring(s, st, ahead);
}

static struct pv_touch *touch_at(struct pv_streams *s, int64_t page)
{
	for (unsigned i = 0; i < nr_known(s); i++)
		if (s->touch[i].page == page)
			return &s->touch[i];
	return NULL;
}

static struct pv_touch *touch_ending_at(struct pv_streams *s, int64_t end)
{
	for (unsigned i = 0; i < nr_known(s); i++)
		if (s->touch[i].end == end && s->touch[i].page < end)
			return &s->touch[i];
	return NULL;
}

// Three touches, each where the one before has ended. If these were as far apart as in strided access, what came with them was looked at.
static bool is_scan(struct pv_streams *s, int64_t page)
{
	const struct pv_touch *second = touch_ending_at(s, page);
	const struct pv_touch *first = second ? touch_ending_at(s, second->page) : NULL;

	if (!first)
		return false;
	return page - second->page == 1 || page - second->page != second->page - first->page || (first->seen & second->seen & SEEN_BEHIND);
}

// Downwards, what comes with a touch lies before it: touches are at the last pages of blocks, or of chunks. Returns of how many pages.
static int64_t is_scan_down(struct pv_streams *s, int64_t page)
{
	for (unsigned i = 0; i < 2; i++) {
		int64_t pages = units[i].pages;
		const struct pv_touch *second = touch_at(s, page + pages), *first = touch_at(s, page + 2 * pages);

		if (page % pages == pages - 1 && second && first && (first->seen & second->seen & units[i].seen))
			return pages;
	}
	return 0;
}

// How many touches were at this distance in a row, up to now.
static unsigned in_a_row(struct pv_streams *s, int64_t page, int64_t stride, unsigned enough)
{
	unsigned n = 1;

	while (n < enough && touch_at(s, page - (int64_t)n * stride))
		n++;
	return n;
}

// The smallest distance at which the last touches were, or 0. The more of them are near, the more of them are at one distance by chance.
static int64_t find_stride(struct pv_streams *s, int64_t page)
{
	int64_t best = 0;
	unsigned near = 0;

	for (unsigned i = 0; i < nr_known(s); i++)
		near += llabs(page - s->touch[i].page) <= MAX_STRIDE;
	for (unsigned i = 0; i < nr_known(s); i++) {
		int64_t stride = page - s->touch[i].page;
		unsigned enough = is_sequential(stride) ? 3 : 3 + (near > 2) + (near > 12);

		if (stride && llabs(stride) <= MAX_STRIDE && (!best || llabs(stride) < llabs(best)) &&
		    in_a_row(s, page, stride, enough) == enough)
			best = stride;
	}
	return best;
}

static struct pv_stream *least_used(struct pv_streams *s)
{
	struct pv_stream *least = &s->stream[0];

	for (unsigned i = 1; i < PV_NR_STREAMS; i++)
		if (s->stream[i].used < least->used)
			least = &s->stream[i];
	return least;
}

static bool begin(struct pv_streams *s, int64_t page, int64_t next, int64_t stride, struct pv_ahead *ahead)
{
	struct pv_stream *st = least_used(s);
	unsigned nr = FIRST_WINDOW, max = limit(s, stride);

	if (is_sequential(stride) && llabs(next - page) > nr)
		nr = (unsigned)llabs(next - page); // as much as comes with a touch
	if (nr > max)
		nr = max;
	*st = (struct pv_stream){ .last = page, .marker = page, .next = next, .stride = stride, .nr = nr, .used = s->turn };
	return bring(s, st, ahead);
}

// What came with earlier touches was used. True: with one of those, the page came.
static bool look_beside(struct pv_streams *s, int64_t page)
{
	bool came = false;

	for (unsigned i = 0; i < nr_known(s); i++) {
		struct pv_touch *t = &s->touch[i];

		if (page > t->page && page < t->end) {
			t->seen |= SEEN_BEHIND;
			came = true;
		}
		for (unsigned u = 0; u < 2; u++)
			if (page < t->page && page / units[u].pages == t->page / units[u].pages)
				t->seen |= units[u].seen;
	}
	return came;
}

static void remember(struct pv_streams *s, int64_t page, int64_t end)
{
	s->touch[s->nr_touches++ % PV_NR_TOUCHES] = (struct pv_touch){ .page = page, .end = end };
}

bool pv_streams_touch(struct pv_streams *s, uint64_t page_nr, uint64_t end_nr, struct pv_ahead *ahead)
{
	int64_t page = (int64_t)page_nr, end = (int64_t)end_nr, stride, down;
	bool came = look_beside(s, page);

	s->turn++;
	for (unsigned i = 0; i < PV_NR_STREAMS; i++) {
		enum place place = place_of(&s->stream[i], s->turn, page);

		if (place == AMONG)
			return false;
		if (place == NEXT && s->stream[i].skips == MAX_SKIPS && page != s->stream[i].marker) {
			s->stream[i].stride = 0;
		} else if (place == NEXT) {
			s->stream[i].used = s->turn;
			return advance(s, &s->stream[i], page, end, ahead);
		}
	}
	if (came)
		return false;
	stride = 0;
	if (is_scan(s, page))
		return begin(s, page, end, 1, ahead);
	down = is_scan_down(s, page);
	if (down)
		return begin(s, page, page - down, -1, ahead);
	stride = find_stride(s, page);
	if (stride)
		return begin(s, page, stride == 1 ? end : page + stride, stride, ahead);
	remember(s, page, end);
	return false;
}

bool pv_streams_has(const struct pv_streams *s, uint64_t page)
{
	for (unsigned i = 0; i < PV_NR_STREAMS; i++) {
		const struct pv_stream *st = &s->stream[i];

		if (st->stride && steps(st, st->last - (int64_t)st->nr * st->stride, (int64_t)page) >= 0 &&
		    steps(st, (int64_t)page, st->next) >= 0)
			return true;
	}
	return false;
}

void pv_streams_marked(struct pv_streams *s, const struct pv_ahead *ahead, uint64_t page)
{
	struct pv_stream *st = &s->stream[ahead->stream];

	if (st->stride == ahead->stride && st->marker == (int64_t)ahead->first)
		st->marker = (int64_t)page;
}

void pv_streams_brought(struct pv_streams *s, const struct pv_ahead *ahead, uint64_t next)
{
	struct pv_stream *st = &s->stream[ahead->stream];
	int64_t planned = (int64_t)ahead->first + (int64_t)ahead->nr * ahead->stride;

	if (st->stride != ahead->stride || st->next != planned)
		return;
	st->next = (int64_t)next;
	if (steps(st, st->next, planned) > 0)
		st->nr = st->nr > 2 * FIRST_WINDOW ? st->nr / 2 : FIRST_WINDOW;
}
