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
//   page that comes later ------------------------------ nowhere      home SOURCE
//
// Nothing is paged in or out. The decision is made once a chunk: by a plan, the hottest chunks to memory, or without one as
// they come, until memory is full. A page that comes again goes where its last copy is:
//
//   it is in memory              memory
//   it is wanted there (to_ram)  memory, from a reserve kept for that; what the swap image has of it is stale
//   it is in swap                swap
//   it is empty, or comes later  where its chunk goes. If that is memory and it has outgrown the budget: what does not fit, to swap
//
// Room. Each page of the budget is at every moment either filled, or promised to a chunk by the plan, or in the reserve, or
// free for all. What a chunk does not need of its promise, since it has turned out to be zero, becomes free: at once if it is told, and
// all of it when everything has come once.
//
// Several threads may place at once, each with a placer and a loop of its own, but never the same chunk.
#pragma once
#include <stdint.h>

#include "pvmem/engine.h"
#include "util/loop.h"

#define PV_HOTNESS_BYTES 3

// Where what appears in a chunk goes. UNDECIDED: to memory, if there is room for all that comes of it first.
enum pv_place { PV_PLACE_UNDECIDED, PV_PLACE_RAM, PV_PLACE_SWAP };

// Shared by all threads that place.
struct pv_placement {
	const struct pv_swap *swap; // may be PV_SWAP_NONE when all fits
	const struct pv_block *blocks;
	size_t nr_blocks;
	struct pv_pages *pages;
	struct pv_chunk_place {
		uint16_t promised; // pages of memory that are kept for it; atomic
		uint8_t place;     // enum pv_place
	} *chunks;
	uint64_t nr_chunks;
	uint64_t ram;              // pages of memory that may be filled, all in all
	uint64_t ram_left;         // of these, neither filled nor promised nor in the reserve; atomic
	uint64_t reserve_left;     // pages of memory for to_ram only; atomic
	uint64_t nr_ram, nr_swap;  // pages placed, those that came again too; atomic
};

// One a thread: what it places with.
struct pv_placer {
	struct pv_placement *placement;
	struct loop *loop; // its own, for writes to the swap image
};

// Pages of a chunk on their way to their place. The caller fills in the first part, and owns all of it again in done().
// No two placings of a chunk may be under way: the caller waits for done().
struct pv_placing {
	uint64_t chunk;
	uint64_t touched[PV_WORDS]; // the pages that this is about; all others of the chunk stay as they are
	uint64_t present[PV_WORDS]; // of these, those that have content; the others become empty
	uint64_t later[PV_WORDS];   // none of these: pages that come when the VM runs; what was placed of them is old, and is given up
	bool to_ram;                // those that have content are wanted in memory
	char *packed;               // their content in order, page-aligned
	void (*done)(struct pv_placing *p, int err);
	// The placer's.
	struct pv_placer *placer;
	uint64_t to_swap[PV_WORDS];
	struct pv_placing_write {
		struct loop_op op;
		struct pv_placing *placing;
		uint32_t len;
	} *writes;
	unsigned nr_writes;
	int err;
};

// ram: bytes that may be placed in memory. All pages must be empty (home ZERO). What the parameters point to must outlive
// the placement. -ENOMEM.
int pv_placement_init(struct pv_placement *pm, const struct pv_swap *swap, const struct pv_block *blocks, size_t nr_blocks,
		      struct pv_pages *pages, uint64_t nr_chunks, uint64_t ram);
void pv_placement_fini(struct pv_placement *pm); // accepts a zeroed one
// Decides for all chunks, before anything is placed. hotness: PV_HOTNESS_BYTES a chunk: how hot it is (255: most), and how many pages of it have
// content (little-endian). Of equally hot ones the first go to memory. A chunk without pages stays undecided. When all of guest RAM
// fits there is nothing to decide. -EBADMSG: of another number of chunks, or more pages than a chunk has. Silent.
int pv_placement_plan(struct pv_placement *pm, const uint8_t *hotness, uint64_t nr_chunks);
// Everything has come once: what promises are left are free for all. Others may be placing.
void pv_placement_settle(struct pv_placement *pm);
// How many pages the block has of this chunk, which one of its blocks has.
unsigned pv_placement_chunk_pages(const struct pv_placement *pm, uint64_t chunk);

// Calls p->done(), from within when nothing has to be written to the swap image. Blocks for as long as copying to memory takes.
void pv_place(struct pv_placer *pl, struct pv_placing *p);
