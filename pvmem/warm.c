// SPDX-License-Identifier: GPL-2.0-only
#include "pvmem/warm.h"

#include <string.h>

#include "pvmem/engine_int.h"
#include "util/log.h"

#define LOOK_AHEAD 256                // chunks that are looked at in one step
#define BUSY_NS (5 * NSEC_PER_MSEC)   // after a page-in
#define RETRY_NS (NSEC_PER_SEC / 2)   // after a read that brought nothing

static void timer_done(struct loop_op *op, int res)
{
	(void)op; // the round that it causes goes on with it
	(void)res;
}

void pv_warm_init(struct pv_engine *e)
{
	struct pv_warm *w = &e->warm;

	w->timer.op.done = timer_done;
	for (size_t i = 0; i < e->o.nr_warm; i++)
		w->left += bitmap_count(e->o.warm[i].pages, PV_CHUNK_PAGES);
	w->active = e->o.nr_warm != 0;
}

bool pv_warm_is_active(const struct pv_engine *e, uint64_t *brought, uint64_t *left)
{
	if (brought)
		*brought = e->warm.brought;
	if (left)
		*left = e->warm.active ? e->warm.left : 0;
	return e->warm.active;
}

static void end(struct pv_engine *e, const char *why)
{
	struct pv_warm *w = &e->warm;

	w->active = false;
	log_info("what was in memory when the VM was dumped: %lu MiB were brought back in %.1f s, %s", w->brought * PAGE_SIZE / MiB,
		 w->begun_ns ? (double)(clock_now_ns() - w->begun_ns) / NSEC_PER_SEC : 0, why);
}

static bool has_come(const struct pv_engine *e, const struct pv_warm_read *r)
{
	const struct pv_pages *p = pv_pages_of(e, r->c->chunk);

	for (unsigned w = 0; w < PV_WORDS; w++)
		if (r->pages[w] & p->valid[w])
			return true;
	return false;
}

// Reads that have ended. What could not be read is left to who touches it; it may be that nothing can, so the next one waits.
static void look_at_reads(struct pv_engine *e, uint64_t now)
{
	struct pv_warm *w = &e->warm;

	for (struct pv_warm_read *r = w->reads; r < w->reads + PV_WARM_READS; r++) {
		if (!r->c || e->chunks[r->c->chunk].requests)
			continue;
		if (!has_come(e, r))
			w->not_before_ns = now + RETRY_NS;
		else if (now - e->last_page_in_ns < BUSY_NS)
			w->not_before_ns = now + (now - r->begun_ns);
		r->c = NULL;
	}
}

static unsigned at_a_time(const struct pv_engine *e, uint64_t now)
{
	if (e->reads_waiting || !list_empty(&e->delayed))
		return 0;
	return now - e->last_page_in_ns < BUSY_NS ? 1 : PV_WARM_READS;
}

// Or NULL: as many are busy as may be.
static struct pv_warm_read *free_read(struct pv_engine *e, unsigned most)
{
	struct pv_warm_read *slot = NULL;

	for (struct pv_warm_read *r = e->warm.reads; r < e->warm.reads + PV_WARM_READS; r++) {
		if (!r->c)
			slot = r;
		else if (!most--)
			return NULL;
	}
	return most ? slot : NULL;
}

// False: something is to be waited for first, and there will be a round of the loop then.
static bool is_time(struct pv_engine *e, uint64_t now)
{
	struct pv_warm *w = &e->warm;

	if (now < w->not_before_ns && !w->timer.op.busy)
		loop_timer(e->o.loop, &w->timer, w->not_before_ns - now);
	return now >= w->not_before_ns;
}

// Of the chunk, what is neither here nor on its way, and not empty: a page of zeros costs a touch as little as one that is here.
static uint64_t wanted(const struct pv_engine *e, const struct pv_warm_chunk *wc, uint64_t pages[PV_WORDS])
{
	const struct pv_chunk *c = &e->chunks[wc->chunk];
	const struct pv_pages *p = pv_pages_of(e, wc->chunk);
	uint64_t zero[PV_WORDS], flight[PV_WORDS];

	memset(pages, 0, PV_WORDS * sizeof *pages);
	if (pv_is_out(c) || c->nr_writes)
		return 0;
	pv_pages_of_home(p, PV_HOME_ZERO, zero);
	pv_pages_in_flight(c, flight);
	bitmap_set_range(pages, 0, pv_chunk_nr_pages(e, wc->chunk));
	for (unsigned w = 0; w < PV_WORDS; w++)
		pages[w] &= wc->pages[w] & ~p->valid[w] & ~zero[w] & ~flight[w];
	return bitmap_count(pages, PV_CHUNK_PAGES);
}

static bool has_room(const struct pv_engine *e, uint64_t nr)
{
	return e->charged + nr + e->target + e->reserve <= e->goal;
}

// A chunk of which nothing is here takes the place of its age on the queues; who touches it meanwhile moves it up.
static void bring(struct pv_engine *e, struct pv_warm_read *r, const struct pv_warm_chunk *wc, uint64_t now)
{
	struct pv_chunk *c = &e->chunks[wc->chunk];
	bool was_absent = c->state == PV_ABSENT;

	r->c = wc;
	r->begun_ns = now;
	pv_bring(e, wc->chunk, r->pages);
	if (was_absent && c->state == PV_RESIDENT && !c->queued) {
		pv_queues_add_at(&e->queues, c, pv_queues_index_of(&e->queues, wc->age));
		pv_queues_remove(&e->queues, c);
		c->untouched = true;
	}
}

bool pv_warm_step(struct pv_engine *e)
{
	struct pv_warm *w = &e->warm;
	unsigned left = LOOK_AHEAD;
	struct pv_warm_read *r;
	uint64_t now, nr;

	if (!w->active || e->held)
		return false;
	now = clock_now_ns();
	w->begun_ns = w->begun_ns ? w->begun_ns : now;
	look_at_reads(e, now);
	while (w->next < e->o.nr_warm && (r = free_read(e, at_a_time(e, now))) && is_time(e, now)) {
		const struct pv_warm_chunk *wc = &e->o.warm[w->next];

		if (!left--)
			return true;
		nr = wanted(e, wc, r->pages);
		if (nr && !has_room(e, nr)) {
			end(e, "as much as there is room for");
			return false;
		}
		w->next++;
		w->left -= bitmap_count(wc->pages, PV_CHUNK_PAGES);
		w->brought += nr;
		if (nr)
			bring(e, r, wc, now);
	}
	if (w->next == e->o.nr_warm && !w->reads[0].c && !w->reads[1].c)
		end(e, "all of it");
	return false;
}
