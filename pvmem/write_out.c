// SPDX-License-Identifier: GPL-2.0-only
// Stale pages of a chunk on its way out are written to the swap image.
//
// A disk that writes much at a time lets a read wait for it: for half a millisecond and more behind a chunk, hardly at all behind an
// eighth of one. So as long as the guest waits for reads now and then, and memory is not short, few pages are written at a time; else
// many are.
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "pvmem/engine_int.h"
#include "util/log.h"
#include "util/probe.h"
#include "util/zero.h"

#define MAX_GAP 8    // pages between stale ones that are written with them
#define MIN_WHOLE 16 // stale pages for which a whole chunk is written for the first time
#define MAX_WRITES 128                  // in flight
#define MAX_PAGES (16 * PV_CHUNK_PAGES) // the same

// Write-out of a run of stale pages of one chunk.
struct write_out {
	struct list link; // of those that wait, or are being written
	struct loop_op op;
	struct pv_engine *e;
	uint64_t chunk;
	unsigned first, nr;
	unsigned done, piece; // of these are written; are being written
	uint64_t rewritten[PV_WORDS]; // pages that QEMU has written to meanwhile, and a harvest has found
};

// A page that the guest discarded between the order to write it and the write: to be written, it was allocated again.
static void give_back_discarded(struct pv_engine *e, const struct write_out *w)
{
	const struct pv_pages *p = pv_pages_of(e, w->chunk);
	uint64_t gone[PV_WORDS] = { 0 }, flight[PV_WORDS];

	bitmap_set_range(gone, w->first, w->nr);
	pv_pages_in_flight(&e->chunks[w->chunk], flight);
	for (unsigned i = 0; i < PV_WORDS; i++)
		gone[i] &= ~p->valid[i] & ~flight[i];
	if (bitmap_empty(p->valid, PV_CHUNK_PAGES) && !e->chunks[w->chunk].requests && !bitmap_empty(gone, PV_CHUNK_PAGES))
		pv_punch_chunk(e, w->chunk); // as a folio, maybe
	else
		pv_punch_pages(e, w->chunk, gone);
}

static void mark_rewritten(struct list *writes, uint64_t chunk, const uint64_t written[PV_WORDS])
{
	for (struct list *node = writes->next; node != writes; node = node->next) {
		struct write_out *w = list_entry(node, struct write_out, link);

		for (unsigned i = 0; w->chunk == chunk && i < PV_WORDS; i++)
			w->rewritten[i] |= written[i];
	}
}

void pv_writes_are_old(struct pv_engine *e, uint64_t chunk, const uint64_t written[PV_WORDS])
{
	if (!e->chunks[chunk].nr_writes)
		return;
	mark_rewritten(&e->writes, chunk, written);
	mark_rewritten(&e->writes_waiting, chunk, written);
}

bool pv_goes_gently(const struct pv_engine *e, uint64_t now)
{
	return pv_free_pages(e) + e->nr_standby > e->low && now - e->page_awaited_ns < PV_GENTLE_NS;
}

// Of our mappings of a chunk the one that has entries for it already.
static const char *where_mapped(const struct pv_engine *e, uint64_t chunk)
{
	const struct pv_block *b = pv_block_of(e, chunk);

	return b->huge && e->chunks[chunk].folio ? b->huge + (chunk * PV_CHUNK_SIZE - b->off) : pv_chunk_map(e, chunk);
}

// What the guest discarded while it waited is left out: to be written, it would be allocated again. False: nothing is left.
static bool find_piece(struct write_out *w)
{
	const struct pv_pages *p = pv_pages_of(w->e, w->chunk);

	for (; w->done < w->nr && !bitmap_test(p->valid, w->first + w->done); w->done++)
		bitmap_set(w->rewritten, w->first + w->done);
	return w->done < w->nr;
}

static void write_piece(struct write_out *w)
{
	struct pv_engine *e = w->e;
	unsigned page = w->first + w->done;
	unsigned left = (unsigned)bitmap_next(pv_pages_of(e, w->chunk)->valid, w->first + w->nr, page, false) - page;

	w->piece = left > PV_GENTLE_PAGES && pv_goes_gently(e, clock_now_ns()) ? PV_GENTLE_PAGES : left;
	e->writing_pages += w->piece;
	loop_write(e->o.loop, &w->op, e->o.swap->fd, where_mapped(e, w->chunk) + page * PAGE_SIZE, w->piece * PAGE_SIZE,
		   w->chunk * PV_CHUNK_SIZE + page * PAGE_SIZE);
}

static void write_ended(struct write_out *w, int err)
{
	struct pv_engine *e = w->e;
	struct pv_chunk *c = &e->chunks[w->chunk];
	struct pv_pages *p = pv_pages_of(e, w->chunk);

	PROBE(write_end, w->chunk, w->first, w->nr, err);
	if (err) {
		if (clock_now_ns() >= e->out_not_before_ns)
			log_err("the swap image cannot be written: %s; pages stay in memory, trying again", strerror(-err));
		pv_out_failed(e, "the swap image cannot be written", err);
		e->stats.writes_failed++;
		c->write_failed = true;
	} else {
		// A page that QEMU has written to since its rescue is a matter of the next harvest, or was found by one already.
		for (unsigned i = w->first; i < w->first + w->nr; i++)
			if (bitmap_test(p->valid, i) && pv_page_home(p, i) == PV_HOME_NONE && !bitmap_test(w->rewritten, i)) {
				pv_page_set_home(p, i, PV_HOME_SWAP);
				e->stats.out_written++;
			}
	}
	list_remove(&w->link);
	give_back_discarded(e, w);
	if (!--c->nr_writes) {
		bool failed = c->write_failed;

		c->write_failed = false;
		if (c->state != PV_WRITING)
			pv_chunk_settle(e, w->chunk);
		else if (failed)
			pv_rescue(e, w->chunk);
		else
			pv_enter_stage(e, c, PV_STANDBY, &e->standby);
	}
	free(w);
}

