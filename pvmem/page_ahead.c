// SPDX-License-Identifier: GPL-2.0-only
// What nobody has asked for yet: the next pages of streams, and what was in memory before a restart.
#include <string.h>

#include "pvmem/engine_int.h"

#define LOOK_CHUNKS 8        // behind a touched page, for the end of what is in memory
#define WHOLE_CHUNKS 128     // pages: a sequential stream that brings so many goes on to the end of a chunk
#define FEW_PUNCHES 4        // chunks that are punched at once for what nobody waits for
#define STREAM_PART 16       // of the budget, at most, is brought ahead at a time

enum brought { BROUGHT, LATER, NO_ROOM };

// A long one ends with a chunk, so that the next begins with one, and comes in whole.
static unsigned nr_to_bring(const struct pv_engine *e, const struct pv_ahead *a)
{
	uint64_t limit = e->goal / STREAM_PART, nr = a->nr < limit ? a->nr : limit;

	if (a->stride == 1 && nr >= WHOLE_CHUNKS)
		nr = ROUND_UP(a->first + nr, PV_CHUNK_PAGES) - a->first;
	if (a->stride == -1 && nr >= WHOLE_CHUNKS && a->first >= nr)
		nr += (a->first - nr + 1) % PV_CHUNK_PAGES;
	return (unsigned)nr;
}

void pv_look_ahead(struct pv_engine *e, uint64_t chunk, unsigned page)
{
	uint64_t here[PV_WORDS], from = page, last = chunk + LOOK_CHUNKS < e->nr_chunks ? chunk + LOOK_CHUNKS : e->nr_chunks;
	uint64_t at = chunk * PV_CHUNK_PAGES + page, end = at;
	struct pv_bringing *b = &e->ahead[e->nr_ahead];

	if (e->o.tuning.method != PV_METHOD_ADAPTIVE || e->nr_ahead == PV_AHEADS)
		return;
	for (uint64_t i = chunk; i < last && end == i * PV_CHUNK_PAGES + from; i++, from = 0) { // all of the chunk before is there
		pv_pages_in_flight(&e->chunks[i], here);
		for (unsigned w = 0; w < PV_WORDS; w++)
			here[w] |= pv_pages_of(e, i)->valid[w];
		end = i * PV_CHUNK_PAGES + bitmap_next(here, PV_CHUNK_PAGES, from, false);
	}
	if (pv_streams_touch(&e->streams, at, end > at ? end : at + 1, &b->whole)) {
		PROBE(ahead, b->whole.first, b->whole.stride, b->whole.nr);
		b->left = b->whole;
		b->left.nr = nr_to_bring(e, &b->whole);
		b->marked = false;
		e->nr_ahead++;
	}
}

// Counted in busy, if that is not NULL, until they have come.
static void bring(struct pv_engine *e, uint64_t chunk, const uint64_t want[PV_WORDS], const uint64_t leave[PV_WORDS], unsigned *busy)
{
	static const uint64_t nobody[PV_WORDS];
	struct pv_reading rd = { .chunk = chunk, .asked = nobody, .leave = leave, .busy = busy, .now = clock_now_ns() };

	pv_read_pages(e, &rd, want);
}

// Of these pages what can be brought now: how many.
static size_t keep_absent(const struct pv_engine *e, uint64_t chunk, uint64_t pages[PV_WORDS])
{
	const struct pv_pages *p = pv_pages_of(e, chunk);
	uint64_t flight[PV_WORDS];

	if (pv_fill_is_copied(e, chunk) || pv_is_unmapping(&e->chunks[chunk]))
		return 0;
	pv_pages_in_flight(&e->chunks[chunk], flight);
	for (unsigned w = 0; w < PV_WORDS; w++)
		pages[w] &= ~p->valid[w] & ~flight[w];
	return bitmap_count(pages, PV_CHUNK_PAGES);
}

void pv_bring(struct pv_engine *e, uint64_t chunk, const uint64_t pages[PV_WORDS])
{
	uint64_t want[PV_WORDS];

	memcpy(want, pages, sizeof want);
	if (keep_absent(e, chunk, want))
		bring(e, chunk, want, want, NULL);
}

// The pages of a stream that are in the chunk of its next one, at most so many; takes them out of it.
static uint64_t cut(const struct pv_engine *e, struct pv_ahead *a, unsigned max, uint64_t pages[PV_WORDS])
{
	uint64_t chunk = a->first / PV_CHUNK_PAGES;

	memset(pages, 0, PV_WORDS * sizeof *pages);
	for (; a->nr && max && a->first / PV_CHUNK_PAGES == chunk; a->nr--, max--) {
		if (a->first % PV_CHUNK_PAGES < pv_chunk_nr_pages(e, chunk))
			bitmap_set(pages, a->first % PV_CHUNK_PAGES);
		a->first += (uint64_t)a->stride;
	}
	return chunk;
}

