// SPDX-License-Identifier: GPL-2.0-only
//
// DOC: direct placement
//
// A chunk that arrives before the VM runs, from images or from another host, goes straight to where it will live:
//
//                        +-- while the budget lasts --> memfd         valid, home NONE
//   arriving chunk ------+
//                        +-- the rest ---------------> swap image     home SWAP
//   page of zeros -------------------------------------- nowhere      home ZERO
//
// Nothing is paged in or out. The decision is made once a chunk; what comes again goes where the first copy went, unless it
// has outgrown the budget.
#pragma once
#include <stdint.h>

#include "pvmem/engine.h"
#include "util/loop.h"

struct pv_placer {
	struct loop *loop;
	const struct pv_swap *swap; // may be PV_SWAP_NONE when all fits
	const struct pv_block *blocks;
	size_t nr_blocks;
	struct pv_pages *pages;
	uint64_t ram_left; // pages of RAM that may still be filled
	uint64_t nr_ram, nr_swap; // pages placed
	uint64_t *in_ram, *decided; // a bit a chunk
};

// One chunk on its way to its place. The caller fills in the first part, and owns all of it again in done().
struct pv_placing {
	uint64_t chunk;
	uint64_t present[PV_WORDS]; // the pages that have content; the others of the chunk become empty
	char *packed;               // their content in order, page-aligned
	void (*done)(struct pv_placing *p, int err);
	// The placer's.
	struct pv_placer *placer;
	struct pv_placing_write {
		struct loop_op op;
		struct pv_placing *placing;
		uint32_t len;
	} *writes;
	unsigned nr_writes;
	int err;
};

// ram: bytes that may be placed in memory. What the first parameters point to must outlive the placer. -ENOMEM.
int pv_placer_init(struct pv_placer *pl, struct loop *l, const struct pv_swap *swap, const struct pv_block *blocks, size_t nr_blocks,
		   struct pv_pages *pages, uint64_t nr_chunks, uint64_t ram);
void pv_placer_fini(struct pv_placer *pl);
// Calls p->done(), from within when nothing has to be written.
void pv_place(struct pv_placer *pl, struct pv_placing *p);
