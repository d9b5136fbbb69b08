// SPDX-License-Identifier: GPL-2.0-only
#include "pvmem/recover.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <unistd.h>

#include "mm/pagemap.h"
#include "util/log.h"

// The extent of data that is at, or next behind, the place that was looked at last.
struct extent {
	int memfd;
	uint64_t start, end, len; // len: of the file
};

static int extent_at(struct extent *x, uint64_t at)
{
	off_t start, end;

	if (at < x->end)
		return 0;
	start = lseek(x->memfd, (off_t)at, SEEK_DATA);
	if (start < 0 && errno == ENXIO) { // a hole up to the end
		x->start = x->end = x->len;
		return 0;
	}
	end = start < 0 ? -1 : lseek(x->memfd, start, SEEK_HOLE);
	if (end < 0)
		return -errno;
	x->start = (uint64_t)start;
	x->end = (uint64_t)end;
	return 0;
}

// Which of nr pages from `off` of the memfd have data.
static int present_pages(struct extent *x, uint64_t off, unsigned nr, uint64_t map[PV_WORDS])
{
	uint64_t end = off + nr * PAGE_SIZE;

	memset(map, 0, PV_WORDS * sizeof *map);
	for (uint64_t at = off; at < end; at = x->end < end ? x->end : end) {
		int r = extent_at(x, at);
		uint64_t from, to;

		if (r)
			return r;
		from = x->start > at ? x->start : at;
		to = x->end < end ? x->end : end;
		if (from >= to)
			break;
		bitmap_set_range(map, (from - off) / PAGE_SIZE, (to - from) / PAGE_SIZE);
	}
	return 0;
}

static int punch(const struct pv_block *b, uint64_t off, const uint64_t which[PV_WORDS])
{
	for (size_t i = 0, n; (n = bitmap_next_run(which, PV_CHUNK_PAGES, &i)); i += n)
		if (fallocate(b->memfd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, (off_t)(off + i * PAGE_SIZE), (off_t)(n * PAGE_SIZE)) < 0)
			return -errno;
	return 0;
}

// off: of the chunk, in the block.
static int recover_chunk(const struct pv_block *b, uint64_t off, struct extent *x, struct pv_pages *p, struct mm_pagemap *pagemap,
			 struct pv_recovered *what)
{
	unsigned nr = b->len - off < PV_CHUNK_SIZE ? (unsigned)((b->len - off) / PAGE_SIZE) : PV_CHUNK_PAGES;
	uint64_t present[PV_WORDS], gone[PV_WORDS], garbage[PV_WORDS], written[PV_WORDS], stale[PV_WORDS];
	int r = present_pages(x, off, nr, present);

	if (r)
		return r;
	p->zapping = 0;
	pv_pages_count_drop(p); // who reads beside the pager, and has read what is put right here, reads again
	for (unsigned w = 0; w < PV_WORDS; w++) {
		gone[w] = p->valid[w] & ~present[w];
		garbage[w] = present[w] & ~p->valid[w];
	}
	pv_pages_set_dirty(p, gone);
	pv_pages_set_home(p, gone, PV_HOME_ZERO);
	pv_pages_set_valid(p, gone, false);
	r = punch(b, off, garbage);
	if (r)
		return r;
	what->discarded += bitmap_count(gone, PV_CHUNK_PAGES);
	what->garbage += bitmap_count(garbage, PV_CHUNK_PAGES);
	if (!bitmap_empty(p->valid, PV_CHUNK_PAGES)) {
		if (p->harvesting || mm_pagemap_scan(pagemap, b->hva + off, nr * PAGE_SIZE, MM_SCAN_WRITTEN, written))
			memset(written, 0xff, sizeof written); // not known
		for (unsigned w = 0; w < PV_WORDS; w++)
			written[w] &= p->valid[w];
		pv_pages_set_dirty(p, written);
		pv_pages_set_home(p, written, PV_HOME_NONE);
	}
	p->harvesting = 0;
	what->valid += bitmap_count(p->valid, PV_CHUNK_PAGES);
	pv_pages_of_home(p, PV_HOME_NONE, stale);
	what->stale += bitmap_count(stale, PV_CHUNK_PAGES);
	return pv_pages_sane(p) ? 0 : -EBADMSG;
}

int pv_recover(const struct pv_block *blocks, size_t nr_blocks, struct pv_pages *pages, struct mm_pagemap *pagemap, struct pv_recovered *what)
{
	*what = (struct pv_recovered){ 0 };
	for (const struct pv_block *b = blocks; b < blocks + nr_blocks; b++) {
		struct extent x = { .memfd = b->memfd, .len = b->len };

		for (uint64_t off = 0; off < b->len; off += PV_CHUNK_SIZE) {
			uint64_t chunk = (b->off + off) / PV_CHUNK_SIZE;
			int r = recover_chunk(b, off, &x, &pages[chunk], pagemap, what);

			if (r == -EBADMSG)
				log_err("the page table is damaged: a page of chunk %lu would be nowhere", chunk);
			else if (r)
				log_err("chunk %lu of guest RAM cannot be looked at: %s", chunk, strerror(-r));
			if (r)
				return r;
		}
	}
	return 0;
}
