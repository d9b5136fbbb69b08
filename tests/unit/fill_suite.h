// SPDX-License-Identifier: GPL-2.0-only
// What the programs that test filling have in common: a VM all of whose pages are with the source, and what becomes of them.
#pragma once
#include "engine_suite.h"

#define BUDGET (16 * MiB)
#define TARGET (4 * MiB)  // of free memory, at this budget
#define RESERVE (1 * MiB)
#define NR_CHUNKS 40
#define NR_PAGES (NR_CHUNKS * 256)

static inline void start_with(struct rig *r, uint64_t budget)
{
	rig_init(r, NR_PAGES, 0, budget);
	rig_put(r, 0, NR_PAGES, PV_HOME_SOURCE);
	rig_start(r);
	pv_engine_run(r->e);
}

// Nothing is read from it any more: the rig would notice.
static inline void expect_source_gone(struct rig *r)
{
	struct pv_stats s;

	if (!rig_until(r, r->source_gone, RIG_PATIENCE_MS))
		ck_abort_msg("%lu pages are still with the source, trouble: %s", rig_stats(r).source,
			     rig_stats(r).trouble ? rig_stats(r).trouble : "none");
	s = rig_stats(r);
	ck_assert_uint_eq(s.source + s.remote + s.filling, 0);
	for (size_t i = 0; i < r->nr_chunks; i++)
		for (unsigned page = 0; page < PV_CHUNK_PAGES; page++)
			ck_assert_int_ne(pv_page_home(&r->pages[i], page), PV_HOME_SOURCE);
}

// What page-out there is to be has been.
static inline void settle(struct rig *r)
{
	rig_pass(r, 50);
	ck_assert(rig_until(r, !rig_stats(r).page_out_under_way, RIG_PATIENCE_MS));
}

static inline void fill(struct rig *r)
{
	pv_fill_begin(r->e);
	expect_source_gone(r);
}

static inline void write_and_verify_all(struct rig *r)
{
	rig_do(r, 0, GUEST_WRITE, 0, r->g->nr_pages);
	verify_all(r);
}

static inline struct pv_source_read *first_read(const struct rig *r)
{
	return list_first(&r->source_queue, struct pv_source_read, link);
}

// The read that waits longest is answered, and those that follow it begin. Which chunk was it?
static inline uint64_t answer_one(struct rig *r)
{
	struct pv_source_read *rd = first_read(r);
	uint64_t chunk = rd->chunk;

	list_remove(&rd->link);
	rig_source_answer(r, rd);
	rig_pass(r, 20);
	return chunk;
}

