// SPDX-License-Identifier: GPL-2.0-only
//
// DOC: a chunk that nobody has asked for
//
// It is read into a buffer of ours, wherever it goes, and the engine's other steps do not know of it: a fault on one of its pages
// is served as if there were no copy, at once, from the source. The copy may come on a line that is slow, or cut, and who waits for
// a page has a line of his own. Such a page comes twice. The guest may have written to it by the time the copy comes, given it
// back, and so on; so into memory go only pages that are still nowhere but with the source, and that are not being read into the
// memfd just then: that read could end after the guest has written to what the copy gave it.
//
// So that little comes twice: a copy that began a moment ago is about to come, if the line is a good one, and a fault asks for its
// one page only. Later the line is a bad one, and a fault is served with what is right around it, but only until a few pages of the
// copy have been asked for again; a guest that goes through all of the chunk meanwhile gets the others one by one.
//
// Memory. As long as target and reserve stay free, so that nothing is ever paged out for a fill. There is room or not when the chunk
// has come, so that what is on its way needs no promise. A chunk that nobody touches takes the place on the queues that it had, the
// coldest if it had none, and stays unmapped if it was: its first touch is seen. Pages that the guest has brought in itself stay where
// they are, and the source is their home no longer.
//
// Swap. The budget does not know of the buffers. When all is written, pages get the home SWAP that still have the home SOURCE: the
// guest has discarded the others, or brought them in for good. What it has brought in and written to meanwhile is found by the next
// harvest. A write-out of the chunk would go to the same place of the image, so there is none: a copy counts in nr_writes, which
// keeps a chunk off the queues, and a chunk on its way out is not filled before it is in standby. There its pages must not be left
// without a home: they go to swap.
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "pvmem/engine_int.h"
#include "util/io.h"

#define SOON_NS (20 * NSEC_PER_MSEC) // four chunks over a fast line, or two over one of 1 Gbit/s
#define AROUND 8                     // pages around a touched one, and in all, that may come twice for no need

// Or NULL.
static struct pv_fill_copy *copy_of(const struct pv_engine *e, uint64_t chunk)
{
	for (unsigned i = 0; i < PV_FILL_COPIES; i++)
		if (e->fill.copy[i].busy && e->fill.copy[i].source.chunk == chunk)
			return (struct pv_fill_copy *)&e->fill.copy[i];
	return NULL;
}

bool pv_fill_is_copied(const struct pv_engine *e, uint64_t chunk)
{
	return copy_of(e, chunk);
}

// Of the copy's pages, those that have the home SOURCE still.
static void pages_left(const struct pv_fill_copy *copy, uint64_t map[PV_WORDS])
{
	pv_pages_of_home(pv_pages_of(copy->e, copy->source.chunk), PV_HOME_SOURCE, map);
	for (unsigned w = 0; w < PV_WORDS; w++)
		map[w] &= copy->source.pages[w];
}

void pv_fill_not_again(const struct pv_engine *e, uint64_t chunk, unsigned page, uint64_t map[PV_WORDS])
{
	const struct pv_fill_copy *copy = copy_of(e, chunk);

	memset(map, 0, PV_WORDS * sizeof *map);
	if (!copy)
		return;
	pages_left(copy, map);
	if (copy->nr_again < AROUND && clock_now_ns() - copy->begun_ns >= SOON_NS)
		bitmap_clear_range(map, page / AROUND * AROUND, AROUND);
	bitmap_clear(map, page);
}

void pv_fill_asked_again(struct pv_engine *e, uint64_t chunk, const uint64_t pages[PV_WORDS])
{
	struct pv_fill_copy *copy = copy_of(e, chunk);
	uint64_t map[PV_WORDS];

	if (!copy)
		return;
	pages_left(copy, map);
	for (unsigned w = 0; w < PV_WORDS; w++)
		map[w] &= pages[w];
	copy->nr_again += (unsigned)bitmap_count(map, PV_CHUNK_PAGES);
}

