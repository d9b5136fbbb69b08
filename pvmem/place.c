// SPDX-License-Identifier: GPL-2.0-only
#include "pvmem/place.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

int pv_placer_init(struct pv_placer *pl, struct loop *l, const struct pv_swap *swap, const struct pv_block *blocks, size_t nr_blocks,
		   struct pv_pages *pages, uint64_t nr_chunks, uint64_t ram)
{
	*pl = (struct pv_placer){ .loop = l, .swap = swap, .blocks = blocks, .nr_blocks = nr_blocks, .pages = pages, .ram_left = ram / PAGE_SIZE,
				  .in_ram = calloc(BITMAP_WORDS(nr_chunks), 8), .decided = calloc(BITMAP_WORDS(nr_chunks), 8) };
	if (pl->in_ram && pl->decided)
		return 0;
	pv_placer_fini(pl);
	return -ENOMEM;
}

void pv_placer_fini(struct pv_placer *pl)
{
	free(pl->in_ram);
	free(pl->decided);
	pl->in_ram = pl->decided = NULL;
}

static bool goes_to_ram(struct pv_placer *pl, uint64_t chunk, size_t nr_pages)
{
	if (!bitmap_test(pl->decided, chunk)) {
		bitmap_set(pl->decided, chunk);
		if (nr_pages <= pl->ram_left) {
			bitmap_set(pl->in_ram, chunk);
			pl->ram_left -= nr_pages;
		}
	}
	return bitmap_test(pl->in_ram, chunk);
}

static void place_in_ram(struct pv_placer *pl, struct pv_placing *p)
{
	struct pv_pages *pages = &pl->pages[p->chunk];
	const struct pv_block *b = pl->blocks;
	const char *from = p->packed;
	char *to;

	while (b + 1 < pl->blocks + pl->nr_blocks && p->chunk * PV_CHUNK_SIZE >= b[1].off)
		b++;
	to = b->map + (p->chunk * PV_CHUNK_SIZE - b->off);
	for (size_t i = 0, n; (n = bitmap_next_run(p->present, PV_CHUNK_PAGES, &i)); i += n) {
		memcpy(to + i * PAGE_SIZE, from, n * PAGE_SIZE);
		from += n * PAGE_SIZE;
	}
	for (unsigned w = 0; w < PV_WORDS; w++)
		pages->valid[w] |= p->present[w];
	pv_pages_set_home(pages, p->present, PV_HOME_NONE);
	pl->nr_ram += bitmap_count(p->present, PV_CHUNK_PAGES);
}

static void finish(struct pv_placing *p)
{
	if (!p->err) {
		pv_pages_set_home(&p->placer->pages[p->chunk], p->present, PV_HOME_SWAP);
		p->placer->nr_swap += bitmap_count(p->present, PV_CHUNK_PAGES);
	}
	free(p->writes);
	p->done(p, p->err);
}

static void write_done(struct loop_op *op, int res)
{
	const struct pv_placing_write *w = list_entry(op, struct pv_placing_write, op);
	struct pv_placing *p = w->placing;

	if (res < 0)
		p->err = res;
	else if ((uint32_t)res < w->len)
		p->err = -EIO;
	if (!--p->nr_writes)
		finish(p);
}

static void place_in_swap(struct pv_placer *pl, struct pv_placing *p)
{
	const char *from = p->packed;
	struct pv_placing_write *w;
	unsigned nr = 0;

	for (size_t i = 0, n; (n = bitmap_next_run(p->present, PV_CHUNK_PAGES, &i)); i += n)
		nr++;
	w = p->writes = calloc(nr, sizeof *p->writes);
	if (!w) {
		p->done(p, -ENOMEM);
		return;
	}
	p->nr_writes = nr;
	for (size_t i = 0, n; (n = bitmap_next_run(p->present, PV_CHUNK_PAGES, &i)); i += n, w++) {
		*w = (struct pv_placing_write){ .op.done = write_done, .placing = p, .len = (uint32_t)(n * PAGE_SIZE) };
		loop_write(pl->loop, &w->op, pl->swap->fd, from, n * PAGE_SIZE, p->chunk * PV_CHUNK_SIZE + i * PAGE_SIZE);
		from += n * PAGE_SIZE;
	}
}

void pv_place(struct pv_placer *pl, struct pv_placing *p)
{
	size_t nr = bitmap_count(p->present, PV_CHUNK_PAGES);
	uint64_t all[PV_WORDS];

	p->placer = pl;
	p->err = 0;
	memset(all, 0xff, sizeof all);
	memset(pl->pages[p->chunk].valid, 0, sizeof all);
	pv_pages_set_home(&pl->pages[p->chunk], all, PV_HOME_ZERO);
	if (!nr || goes_to_ram(pl, p->chunk, nr)) {
		place_in_ram(pl, p);
		p->done(p, 0);
	} else {
		place_in_swap(pl, p);
	}
}
