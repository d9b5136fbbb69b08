// SPDX-License-Identifier: GPL-2.0-only
//
// DOC: chunks and pages
//
// Guest RAM is one array of chunks (256 pages, 1 MiB): the blocks of the VM one after the other, each beginning on a chunk.
// A page of the array at offset o lives at offset o of the swap image.
//
// A page has two properties. `valid`: the memfd holds it, and no copy is newer. `home`: where, beside the memfd, its
// content stands; PV_HOME_NONE: nowhere, the memfd has the only copy.
//
//              home  NONE              ZERO          SWAP           SOURCE
//     valid          stale             clean zero    clean          clean          resident
//     not valid      (never)           empty         swapped        remote
//
// A page-in makes a page valid and keeps its home, unless that is a source that gives it once: NONE then; a harvest (pages found
// written) makes homes NONE; a write-out makes NONE into SWAP; a fill ends with SOURCE; what a source says is zero becomes ZERO;
// only a page that has a home may be dropped. Empty, swapped and remote are thus never confused with each other by a crash or an
// error: every step adds a copy before one is given up.
//
// DOC: the page table outlives its pager
//
// It is shared memory of a file in the run directory, and a pager may be killed between any two instructions. What makes
// every state in between a good one (pvmem/recover.h puts the rest right):
//
//   - A home is a bit of its own, the first of zero, swap, source that is set is meant, NONE is none of them. The new one is
//     set before the old ones are cleared, so no step passes by a home that the page never had.
//   - A home is set when the copy there is complete: swap after its write has ended.
//   - valid is set when the page is whole in the memfd, before it is mapped; it is cleared before the page is punched. So a
//     page of the memfd that is not valid is garbage, and a valid one that is a hole was discarded by the guest.
//   - A harvest for page-out does not clear the kernel's knowledge of what was written: the next pager harvests again. One for
//     an increment (harvest.c) does, while harvesting says so: after a kill in it, all valid pages of the chunk count as written.
//   - zapping is set before a zap is ordered: the REMOVE event that it raises is no discard, whoever reads it.
//     It says which range that event has: the chunk's, or that of the page table of QEMU's that begins in the chunk (tables.h).
//   - dirty is set before whatever else is recorded of a change of content.
//
// DOC: who else reads it
//
// A dump, in another process, reads pages where they lie (pvmem/reader.h), and takes dirty bits. It changes nothing but those.
// Pages leave the memfd in this order: valid is cleared, drops goes up, they are punched. Who finds a page valid, reads it, and
// finds drops as it was before it looked at valid, has read the page.
#pragma once
#include <stdbool.h>
#include <stdint.h>

#include "pvmem/adapt.h"
#include "util/bitmap.h"
#include "util/list.h"
#include "util/size.h"

#define PV_CHUNK_PAGES 256
#define PV_CHUNK_SIZE (PV_CHUNK_PAGES * PAGE_SIZE)
#define PV_CHUNK_SHIFT 20
#define PV_WORDS BITMAP_WORDS(PV_CHUNK_PAGES)

enum pv_home { PV_HOME_NONE, PV_HOME_ZERO, PV_HOME_SWAP, PV_HOME_SOURCE };

enum { PV_ZAPPING_CHUNK = 1, PV_ZAPPING_TABLE };

// What must outlive a pager, a chunk. Shared memory; nothing in it is a pointer.
struct pv_pages {
	uint64_t valid[PV_WORDS];
	uint64_t zero[PV_WORDS], swap[PV_WORDS], source[PV_WORDS]; // homes
	uint64_t zapping; // what a zap is under way of, PV_ZAPPING_*; 0: none is
	uint64_t dirty[PV_WORDS]; // changed since somebody took this bit; atomic
	uint64_t drops;           // how often pages were punched; goes up at a take-over, too
	uint64_t harvesting;      // 1: the kernel's knowledge of what was written is being taken away
};

