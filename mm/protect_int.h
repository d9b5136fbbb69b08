// SPDX-License-Identifier: GPL-2.0-only
// What the two halves of protection share: before the instant (protect_arm.c), and from it on (protect.c).
#pragma once
#include <pthread.h>
#include <stdatomic.h>

#include "mm/pagemap.h"
#include "mm/protect.h"
#include "mm/read.h"
#include "util/clock.h"
#include "util/size.h"

#define CHUNK_PAGES (MM_PROTECT_CHUNK / PAGE_SIZE)
// Chunks that may be written to before the instant, all of which the instant has to protect again: 2 ms. Whoever writes to more
// than these in turn waits a moment for each.
#define WINDOW 64

#define DISCARD_TIMEOUT_NS NSEC_PER_SEC // for discards to leave a gap

struct area {
	struct mm_range range;
	size_t first, nr;	  // its chunks among all
	size_t unit;		  // chunks that can only be protected together, those of a huge page of hugetlbfs; else 1
	struct mm_source *source; // of shared memory: it can be discarded without an event, by its file
	uint64_t *present;	  // a bit a page: it was there when it was protected last
};

struct mm_protect {
	pid_t pid;
	int uffd, pidfd;
	int kick_fd; // eventfd: ends the arming thread; later, another thread has read events for who waits for them
	struct area *areas;
	size_t nr_areas, nr_chunks;
	struct mm_pagemap *pagemap;
	pthread_t thread;
	bool thread_runs, armed;
	pthread_mutex_t lock; // of all below
	// A bit a chunk.
	uint64_t *wanted;   // somebody waits to write to it
	uint64_t *open;	    // before the instant: may be written to
	uint64_t *gone;	    // before the instant: something in it was discarded, and lost its protection with that
	uint64_t *released; // since the instant
	size_t window[WINDOW], window_at, nr_window; // the open ones, oldest first from window_at
	int err;	    // of the arming thread; -ESTALE: the instant is lost
	bool instant;
	struct mm_protect_stats stats;
};

// The first chunk of the unit that holds this one, and how many it has.
size_t protect_unit(const struct mm_protect *p, size_t chunk, size_t *nr);
// Bytes from this chunk on, nr chunks at most, all in its area; where it is in the process.
uint64_t protect_len(const struct area *a, size_t chunk, size_t nr);
uint64_t protect_hva(const struct area *a, size_t chunk);
// Under the lock. Notes which pages of nr chunks, all in one area, are there, if it is shared memory.
int protect_note_present(struct mm_protect *p, size_t chunk, size_t nr);
// Protects, or lifts the protection of, a unit; tells shared memory's present pages anew when protected. 0; -EAGAIN: events have to
// be read first; -ESRCH.
int protect_set(struct mm_protect *p, size_t unit, bool protect);
// Reads and notes what the kernel has to tell. 0; -ESRCH.
int protect_read_events(struct mm_protect *p);

// Lets writers through from here on.
int protect_arm_start(struct mm_protect *p);
// Ends the thread. p->err is its error.
void protect_arm_stop(struct mm_protect *p);
