// SPDX-License-Identifier: GPL-2.0-only
// The state of another process's pages, by PAGEMAP_SCAN (Linux 6.7).
#pragma once
#include <stdint.h>
#include <sys/types.h>

#include "mm/maps.h"

struct mm_pagemap;

enum mm_scan {
	MM_SCAN_WRITTEN,       // written since they were write-protected. Pages never mapped may count as written: mask with residency
	MM_SCAN_WRITTEN_CLEAR, // the same, and write-protected again in one step: the kernel's only copy is gone, note the range before
	MM_SCAN_HELD_CLEAR,    // the same, of what is in the page table or swapped: to nothing else anything is done
	MM_SCAN_NONE_CLEAR,    // neither mapped, nor swapped, nor marked as unwritten; marked so in one step
	MM_SCAN_PRESENT,       // in the page table, the shared zero page too
	MM_SCAN_NONZERO,       // in the page table or swapped, and not the shared zero page: what private memory may hold
	MM_SCAN_COPIED,	       // as NONZERO, and the process's own, not the file's: what a private file mapping changed
	MM_SCAN_COPIED_CLEAN,  // of that what is in the page table, and was not written
	MM_SCAN_UNPROTECTED,   // not write-protected; what was never mapped may or may not count. Of any memory
};

// -ESRCH, -EACCES, -EOPNOTSUPP: this kernel has no PAGEMAP_SCAN. Logs.
int mm_pagemap_open(pid_t pid, struct mm_pagemap **pm);
void mm_pagemap_close(struct mm_pagemap *pm);
pid_t mm_pagemap_pid(const struct mm_pagemap *pm);

// A bit for each page of [hva, hva + len), both page-aligned: cleared, then set where `what` holds; nothing is set where nothing
// is mapped, nor once the process is gone. On an error the bits set so far are good: after MM_SCAN_WRITTEN_CLEAR they are all that
// is left of the knowledge.
// -EPERM (logged): WRITTEN of memory that is not registered for asynchronous write-protection.
int mm_pagemap_scan(struct mm_pagemap *pm, uint64_t hva, uint64_t len, enum mm_scan what, uint64_t *bitmap);
