// SPDX-License-Identifier: GPL-2.0-only
//
// DOC: fill
//
// What the page source has yet comes in the background, until the source is needed no more.
//
//                                    room in memory ----> memfd                                          home NONE
//   next chunk --> read --> buffer --<
//                                    none --------------> swap image --> end of all writes               home SWAP
//
// A page that the source knows to be zero takes no memory and no write on either way: home ZERO. What becomes of what has been read:
// fill_copy.c.
//
// Demand comes first: few chunks at a time, fewer while the guest pages in, one while a fault waits for memory (there is no room then, so
// that it goes to swap), or the source cannot read something; none while swap cannot be read.
// How many fewer: a chunk takes about a millisecond of a fast line, and a fault that comes behind it waits for so long. Where the
// source answers in less, there is one chunk on its way. Where it takes a source milliseconds to answer anything, one chunk would leave
// the line idle most of the time, and a guest that never stops faulting would keep the source host for hours. There is one more for each of
// these milliseconds: a fault then takes about twice the time that it takes anyway, at most.
//
// No page ever gets the home SOURCE again. So what has been looked at and has no such page is done with, and a crash at any
// moment costs what is being copied, no more.
//
// Order: what was accessed last, and its neighbours; then what is in memory in part; then by hotness, the hottest first; then any, which
// also finds what could not be filled when its turn came. There is no list of this order: a search goes over the chunks once for each
// hotness that there is, in steps, so that nobody waits for it. The last search, for any, narrows down where the chunks are that need the
// source, and goes over these again and again until there are none.
#include <errno.h>
#include <string.h>

#include "pvmem/engine_int.h"
#include "util/log.h"

#define LOOK_HOT 32                       // chunks that were accessed last
#define LOOK_AHEAD (64 * KiB)             // bytes that are looked at in one step
#define LOOK_CHUNK 256                    // of these, for one chunk
#define LOOK_BEHIND 16384                 // chunks, in one period
#define BUSY_NS (5 * NSEC_PER_MSEC)       // after a page-in
#define CHUNK_NS NSEC_PER_MSEC            // that a chunk takes on a fast line
#define RETRY_NS (NSEC_PER_SEC / 2)       // after an error
#define PAUSE_NS (10 * NSEC_PER_MSEC)     // after a search that found nothing: all that is left is on its way in or out
#define PAUSE_A_CHUNK_NS 1000             // the same, for each chunk of the search: it takes a fraction of that

static bool needs_source(const struct pv_engine *e, uint64_t chunk)
{
	uint64_t source[PV_WORDS];

	pv_pages_of_home(pv_pages_of(e, chunk), PV_HOME_SOURCE, source);
	return !bitmap_empty(source, PV_CHUNK_PAGES);
}

// A read that was begun may still use the source when the page that it was for has another home.
static bool is_read(const struct pv_engine *e, uint64_t chunk)
{
	for (const struct pv_request *r = e->chunks[chunk].requests; r; r = r->next)
		if (r->from == PV_HOME_SOURCE)
			return true;
	return pv_fill_is_copied(e, chunk);
}

static bool may_fill(const struct pv_engine *e, uint64_t chunk)
{
	const struct pv_chunk *c = &e->chunks[chunk];

	return !c->requests && !c->nr_writes && (!pv_is_out(c) || c->state == PV_STANDBY || c->state == PV_IDLE) && needs_source(e, chunk);
}

void pv_fill_done(struct pv_engine *e, int err, const char *what)
{
	struct pv_fill *f = &e->fill;
	uint64_t now = clock_now_ns();

	f->nr_busy--;
	f->search_ns = 0;
	if (err) {
		if (!f->failing_since_ns) {
			f->failing_since_ns = now;
			log_err("%s: %s; trying again, until then the VM is not filled", what, strerror(-err));
		}
		f->not_before_ns = now + RETRY_NS;
		e->trouble = what;
		e->trouble_err = err;
	} else if (f->failing_since_ns) {
		f->failing_since_ns = 0;
		log_warn("filling goes on");
	}
}

