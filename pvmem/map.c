// SPDX-License-Identifier: GPL-2.0-only
// Valid pages are mapped into QEMU, and the same again where that did not work at once.
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

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

void pv_forget_pages(struct pv_engine *e, uint64_t chunk, const uint64_t which[PV_WORDS])
{
	struct pv_maps *m = pv_maps_of(e, chunk);

	for (unsigned w = 0; w < PV_WORDS; w++) {
		m->mapped[w] &= ~which[w];
		m->sample[w] &= ~which[w];
	}
	pv_stay(e, chunk, which);
}

void pv_forget_mappings(struct pv_engine *e, uint64_t chunk)
{
	memset(pv_maps_of(e, chunk)->mapped, 0, sizeof pv_maps_of(e, chunk)->mapped);
	e->chunks[chunk].foreign = false;
}

void pv_unmap_own(const struct pv_engine *e, uint64_t chunk)
{
	const struct pv_block *b = pv_block_of(e, chunk);
	uint64_t at = chunk * PV_CHUNK_SIZE - b->off, len = pv_chunk_nr_pages(e, chunk) * PAGE_SIZE;

	madvise(b->map + at, len, MADV_DONTNEED);
	if (b->huge)
		madvise(b->huge + at, len, MADV_DONTNEED);
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
	pv_forget_pages(e, chunk, one);
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
	while (nr) {
		uint64_t done = 0, at = hva + first * PAGE_SIZE;
		int r = mm_uffd_continue(e->o.uffd, at, nr * PAGE_SIZE, clean, true, &done);
		unsigned pages = (unsigned)(done / PAGE_SIZE);

		if (pages)
			bitmap_set_range(pv_maps_of(e, chunk)->mapped, first, pages);
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
			bitmap_set(pv_maps_of(e, chunk)->mapped, first);
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
	if (pv_is_unmapping(&e->chunks[chunk])) { // nothing is mapped now; who waits faults again
		e->chunks[chunk].wake = true;
		return;
	}
	for (size_t i = 0, n; (n = bitmap_next_run(which, PV_CHUNK_PAGES, &i)); i += n)
		map_run(e, chunk, (unsigned)i, (unsigned)n, true);
}

static void retry(struct pv_engine *e, struct remap *m)
{
	const struct pv_pages *p = pv_pages_of(e, m->chunk);
	const struct pv_maps *maps = pv_maps_of(e, m->chunk);
	bool zapping = pv_is_unmapping(&e->chunks[m->chunk]), gone = zapping;

	for (unsigned w = 0; w < PV_WORDS; w++) {
		// What was mapped otherwise meanwhile may have been written to, and is not clean.
		uint64_t not = ~p->valid[w] | maps->out[w] | (m->clean ? maps->mapped[w] : 0);

		gone |= (m->pages[w] & not) != 0;
		m->pages[w] &= ~not;
	}
	for (size_t i = 0, n; !zapping && (n = bitmap_next_run(m->pages, PV_CHUNK_PAGES, &i)); i += n)
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

// What is mapped with a touched page. All of a chunk of which nothing is known; of one that is on its way out, or was unmapped before,
// what belongs together by what is known of the chunk (adapt.h): so pages that are hot by themselves come alone. What is used as a whole
// comes back by a few faults, each as much as those before it. During a snapshot few, for each has to be saved. Samples stay unmapped until
// they are touched themselves.
static void choose_pages(const struct pv_engine *e, uint64_t chunk, unsigned page, uint64_t which[PV_WORDS])
{
	const struct pv_chunk *c = &e->chunks[chunk];
	const struct pv_maps *m = pv_maps_of(e, chunk);
	const struct pv_pages *p = pv_pages_of(e, chunk);
	enum pv_window known = pv_adapt_known(&e->adapt, &c->history);
	unsigned nr = (unsigned)bitmap_count(m->mapped, PV_CHUNK_PAGES), size = PV_CHUNK_PAGES;

	memset(which, 0, PV_WORDS * sizeof *which);
	if (pv_snapshot_is_on(e))
		size = TOUCH_WINDOW;
	else if (pv_is_out(c) || nr)
		for (size = known == PV_WINDOW_PAGE ? 1 : PV_BLOCK_PAGES; known == PV_WINDOW_CHUNK && size < nr && size < PV_CHUNK_PAGES;)
			size *= 2;
	bitmap_set_range(which, page / size * size, size);
	for (unsigned w = 0; w < PV_WORDS; w++)
		which[w] &= p->valid[w] & ~m->mapped[w] & ~m->sample[w];
	bitmap_set(which, page);
}

// Of what is kept with a touched page a few pages stay unmapped, as of what is brought in with one: so it is seen when it is used no more.
static void leave_samples(struct pv_engine *e, uint64_t chunk, unsigned page, uint64_t which[PV_WORDS])
{
	struct pv_chunk *c = &e->chunks[chunk];
	struct pv_maps *m = pv_maps_of(e, chunk);
	size_t nr = bitmap_count(which, PV_CHUNK_PAGES);
	enum pv_window window = nr > PV_BLOCK_PAGES ? PV_WINDOW_CHUNK : PV_WINDOW_BLOCK;
	unsigned skip = (unsigned)((chunk * 2654435761 + page + e->stats.faults) % (PV_BLOCK_PAGES - 1));

	if (nr < PV_BLOCK_PAGES / 2 || pv_snapshot_is_on(e))
		return;
	if (c->window != window)
		memset(m->sample, 0, sizeof m->sample);
	c->window = window;
	for (size_t i = 0; (i = bitmap_next(which, PV_CHUNK_PAGES, i, true)) < PV_CHUNK_PAGES; i++)
		if (i != page && !skip--) {
			bitmap_clear(which, i);
			bitmap_set(m->sample, i);
			skip = 2 * PV_BLOCK_PAGES;
		}
}

static void map_with_neighbours(struct pv_engine *e, uint64_t chunk, unsigned page)
{
	struct pv_chunk *c = &e->chunks[chunk];
	uint64_t which[PV_WORDS], *sample = pv_maps_of(e, chunk)->sample;

	if (bitmap_test(sample, page)) { // it was worth being brought in
		bitmap_clear(sample, page);
		pv_adapt_learn(&e->adapt, &c->history, c->window, 1, 1);
		e->stats.sampled++;
		e->stats.sampled_used++;
		map_run(e, chunk, page, 1, true);
		return;
	}
	choose_pages(e, chunk, page, which);
	if (pv_is_out(c)) {
		uint16_t before = c->out_pages;

		pv_stay(e, chunk, which);
		e->stats.pages_kept += before - c->out_pages;
		e->sampling.touches++;
		leave_samples(e, chunk, page, which);
	}
	pv_map_pages(e, chunk, which);
}

// What of it is mapped is not known. It may have been written to, and have lost its mapping to the host: that must not be taken for clean.
// What was not mapped at the first look is known after the harvest, and cannot be written to before it is mapped here; so only that is
// mapped as clean.
static void map_foreign(struct pv_engine *e, uint64_t chunk, unsigned page)
{
	struct pv_maps *m = pv_maps_of(e, chunk);
	uint64_t here[PV_WORDS], present[PV_WORDS] = { 0 };

	if (mm_pagemap_scan(e->o.pagemap, pv_chunk_hva(e, chunk), pv_chunk_nr_pages(e, chunk) * PAGE_SIZE, MM_SCAN_PRESENT, present))
		memset(present, 0xff, sizeof present);
	pv_harvest_chunk(e, chunk);
	for (unsigned w = 0; w < PV_WORDS; w++) {
		here[w] = pv_pages_of(e, chunk)->valid[w] & ~m->out[w];
		m->mapped[w] |= here[w] & present[w];
		here[w] &= ~m->mapped[w];
	}
	e->chunks[chunk].foreign = false;
	pv_map_pages(e, chunk, here);
	if (!bitmap_test(here, page)) // is mapped already, or was a moment ago
		map_run(e, chunk, page, 1, false);
}

void pv_map_touched(struct pv_engine *e, uint64_t chunk, unsigned page)
{
	struct pv_chunk *c = &e->chunks[chunk];

	if (remap_pending(e, chunk, page))
		return;
	if (c->foreign)
		map_foreign(e, chunk, page);
	else if (bitmap_test(pv_maps_of(e, chunk)->mapped, page)) // Another thread's fault has brought it in, and mapping it does nothing now. Or
		map_run(e, chunk, page, 1, false); // the host has unmapped it, and with that the knowledge whether it was written is lost.
	else
		map_with_neighbours(e, chunk, page);
	if (pv_is_out(c) && !c->out_pages)
		pv_rescue(e, chunk);
}

void pv_remap_timer_done(struct loop_op *op, int res)
{
	(void)op; // the round that it causes tries them
	(void)res;
}
