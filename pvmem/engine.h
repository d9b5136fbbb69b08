// SPDX-License-Identifier: GPL-2.0-only
//
// DOC: the paging engine
//
//  guest touches -> fault -> request -> read (swap | source | zero) -> CONTINUE, wake              page-in   page_in.c
//  few pages free -> victim -> zap -> drain -> write stale pages -> standby -> punch               page-out  page_out.c
//                              ^ a fault at any moment before the punch: CONTINUE, and the victim is saved
//  source -> memory, else swap, in the background                                                      fill.c, fill_copy.c
//  written pages -> dirty bits, for increments of a dump                                               harvest.c
//  page tables of QEMU's, of what is out for long -> given back                                        tables.c
//
// One thread, no locks: every step is a completion on the loop. A chunk on its way out stays readable in the memfd until
// the punch; standby chunks are therefore a cache of victims, and the pages free plus those in standby are what keeps a
// fault from ever waiting for a drain or a write.
//
//    |<------------------------------ budget ------------------------------>|
//    |  resident, on the chunk queues   | on the way out | standby |  free  |
//                                       |<------ target ------------------->|   page-out starts below
//                                                                  |< low >|    standby is punched below
//                                                                  |<rsv>|      page-ins of more than the page stop
//
// Overdraft. When no page is free a fault waits until the page-outs under way have made one free. One of their steps may
// depend on the fault itself: a drain ends when the block I/O in flight ends, and that may need pages, hundreds at once. So
// while a drain is under way, a fault of a QEMU thread that is no vCPU is served whatever the budget says. A vCPU's waits
// until the drain takes unusually long, since it may hold QEMU's big lock; then it is served, too, but the more slowly the
// larger the overdraft is.
#pragma once
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "pvmem/adapt.h"
#include "pvmem/chunk.h"
#include "pvmem/queues.h"
#include "pvmem/swap.h"
#include "pvmem/tuning.h"

struct loop;
struct mm_pagemap;
struct mm_zapper;
struct pv_engine;
struct pv_warm_chunk;

// A block of guest RAM.
struct pv_block {
	uint64_t off; // in the array of all guest RAM, a multiple of PV_CHUNK_SIZE
	uint64_t len; // a multiple of PAGE_SIZE
	uint64_t hva; // in QEMU
	int memfd;
	char *map; // the whole memfd in our memory, MADV_NOHUGEPAGE
	char *huge; // the same once more, with folios of 1 MiB for chunks that are brought in whole; or NULL
};

// Pages to be read from the page source; owned by the engine.
struct pv_source_read {
	struct list link; // whoever reads it may queue it
	uint64_t chunk;
	uint64_t pages[PV_WORDS];
	char *dest; // page i of the chunk belongs at dest + i * PAGE_SIZE; no other page may be touched
	bool unasked;		 // nobody waits for it
	uint64_t zero[PV_WORDS]; // set by who reads: of these pages, those that are all zero, and were not written to dest; none as yet
	void (*done)(struct pv_source_read *rd, int err, const char *what); // the engine's; others call pv_source_done()
};

// What upper floors do for the engine. ctx is theirs.
struct pv_ops {
	void *ctx;
	// Begin to complete all of QEMU's block I/O that has begun by now, and call pv_drained() when that is so. Never blocks.
	void (*drain)(void *ctx);
	// Begin to read, and call pv_source_done(): not from within. Unused where no page has the home SOURCE.
	void (*source_read)(void *ctx, struct pv_source_read *rd);
	// No page has the home SOURCE any more, nor ever will, and no source_read is under way: the source may go. Called once, in
	// pv_tick() or pv_balance(), also where there never was such a page.
	void (*source_done)(void *ctx);
};

struct pv_opts {
	struct loop *loop;
	int uffd;
	struct mm_zapper *zapper;
	bool zap_own; // the zapper works only on pages that we have not mapped ourselves (MM_ZAP_PAGEOUT)
	struct mm_pagemap *pagemap; // of QEMU
	const struct pv_swap *swap;
	const struct pv_block *blocks;
	size_t nr_blocks;
	struct pv_pages *pages; // one a chunk, of all blocks
	uint64_t budget;        // bytes
	// The source gives each page once: what has come has no home then, as what the guest has written. Else a clean page is dropped, and
	// read there again.
	bool source_once;
	// The source has two sides: of each chunk the pages that it reads from images; the others are with another host. No read is for
	// pages of both, so that who waits for one side waits for that only. NULL: all pages are alike.
	const uint64_t (*in_images)[PV_WORDS];
	const uint8_t *hotness; // a byte a chunk, 255: the first to be filled; NULL: all are alike
	const uint8_t *ages;    // a byte a chunk, as pv_engine_ages(): where those that are in memory begin on the queues; NULL: all are alike
	// To be brought into memory in the background: sorted, the hottest first, then by address; each chunk once, and all there are (warm.h).
	const struct pv_warm_chunk *warm;
	size_t nr_warm;
	const struct pv_ops *ops;
	struct pv_tuning tuning; // of queue_bits 0: the default
};

#define PV_LATENCY_BUCKETS 24 // bucket i counts faults of less than 2^i microseconds

