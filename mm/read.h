// SPDX-License-Identifier: GPL-2.0-only
// Another process's memory as a dump reads it: what was never allocated is neither read nor allocated. The process may be
// stopped by ptrace meanwhile. A page is 4 KiB, on huge pages too.
#pragma once
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#include "mm/pagemap.h"

enum mm_source_kind {
	MM_SRC_ANON,	     // private, no file behind it, huge pages too
	MM_SRC_SHARED,	     // all is in the file (memfd, tmpfs, hugetlbfs, any file)
	MM_SRC_PRIVATE_FILE, // a file, and pages that the process made its own by writing
};

struct mm_source {
	pid_t pid;
	uint64_t hva, len;
	enum mm_source_kind kind;
	int fd;		   // the file, -1 without one
	uint64_t file_off; // of hva, in the file
	struct mm_pagemap *pm;
	bool hugetlb; // anonymous huge pages out of the pool
	bool tmpfs;   // the file is in memory
};

// [hva, hva + len), page-aligned, is one block: one or several mappings of one kind that continue one another.
// -EFAULT: not all of it is mapped; -EOPNOTSUPP: mappings that differ, or of a device; -ESRCH; -EACCES. Logs.
int mm_source_open(pid_t pid, uint64_t hva, uint64_t len, struct mm_source **s);
void mm_source_close(struct mm_source *s);

// A bit for each page of [off, off + len): it may hold something other than zeros. All pages without a bit are zero.
int mm_source_present(struct mm_source *s, uint64_t off, uint64_t len, uint64_t *bitmap);

// Reads the pages with a bit among nr_pages from off: page i goes to buf + i * 4096, the rest of buf is left as it is.
// Ask for pages that mm_source_present() named. -EIO: a page cannot be read (poisoned memory, a disk); -ESRCH. Logs.
int mm_source_read(struct mm_source *s, uint64_t off, const uint64_t *bitmap, size_t nr_pages, void *buf);

// Whether a page that was not written since it was tracked, then discarded (by a balloon), then read, counts as unwritten still,
// though it is zeros now: mm_source_zero() finds these. Where it is false, such pages are not present, or were written.
bool mm_source_hides_discards(const struct mm_source *s);

// A bit for each candidate among nr_pages from off that is all zeros, looked at without allocating anything. Ask for pages that
// mm_source_present() named. Costs as much as reading them. -EIO, -ESRCH as mm_source_read().
int mm_source_zero(struct mm_source *s, uint64_t off, const uint64_t *candidates, size_t nr_pages, uint64_t *zero);
