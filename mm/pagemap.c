// SPDX-License-Identifier: GPL-2.0-only
#include "mm/pagemap.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include "mm/uapi.h"
#include "util/bitmap.h"
#include "util/cleanup.h"
#include "util/log.h"
#include "util/size.h"

#define SCAN_RUNS 512 // runs of pages a call returns, 12 KiB
#define SCAN_PIECE (256 * MiB) // a call holds the process's mmap lock: half a millisecond

struct mm_pagemap {
	pid_t pid;
	int fd;
	struct page_region run[SCAN_RUNS];
};

// A page is reported if ((its categories ^ inverted) & mask) == mask and, anyof not being 0, has one of anyof.
static const struct {
	uint64_t flags, inverted, mask, anyof;
} scan_args[] = {
	[MM_SCAN_WRITTEN] = { PM_SCAN_CHECK_WPASYNC, 0, PAGE_IS_WRITTEN, 0 },
	[MM_SCAN_WRITTEN_CLEAR] = { PM_SCAN_CHECK_WPASYNC | PM_SCAN_WP_MATCHING, 0, PAGE_IS_WRITTEN, 0 },
	[MM_SCAN_HELD_CLEAR] = { PM_SCAN_CHECK_WPASYNC | PM_SCAN_WP_MATCHING, 0, PAGE_IS_WRITTEN, PAGE_IS_PRESENT | PAGE_IS_SWAPPED },
	[MM_SCAN_NONE_CLEAR] = { PM_SCAN_CHECK_WPASYNC | PM_SCAN_WP_MATCHING, PAGE_IS_PRESENT | PAGE_IS_SWAPPED,
				 PAGE_IS_PRESENT | PAGE_IS_SWAPPED, 0 },
	[MM_SCAN_PRESENT] = { 0, 0, PAGE_IS_PRESENT, 0 },
	[MM_SCAN_NONZERO] = { 0, PAGE_IS_PFNZERO, PAGE_IS_PFNZERO, PAGE_IS_PRESENT | PAGE_IS_SWAPPED },
	[MM_SCAN_COPIED] = { 0, PAGE_IS_PFNZERO | PAGE_IS_FILE, PAGE_IS_PFNZERO | PAGE_IS_FILE, PAGE_IS_PRESENT | PAGE_IS_SWAPPED },
	[MM_SCAN_COPIED_CLEAN] = { 0, PAGE_IS_PFNZERO | PAGE_IS_FILE | PAGE_IS_WRITTEN,
				   PAGE_IS_PRESENT | PAGE_IS_PFNZERO | PAGE_IS_FILE | PAGE_IS_WRITTEN, 0 },
	[MM_SCAN_UNPROTECTED] = { 0, 0, PAGE_IS_WRITTEN, 0 },
};

int mm_pagemap_open(pid_t pid, struct mm_pagemap **out)
{
	struct pm_scan_arg probe = { .size = sizeof probe };
	struct mm_pagemap *pm = malloc(sizeof *pm);
	char path[32];
	int ret = 0;

	if (!pm)
		return -ENOMEM;
	snprintf(path, sizeof path, "/proc/%d/pagemap", pid);
	pm->pid = pid;
	pm->fd = open(path, O_RDONLY | O_CLOEXEC);
	if (pm->fd < 0) {
		ret = errno == ENOENT ? -ESRCH : -errno;
		log_err("cannot open the page map of process %d: %s", pid, strerror(-ret));
	} else if (ioctl(pm->fd, PAGEMAP_SCAN, &probe) < 0 && errno == ENOTTY) {
		ret = -EOPNOTSUPP;
		log_err("this kernel cannot scan page maps (PAGEMAP_SCAN): Linux 6.7 or newer is needed");
	}
	if (ret) {
		mm_pagemap_close(pm);
		return ret;
	}
	*out = pm;
	return 0;
}

void mm_pagemap_close(struct mm_pagemap *pm)
{
	if (!pm)
		return;
	if (pm->fd >= 0)
		close(pm->fd);
	free(pm);
}

pid_t mm_pagemap_pid(const struct mm_pagemap *pm)
{
	return pm->pid;
}

static int scan_failed(const struct mm_pagemap *pm, const struct pm_scan_arg *a, int err)
{
	log_err("page map of process %d, 0x%llx-0x%llx: %s%s", pm->pid, (unsigned long long)a->start, (unsigned long long)a->end,
		strerror(-err), err == -EPERM ? ": not registered for asynchronous write-protection" : "");
	return err;
}

int mm_pagemap_scan(struct mm_pagemap *pm, uint64_t hva, uint64_t len, enum mm_scan what, uint64_t *bitmap)
{
	struct pm_scan_arg a = { .size = sizeof a, .flags = scan_args[what].flags, .start = hva, .end = hva,
		.vec = (uint64_t)(uintptr_t)pm->run, .vec_len = SCAN_RUNS, .category_inverted = scan_args[what].inverted,
		.category_mask = scan_args[what].mask, .category_anyof_mask = scan_args[what].anyof, .return_mask = scan_args[what].mask };
	uint64_t piece = SCAN_PIECE;

	memset(bitmap, 0, BITMAP_WORDS(len / PAGE_SIZE) * sizeof *bitmap);
	while (a.start < hva + len) {
		int n;

		if (a.start == a.end) // up to a multiple of the piece: write-protecting a part of a huge page splits it
			a.end = a.start - a.start % piece + piece < hva + len ? a.start - a.start % piece + piece : hva + len;
		n = ioctl(pm->fd, PAGEMAP_SCAN, &a);
		if (n < 0)
			return scan_failed(pm, &a, -errno);
		// A huge page is reported whole, even where it reaches beyond what was asked for.
		for (int i = 0; i < n; i++) {
			uint64_t from = pm->run[i].start < hva ? hva : pm->run[i].start;
			uint64_t to = pm->run[i].end > a.end ? a.end : pm->run[i].end;

			if (to > from)
				bitmap_set_range(bitmap, (from - hva) / PAGE_SIZE, (to - from) / PAGE_SIZE);
		}
		if (a.walk_end > a.start) {
			a.start = a.walk_end;
		} else if (a.end < hva + len) { // hugetlbfs: a part of a huge page cannot be write-protected
			piece *= 2;
			a.end = a.start;
		} else {
			return -EIO;
		}
	}
	return 0;
}