// A side of the source that has some of the pages: the other host, if it does, which may go then. The chunk's turn comes again.
static void keep_first_side(const struct pv_engine *e, uint64_t chunk, uint64_t pages[PV_WORDS])
{
	uint64_t remote[PV_WORDS];

	memcpy(remote, pages, sizeof remote);
	pv_keep_side(e, chunk, false, remote);
	if (!bitmap_empty(remote, PV_CHUNK_PAGES))
		memcpy(pages, remote, sizeof remote);
}

static void fill_chunk(struct pv_engine *e, uint64_t chunk)
{
	const struct pv_chunk *c = &e->chunks[chunk];
	struct pv_pages *p = pv_pages_of(e, chunk);
	uint64_t source[PV_WORDS], here[PV_WORDS];
	bool standby = c->state == PV_STANDBY;

	if (c->state == PV_IDLE)
		pv_leave_idle(e, chunk);
	pv_pages_of_home(p, PV_HOME_SOURCE, source);
	keep_first_side(e, chunk, source);
	for (unsigned w = 0; w < PV_WORDS; w++) {
		here[w] = standby ? 0 : source[w] & p->valid[w];
		source[w] &= ~here[w];
	}
	pv_pages_set_home(p, here, PV_HOME_NONE);
	if (bitmap_empty(source, PV_CHUNK_PAGES))
		return;
	e->fill.nr_busy++;
	pv_fill_copy_begin(e, chunk, source);
}

// Of the chunks that were accessed last one to be filled, or one beside them; or nr_chunks.
static uint64_t hot_chunk(const struct pv_engine *e)
{
	uint64_t beside = e->nr_chunks;
	unsigned left = LOOK_HOT;

	// The oldest queue has what nobody has accessed for long, and what was filled itself.
	for (const struct pv_chunk *c = pv_queues_newest(&e->queues); c && left && pv_queues_index(&e->queues, c);
	     c = pv_queues_older(&e->queues, c), left--) {
		uint64_t chunk = pv_chunk_index(e, c);

		if (may_fill(e, chunk))
			return chunk;
		if (beside == e->nr_chunks && chunk + 1 < e->nr_chunks && may_fill(e, chunk + 1))
			beside = chunk + 1;
		else if (beside == e->nr_chunks && chunk && may_fill(e, chunk - 1))
			beside = chunk - 1;
	}
	return beside;
}

// On to the next hotness that there is, of which the search has yet to begin.
static void next_level(struct pv_fill *f)
{
	do
		f->level--;
	while (f->level > PV_FILL_ANY && !bitmap_test(f->levels, (size_t)f->level));
	f->next = f->last = f->behind;
}

static void spend(size_t *left, size_t bytes)
{
	*left -= bytes < *left ? bytes : *left;
}

// The next of the level's that may be filled; or nr_chunks: there is none up to the end, or not among so much.
static uint64_t next_of_level(struct pv_engine *e, size_t *left)
{
	struct pv_fill *f = &e->fill;

	while (f->next < f->end && *left) {
		const uint8_t *from = e->o.hotness + f->next;
		size_t n = f->end - f->next < *left ? f->end - f->next : *left;
		const uint8_t *hit = memchr(from, f->level, n);

		n = hit ? (size_t)(hit - from) + 1 : n;
		f->next += n;
		spend(left, n);
		if (!hit)
			continue;
		spend(left, LOOK_CHUNK);
		if (may_fill(e, f->next - 1))
			return f->next - 1;
	}
	return e->nr_chunks;
}

// The same of those that are in memory in part, or of any.
static uint64_t next_chunk(struct pv_engine *e, size_t *left)
{
	struct pv_fill *f = &e->fill;

	while (f->next < f->end && *left) {
		uint64_t chunk = f->next++;

		spend(left, LOOK_CHUNK);
		if (needs_source(e, chunk) || is_read(e, chunk))
			f->last = chunk + 1;
		else if (chunk == f->behind)
			f->behind++;
		if (may_fill(e, chunk) && (f->level == PV_FILL_ANY || !bitmap_empty(pv_pages_of(e, chunk)->valid, PV_CHUNK_PAGES)))
			return chunk;
	}
	return e->nr_chunks;
}

static uint64_t search(struct pv_engine *e, size_t *left)
{
	const struct pv_fill *f = &e->fill;

	return f->level == PV_FILL_IN_MEMORY || f->level == PV_FILL_ANY ? next_chunk(e, left) : next_of_level(e, left);
}

