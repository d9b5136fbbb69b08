// SPDX-License-Identifier: GPL-2.0-only
//
// DOC: one harvest, two consumers
//
// QEMU's page table knows what was written since it was write-protected. That is learnt at two moments:
//
//   a chunk was zapped      looked at only: what is mapped again later is clean again
//   an increment begins     taken away, of all chunks at once: what is written from then on belongs to the next increment
//
// and what was learnt goes to two places: home NONE (stale in swap), for page-out, and dirty, for whoever dumps the VM.
//
// A chunk that was saved on its way out may have writes in flight, at whose end its pages have the home SWAP again: they are told
// which of them are not any more what is being written. Only what is mapped can have been written to: what was zapped and not mapped
// again was looked at when it lost its mapping, and the kernel may call it written for ever.
#include <string.h>

#include "pvmem/engine_int.h"

#define SCAN_CHUNKS 64 // in one go

// scanned: what the kernel says of the chunk, to be masked with what is in memory.
static size_t note_written(struct pv_engine *e, uint64_t chunk, const uint64_t scanned[PV_WORDS])
{
	struct pv_pages *p = pv_pages_of(e, chunk);
	uint64_t written[PV_WORDS];

	for (unsigned w = 0; w < PV_WORDS; w++)
		written[w] = scanned[w] & p->valid[w] & (e->chunks[chunk].foreign ? ~0UL : pv_maps_of(e, chunk)->mapped[w]);
	pv_pages_set_dirty(p, written);
	pv_pages_set_home(p, written, PV_HOME_NONE);
	pv_writes_are_old(e, chunk, written);
	return bitmap_count(written, PV_CHUNK_PAGES);
}

// Of nr chunks of one block.
static void scan(const struct pv_engine *e, uint64_t chunk, uint64_t nr, enum mm_scan what, uint64_t *written)
{
	uint64_t len = (nr - 1) * PV_CHUNK_SIZE + pv_chunk_nr_pages(e, chunk + nr - 1) * PAGE_SIZE;

	if (mm_pagemap_scan(e->o.pagemap, pv_chunk_hva(e, chunk), len, what, written))
		memset(written, 0xff, nr * PV_WORDS * sizeof *written);
}

void pv_harvest_zapped(struct pv_engine *e, uint64_t chunk)
{
	uint64_t written[PV_WORDS] = { 0 };

	scan(e, chunk, 1, MM_SCAN_WRITTEN, written);
	note_written(e, chunk, written);
}

static bool may_be_mapped(const struct pv_engine *e, uint64_t chunk)
{
	return e->chunks[chunk].foreign || !bitmap_empty(pv_maps_of(e, chunk)->mapped, PV_CHUNK_PAGES);
}

// How many chunks from this one on may be mapped, in the same block.
static uint64_t run_of(const struct pv_engine *e, uint64_t chunk)
{
	const struct pv_block *b = pv_block_of(e, chunk);
	uint64_t n = 0, end = DIV_ROUND_UP(b->off + b->len, PV_CHUNK_SIZE);

	while (n < SCAN_CHUNKS && chunk + n < end && may_be_mapped(e, chunk + n))
		n++;
	return n;
}

static uint64_t harvest_run(struct pv_engine *e, uint64_t chunk, uint64_t nr)
{
	uint64_t written[SCAN_CHUNKS * PV_WORDS] = { 0 }, found = 0;

	for (uint64_t i = 0; i < nr; i++)
		__atomic_store_n(&pv_pages_of(e, chunk + i)->harvesting, 1, __ATOMIC_SEQ_CST);
	scan(e, chunk, nr, MM_SCAN_WRITTEN_CLEAR, written);
	for (uint64_t i = 0; i < nr; i++) {
		found += note_written(e, chunk + i, written + i * PV_WORDS);
		__atomic_store_n(&pv_pages_of(e, chunk + i)->harvesting, 0, __ATOMIC_RELEASE);
	}
	return found;
}

void pv_harvest_chunk(struct pv_engine *e, uint64_t chunk)
{
	harvest_run(e, chunk, 1);
}

uint64_t pv_engine_harvest(struct pv_engine *e)
{
	uint64_t found = 0;

	for (uint64_t chunk = 0, nr; chunk < e->nr_chunks; chunk += nr ? nr : 1) {
		nr = run_of(e, chunk);
		if (nr)
			found += harvest_run(e, chunk, nr);
	}
	return found;
}
