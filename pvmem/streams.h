// SPDX-License-Identifier: GPL-2.0-only
//
// DOC: streams
//
// Sequential and strided access is recognised, and what it will touch is brought ahead. Touches that continue no stream are
// remembered; three of them in a row at one distance (more, where there are many) make a stream. Only what was not mapped is seen:
//
//      touched, mapped |  the window before | brought ahead, unmapped only at its first page
//      ................|....................|m...................................|
//                           ^ last touched   ^ marker: its touch asks for the next  ^ next
//
// A touch from `last` to a little behind `next` continues a stream: behind what was brought there may be pages that were mapped before,
// whose touches nobody sees; but one that is passed by several times in a row, with nothing of its windows touched, has ended. Windows
// double up to a limit. 32 streams; the one that was followed longest ago is replaced.
// No thread is known: a vCPU runs many programs.
//
// Where 16 pages come with a touched one, a scan is seen every 16 pages, as is an access to each 16th page. They differ in the pages
// between that were left unmapped to see: only a scan touches them.
//
// No I/O. A touch costs what looking at the table does.
#pragma once
#include <stdbool.h>
#include <stdint.h>

#define PV_NR_STREAMS 32
#define PV_NR_TOUCHES 64

struct pv_ahead { // pages first, first + stride, ... of the array of guest RAM; the first of them that was not mapped stays so: the marker
	uint64_t first;
	int64_t stride;
	unsigned nr;
	unsigned stream; // the table's entry
};

struct pv_streams {
	struct pv_stream {
		int64_t last;   // page touched
		int64_t marker; // the first one of the window brought last
		int64_t next;   // the first one not yet brought
		int64_t stride; // pages; 0: no stream
		unsigned nr;    // pages brought last
		unsigned skips; // so many touches in a row were not of these, but behind them
		uint64_t used;  // in this turn
	} stream[PV_NR_STREAMS];
	struct pv_touch { // that continued no stream
		int64_t page, end;
		unsigned seen; // beside it
	} touch[PV_NR_TOUCHES];
	uint64_t turn, nr_touches;
	int64_t nr_pages;
	unsigned max_pages;
};

// nr_pages: of guest RAM. max_pages: that are brought ahead at a time.
void pv_streams_init(struct pv_streams *s, uint64_t nr_pages, unsigned max_pages);
// A page was touched that was not mapped: a miss, or one that was left unmapped to see. end: the first page behind it that is not
// in memory, or on its way there, with this touch. True: bring these ahead, as far as they are not in memory.
bool pv_streams_touch(struct pv_streams *s, uint64_t page, uint64_t end, struct pv_ahead *ahead);
// Of these, another page than the first is the marker: those before it were mapped already.
void pv_streams_marked(struct pv_streams *s, const struct pv_ahead *ahead, uint64_t page);
// Of these only those before `next` were brought, or more than these, up to there: the stream goes on from it, and with less if there was
// no room for all.
void pv_streams_brought(struct pv_streams *s, const struct pv_ahead *ahead, uint64_t next);
// The page is right behind or among what a stream has touched or brought: it is probably used once.
bool pv_streams_has(const struct pv_streams *s, uint64_t page);
