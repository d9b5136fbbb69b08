// SPDX-License-Identifier: GPL-2.0-only
#include "pvmem/place.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>

#include "util/io.h"

// For pages that are wanted in memory whatever their chunk: a part of the budget, within limits.
#define RESERVE_PART 32
#define RESERVE_MIN (1 * MiB / PAGE_SIZE)
#define RESERVE_MAX (16 * MiB / PAGE_SIZE)

int pv_placement_init(struct pv_placement *pm, const struct pv_swap *swap, const struct pv_block *blocks, size_t nr_blocks,
		      struct pv_pages *pages, uint64_t nr_chunks, uint64_t ram)
{
	*pm = (struct pv_placement){ .swap = swap, .blocks = blocks, .nr_blocks = nr_blocks, .pages = pages, .nr_chunks = nr_chunks,
				     .ram = ram / PAGE_SIZE, .ram_left = ram / PAGE_SIZE, .chunks = calloc(nr_chunks, sizeof *pm->chunks) };
	return pm->chunks ? 0 : -ENOMEM;
}

void pv_placement_fini(struct pv_placement *pm)
{
	free(pm->chunks);
	pm->chunks = NULL;
}

static const struct pv_block *block_of(const struct pv_placement *pm, uint64_t chunk)
{
	const struct pv_block *b = pm->blocks;

	while (b + 1 < pm->blocks + pm->nr_blocks && chunk * PV_CHUNK_SIZE >= b[1].off)
		b++;
	return b;
}

unsigned pv_placement_chunk_pages(const struct pv_placement *pm, uint64_t chunk)
{
	const struct pv_block *b = block_of(pm, chunk);
	uint64_t left = (b->off + b->len - chunk * PV_CHUNK_SIZE) / PAGE_SIZE;

	return left < PV_CHUNK_PAGES ? (unsigned)left : PV_CHUNK_PAGES;
}

static unsigned hot_pages(const uint8_t *hotness, uint64_t chunk)
{
	return hotness[chunk * PV_HOTNESS_BYTES + 1] | (unsigned)hotness[chunk * PV_HOTNESS_BYTES + 2] << 8;
}

static uint64_t reserve_of(uint64_t ram)
{
	uint64_t n = ram / RESERVE_PART;

	n = n < RESERVE_MIN ? RESERVE_MIN : n > RESERVE_MAX ? RESERVE_MAX : n;
	return n < ram ? n : ram;
}

// The coldest hotness of which chunks still go to memory. *left: the room that is left for those; the hotter ones all fit.
static unsigned find_limit(const struct pv_placement *pm, const uint8_t *hotness, uint64_t *left)
{
	uint64_t pages[256] = { 0 };
	unsigned limit = 255;

	for (uint64_t i = 0; i < pm->nr_chunks; i++)
		pages[hotness[i * PV_HOTNESS_BYTES]] += hot_pages(hotness, i);
	for (; limit && pages[limit] <= *left; limit--)
		*left -= pages[limit];
	return limit;
}

int pv_placement_plan(struct pv_placement *pm, const uint8_t *hotness, uint64_t nr_chunks)
{
	uint64_t promised = 0, left;
	unsigned limit;

	if (nr_chunks != pm->nr_chunks)
		return -EBADMSG;
	for (uint64_t i = 0; i < nr_chunks; i++)
		if (hot_pages(hotness, i) > pv_placement_chunk_pages(pm, i))
			return -EBADMSG;
	if (pm->ram >= nr_chunks * PV_CHUNK_PAGES)
		return 0;
	pm->reserve_left = reserve_of(pm->ram);
	left = pm->ram - pm->reserve_left;
	limit = find_limit(pm, hotness, &left);
	for (uint64_t i = 0; i < nr_chunks; i++) {
		struct pv_chunk_place *c = &pm->chunks[i];
		unsigned hot = hotness[i * PV_HOTNESS_BYTES], nr = hot_pages(hotness, i);

		if (!nr)
			continue;
		c->place = hot > limit || (hot == limit && nr <= left) ? PV_PLACE_RAM : PV_PLACE_SWAP;
		if (c->place == PV_PLACE_SWAP)
			continue;
		c->promised = (uint16_t)nr;
		promised += nr;
		if (hot == limit)
			left -= nr;
	}
	pm->ram_left = pm->ram - pm->reserve_left - promised;
	return 0;
}

