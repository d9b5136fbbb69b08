// SPDX-License-Identifier: GPL-2.0-only
//
// DOC: folios of 1 MiB
//
// A chunk that comes in whole, and goes out whole, costs least where it is one folio: one allocation, one entry of the page cache, one
// punch. The kernel decides about a folio's size by the mapping through which a page is touched first, so a block is mapped twice:
//
//   map    MADV_NOHUGEPAGE       a touch takes one page: all that comes in pieces
//   huge   MADV_HUGEPAGE, aligned as the file is     a touch takes the chunk: only for who has booked all of it
//
// Whether there is a folio or not is nobody's business otherwise: without an aligned MiB of free memory the kernel takes pages. But two
// things follow when only some pages of a chunk are punched. The kernel splits the folio, and takes all of it out of all page tables: who
// touches it faults (MINOR), and what was written is known exactly, by its lack of a marker. And it does not split what is held, by a DMA
// of QEMU or a read of ours: then the punched pages are zero, but stay where they are.
#pragma once
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "pvmem/chunk.h"
#include "util/list.h"

struct pv_block;

enum pv_folios {
	PV_FOLIOS_YES,
	PV_FOLIOS_OFF,     // the host has them switched off
	PV_FOLIOS_NONE,    // its kernel has none
	PV_FOLIOS_LARGER,  // larger ones are on, too: a chunk would come with its neighbours
	PV_FOLIOS_ALWAYS,  // even a page that is to be alone takes a folio
};

#define PV_FOLIOS_DIR "/sys/kernel/mm/transparent_hugepage/"
#define PV_FOLIOS_SETTING PV_FOLIOS_DIR "hugepages-1024kB/shmem_enabled"

// What the host permits to a memfd. larger (96 bytes, or NULL): with PV_FOLIOS_LARGER the sizes that are on, as "2048kB 4096kB"; else
// empty.
enum pv_folios pv_folios_here(char *larger);
// Whether there is an aligned MiB for one just now. Takes that much memory for a moment.
bool pv_folio_is_free(void);

// Sets map of a block that has its memfd and len; and huge, if folios, and there is room for it (a limit of locked memory), else NULL.
// -errno: nothing is mapped.
int pv_block_map(struct pv_block *b, bool folios);
// After mlockall(): the kernel may unmap its pages.
void pv_block_unlock(const struct pv_block *b);
// Accepts a block of which nothing is mapped.
void pv_block_unmap(struct pv_block *b);

// Of one engine. Those that follow do not block; off: of a chunk, bytes in its block.
struct pv_folio {
	uint64_t not_before_ns; // none are asked for until then, since there was none
	struct list left;       // chunks with punched pages that have not left yet
	uint64_t nr_left;       // pages, all together
};

void pv_folio_init(struct pv_folio *f);
void pv_folio_fini(struct pv_folio *f); // accepts a zeroed one

// Takes memory for a chunk of which nothing is in the memfd, and all is about to be: where in `huge` its page 0 is. NULL: not as a folio
// now, use `map`; a page of it may have been taken all the same. All 256 pages are booked.
char *pv_folio_dest(struct pv_folio *f, const struct pv_block *b, uint64_t off);

// These pages of the chunk were punched: how many of them have not left, since another page of their folio is held. They are all zero, and
// are tried again by pv_folio_retry(), unless pv_folio_reuse() is told before that they are wanted.
size_t pv_folio_punched(struct pv_folio *f, const struct pv_block *b, uint64_t off, const uint64_t which[PV_WORDS]);
// How many of those that had not left are gone now.
size_t pv_folio_retry(struct pv_folio *f);
// These pages are about to be in memory: how many of them had not left.
size_t pv_folio_reuse(struct pv_folio *f, const struct pv_block *b, uint64_t off, const uint64_t which[PV_WORDS]);
