// SPDX-License-Identifier: GPL-2.0-only
// What a process writes to, learnt from outside: its memory is write-protected asynchronously (the kernel notes the first write
// to a page and lets it happen), and PAGEMAP_SCAN asks which pages were written.
//
// The tracker is a userfaultfd planted in the process, and lives as long as a copy of it is open there, whoever asked for it.
// Without it nothing stays behind: the last close of a userfaultfd that only tracks gives the pages back as they were.
#pragma once
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#include "mm/pagemap.h"

struct mm_range {
	uint64_t hva, len; // bytes, page-aligned
};

// Plants a tracker, registers the ranges, and write-protects everything: what is written from here on is "written" to
// mm_track_take(). target_uffd_dev: as of struct mm_plant_opts. *target_uffd: its number in the process. The process runs on, its
// main thread stands still for about a millisecond. -EBUSY: somebody else's userfaultfd has a part of it; -ENOSYS: this kernel
// cannot (needs Linux 6.7); and those of mm_plant(). Nothing stays behind after an error. Logs.
int mm_track_begin(pid_t pid, int target_uffd_dev, const struct mm_range *ranges, size_t nr, int *target_uffd);
// Tells a tracker from all others that may get its number later; 0: there is no userfaultfd of that number.
uint64_t mm_track_id(pid_t pid, int target_uffd);
// A tracker in the process, whoever began it: its number there, or -1.
int mm_track_find(pid_t pid);
// Takes the tracker out of the process, which goes on meanwhile. ranges: those of its begin; without them it maps and unmaps nothing
// for some 20 ms a GiB. The tracker need not be there any more, nor the process. -errno is logged.
int mm_track_end(pid_t pid, int target_uffd, const struct mm_range *ranges, size_t nr);

// The pages written since the tracker's begin, or since they were taken before: bitmap (a bit a page of the range) is cleared, then
// set where written. The kernel's knowledge is gone with that: whoever has taken it, and fails, has to know it by himself.
// A page that was discarded since (by a balloon) is not present, is "written", or, of shared memory and hugetlbfs, may be zeros and
// count as unwritten: see mm_source_hides_discards(). What is not present may have a bit or not. Logs.
int mm_track_take(struct mm_pagemap *pm, const struct mm_range *r, uint64_t *bitmap);
