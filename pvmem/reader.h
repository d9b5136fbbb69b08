// SPDX-License-Identifier: GPL-2.0-only
// Guest RAM of a VM in private virtual memory, read by another process than its pager, which goes on paging: each page where it
// lies, without a page-in.
//
// DOC: reading beside the pager
//
// The page table is shared memory. A chunk is read as the table says, then the table is looked at again:
//
//	a valid page    from the memfd. If the chunk's `drops` has changed meanwhile it may have been punched: again
//	swap            from the swap image. If that has not the page any more it may be half overwritten: again
//	source          by the caller
//	zero            is zero
//
// What the guest writes meanwhile may be seen or not, in whole or in part: it is in `dirty` at the next harvest. So an increment
// is made in this order: pv_engine_harvest(), take the dirty bits of all chunks, drain QEMU's block I/O, read.
#pragma once
#include <stddef.h>
#include <stdint.h>

#include "pvmem/engine.h"
#include "pvmem/snapshot.h"

struct pv_reader;

struct pv_reader_opts {
	struct pv_pages *pages;	      // the VM's own
	const struct pv_block *blocks; // map is not needed
	size_t nr_blocks;
	int swap_fd;		      // -1: it has none; opened with O_DIRECT or not
	void *ctx;
	// Reads pages of the home SOURCE: page i of the chunk to dest + i * 4096. NULL: there are none.
	int (*source_read)(void *ctx, uint64_t chunk, const uint64_t pages[PV_WORDS], char *dest);
	// Reads guest RAM as it was at the instant of a snapshot that has been TAKEN (pvmem/snapshot.h); NULL: as it is. What was read
	// is good if the phase is TAKEN still when all is read.
	struct pv_snapshot *snapshot;
	int shadow_fd;
};

// What o points to, but the blocks themselves, must outlive the reader. -ENOMEM.
int pv_reader_new(const struct pv_reader_opts *o, struct pv_reader **r);
void pv_reader_free(struct pv_reader *r);

// The pages of a chunk that may hold something other than zeros.
void pv_reader_present(const struct pv_reader *r, uint64_t chunk, uint64_t map[PV_WORDS]);
// Reads the wanted pages: page i to dest + i * 4096, zero pages are cleared. Blocks on disks. dest: page-aligned. Several threads
// may read at once. -EIO, -EBADMSG, ...; -EAGAIN: it changed too often while it was read, for a tenth of a second or more. Logged.
int pv_reader_read(struct pv_reader *r, uint64_t chunk, const uint64_t want[PV_WORDS], char *dest);

// Of a snapshot: nothing of the chunk is wanted any more; who waits for it goes on.
void pv_reader_done(struct pv_reader *r, uint64_t chunk);
// A chunk that is not done, and that the guest waits for: to be read before all others. False: there is none.
bool pv_reader_wanted(struct pv_reader *r, uint64_t *chunk);

// The pages written since they were taken before, of what pv_engine_harvest() has found so far: taken out of the table.
void pv_reader_take_dirty(struct pv_reader *r, uint64_t chunk, uint64_t map[PV_WORDS]);