// Where a chunk is on its way out. What is read into it is counted beside: a chunk with I/O in flight is on no queue.
//
//              +------------------- all that was to go was touched: it stays, none of it is read -------------------+
//              v                 |                |                 |               |              |
//   ABSENT <-> RESIDENT ----> ZAPPING --------> IDLE ----------> DRAINING ------> WRITING -----> STANDBY --punch--> ABSENT, or
//                victim        QEMU's mapping    unmapped, to     DMA that began   stale pages    nothing of it is    RESIDENT with
//                              is removed        see who comes    before ends      to swap        only in memory      what was touched
//
// From IDLE on it is pages that are on their way, pv_maps.out: one that is touched is taken back, and mapped.
//
// Beside that, ABSENT <-> STRIPPING: a page table of QEMU's that it lies in is being given back (tables.h). Nothing is read into the
// chunk, and nothing of it mapped, until that is done.
enum pv_chunk_state { PV_ABSENT, PV_RESIDENT, PV_ZAPPING, PV_IDLE, PV_DRAINING, PV_WRITING, PV_STANDBY, PV_STRIPPING, PV_NR_CHUNK_STATES };

struct pv_request;

// What a pager knows of a chunk; made again by the next one.
struct pv_chunk {
	struct list link;            // of its queue, or of its page-out stage
	struct pv_chunk *ahead[2];   // of the chunk queues: those a few places behind it, or anywhere by now; or NULL
	struct pv_request *requests; // page-ins in flight
	uint64_t queue : 12;         // an index of the chunk queues, which it had
	uint64_t queue_period : 52;  // in that period
	uint16_t nr_writes;          // write-outs in flight; one more while it is filled into the swap image
	uint16_t out_pages;          // how many pv_maps.out has
	uint8_t state;               // enum pv_chunk_state
	uint8_t window;              // enum pv_window: with which something of it was brought in last
	struct pv_history history;   // of these windows
	bool queued : 1;
	bool once : 1;               // on the list of what is used once, instead of a queue
	bool scanned : 1;            // it was on that list before it was unmapped, and is no further than IDLE
	bool streamed : 1;           // what was brought in last came with a stream
	bool zap_event : 1;          // our own zap's REMOVE event has yet to come
	bool foreign : 1;            // pages may be mapped that pv_maps does not know of: since before this pager
	bool wake : 1;               // touched while being zapped
	bool write_failed : 1;       // of the write-outs in flight, one
	bool swap_used : 1;          // something was written to its part of the swap image
	bool untouched : 1;          // since it was taken off its queue by who goes unnoticed: it goes back to where it was
	bool folio : 1;              // some of it may be in large folios
	bool zap_only : 1;           // it is zapped to be unmapped, and stays in memory
} __attribute__((aligned(64))); // a line of the cache: whoever comes to a chunk waits for one

// The pages of a chunk, beside struct pv_pages and for this pager only.
struct pv_maps {
	uint64_t mapped[PV_WORDS]; // into QEMU by us, since the chunk was zapped last; the host may have unmapped them
	uint64_t out[PV_WORDS];    // on their way out: valid, and not mapped
	uint64_t sample[PV_WORDS]; // brought in unasked, and left unmapped to see whether they are used
};

_Static_assert(sizeof(struct pv_chunk) == 64, "a chunk of 24 TB of RAM is one of 25 million");

const char *pv_chunk_state_name(enum pv_chunk_state s);
bool pv_chunk_may_become(enum pv_chunk_state from, enum pv_chunk_state to);
// The only way to change a state; a step that pv_chunk_may_become() does not allow is a bug, and aborts.
void pv_chunk_set_state(struct pv_chunk *c, enum pv_chunk_state to);

enum pv_home pv_page_home(const struct pv_pages *p, unsigned page);
void pv_page_set_home(struct pv_pages *p, unsigned page, enum pv_home home);
// map gets a bit for each page of that home.
void pv_pages_of_home(const struct pv_pages *p, enum pv_home home, uint64_t map[PV_WORDS]);
void pv_pages_set_home(struct pv_pages *p, const uint64_t which[PV_WORDS], enum pv_home home);
// What is done to the memfd before the call is not moved behind it, nor the reverse.
void pv_pages_set_valid(struct pv_pages *p, const uint64_t which[PV_WORDS], bool valid);

// The content of these pages may have changed. Atomic: others take the bits meanwhile.
void pv_pages_set_dirty(struct pv_pages *p, const uint64_t which[PV_WORDS]);
// Pages that are not valid any more are about to be punched.
void pv_pages_count_drop(struct pv_pages *p);

// All that must be so of a chunk by itself. False: memory corruption or a bug.
bool pv_pages_sane(const struct pv_pages *p);
