// SPDX-License-Identifier: GPL-2.0-only
//
// DOC: take-over
//
// A pager may be killed at any instant; another goes on from what is in the run directory and in QEMU. What was the dead one's
// is ended first, in this order:
//
//   its process     the lock of the run directory is free when it, and all its threads, are gone
//   its I/O         counted by the ring that QEMU holds (util/io_ring.h): wait until nothing can land any more
//   its zaps        counted by the planted ring; they end when their REMOVE events are read, which are told from a guest's
//                   discards by the mark that the page table has of each zap
//   its page table  put right by the kernel's own truth (pvmem/recover.h)
//   its faults      those that it had read and not answered are raised again, by waking everybody
//   its drain       forgotten: what was zapped is in memory, unmapped, and no page-out goes on without a drain of its own
#pragma once
#include <stddef.h>

#include "mm/plant.h"
#include "mm/zap.h"
#include "pvmem/engine.h"

// Waits for zaps of an earlier handler, then puts the page table right. qemu_pidfd: nothing is waited for once it is readable.
// Blocks: milliseconds, as far as is known. -ESRCH: QEMU has ended; as pv_recover(). Logs.
int lp_settle(const struct mm_plant *plant, struct mm_zapper *zapper, struct mm_pagemap *pagemap, const struct pv_block *blocks,
	      size_t nr_blocks, struct pv_pages *pages, int qemu_pidfd);
