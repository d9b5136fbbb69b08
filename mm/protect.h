// SPDX-License-Identifier: GPL-2.0-only
// A process's memory as it was at one instant, while the process runs on: it is write-protected, and whoever writes to a chunk waits
// until it has been copied.
//
// DOC: the instant
//
//	prepare   everything is write-protected while the process runs; who writes is let through at once, his chunk noted (arm)
//	instant   the process is stopped by the caller: the noted chunks, few, are protected again (the time it takes does not grow
//	          with memory)
//	copy      the process runs; a write to a chunk that is not copied yet is told to the caller, who copies it, then releases it
//
// Only our descriptor holds the userfaultfd open: if we die, the kernel lifts all protection and the process goes on.
//
// One thread may call mm_protect_wanted() while another one releases. Somebody has to call it as long as the process runs: who
// discards memory waits for that, too.
#pragma once
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#include "mm/track.h"

#define MM_PROTECT_CHUNK (1UL << 20)

struct mm_protect;

// Plants, registers, and write-protects the ranges. Waits for nobody; begins a thread of its own that lets writers through, until
// mm_protect_instant(). Errors as mm_track_begin()'s,
// and -EOPNOTSUPP: memory that cannot be protected so, which is that of a file on a disk (anonymous, memfd and hugetlbfs can).
int mm_protect_prepare(pid_t pid, int target_uffd_dev, const struct mm_range *ranges, size_t nr, struct mm_protect **p);
// The process stands still (its vCPUs and its I/O). From here on its memory is as it is now until mm_protect_release().
int mm_protect_instant(struct mm_protect *p);
// Waits, at most timeout_ms (0: not at all; less when something else was told), for a chunk that somebody wants to write to:
// *range the index, *off in it, a multiple of MM_PROTECT_CHUNK. 1; 0: none; -ESTALE: memory that is not released yet was discarded
// (a balloon, free page reporting), so that the instant cannot be had any more; -ESRCH: the process has ended.
int mm_protect_wanted(struct mm_protect *p, int timeout_ms, size_t *range, uint64_t *off);
// The chunk was copied: it may be written to, who waits goes on. Harmless when it was released before. By any thread, also while
// another one waits in mm_protect_wanted().
int mm_protect_release(struct mm_protect *p, size_t range, uint64_t off);

struct mm_protect_stats {
	uint64_t let_through;	  // writes before the instant that waited for a moment
	uint64_t waited;	  // writes since the instant that waited for a copy
	uint64_t instant_ns;	  // how long mm_protect_instant() took
	uint64_t protected_again; // by it, chunks: at most 64, and those in which something was discarded since mm_protect_prepare()
};

void mm_protect_stats(struct mm_protect *p, struct mm_protect_stats *s);
// The instant is given up: lifts all protection, now, by any thread; what follows for p is -ETIMEDOUT.
void mm_protect_give_up(struct mm_protect *p);
// Lifts what protection is left. p may be NULL.
void mm_protect_end(struct mm_protect *p);
