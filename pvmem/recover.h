// SPDX-License-Identifier: GPL-2.0-only
//
// DOC: the page table and the kernel's own truth
//
// Before an engine begins, its page table is compared with what the kernel knows, whoever wrote it: a restore a moment ago, or
// a pager that was killed at work. All I/O and all zaps of that one have ended by then (util/io_ring.h, mm_zap_foreign()).
//
//      table       memfd    QEMU's page table
//      valid       data     written, or no entry and no marker   the memfd has the only copy: home NONE
//      valid       data     else                                 as the table says; NONE if it was being harvested
//      valid       hole                                          discarded by the guest: empty
//      not valid   data                                          of a page-in or punch that was cut short: punched
//      not valid   hole                                          as the table says
//
// What gets another content by that, or may have been written, becomes dirty.
//
// A REMOVE event that was read from the userfaultfd, but not recorded by a pager killed within these microseconds, leaves a
// swapped page with the content it had, as if the discard had not been asked for.
#pragma once
#include <stddef.h>
#include <stdint.h>

#include "pvmem/engine.h"

struct pv_recovered {
	uint64_t valid, stale; // pages in memory; of these, with no other copy
	uint64_t discarded, garbage;
};

// Puts the table right. Nobody else may change it; QEMU may run. Blocks for some milliseconds a GiB that is in memory.
// -EBADMSG: the table is damaged, a page would be nowhere; or what reading the memfd gave. Logs.
int pv_recover(const struct pv_block *blocks, size_t nr_blocks, struct pv_pages *pages, struct mm_pagemap *pagemap, struct pv_recovered *what);
