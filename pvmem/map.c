// SPDX-License-Identifier: GPL-2.0-only
// Valid pages are mapped into QEMU, and the same again where that did not work at once.
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "pvmem/engine_int.h"
#include "util/log.h"

#define REMAP_FAILED_NS NSEC_PER_SEC  // until a mapping that failed is tried again
#define REMAP_UNSAVED_NS NSEC_PER_MSEC // one that waits for a snapshot's reader
#define TOUCH_WINDOW 16 // pages around a touched one that are mapped during a snapshot

// A mapping to be tried again.
struct remap {
	struct list link;
	uint64_t chunk;
	uint64_t pages[PV_WORDS];
	bool clean;             // as for map_run()
	uint64_t not_before_ns; // 0: at once
};

static void remap_later(struct pv_engine *e, uint64_t chunk, unsigned first, unsigned nr, bool clean, uint64_t after_ns)
{
	struct remap *m = pv_alloc(sizeof *m);

	m->chunk = chunk;
	m->clean = clean;
	m->not_before_ns = after_ns ? clock_now_ns() + after_ns : 0;
	e->nr_fast_remaps += !after_ns;
	if (after_ns && !e->remap_timer.op.busy)
		loop_timer(e->o.loop, &e->remap_timer, REMAP_UNSAVED_NS);
	bitmap_set_range(m->pages, first, nr);
	list_append(&e->remap, &m->link);
}

// The memfd has no such page although it had: the guest discarded it, and the REMOVE event is on its way or was before
// QEMU's second punch. Its content is zero from now on.
static void page_vanished(struct pv_engine *e, uint64_t chunk, unsigned page)
{
	struct pv_pages *p = pv_pages_of(e, chunk);
	uint64_t one[PV_WORDS] = { 0 };

	bitmap_set(one, page);
	pv_snapshot_discard(e, chunk, page);
	pv_pages_set_dirty(p, one);
	pv_pages_set_home(p, one, PV_HOME_ZERO);
	pv_pages_set_valid(p, one, false);
	e->charged--;
	e->stats.discarded++;
}

static bool remap_pending(const struct pv_engine *e, uint64_t chunk, unsigned page)
{
	for (const struct list *node = e->remap.next; node != &e->remap; node = node->next) {
		const struct remap *m = list_entry(node, struct remap, link);

		if (m->chunk == chunk && bitmap_test(m->pages, page))
			return true;
	}
	return false;
}

// clean: what QEMU writes from now on will be seen by the next harvest; else all counts as written.
static void map_run(struct pv_engine *e, uint64_t chunk, unsigned first, unsigned nr, bool clean)
{
	uint64_t hva = pv_chunk_hva(e, chunk);
	unsigned may = pv_snapshot_save(e, chunk, first, nr);

	if (may < nr)
		remap_later(e, chunk, first + may, nr - may, clean, REMAP_UNSAVED_NS);
	nr = may;
	e->chunks[chunk].mapped |= nr != 0;
	e->chunks[chunk].thin |= e->chunks[chunk].placed;
	while (nr) {
		uint64_t done = 0, at = hva + first * PAGE_SIZE;
		int r = mm_uffd_continue(e->o.uffd, at, nr * PAGE_SIZE, clean, true, &done);
		unsigned pages = (unsigned)(done / PAGE_SIZE);

		first += pages;
		nr -= pages;
		at += done;
		if (!r || r == -ESRCH || !nr)
			return;
		switch (r) {
		case -EAGAIN:
			remap_later(e, chunk, first, nr, clean, 0);
			return;
		case -ENOENT:
			page_vanished(e, chunk, first);
			break;
		case -EEXIST:
			break;
		default:
			log_err("cannot map page %#lx of guest RAM into QEMU: %s; its users wait", chunk * PV_CHUNK_SIZE + first * PAGE_SIZE,
				strerror(-r));
			remap_later(e, chunk, first, nr, clean, REMAP_FAILED_NS);
			return;
		}
		mm_uffd_wake(e->o.uffd, at, PAGE_SIZE); // the kernel wakes nobody at a page that it did not map
		first++;
		nr--;
	}
}

void pv_map_pages(struct pv_engine *e, uint64_t chunk, const uint64_t which[PV_WORDS])
{
	for (size_t i = 0, n; (n = bitmap_next_run(which, PV_CHUNK_PAGES, &i)); i += n)
		map_run(e, chunk, (unsigned)i, (unsigned)n, true);
}

static void retry(struct pv_engine *e, struct remap *m)
{
	const struct pv_pages *p = pv_pages_of(e, m->chunk);
	bool out = pv_is_out(&e->chunks[m->chunk]), gone = out;

	for (unsigned w = 0; w < PV_WORDS; w++) {
		gone |= (m->pages[w] & ~p->valid[w]) != 0;
		m->pages[w] &= p->valid[w];
	}
	for (size_t i = 0, n; !out && (n = bitmap_next_run(m->pages, PV_CHUNK_PAGES, &i)); i += n)
		map_run(e, m->chunk, (unsigned)i, (unsigned)n, m->clean);
	if (gone) // zapped or discarded meanwhile: who waits shall fault again
		mm_uffd_wake(e->o.uffd, pv_chunk_hva(e, m->chunk), pv_chunk_nr_pages(e, m->chunk) * PAGE_SIZE);
	free(m);
}

void pv_retry_maps(struct pv_engine *e)
{
	struct list again;
	uint64_t now;

	if (list_empty(&e->remap))
		return;
	now = clock_now_ns();
	list_init(&again);
	list_splice(&again, &e->remap);
	e->nr_fast_remaps = 0;
	list_for_each(&again, node) {
		struct remap *m = list_entry(node, struct remap, link);

		if (m->not_before_ns <= now)
			retry(e, m);
		else
			list_append(&e->remap, node);
	}
	if (!list_empty(&e->remap) && !e->remap_timer.op.busy)
		loop_timer(e->o.loop, &e->remap_timer, REMAP_UNSAVED_NS);
}

// Valid pages of it are mapped nowhere: since before QEMU started, since the last pager, or since a snapshot. During a snapshot few
// are mapped at a time, for each has to be saved.
static void map_placed(struct pv_engine *e, uint64_t chunk, unsigned page)
{
	const struct pv_pages *p = pv_pages_of(e, chunk);
	struct pv_chunk *c = &e->chunks[chunk];
	uint64_t which[PV_WORDS] = { 0 };

	if (c->thin) // what is mapped may have been written to, and lost its mapping to the host: that must not be taken for clean
		pv_harvest_chunk(e, chunk);
	c->thin = false;
	c->placed = pv_snapshot_is_on(e);
	if (c->placed)
		bitmap_set_range(which, page / TOUCH_WINDOW * TOUCH_WINDOW, TOUCH_WINDOW);
	for (unsigned w = 0; w < PV_WORDS; w++)
		which[w] = c->placed ? which[w] & p->valid[w] : p->valid[w];
	pv_map_pages(e, chunk, which);
}

void pv_map_touched(struct pv_engine *e, uint64_t chunk, unsigned page)
{
	if (remap_pending(e, chunk, page))
		return;
	if (e->chunks[chunk].placed)
		map_placed(e, chunk, page);
	else // Another thread's fault has brought it in, and mapping it does nothing now. Or the host has unmapped it, and with
	     // that the knowledge whether it was written is lost.
		map_run(e, chunk, page, 1, false);
}

void pv_remap_timer_done(struct loop_op *op, int res)
{
	(void)op; // the round that it causes tries them
	(void)res;
}
