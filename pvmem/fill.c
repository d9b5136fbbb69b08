// SPDX-License-Identifier: GPL-2.0-only
//
// DOC: fill
//
// What the page source has yet comes in the background, until the source is needed no more.
//
//                          room in memory ----> a page-in that nobody waits for                 home NONE
//   next chunk --> read --<
//                          none ----> buffer --> write to the swap image --> end of all writes  home SWAP
//
// Demand comes first: few chunks at a time, one while the guest pages in, none while a fault waits for memory or a read fails.
//
// Memory. As long as target and reserve stay free, so that nothing is ever paged out for a fill. A chunk that nobody touches
// takes the place on the queues that it had, the coldest if it had none, and stays unmapped if it was: its first touch is
// seen. Pages that the guest has brought in itself stay where they are, and the source is their home no longer.
//
// Swap. The buffer is our own, so the budget does not know of it, and the guest's faults on the chunk are served from the
// source as ever. When all is written, pages get the home SWAP that still have the home SOURCE: the guest has discarded the
// others. What it has brought in and written to meanwhile is found by the next harvest. A write-out of the chunk would go to
// the same place of the image, so there is none: a copy counts in nr_writes, which keeps a chunk off the queues, and a chunk
// on its way out is not filled before it is in standby. There its pages must not be left without a home: they go to swap.
//
// No page ever gets the home SOURCE again. So what has been looked at and has no such page is done with, and a crash at any
// moment costs what is being copied, no more.
//
// Order: what was accessed last, and its neighbours; then what is in memory; then the rest.
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "pvmem/engine_int.h"
#include "util/log.h"

#define LOOK_HOT 32                       // chunks that were accessed last
#define LOOK_AHEAD 256                    // chunks, in one step
#define LOOK_BEHIND 16384                 // chunks, in one period
#define BUSY_NS (5 * NSEC_PER_MSEC)       // after a page-in
#define RETRY_NS (NSEC_PER_SEC / 2)       // after an error
#define PAUSE_NS (NSEC_PER_SEC / 10)      // after a search that found nothing: all that is left is on its way in or out

static bool needs_source(const struct pv_engine *e, uint64_t chunk)
{
	uint64_t source[PV_WORDS];

	pv_pages_of_home(pv_pages_of(e, chunk), PV_HOME_SOURCE, source);
	return !bitmap_empty(source, PV_CHUNK_PAGES);
}

static bool may_fill(const struct pv_engine *e, uint64_t chunk)
{
	const struct pv_chunk *c = &e->chunks[chunk];

	return !c->requests && !c->nr_writes && (!pv_is_out(c) || c->state == PV_STANDBY) && needs_source(e, chunk);
}