static void copy_end(struct pv_fill_copy *copy, int err, const char *what)
{
	struct pv_engine *e = copy->e;

	copy->busy = false;
	e->chunks[copy->source.chunk].nr_writes--;
	pv_chunk_settle(e, copy->source.chunk);
	pv_fill_done(e, err, what);
}

// All that goes to the swap image is there.
static void copied_to_swap(struct pv_fill_copy *copy)
{
	struct pv_engine *e = copy->e;
	uint64_t chunk = copy->source.chunk, before = pv_chunk_missing(e, chunk), swap[PV_WORDS], zero[PV_WORDS];

	pages_left(copy, swap);
	for (unsigned w = 0; w < PV_WORDS; w++) {
		zero[w] = swap[w] & copy->source.zero[w];
		swap[w] &= ~zero[w];
	}
	pv_pages_set_home(pv_pages_of(e, chunk), zero, PV_HOME_ZERO);
	pv_pages_set_home(pv_pages_of(e, chunk), swap, PV_HOME_SWAP);
	e->missing += pv_chunk_missing(e, chunk) - before;
	e->stats.filled_swap += bitmap_count(swap, PV_CHUNK_PAGES);
	copy_end(copy, 0, NULL);
}

static void write_next(struct pv_fill_copy *copy)
{
	struct pv_engine *e = copy->e;
	uint64_t write[PV_WORDS];

	for (unsigned w = 0; w < PV_WORDS; w++)
		write[w] = copy->source.pages[w] & ~copy->source.zero[w];
	copy->nr = bitmap_next_run(write, PV_CHUNK_PAGES, &copy->first);
	if (copy->nr)
		loop_write(e->o.loop, &copy->op, e->o.swap->fd, copy->source.dest + copy->first * PAGE_SIZE, copy->nr * PAGE_SIZE,
			   copy->source.chunk * PV_CHUNK_SIZE + copy->first * PAGE_SIZE);
	else
		copied_to_swap(copy);
}

static void written(struct loop_op *op, int res)
{
	struct pv_fill_copy *copy = list_entry(op, struct pv_fill_copy, op);

	if (res < 0 || (size_t)res < copy->nr * PAGE_SIZE) {
		copy->e->stats.writes_failed++;
		copy_end(copy, res < 0 ? res : -EIO, "the swap image cannot be written");
		return;
	}
	copy->first += copy->nr;
	write_next(copy);
}

// By write(), which allocates in half the time that page faults take; and locked as what page faults allocate (see lock_some()).
static int write_to_memfd(const struct pv_fill_copy *copy, const uint64_t pages[PV_WORDS])
{
	const struct pv_engine *e = copy->e;
	uint64_t chunk = copy->source.chunk;
	const struct pv_block *b = pv_block_of(e, chunk);

	for (size_t i = 0, n; (n = bitmap_next_run(pages, PV_CHUNK_PAGES, &i)); i += n) {
		int err = io_pwrite_full(b->memfd, copy->source.dest + i * PAGE_SIZE, n * PAGE_SIZE, chunk * PV_CHUNK_SIZE - b->off + i * PAGE_SIZE);

		if (err)
			return err;
		if (!e->o.zap_own)
			madvise(pv_chunk_map(e, chunk) + i * PAGE_SIZE, n * PAGE_SIZE, MADV_POPULATE_READ);
	}
	return 0;
}

// data: pages that are in the memfd now, and not known to be.
static void placed_in_memory(struct pv_fill_copy *copy, const uint64_t data[PV_WORDS])
{
	struct pv_engine *e = copy->e;
	uint64_t chunk = copy->source.chunk;
	struct pv_chunk *c = &e->chunks[chunk];
	struct pv_pages *p = pv_pages_of(e, chunk);
	// Unmapped as all of the chunk is, so that its first touch is seen.
	bool unmapped = c->untouched && bitmap_empty(pv_maps_of(e, chunk)->mapped, PV_CHUNK_PAGES);

	pv_expect_pages(e, chunk, data);
	pv_pages_set_valid(p, data, true);
	pv_pages_set_home(p, data, PV_HOME_NONE);
	e->stats.filled_memory += bitmap_count(data, PV_CHUNK_PAGES);
	if (!unmapped)
		pv_map_pages(e, chunk, data);
}