// Takes up to n pages of room; how many there were.
static uint64_t take(uint64_t *room, uint64_t n)
{
	uint64_t have = __atomic_load_n(room, __ATOMIC_RELAXED), got;

	do
		got = n < have ? n : have;
	while (!__atomic_compare_exchange_n(room, &have, have - got, true, __ATOMIC_RELAXED, __ATOMIC_RELAXED));
	return got;
}

static void add(uint64_t *to, uint64_t n)
{
	__atomic_fetch_add(to, n, __ATOMIC_RELAXED);
}

// Promises end while others place, too.
static uint64_t take_promised(struct pv_chunk_place *c, uint64_t n)
{
	uint16_t have = __atomic_load_n(&c->promised, __ATOMIC_RELAXED), got;

	do
		got = n < have ? (uint16_t)n : have;
	while (!__atomic_compare_exchange_n(&c->promised, &have, (uint16_t)(have - got), true, __ATOMIC_RELAXED, __ATOMIC_RELAXED));
	return got;
}

void pv_placement_settle(struct pv_placement *pm)
{
	for (uint64_t i = 0; i < pm->nr_chunks; i++)
		add(&pm->ram_left, take_promised(&pm->chunks[i], PV_CHUNK_PAGES));
}

// Room for n pages that are in memory from now on; how many.
static uint64_t take_room(struct pv_placement *pm, const struct pv_placing *p, uint64_t n)
{
	uint64_t got = take_promised(&pm->chunks[p->chunk], n);

	if (p->to_ram)
		got += take(&pm->reserve_left, n - got);
	return got + take(&pm->ram_left, n - got);
}

// The same for empty pages of a chunk.
static uint64_t take_room_by_chunk(struct pv_placement *pm, const struct pv_placing *p, uint64_t n)
{
	struct pv_chunk_place *c = &pm->chunks[p->chunk];
	uint64_t got = n && c->place != PV_PLACE_SWAP ? take_room(pm, p, n) : 0;

	if (n && c->place == PV_PLACE_UNDECIDED) {
		c->place = got == n ? PV_PLACE_RAM : PV_PLACE_SWAP;
		if (got < n) {
			add(&pm->ram_left, got);
			got = 0;
		}
	}
	return got;
}

// Moves the first n pages of a map to another.
static void move_first(uint64_t from[PV_WORDS], uint64_t to[PV_WORDS], uint64_t n)
{
	for (size_t i = 0; n; n--) {
		i = bitmap_next(from, PV_CHUNK_PAGES, i, true);
		bitmap_clear(from, i);
		bitmap_set(to, i);
	}
}

// Which pages go to memory; the others of p->present go to p->to_swap.
static void choose(struct pv_placement *pm, struct pv_placing *p, uint64_t ram[PV_WORDS])
{
	const struct pv_pages *pages = &pm->pages[p->chunk];
	uint64_t in_swap[PV_WORDS], empty[PV_WORDS];

	for (unsigned w = 0; w < PV_WORDS; w++) {
		ram[w] = p->present[w] & pages->valid[w];
		in_swap[w] = p->present[w] & ~pages->valid[w] & pages->swap[w] & ~pages->zero[w];
		empty[w] = p->present[w] & ~ram[w] & ~in_swap[w];
	}
	if (p->to_ram) {
		move_first(in_swap, ram, take_room(pm, p, bitmap_count(in_swap, PV_CHUNK_PAGES)));
		move_first(empty, ram, take_room(pm, p, bitmap_count(empty, PV_CHUNK_PAGES)));
	}
	move_first(empty, ram, take_room_by_chunk(pm, p, bitmap_count(empty, PV_CHUNK_PAGES)));
	for (unsigned w = 0; w < PV_WORDS; w++)
		p->to_swap[w] = in_swap[w] | empty[w];
}

// Pages that are zero now, or come later: those in memory give their room back, and those for which room was promised do not need it.
static int give_up(struct pv_placement *pm, uint64_t chunk, const uint64_t which[PV_WORDS], enum pv_home home)
{
	const struct pv_block *b = block_of(pm, chunk);
	struct pv_pages *pages = &pm->pages[chunk];
	uint64_t in_memory[PV_WORDS];
	size_t nr;

	for (unsigned w = 0; w < PV_WORDS; w++)
		in_memory[w] = which[w] & pages->valid[w];
	nr = bitmap_count(in_memory, PV_CHUNK_PAGES);
	pv_pages_set_home(pages, which, home);
	pv_pages_set_valid(pages, in_memory, false);
	if (nr)
		pv_pages_count_drop(pages);
	for (size_t i = 0, n; (n = bitmap_next_run(in_memory, PV_CHUNK_PAGES, &i)); i += n)
		if (fallocate(b->memfd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, (off_t)(chunk * PV_CHUNK_SIZE - b->off + i * PAGE_SIZE),
			      (off_t)(n * PAGE_SIZE)) < 0)
			return -errno;
	add(&pm->ram_left, nr + take_promised(&pm->chunks[chunk], bitmap_count(which, PV_CHUNK_PAGES) - nr));
	return 0;
}

