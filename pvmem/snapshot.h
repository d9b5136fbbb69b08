// SPDX-License-Identifier: GPL-2.0-only
// Guest RAM of a VM in private virtual memory as it was at one instant, while the VM runs on.
//
// DOC: the instant, and what is saved
//
// What QEMU has not mapped it cannot change, and every mapping is made by the pager. So at the instant nothing is mapped, and from
// then on a page is copied into a shadow before it is mapped, unless a reader has it already.
//
//	PREPARING  the VM runs; chunk after chunk is unmapped, what is touched is mapped again, a few pages at a time; until few are left
//	READY      whoever asked stops the VM, and drains its block I/O
//	CATCHING   the few are unmapped, until nothing is mapped
//	TAKEN      this is the instant. The VM runs on; the reader reads (pvmem/reader.h):
//
//	    touched, or page-in ended --> saved? done? --no--> zero: nothing is copied
//	                                      |                else --> shadow --> saved --> mapped
//	                                      +--yes--> mapped
//
//	    reader: saved --> shadow, else where it lies, and once more if it was saved meanwhile --> done, its shadow is given back
//
//	FAILED     the pager has ended, memory was given back that was not saved yet (a balloon, free page reporting), the shadow could
//	           not be written, or the reader did not read what the guest waits for. The VM goes on, what was read is worth nothing
//	ENDED      who asked has ended it, or has ended
//
// The shadow has a limit, beyond the budget. When it is full, who touches a page that is not saved waits for the reader,
// to whom its chunk is `wanted`.
//
// A page that is given back was saved if something other than zeros was (`kept`), or it was known to be zero. QEMU punches before it
// tells, so zeros found in between say nothing: then the snapshot fails.
#pragma once
#include <stdint.h>

#include "pvmem/chunk.h"

struct pv_engine;

enum pv_snapshot_phase { PV_SNAP_NONE, PV_SNAP_PREPARING, PV_SNAP_READY, PV_SNAP_CATCHING, PV_SNAP_TAKEN, PV_SNAP_FAILED, PV_SNAP_ENDED };

// Shared memory of pager and reader, all of it zeros to begin with. Bits are changed atomically.
struct pv_snapshot_chunk {
	uint64_t saved[PV_WORDS]; // by the pager: where the page lies it may have changed since; it is in the shadow, or was zero
	uint64_t kept[PV_WORDS];  // by both: something other than zeros is in the shadow, or was read
	uint64_t done;		  // by the reader: it has all that it wants of the chunk
	uint64_t wanted;	  // by the pager: somebody waits for the chunk to be done
};

struct pv_snapshot {
	uint64_t phase; // enum pv_snapshot_phase; set by the pager
	uint64_t wants; // goes up with each chunk that is wanted
	uint64_t shadow; // pages in it, for who is interested
	struct pv_snapshot_chunk chunk[];
};

size_t pv_snapshot_size(uint64_t nr_chunks);
enum pv_snapshot_phase pv_snapshot_phase(const struct pv_snapshot *s);
void pv_snapshot_set_phase(struct pv_snapshot *s, enum pv_snapshot_phase phase);

// The pager's side. s must stay mapped until pv_snapshot_end(). shadow_max: bytes. *shadow_fd: a memfd where the page at offset o of
// guest RAM is at offset o; the engine's. -EBUSY: there is one already; or -errno.
int pv_snapshot_begin(struct pv_engine *e, struct pv_snapshot *s, uint64_t shadow_max, int *shadow_fd);
// The VM is stopped and drained. From READY on; harmless in other phases. TAKEN, or FAILED, comes soon.
void pv_snapshot_instant(struct pv_engine *e);
// Harmless if there is none.
void pv_snapshot_end(struct pv_engine *e);