// The first page that comes of a stream stays unmapped, to see that it gets there.
static void leave_marker(struct pv_engine *e, struct pv_bringing *b, uint64_t chunk, const uint64_t pages[PV_WORDS], uint64_t leave[PV_WORDS])
{
	size_t marker = b->whole.stride > 0 ? bitmap_next(pages, PV_CHUNK_PAGES, 0, true) : bitmap_last(pages, PV_CHUNK_PAGES);

	bitmap_set(leave, marker);
	pv_streams_marked(&e->streams, &b->whole, chunk * PV_CHUNK_PAGES + marker);
	b->marked = true;
}

// False: there is no room.
static bool bring_piece(struct pv_engine *e, struct pv_bringing *b, bool sequential, bool gently)
{
	uint64_t first = b->left.first, pages[PV_WORDS], leave[PV_WORDS] = { 0 };
	uint64_t chunk = cut(e, &b->left, gently ? PV_GENTLE_PAGES : PV_CHUNK_PAGES, pages);
	struct pv_chunk *c = &e->chunks[chunk];
	size_t nr = keep_absent(e, chunk, pages);

	if (!nr)
		return true;
	if (!pv_make_free(e, nr + e->reserve, FEW_PUNCHES)) {
		b->left.first = first;
		return false;
	}
	if (!b->marked)
		leave_marker(e, b, chunk, pages, leave);
	e->stats.in_ahead += nr;
	c->streamed = sequential && (c->state == PV_ABSENT || c->streamed || c->once);
	bring(e, chunk, pages, leave, &e->aheads_busy);
	return true;
}

// Elsewhere a small read may cost as much as one of a whole chunk, or makes no folio of what could be one.
static bool is_of_small_pages_in_swap(const struct pv_engine *e, uint64_t page)
{
	uint64_t chunk = page / PV_CHUNK_PAGES;

	return pv_page_home(pv_pages_of(e, chunk), page % PV_CHUNK_PAGES) == PV_HOME_SWAP && !pv_block_of(e, chunk)->huge;
}

// Beside single pages that the guest waits for, one small read of what is in order at a time; unless it waits for that, too.
static enum brought bring_stream(struct pv_engine *e, struct pv_bringing *b)
{
	uint64_t now = clock_now_ns();
	bool sequential = b->whole.stride == 1 || b->whole.stride == -1;
	bool gently = sequential && b->left.nr && now - e->stream_awaited_ns > PV_GENTLE_NS && pv_goes_gently(e, now) &&
		      is_of_small_pages_in_swap(e, b->left.first);

	while (b->left.nr) {
		if (gently && e->aheads_busy)
			return LATER;
		if (!bring_piece(e, b, sequential, gently))
			return NO_ROOM;
	}
	pv_streams_brought(&e->streams, &b->whole, b->left.first);
	return BROUGHT;
}

// Not while the touched page itself is being read.
static void bring_rests(struct pv_engine *e)
{
	static const uint64_t nobody[PV_WORDS];
	unsigned left = 0;

	for (unsigned i = 0; i < e->nr_rests; i++) {
		struct pv_rest *rest = &e->rest[i];
		struct pv_reading rd = { .chunk = rest->chunk, .asked = nobody, .leave = rest->samples, .samples = true };
		size_t nr;

		if (e->chunks[rest->chunk].requests && !e->reads_waiting) {
			e->rest[left++] = *rest;
			continue;
		}
		nr = keep_absent(e, rest->chunk, rest->pages);
		rd.now = clock_now_ns();
		rd.busy = nr >= PV_BLOCK_PAGES ? &e->rests_busy : NULL;
		if (nr && pv_make_free(e, nr + e->reserve, FEW_PUNCHES))
			pv_read_pages(e, &rd, rest->pages);
	}
	e->nr_rests = left;
}

void pv_bring_ahead(struct pv_engine *e)
{
	unsigned n = e->nr_ahead, left = 0;
	bool room;

	if (e->nr_rests)
		bring_rests(e);
	room = list_empty(&e->delayed) && !e->reads_waiting;
	for (unsigned i = 0; i < n; i++) {
		struct pv_bringing *b = &e->ahead[i];
		enum brought r = room ? bring_stream(e, b) : NO_ROOM;

		if (r == NO_ROOM) // the stream goes on from there
			pv_streams_brought(&e->streams, &b->whole, b->left.first);
		else if (r == LATER)
			e->ahead[left++] = *b;
		room &= r != NO_ROOM;
	}
	e->nr_ahead = left;
}
