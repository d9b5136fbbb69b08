// SPDX-License-Identifier: GPL-2.0-only
// What was hot where the VM was before (restore_hot.c), as its pagers use it. None of it has to be there.
#pragma once
#include <stddef.h>
#include <stdint.h>

#include "lazy-pages/pager.h"
#include "pvmem/warm.h"

struct vm_pager;

// Part of struct vm_pager; zeros: nothing is known.
struct vm_hot {
	uint8_t *ages; // a byte a chunk
	struct pv_warm_chunk *warm; // sorted
	size_t nr_warm;
};

// What the engine is to know of it. All pagers fill in that order; only the first one begins with it, and brings back what was in memory
// if it was restored from images: what a later one knows is newer. The images are open, if there are any. May be tried again.
void vm_hot_describe_paging(struct vm_pager *v, struct lp_paging *paging);
// After the engine was freed.
void vm_hot_fini(struct vm_pager *v);