// A run of pages that follow each other in the chunk does so in what came.
static const char *packed_at(const struct pv_placing *p, size_t page)
{
	return p->packed + bitmap_count(p->present, page) * PAGE_SIZE;
}

// By write(), which allocates in half the time that page faults take.
static int write_pages(const struct pv_block *b, const struct pv_placing *p, const uint64_t ram[PV_WORDS])
{
	for (size_t i = 0, n; (n = bitmap_next_run(ram, PV_CHUNK_PAGES, &i)); i += n) {
		int err = io_pwrite_full(b->memfd, packed_at(p, i), n * PAGE_SIZE, p->chunk * PV_CHUNK_SIZE - b->off + i * PAGE_SIZE);

		if (err)
			return err;
	}
	return 0;
}

static int place_in_ram(struct pv_placement *pm, const struct pv_placing *p, const uint64_t ram[PV_WORDS])
{
	struct pv_pages *pages = &pm->pages[p->chunk];
	const struct pv_block *b = block_of(pm, p->chunk);
	size_t nr = bitmap_count(ram, PV_CHUNK_PAGES);
	int err = 0;

	if (b->huge && nr == PV_CHUNK_PAGES && bitmap_empty(pages->valid, PV_CHUNK_PAGES)) // a folio, and room was taken for all of it
		memcpy(b->huge + (p->chunk * PV_CHUNK_SIZE - b->off), p->packed, PV_CHUNK_SIZE);
	else
		err = write_pages(b, p, ram);
	if (err)
		return err;
	pv_pages_set_valid(pages, ram, true);
	pv_pages_set_home(pages, ram, PV_HOME_NONE);
	add(&pm->nr_ram, nr);
	return 0;
}

static void finish(struct pv_placing *p)
{
	struct pv_placement *pm = p->placer->placement;

	if (!p->err) {
		pv_pages_set_home(&pm->pages[p->chunk], p->to_swap, PV_HOME_SWAP);
		add(&pm->nr_swap, bitmap_count(p->to_swap, PV_CHUNK_PAGES));
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
	struct pv_placing_write *w;
	unsigned nr = 0;

	for (size_t i = 0, n; (n = bitmap_next_run(p->to_swap, PV_CHUNK_PAGES, &i)); i += n)
		nr++;
	w = p->writes = calloc(nr, sizeof *p->writes);
	if (!w) {
		p->done(p, -ENOMEM);
		return;
	}
	p->nr_writes = nr;
	for (size_t i = 0, n; (n = bitmap_next_run(p->to_swap, PV_CHUNK_PAGES, &i)); i += n, w++) {
		*w = (struct pv_placing_write){ .op.done = write_done, .placing = p, .len = (uint32_t)(n * PAGE_SIZE) };
		loop_write(pl->loop, &w->op, pl->placement->swap->fd, packed_at(p, i), n * PAGE_SIZE, p->chunk * PV_CHUNK_SIZE + i * PAGE_SIZE);
	}
}

void pv_place(struct pv_placer *pl, struct pv_placing *p)
{
	struct pv_placement *pm = pl->placement;
	uint64_t empty[PV_WORDS], ram[PV_WORDS];
	int err;

	p->placer = pl;
	p->err = 0;
	for (unsigned w = 0; w < PV_WORDS; w++)
		empty[w] = p->touched[w] & ~p->present[w];
	err = give_up(pm, p->chunk, empty, PV_HOME_ZERO);
	if (!err)
		err = give_up(pm, p->chunk, p->later, PV_HOME_SOURCE);
	if (!err) {
		choose(pm, p, ram);
		err = place_in_ram(pm, p, ram);
	}
	if (err || bitmap_empty(p->to_swap, PV_CHUNK_PAGES))
		p->done(p, err);
	else
		place_in_swap(pl, p);
}
