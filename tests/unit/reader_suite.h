// SPDX-License-Identifier: GPL-2.0-only
// What the programs that test reading beside the engine have in common.
#pragma once
#include "engine_suite.h"
#include "pvmem/reader.h"

#define BUDGET (16 * MiB)
#define PAGES (24 * 256 + 12)
#define MORE_PAGES (16 * 256)

static inline int read_source(void *ctx, uint64_t chunk, const uint64_t pages[PV_WORDS], char *dest)
{
	const struct rig *r = ctx;

	for (size_t i = 0; i < PV_CHUNK_PAGES; i++)
		if (bitmap_test(pages, i))
			guest_fill(dest + i * PAGE_SIZE, r->source_seed[chunk * PV_CHUNK_PAGES + i]);
	return 0;
}

static inline char *new_buffer(size_t pages)
{
	char *p = aligned_alloc(PAGE_SIZE, pages * PAGE_SIZE);

	ck_assert_ptr_nonnull(p);
	memset(p, 0xa5, pages * PAGE_SIZE);
	return p;
}

static inline bool page_is(const char *page, uint64_t seed)
{
	const uint64_t *w = (const uint64_t *)page;

	for (size_t i = 0; i < WORDS; i++)
		if (w[i] != guest_word(seed, i))
			return false;
	return true;
}

// Pages of all homes, in two blocks of which one ends within a chunk.
static inline void init_mixed(struct rig *r)
{
	size_t quarter;

	rig_init(r, PAGES, MORE_PAGES, BUDGET);
	r->g->zeros = false;
	quarter = r->g->nr_pages / 4;
	rig_put(r, 0, 2000, PV_HOME_NONE);
	rig_put(r, quarter, quarter, PV_HOME_SWAP);
	rig_put(r, 2 * quarter + 100, quarter - 200, PV_HOME_SOURCE);
	r->vcpu[0] = r->vcpu[1] = true;
}

static inline void begin_work(struct rig *r, bool dma)
{
	for (size_t i = 0; i < GUEST_WORKERS; i++)
		rig_order(r, i, dma && i == 3 ? GUEST_DMA : GUEST_RANDOM, 0, 0);
}

static inline void end_work(struct rig *r)
{
	r->g->stop = true;
	rig_finish(r);
	r->g->stop = false;
}
