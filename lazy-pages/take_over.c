// SPDX-License-Identifier: GPL-2.0-only
#include "lazy-pages/take_over.h"

#include <errno.h>
#include <poll.h>
#include <unistd.h>

#include "mm/uapi.h"
#include "pvmem/recover.h"
#include "pvmem/tables.h"
#include "util/clock.h"
#include "util/log.h"

#define LATE_NS (5 * NSEC_PER_SEC)

// What the guest discarded before anybody knew of it.
static void discard(const struct pv_block *b, struct pv_pages *pages, uint64_t from, uint64_t to)
{
	for (uint64_t at = from; at < to; at += PAGE_SIZE) {
		uint64_t off = b->off + (at - b->hva), one[PV_WORDS] = { 0 };
		struct pv_pages *p = &pages[off / PV_CHUNK_SIZE];

		bitmap_set(one, off % PV_CHUNK_SIZE / PAGE_SIZE);
		pv_pages_set_dirty(p, one);
		pv_pages_set_home(p, one, PV_HOME_ZERO);
		pv_pages_set_valid(p, one, false); // what the memfd still has of it is garbage now
	}
}

static void removed(const struct pv_block *blocks, size_t nr_blocks, struct pv_pages *pages, uint64_t start, uint64_t end)
{
	for (const struct pv_block *b = blocks; b < blocks + nr_blocks; b++) {
		uint64_t from = start > b->hva ? start : b->hva, to = end < b->hva + b->len ? end : b->hva + b->len;
		uint64_t in_block = from - b->hva, whole;
		struct pv_pages *p;

		if (from >= to)
			continue;
		p = &pages[(b->off + in_block) / PV_CHUNK_SIZE];
		whole = b->len - in_block < PV_CHUNK_SIZE ? b->len - in_block : PV_CHUNK_SIZE;
		if ((p->zapping == PV_ZAPPING_CHUNK && in_block % PV_CHUNK_SIZE == 0 && to - from == whole) ||
		    (p->zapping == PV_ZAPPING_TABLE && from % PV_TABLE_SIZE == 0 && to - from == PV_TABLE_SIZE))
			p->zapping = 0; // a second event of this range is none of ours
		else
			discard(b, pages, from, to);
	}
}

int lp_settle(const struct mm_plant *plant, struct mm_zapper *zapper, struct mm_pagemap *pagemap, const struct pv_block *blocks,
	      size_t nr_blocks, struct pv_pages *pages, int qemu_pidfd)
{
	uint64_t begun = clock_now_ns();
	struct pv_recovered what;
	size_t zaps, most = 0;
	bool late = false;
	int r;

	while ((zaps = mm_zap_foreign(zapper))) {
		struct pollfd fds[] = { { .fd = plant->uffd, .events = POLLIN }, { .fd = qemu_pidfd, .events = POLLIN } };
		struct uffd_msg m;

		most = zaps > most ? zaps : most;
		poll(fds, 2, 1);
		if (fds[1].revents)
			return -ESRCH;
		while (read(plant->uffd, &m, sizeof m) == sizeof m) // faults are raised again later
			if (m.event == UFFD_EVENT_REMOVE)
				removed(blocks, nr_blocks, pages, m.arg.remove.start, m.arg.remove.end);
		if (!late && clock_now_ns() - begun > LATE_NS) {
			log_warn("%zu zaps of an earlier pager have not ended for %lu s; guest and pager wait for them", zaps, LATE_NS / NSEC_PER_SEC);
			late = true;
		}
	}
	r = pv_recover(blocks, nr_blocks, pages, pagemap, &what);
	if (!r)
		log_info("page table looked through in %.1f ms: %lu pages in memory, %lu of them nowhere else; %lu were discarded, %lu half "
			 "brought in or out, %zu zaps under way",
			 (double)(clock_now_ns() - begun) / NSEC_PER_MSEC, what.valid, what.stale, what.discarded, what.garbage, most);
	return r;
}
