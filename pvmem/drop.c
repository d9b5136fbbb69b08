// SPDX-License-Identifier: GPL-2.0-only
// Memory of the memfd is given back: what has gone out, what was read in vain, what the guest discards.
#include <errno.h>
#include <fcntl.h>
#include <string.h>

#include "pvmem/engine_int.h"
#include "util/log.h"

void pv_punch_pages(struct pv_engine *e, uint64_t chunk, const uint64_t which[PV_WORDS])
{
	const struct pv_block *b = pv_block_of(e, chunk);

	for (size_t i = 0, n; (n = bitmap_next_run(which, PV_CHUNK_PAGES, &i)); i += n) {
		uint64_t at = chunk * PV_CHUNK_SIZE - b->off + i * PAGE_SIZE;

		if (fallocate(b->memfd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, (off_t)at, (off_t)(n * PAGE_SIZE)) < 0)
			log_err("cannot punch guest RAM: %s", strerror(errno)); // not known to happen
	}
}

void pv_punch_chunk(struct pv_engine *e, uint64_t chunk)
{
	uint64_t all[PV_WORDS] = { 0 };

	bitmap_set_range(all, 0, pv_chunk_nr_pages(e, chunk));
	pv_punch_pages(e, chunk, all);
	e->chunks[chunk].folio = false;
}

// Pages of a folio were punched: what a pin has kept still counts, and others of it are mapped no more (folio.h).
static void folio_was_split(struct pv_engine *e, uint64_t chunk, const uint64_t which[PV_WORDS])
{
	const struct pv_block *b = pv_block_of(e, chunk);
	uint64_t present[PV_WORDS] = { 0 }, *mapped = pv_maps_of(e, chunk)->mapped, gone = 0;

	e->charged += pv_folio_punched(&e->folio, b, chunk * PV_CHUNK_SIZE - b->off, which);
	if (mm_pagemap_scan(e->o.pagemap, pv_chunk_hva(e, chunk), pv_chunk_nr_pages(e, chunk) * PAGE_SIZE, MM_SCAN_PRESENT, present))
		return;
	for (unsigned w = 0; w < PV_WORDS; w++)
		gone |= mapped[w] & ~present[w];
	if (!gone)
		return;
	// After that look: what is written to, and unmapped by QEMU's next punch, in between stays `mapped`.
	pv_harvest_chunk(e, chunk);
	for (unsigned w = 0; w < PV_WORDS; w++)
		mapped[w] &= present[w];
}

void pv_drop_pages(struct pv_engine *e, uint64_t chunk, const uint64_t which[PV_WORDS])
{
	const struct pv_pages *p = pv_pages_of(e, chunk);
	uint64_t missing = pv_chunk_missing(e, chunk);

	pv_pages_set_valid(pv_pages_of(e, chunk), which, false);
	e->missing += pv_chunk_missing(e, chunk) - missing;
	pv_forget_pages(e, chunk, which);
	pv_pages_count_drop(pv_pages_of(e, chunk));
	e->charged -= bitmap_count(which, PV_CHUNK_PAGES);
	if (bitmap_empty(p->valid, PV_CHUNK_PAGES) && !e->chunks[chunk].requests) {
		pv_punch_chunk(e, chunk);
		return;
	}
	pv_punch_pages(e, chunk, which);
	if (e->chunks[chunk].folio)
		folio_was_split(e, chunk, which);
}

static void discard_pages(struct pv_engine *e, uint64_t chunk, const uint64_t gone[PV_WORDS])
{
	uint64_t missing = pv_chunk_missing(e, chunk), here[PV_WORDS];
	const struct pv_chunk *c = &e->chunks[chunk];
	bool to_go = c->out_pages && c->state != PV_ZAPPING;

	for (unsigned page = 0; page < PV_CHUNK_PAGES; page++) {
		if (!bitmap_test(gone, page))
			continue;
		pv_requests_drop_page(&e->chunks[chunk], page);
		pv_snapshot_discard(e, chunk, page);
	}
	pv_pages_set_dirty(pv_pages_of(e, chunk), gone);
	pv_pages_set_home(pv_pages_of(e, chunk), gone, PV_HOME_ZERO);
	e->missing += pv_chunk_missing(e, chunk) - missing;
	for (unsigned w = 0; w < PV_WORDS; w++)
		here[w] = gone[w] & pv_pages_of(e, chunk)->valid[w];
	if (!bitmap_empty(here, PV_CHUNK_PAGES))
		pv_drop_pages(e, chunk, here);
	e->stats.discarded += bitmap_count(gone, PV_CHUNK_PAGES);
	if (to_go && !c->out_pages)
		pv_rescue(e, chunk); // nothing of it has to go any more
	pv_chunk_settle(e, chunk);
}

void pv_removed(struct pv_engine *e, uint64_t off, uint64_t len)
{
	if (pv_tables_removed(e, off, len))
		return;
	for (uint64_t at = off, next; at < off + len; at = next) {
		uint64_t chunk = at / PV_CHUNK_SIZE, start = chunk * PV_CHUNK_SIZE, gone[PV_WORDS] = { 0 };
		unsigned first = (unsigned)((at - start) / PAGE_SIZE), end;

		next = start + PV_CHUNK_SIZE < off + len ? start + PV_CHUNK_SIZE : off + len;
		end = (unsigned)((next - start) / PAGE_SIZE);
		if (e->chunks[chunk].zap_event && next - at == len && first == 0 && end == pv_chunk_nr_pages(e, chunk)) {
			// Ours: the zapper takes a chunk only where it is one mapping, so its event has this range. Should
			// the guest discard just this range just now, then there will be a second event.
			e->chunks[chunk].zap_event = false;
			continue;
		}
		bitmap_set_range(gone, first, end - first);
		discard_pages(e, chunk, gone);
	}
}
