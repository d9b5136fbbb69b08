// SPDX-License-Identifier: GPL-2.0-only
// Zapping: taking another process's page-table entries of a shared memfd away. The data stays in the memfd; the next touch is a
// MINOR fault; under WP_ASYNC a marker stays on exactly the pages that were not written.
// Asynchronous: with UFFD_FEATURE_EVENT_REMOVE a zap ends only after its REMOVE event was read from the userfaultfd.
#pragma once
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#include "mm/maps.h"
#include "mm/plant.h"

struct mm_zapper;

enum mm_zap_method {
	MM_ZAP_RING,	// MADV_DONTNEED by the planted ring. Always complete.
	MM_ZAP_PAGEOUT, // process_madvise(MADV_PAGEOUT), for a target without a ring. The host has no swap, nobody else (we neither)
			// has these pages mapped or locked while it runs; a page that is in use is left (-EAGAIN). No REMOVE event.
};

// The same call on private memory would destroy it: every zap is checked to lie inside regions, and these to be shared mappings
// of the file they name, here and again in each batch. p outlives z, and has a ring for MM_ZAP_RING
// (else it may be NULL). A ring that another
// handler used before may be taken over: completions of its zaps are dropped. Does not block.
// -EPERM: a region is not such a mapping; -EOPNOTSUPP: method not possible here; -EBADF no ring; -ESRCH; -ENOMEM. Logs.
int mm_zapper_new(pid_t pid, const struct mm_plant *p, const struct mm_region *regions, size_t nr, enum mm_zap_method m,
		  struct mm_zapper **z);
// Zaps still queued are forgotten, those submitted still happen.
void mm_zapper_free(struct mm_zapper *z);

// Readable when mm_zap_reap() has something. Belongs to z.
int mm_zap_fd(const struct mm_zapper *z);

// Adds to the next batch. hva, len: bytes, page-aligned, in the target. tag comes back from mm_zap_reap().
// The range is in one mapping, so that there is one REMOVE event of just this range.
// -EBUSY: as many as the ring has entries are queued or under way, reap first; -EPERM (logged): not, or not any more, inside a
// region, or in several mappings; -EINVAL alignment; -ESRCH.
int mm_zap_queue(struct mm_zapper *z, uint64_t hva, uint64_t len, uint64_t tag);

// Starts all that is queued, waking the ring's thread at most once. MM_ZAP_PAGEOUT works here, all others return at once.
// 0, also with nothing queued; -ESRCH: the target is gone.
int mm_zap_submit(struct mm_zapper *z);

// One finished zap, in any order; false when there is none yet. *res: 0, or -errno: -EAGAIN: some pages are still mapped
// (MM_ZAP_PAGEOUT), -EINVAL: locked pages.
bool mm_zap_reap(struct mm_zapper *z, uint64_t *tag, int *res);

// How many are queued or under way.
size_t mm_zap_pending(const struct mm_zapper *z);

// How many zaps that an earlier handler queued have not ended yet. They may need their REMOVE events to be read; to those
// that it did not even start, this gives the start.
size_t mm_zap_foreign(struct mm_zapper *z);