static bool may_write(const struct pv_engine *e)
{
	if (!e->nr_writes)
		return true;
	if (pv_goes_gently(e, clock_now_ns()))
		return e->writing_pages < PV_GENTLE_PAGES;
	return e->nr_writes < MAX_WRITES && e->writing_pages < MAX_PAGES;
}

void pv_write_on(struct pv_engine *e)
{
	while (!list_empty(&e->writes_waiting) && may_write(e)) {
		struct write_out *w = list_first(&e->writes_waiting, struct write_out, link);

		list_remove(&w->link);
		list_append(&e->writes, &w->link);
		if (!w->done)
			PROBE(write_begin, w->chunk, w->first, w->nr);
		if (!find_piece(w)) {
			write_ended(w, 0);
			continue;
		}
		e->nr_writes++;
		write_piece(w);
	}
}

static void write_out_done(struct loop_op *op, int res)
{
	struct write_out *w = list_entry(op, struct write_out, op);
	struct pv_engine *e = w->e;
	int err = res < 0 ? res : (unsigned)res < w->piece * PAGE_SIZE ? -EIO : 0;

	w->done += w->piece;
	e->writing_pages -= w->piece;
	e->nr_writes--;
	if (!err && w->done < w->nr) {
		list_remove(&w->link);
		list_prepend(&e->writes_waiting, &w->link);
	} else {
		write_ended(w, err);
	}
	pv_write_on(e);
}

// What is written with stale pages, so that there are fewer writes: a few pages between them that are on their way out, too; and where the
// swap image has nothing of the chunk yet, all of it, since the file system takes its time for each first write.
static void bridge(const struct pv_chunk *c, const uint64_t out[PV_WORDS], uint64_t stale[PV_WORDS])
{
	bool whole = !c->swap_used && c->out_pages == PV_CHUNK_PAGES && bitmap_count(stale, PV_CHUNK_PAGES) >= MIN_WHOLE;

	if (whole)
		memset(stale, 0xff, PV_WORDS * sizeof *stale);
	for (size_t i = bitmap_next(stale, PV_CHUNK_PAGES, 0, true), end, next; i < PV_CHUNK_PAGES; i = next) {
		end = bitmap_next(stale, PV_CHUNK_PAGES, i, false);
		next = bitmap_next(stale, PV_CHUNK_PAGES, end, true);
		if (next < PV_CHUNK_PAGES && next - end <= MAX_GAP && bitmap_next(out, PV_CHUNK_PAGES, end, false) >= next)
			bitmap_set_range(stale, end, next - end);
	}
}

static void order_write(struct pv_engine *e, uint64_t chunk, size_t first, size_t nr)
{
	struct write_out *w = pv_alloc(sizeof *w);

	*w = (struct write_out){ .op.done = write_out_done, .e = e, .chunk = chunk, .first = (unsigned)first, .nr = (unsigned)nr };
	e->chunks[chunk].nr_writes++;
	e->chunks[chunk].swap_used = true;
	list_append(&e->writes_waiting, &w->link);
}

// Nothing can change the chunk now: QEMU has no mapping, and all I/O that knew its pages has ended.
void pv_write_out(struct pv_engine *e, uint64_t chunk)
{
	struct pv_chunk *c = &e->chunks[chunk];
	struct pv_pages *p = pv_pages_of(e, chunk);
	const char *map = where_mapped(e, chunk);
	const uint64_t *out = pv_maps_of(e, chunk)->out;
	uint64_t stale[PV_WORDS], clean[PV_WORDS];

	pv_enter_stage(e, c, PV_WRITING, &e->writing);
	pv_pages_of_home(p, PV_HOME_NONE, stale);
	for (unsigned w = 0; w < PV_WORDS; w++) {
		clean[w] = out[w] & ~stale[w];
		stale[w] &= out[w];
	}
	e->stats.out_clean += bitmap_count(clean, PV_CHUNK_PAGES);
	for (unsigned i = 0; i < PV_CHUNK_PAGES; i++)
		if (bitmap_test(stale, i) && mem_is_zero(map + i * PAGE_SIZE, PAGE_SIZE)) {
			bitmap_clear(stale, i);
			pv_page_set_home(p, i, PV_HOME_ZERO);
			e->stats.out_zero++;
		}
	bridge(c, out, stale);
	pv_pages_of_home(p, PV_HOME_SWAP, clean);
	for (unsigned w = 0; w < PV_WORDS; w++)
		clean[w] &= stale[w];
	pv_pages_set_home(p, clean, PV_HOME_NONE); // a write that fails may destroy what is there
	for (size_t i = 0, n; (n = bitmap_next_run(stale, PV_CHUNK_PAGES, &i)); i += n)
		order_write(e, chunk, i, n);
	pv_write_on(e);
	if (!c->nr_writes)
		pv_enter_stage(e, c, PV_STANDBY, &e->standby);
}