// The search for one has come to the end of all chunks.
static void search_ended(struct pv_fill *f, uint64_t now)
{
	if (f->level == PV_FILL_IN_MEMORY || f->level == PV_FILL_ANY) // it has seen them all
		f->end = f->last > f->behind ? f->last : f->behind;
	if (f->level == PV_FILL_ANY) {
		f->next = f->last = f->behind;
		f->search_ns = now + PAUSE_NS + (f->end - f->behind) * PAUSE_A_CHUNK_NS;
	} else {
		next_level(f);
	}
}

static unsigned at_a_time(const struct pv_engine *e, uint64_t now)
{
	const struct pv_fill *f = &e->fill;
	uint64_t more = f->last_answer_ns / CHUNK_NS;

	if (f->failing_since_ns || e->reads_waiting || !list_empty(&e->delayed))
		return 1;
	if (now - e->last_page_in_ns >= BUSY_NS || more >= PV_FILL_COPIES)
		return PV_FILL_COPIES;
	return 1 + (unsigned)more;
}

// False: something is to be waited for first, and there will be a round of the loop then.
static bool is_time(struct pv_engine *e, uint64_t now)
{
	struct pv_fill *f = &e->fill;
	uint64_t then = f->not_before_ns > f->search_ns ? f->not_before_ns : f->search_ns;

	if (now < then && !f->timer.op.busy)
		loop_timer(e->o.loop, &f->timer, then - now);
	return now >= then;
}

static void source_is_done(struct pv_engine *e)
{
	pv_fill_fini(e);
	e->o.ops->source_done(e->o.ops->ctx);
}

bool pv_fill(struct pv_engine *e)
{
	struct pv_fill *f = &e->fill;
	size_t left = LOOK_AHEAD;
	uint64_t now, chunk;

	if (!f->active || e->held || e->swap_reads_waiting || e->warm.active) // what was hot comes before all else
		return false;
	now = clock_now_ns();
	while (f->nr_busy < at_a_time(e, now) && is_time(e, now)) {
		if (!left)
			return true;
		chunk = f->failing_since_ns ? e->nr_chunks : hot_chunk(e); // another one, should it be just this one that fails
		if (chunk == e->nr_chunks)
			chunk = search(e, &left);
		if (chunk < e->nr_chunks)
			fill_chunk(e, chunk);
		else if (f->next >= f->end)
			search_ended(f, now);
		if (f->behind >= f->end) {
			source_is_done(e);
			return false;
		}
	}
	return false;
}

static void timer_done(struct loop_op *op, int res)
{
	(void)op; // the round that it causes goes on with the fill
	(void)res;
}

void pv_fill_init(struct pv_engine *e)
{
	struct pv_fill *f = &e->fill;

	f->end = e->nr_chunks;
	f->level = PV_FILL_IN_MEMORY;
	f->timer.op.done = timer_done;
	for (uint64_t i = 0; e->o.hotness && i < e->nr_chunks; i++)
		bitmap_set(f->levels, e->o.hotness[i]);
}

void pv_fill_begin(struct pv_engine *e)
{
	struct pv_fill *f = &e->fill;

	f->active = f->behind < f->end;
}

void pv_fill_answered(struct pv_engine *e, uint64_t ns)
{
	struct pv_fill *f = &e->fill;

	if (!f->answer_ns || ns < f->answer_ns)
		f->answer_ns = ns;
}

void pv_fill_fini(struct pv_engine *e)
{
	pv_fill_copies_fini(e);
	e->fill.active = false;
	e->fill.failing_since_ns = 0;
}

void pv_fill_tick(struct pv_engine *e)
{
	struct pv_fill *f = &e->fill;
	uint64_t stop = f->behind + LOOK_BEHIND < f->end ? f->behind + LOOK_BEHIND : f->end;

	if (f->behind >= f->end)
		return;
	if (f->answer_ns)
		f->last_answer_ns = f->answer_ns;
	f->answer_ns = 0;
	while (f->behind < stop && !needs_source(e, f->behind) && !is_read(e, f->behind))
		f->behind++;
	if (f->behind >= f->end)
		source_is_done(e);
}
