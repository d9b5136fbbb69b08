// SPDX-License-Identifier: GPL-2.0-only
// The userfaultfd calls that paging a shared memfd needs, with the kernel's traps taken care of.
// Addresses are those of the process that the userfaultfd was created in; start and len are bytes, page-aligned. None blocks.
// Errors that a caller has to expect are returned silently, all others are logged.
#pragma once
#include <stdbool.h>
#include <stdint.h>

// The handshake, once for a userfaultfd. want: UFFD_FEATURE_*. *got (may be NULL): all that the kernel has.
// -ENOSYS: the kernel lacks some, named in the log; -EALREADY: the handshake was made before.
int mm_uffd_api(int uffd, uint64_t want, uint64_t *got);

// MISSING, MINOR and WP together: MINOR alone would fill holes with zeros, silently. Nothing is write-protected yet.
// -EBUSY: another userfaultfd has a part of it; -EINVAL: not memory of a kind that can be, or not all mapped.
int mm_uffd_register(int uffd, uint64_t start, uint64_t len);

// Write-protection only, of any memory with WP_ASYNC, else of anonymous memory, memfds and hugetlbfs. Errors as above.
int mm_uffd_register_wp(int uffd, uint64_t start, uint64_t len);

// Maps pages that are in the memfd. wp: they count as unwritten (with WP_ASYNC), else as written. wake: who waits for them goes on.
// *done: bytes mapped from start, valid with every return value.
// 0: all. -EEXIST: the page at start + *done is mapped already (its waiters were woken if wake, nobody else would).
// -ENOENT: it is a hole in the memfd. -EAGAIN: the address space is changing, first read the userfaultfd's events.
// -EIO: it is poisoned. -ENXIO: it is not registered (any more). -ESRCH: the process is gone.
int mm_uffd_continue(int uffd, uint64_t start, uint64_t len, bool wp, bool wake, uint64_t *done);

// Whoever waits for a page of the range tries again: a fault that nobody resolved is reported once more.
int mm_uffd_wake(int uffd, uint64_t start, uint64_t len);

// protect: what is written from now on is "written" to mm_pagemap_scan(). Else: all counts as written; wakes.
// -EAGAIN, -ENXIO, -ESRCH as above.
int mm_uffd_writeprotect(int uffd, uint64_t start, uint64_t len, bool protect);