static void copy_to_memory(struct pv_fill_copy *copy, const uint64_t zero[PV_WORDS], const uint64_t data[PV_WORDS])
{
	struct pv_engine *e = copy->e;
	uint64_t chunk = copy->source.chunk, before = pv_chunk_missing(e, chunk), here[PV_WORDS];
	struct pv_pages *p = pv_pages_of(e, chunk);
	int err = write_to_memfd(copy, data);

	if (err) {
		pv_punch_pages(e, chunk, data);
		copy_end(copy, err, "guest RAM cannot be written");
		return;
	}
	pages_left(copy, here);
	for (unsigned w = 0; w < PV_WORDS; w++)
		here[w] &= p->valid[w];
	pv_pages_set_home(p, here, PV_HOME_NONE);
	pv_pages_set_home(p, zero, PV_HOME_ZERO);
	if (!bitmap_empty(data, PV_CHUNK_PAGES))
		placed_in_memory(copy, data);
	e->missing += pv_chunk_missing(e, chunk) - before;
	copy_end(copy, 0, NULL);
}

static bool has_room(const struct pv_engine *e, uint64_t chunk, uint64_t nr)
{
	return e->o.swap->fd < 0 || (e->chunks[chunk].state != PV_STANDBY && e->charged + nr + e->target + e->reserve <= e->goal);
}

static void copy_read(struct pv_source_read *rd, int err, const char *what)
{
	struct pv_fill_copy *copy = list_entry(rd, struct pv_fill_copy, source);
	struct pv_engine *e = copy->e;
	const struct pv_pages *p = pv_pages_of(e, rd->chunk);
	uint64_t left[PV_WORDS], flight[PV_WORDS], zero[PV_WORDS], data[PV_WORDS];

	if (err) {
		copy_end(copy, err, what);
		return;
	}
	pages_left(copy, left);
	pv_pages_in_flight(&e->chunks[rd->chunk], flight);
	for (unsigned w = 0; w < PV_WORDS; w++) {
		data[w] = left[w] & ~p->valid[w] & ~flight[w];
		zero[w] = data[w] & rd->zero[w];
		data[w] &= ~zero[w];
	}
	if (has_room(e, rd->chunk, bitmap_count(data, PV_CHUNK_PAGES))) {
		copy_to_memory(copy, zero, data);
		return;
	}
	memcpy(rd->pages, left, sizeof rd->pages);
	copy->first = 0;
	e->chunks[rd->chunk].swap_used = true;
	write_next(copy);
}

void pv_fill_copy_begin(struct pv_engine *e, uint64_t chunk, const uint64_t pages[PV_WORDS])
{
	struct pv_fill_copy *copy = e->fill.copy;
	struct pv_chunk *c = &e->chunks[chunk];

	while (copy->busy)
		copy++;
	if (!copy->source.dest && !(copy->source.dest = aligned_alloc(PAGE_SIZE, PV_CHUNK_SIZE))) {
		pv_fill_done(e, -ENOMEM, "there is no memory to fill with");
		return;
	}
	copy->e = e;
	copy->op.done = written;
	copy->source.done = copy_read;
	copy->source.unasked = true;
	copy->begun_ns = clock_now_ns();
	copy->nr_again = 0;
	copy->busy = true;
	pv_chunk_unlist(e, c);
	c->nr_writes++;
	c->untouched = true;
	copy->source.chunk = chunk;
	memcpy(copy->source.pages, pages, sizeof copy->source.pages);
	memset(copy->source.zero, 0, sizeof copy->source.zero);
	e->o.ops->source_read(e->o.ops->ctx, &copy->source);
}

void pv_fill_copies_fini(struct pv_engine *e)
{
	for (unsigned i = 0; i < PV_FILL_COPIES; i++) {
		free(e->fill.copy[i].source.dest);
		e->fill.copy[i].source.dest = NULL;
	}
}