struct pv_stats {
	// Pages, now.
	uint64_t budget, charged, resident, idle, standby, page_out_under_way, reserve;
	uint64_t overdraft, overdraft_max; // charged beyond the budget, for the sake of I/O in flight
	uint64_t shadow; // of a snapshot, beyond the budget too
	uint64_t swapped, remote, empty;
	uint64_t source; // whose home is the source: the remote ones, and those in memory that would be read from there again
	bool filling;
	// Since the pager's start.
	uint64_t faults, minor_faults, vcpu_faults;
	uint64_t faults_on[PV_HOME_SOURCE + 1]; // by the page's home; [PV_HOME_NONE]: in memory
	uint64_t in_zero, in_swap, in_source;    // pages
	uint64_t out_written, out_clean, out_zero; // pages
	uint64_t chunks_out, pages_kept; // kept: touched on their way out
	uint64_t windows[PV_NR_WINDOWS]; // page-ins that brought so much
	uint64_t sampled, sampled_used;  // pages that came unasked, were left unmapped to see, and have left; of these, those touched
	uint64_t in_ahead;               // pages brought ahead of a stream
	uint64_t tables_given_back;      // page tables of QEMU's, of 4 KiB each
	enum pv_access_kind access;      // the provider of access information
	uint64_t drains, drain_ns, drain_ns_max;
	uint64_t filled_memory, filled_swap; // pages
	uint64_t discarded; // pages that the guest gave back
	uint64_t faults_delayed;
	uint64_t latency[PV_LATENCY_BUCKETS], latency_ns; // of page-ins; all together
	// What waits: reads under way and those among them that have failed and are tried again, faults that wait for memory.
	unsigned reads, reads_waiting, faults_waiting, writes_failed;
	uint64_t read_ns, drain_now_ns; // for how long: the oldest read under way, the drain under way; 0: there is none
	const char *trouble;            // what went wrong last, or NULL when nothing waits
	int trouble_err;                // -errno, or 0
	uint64_t trouble_ns;            // for how long
	size_t queue[PV_QUEUE_BUCKETS];
	unsigned nr_queue_buckets; // of these
};

// The smallest budget that works, for so much guest RAM.
uint64_t pv_min_budget(uint64_t ram_len);
// How much of a budget direct placement may fill, so that the VM begins to run without a page-out.
uint64_t pv_placement_budget(uint64_t budget);

// Chunks that have valid pages start on the queues. All that opts points to, but opts itself, must outlive the engine.
// Page-out is held until pv_engine_run(): before that nobody can drain. -EINVAL, -ENOMEM.
int pv_engine_new(const struct pv_opts *opts, struct pv_engine **e);
void pv_engine_run(struct pv_engine *e);
// Another budget: at once if it is larger (at most all of guest RAM), else as soon as pages have gone; faults are served
// meanwhile. Less than all of guest RAM needs a swap image. -EINVAL: less than pv_min_budget().
int pv_engine_set_budget(struct pv_engine *e, uint64_t bytes);
// Another method, another provider of access information; the rest of it is for who starts.
void pv_engine_tune(struct pv_engine *e, const struct pv_tuning *t);
// No I/O of the engine may be in flight: the loop has ended.
void pv_engine_free(struct pv_engine *e);

// QEMU's address to offset in the array of guest RAM. False: not guest RAM.
bool pv_engine_offset(const struct pv_engine *e, uint64_t hva, uint64_t *off);

// A thread of QEMU waits for the page at off.
void pv_fault(struct pv_engine *e, uint64_t off, bool minor, bool vcpu);
// A REMOVE event: len bytes from off were discarded, or zapped by the engine itself, which it knows to tell apart.
void pv_removed(struct pv_engine *e, uint64_t off, uint64_t len);
// The answer to pv_ops.drain. err: 0, or why it could not be done; chunks that waited for it stay in memory.
void pv_drained(struct pv_engine *e, int err);
// The answer to pv_ops.source_read. err: 0, or why not; the engine asks again after a while, and the guest waits.
// what: names the trouble for stat, static.
void pv_source_done(struct pv_engine *e, struct pv_source_read *rd, int err, const char *what);
// Once in a round of the loop, after the uffd was read dry: keeps pages free. True: there is work to be done without
// waiting, so do another round now.
bool pv_balance(struct pv_engine *e);
// A period of the chunk queues ends.
void pv_tick(struct pv_engine *e);
// Begins to bring here, in the background, what the page source has yet, until pv_ops.source_done (fill.c). Harmless if it
// has begun, or is done.
void pv_fill_begin(struct pv_engine *e);

// Of all pages that were written, or discarded, before the call, and not harvested since: sets dirty in the table. A page may get
// it that was not changed. Never fails: what the kernel cannot tell counts as written. Returns how many written pages it has found.
// It takes 1-2 ms for each GiB that is in memory, faults wait so long.
uint64_t pv_engine_harvest(struct pv_engine *e);

// How recently each chunk was used, a byte a chunk: 0 nothing of it is in memory, else 1 (long ago) to 255 (just now), by its queue.
void pv_engine_ages(const struct pv_engine *e, uint8_t *ages);

// Pages that only the source has. O(1).
uint64_t pv_engine_missing(const struct pv_engine *e);
// It looks at all chunks.
void pv_engine_stats(const struct pv_engine *e, struct pv_stats *s);
