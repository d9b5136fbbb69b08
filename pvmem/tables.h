// SPDX-License-Identifier: GPL-2.0-only
//
// DOC: page tables of what is wholly out are given back
//
// A page table of QEMU's maps 2 MiB of its address space, a table for short, and lies in two or three chunks. When nothing of them is in
// memory any more, the table has only the marks of what was not written. They say nothing about absent pages, but keep the table
// alive: 4 KiB for 2 MiB, which is 48 GB for 24 TB.
//
//   chunks ABSENT for some periods --> STRIPPING: marks off, one zap of the 2 MiB --> ABSENT, no table
//                                       ^ a touch waits, and is then a fault as any other
//
// The kernel frees the table in that zap (from Linux 6.14 on), if there is nothing else in it. Nothing may be mapped there meanwhile: a
// page that loses its table is not known to have been written, and what is not known to be written is dropped. So these chunks are in a
// state of their own, in which nothing is read into them; and pages are mapped as ever afterwards, marked as unwritten one by one. A
// page beside them without a mark, which the kernel calls written, is not mapped, and that is looked at first (harvest.c).
//
// It costs as much as the page-out of a quarter of a chunk. So what has just gone is left alone: a guest that pages much would need
// the table again soon. A table is looked at when something of it has gone, and nothing more has gone in a whole round after that.
// All is bounded, by period and by step: a search goes over two bitmaps, of a bit a table.
//
// A pager that takes over knows of no table: those of what is out by then are kept until something of it has been in memory again.
#pragma once
#include <stdbool.h>
#include <stdint.h>

#include "util/size.h"

struct pv_engine;

#define PV_TABLE_SIZE (2 * MiB)
#define PV_TABLES_BUSY 8 // being given back at a time

struct pv_tables {
	uint64_t *wanted, *fresh; // a bit a table: something of it has gone, and is yet to be looked at; since the last look
	uint64_t nr;              // 0: page tables are not given back
	uint64_t next;            // to be looked at in this round; nr: the round has ended
	unsigned periods;         // of this round, so far
	uint64_t left_look, left; // in this period, how many may be looked at, and given back
	struct pv_table {
		uint64_t hva;
		bool busy;
		bool event; // the REMOVE event of its zap has yet to come
	} table[PV_TABLES_BUSY];
};

// Whether this kernel frees page tables in a zap: tried on a few of our own.
bool pv_tables_can_be_freed(void);

// The engine has its blocks. -ENOMEM. Without a kernel that frees tables, or without a ring to zap with, it does nothing from then on.
int pv_tables_init(struct pv_engine *e);
void pv_tables_fini(struct pv_engine *e);
// The last page of the chunk has just left memory. O(1).
void pv_tables_absent(struct pv_engine *e, uint64_t chunk);
// A period ends.
void pv_tables_tick(struct pv_engine *e);
// One step. True: do another round now.
bool pv_tables_step(struct pv_engine *e);

// A zap has ended. False: it was another one's.
bool pv_tables_zapped(struct pv_engine *e, uint64_t tag, int res);
// A REMOVE event, as for pv_removed(). False: it is another one's. Should the guest discard just this range just now, there will be
// a second event.
bool pv_tables_removed(struct pv_engine *e, uint64_t off, uint64_t len);
