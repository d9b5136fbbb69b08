// SPDX-License-Identifier: GPL-2.0-only
#include "pvmem/place.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>

#include "util/io.h"

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

// ram_left is what all chunks in memory leave, this one's former pages not counted.
static bool goes_to_ram(struct pv_placer *pl, uint64_t chunk, size_t nr_pages)
{
	if (!bitmap_test(pl->decided, chunk)) {
		bitmap_set(pl->decided, chunk);
		bitmap_set(pl->in_ram, chunk);
	}
	if (nr_pages > pl->ram_left) // a chunk that has outgrown the budget leaves memory, for good
		bitmap_clear(pl->in_ram, chunk);
	return bitmap_test(pl->in_ram, chunk);
}

static const struct pv_block *block_of(const struct pv_placer *pl, uint64_t chunk)
{
	const struct pv_block *b = pl->blocks;

	while (b + 1 < pl->blocks + pl->nr_blocks && chunk * PV_CHUNK_SIZE >= b[1].off)
		b++;
	return b;
}

// Gives the memory of pages back that were placed before and are not any more.
static int give_back(const struct pv_placer *pl, uint64_t chunk, const uint64_t which[PV_WORDS])
{
	const struct pv_block *b = block_of(pl, chunk);

	for (size_t i = 0, n; (n = bitmap_next_run(which, PV_CHUNK_PAGES, &i)); i += n)
		if (fallocate(b->memfd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, (off_t)(chunk * PV_CHUNK_SIZE - b->off + i * PAGE_SIZE),
			      (off_t)(n * PAGE_SIZE)) < 0)
			return -errno;
	return 0;
}

// By write(), which allocates in half the time that page faults take.
static int place_in_ram(struct pv_placer *pl, const struct pv_placing *p)
{
	struct pv_pages *pages = &pl->pages[p->chunk];
	const struct pv_block *b = block_of(pl, p->chunk);
	const char *from = p->packed;

	pl->ram_left -= bitmap_count(p->present, PV_CHUNK_PAGES);
	for (size_t i = 0, n; (n = bitmap_next_run(p->present, PV_CHUNK_PAGES, &i)); i += n) {
		int err = io_pwrite_full(b->memfd, from, n * PAGE_SIZE, p->chunk * PV_CHUNK_SIZE - b->off + i * PAGE_SIZE);

		if (err)
			return err;
		from += n * PAGE_SIZE;
	}
	for (unsigned w = 0; w < PV_WORDS; w++)
		pages->valid[w] |= p->present[w];
	pv_pages_set_home(pages, p->present, PV_HOME_NONE);
	pl->nr_ram += bitmap_count(p->present, PV_CHUNK_PAGES);
	return 0;
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
	struct pv_pages *pages = &pl->pages[p->chunk];
	uint64_t all[PV_WORDS], former[PV_WORDS];
	bool ram;
	int err;

	p->placer = pl;
	p->err = 0;
	memset(all, 0xff, sizeof all);
	memcpy(former, pages->valid, sizeof former);
	pl->ram_left += bitmap_count(former, PV_CHUNK_PAGES);
	ram = !nr || goes_to_ram(pl, p->chunk, nr);
	for (unsigned w = 0; ram && w < PV_WORDS; w++)
		former[w] &= ~p->present[w];
	memset(pages->valid, 0, sizeof all);
	pv_pages_set_home(pages, all, PV_HOME_ZERO);
	err = give_back(pl, p->chunk, former);
	if (!err && ram)
		err = place_in_ram(pl, p);
	if (err || ram)
		p->done(p, err);
	else
		place_in_swap(pl, p);
}