void pv_fill_done(struct pv_engine *e, int err, const char *what)
{
	struct pv_fill *f = &e->fill;
	uint64_t now = clock_now_ns();

	f->nr_busy--;
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

static void copy_end(struct pv_fill_copy *copy, int err, const char *what)
{
	uint64_t chunk = copy->source.chunk, copied[PV_WORDS];
	struct pv_engine *e = copy->e;
	struct pv_pages *p = pv_pages_of(e, chunk);

	pv_pages_of_home(p, PV_HOME_SOURCE, copied);
	for (unsigned w = 0; w < PV_WORDS; w++)
		copied[w] &= err ? 0 : copy->source.pages[w];
	pv_pages_set_home(p, copied, PV_HOME_SWAP);
	e->stats.filled_swap += bitmap_count(copied, PV_CHUNK_PAGES);
	copy->busy = false;
	e->chunks[chunk].nr_writes--;
	pv_chunk_settle(e, chunk);
	pv_fill_done(e, err, what);
}

static void write_next(struct pv_fill_copy *copy)
{
	struct pv_engine *e = copy->e;

	copy->nr = bitmap_next_run(copy->source.pages, PV_CHUNK_PAGES, &copy->first);
	if (copy->nr)
		loop_write(e->o.loop, &copy->op, e->o.swap->fd, copy->source.dest + copy->first * PAGE_SIZE, copy->nr * PAGE_SIZE,
			   copy->source.chunk * PV_CHUNK_SIZE + copy->first * PAGE_SIZE);
	else
		copy_end(copy, 0, NULL);
}

static void copy_written(struct loop_op *op, int res)
{
	struct pv_fill_copy *copy = list_entry(op, struct pv_fill_copy, op);

	if (res < 0 || (size_t)res < copy->nr * PAGE_SIZE) {
		copy->e->stats.writes_failed++;
		copy_end(copy, res < 0 ? res : -EIO, "the swap image cannot be written");
		return;
	}
	copy->first += copy->nr;
	write_next(copy);
}

static void copy_read(struct pv_source_read *rd, int err, const char *what)
{
	struct pv_fill_copy *copy = list_entry(rd, struct pv_fill_copy, source);

	copy->first = 0;
	if (err)
		copy_end(copy, err, what);
	else
		write_next(copy);
}

static void copy_begin(struct pv_engine *e, uint64_t chunk, const uint64_t pages[PV_WORDS])
{
	struct pv_fill_copy *copy = e->fill.copy;
	struct pv_chunk *c = &e->chunks[chunk];

	while (copy->busy)
		copy++;
	if (!copy->source.dest && !(copy->source.dest = aligned_alloc(PAGE_SIZE, PV_CHUNK_SIZE))) {
		pv_fill_done(e, -ENOMEM, "there is no memory to fill with");
		return;
	}
	copy->e = e;
	copy->op.done = copy_written;
	copy->source.done = copy_read;
	copy->busy = true;
	pv_queues_remove(&e->queues, c);
	c->nr_writes++;
	c->swap_used = true;
	c->untouched = true;
	copy->source.chunk = chunk;
	memcpy(copy->source.pages, pages, sizeof copy->source.pages);
	e->o.ops->source_read(e->o.ops->ctx, &copy->source);
}

static void fill_chunk(struct pv_engine *e, uint64_t chunk)
{
	const struct pv_chunk *c = &e->chunks[chunk];
	struct pv_pages *p = pv_pages_of(e, chunk);
	uint64_t source[PV_WORDS], here[PV_WORDS];
	bool standby = c->state == PV_STANDBY;
	size_t nr;

	pv_pages_of_home(p, PV_HOME_SOURCE, source);
	for (unsigned w = 0; w < PV_WORDS; w++) {
		here[w] = standby ? 0 : source[w] & p->valid[w];
		source[w] &= ~here[w];
	}
	pv_pages_set_home(p, here, PV_HOME_NONE);
	nr = bitmap_count(source, PV_CHUNK_PAGES);
	if (!nr)
		return;
	e->fill.nr_busy++;
	if (e->o.swap->fd < 0 || (!standby && e->charged + nr + e->target + e->reserve <= e->goal))
		pv_page_in_unasked(e, chunk, source);
	else
		copy_begin(e, chunk, source);
}

// Of the chunks that were accessed last one to be filled, or one beside them; or nr_chunks.
static uint64_t hot_chunk(const struct pv_engine *e)
{
	uint64_t beside = e->nr_chunks;
	unsigned left = LOOK_HOT;

	for (unsigned i = PV_NR_QUEUES - 1; i && left; i--) {
		const struct list *q = &e->queues.queue[i];

		for (struct list *node = q->prev; node != q && left; node = node->prev, left--) {
			uint64_t chunk = pv_chunk_index(e, list_entry(node, struct pv_chunk, link));

			if (may_fill(e, chunk))
				return chunk;
			if (beside == e->nr_chunks && chunk + 1 < e->nr_chunks && may_fill(e, chunk + 1))
				beside = chunk + 1;
			else if (beside == e->nr_chunks && chunk && may_fill(e, chunk - 1))
				beside = chunk - 1;
		}
	}
	return beside;
}

// The next one in order; or nr_chunks: there is none up to the end, or not among so many.
static uint64_t next_chunk(struct pv_engine *e, unsigned *left)
{
	struct pv_fill *f = &e->fill;

	for (; f->next < e->nr_chunks && *left; --*left) {
		uint64_t chunk = f->next++;

		if (may_fill(e, chunk) && (f->everything || !bitmap_empty(pv_pages_of(e, chunk)->valid, PV_CHUNK_PAGES)))
			return chunk;
	}
	return e->nr_chunks;
}

bool pv_fill(struct pv_engine *e)
{
	struct pv_fill *f = &e->fill;
	unsigned left = LOOK_AHEAD, at_a_time;
	uint64_t now, chunk;

	if (!f->active || e->held || !list_empty(&e->delayed) || e->reads_waiting)
		return false;
	now = clock_now_ns();
	at_a_time = f->failing_since_ns || now - e->last_page_in_ns < BUSY_NS ? 1 : PV_FILL_COPIES;
	while (now >= f->not_before_ns && f->nr_busy < at_a_time) {
		if (!left)
			return true;
		chunk = f->failing_since_ns ? e->nr_chunks : hot_chunk(e); // another one, should it be just this one that fails
		if (chunk == e->nr_chunks)
			chunk = next_chunk(e, &left);
		if (chunk < e->nr_chunks) {
			fill_chunk(e, chunk);
		} else if (f->next == e->nr_chunks) {
			f->not_before_ns = f->everything ? now + PAUSE_NS : 0;
			f->everything = true;
			f->next = f->behind;
		}
	}
	return false;
}

void pv_fill_begin(struct pv_engine *e)
{
	struct pv_fill *f = &e->fill;

	f->active = f->behind < e->nr_chunks;
}

void pv_fill_fini(struct pv_engine *e)
{
	for (unsigned i = 0; i < PV_FILL_COPIES; i++) {
		free(e->fill.copy[i].source.dest);
		e->fill.copy[i].source.dest = NULL;
	}
	e->fill.active = false;
	e->fill.failing_since_ns = 0;
}

// A read that was begun may still use the source when the page that it was for has another home.
void pv_fill_tick(struct pv_engine *e)
{
	struct pv_fill *f = &e->fill;
	uint64_t end = f->behind + LOOK_BEHIND < e->nr_chunks ? f->behind + LOOK_BEHIND : e->nr_chunks;

	if (f->behind == e->nr_chunks)
		return;
	while (f->behind < end && !needs_source(e, f->behind) && !e->chunks[f->behind].requests && !e->chunks[f->behind].nr_writes)
		f->behind++;
	if (f->behind < e->nr_chunks)
		return;
	pv_fill_fini(e);
	e->o.ops->source_done(e->o.ops->ctx);
}
