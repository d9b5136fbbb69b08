// SPDX-License-Identifier: GPL-2.0-only
#include "pvmem/reader.h"

#include <errno.h>
#include <fcntl.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "util/io.h"
#include "util/log.h"
#include "util/zero.h"

#define MAX_ATTEMPTS 1000
#define PAUSE_US 100 // after an attempt that found the chunk changing

struct pv_reader {
	struct pv_reader_opts o;
	struct pv_block *blocks;
	uint64_t nr_chunks, wants; // wants: of those before, none is left
};

// Where the pages of a chunk are, as the table said at one moment after drops was read.
struct view {
	uint64_t drops;
	uint64_t memory[PV_WORDS], zero[PV_WORDS], swap[PV_WORDS], source[PV_WORDS];
	uint64_t swap_good[PV_WORDS]; // the swap image has them, be they in memory, too, or not
};

int pv_reader_new(const struct pv_reader_opts *o, struct pv_reader **out)
{
	struct pv_reader *r = calloc(1, sizeof *r);

	if (!r)
		return -ENOMEM;
	r->o = *o;
	r->blocks = malloc(o->nr_blocks * sizeof *r->blocks);
	if (!r->blocks) {
		pv_reader_free(r);
		return -ENOMEM;
	}
	memcpy(r->blocks, o->blocks, o->nr_blocks * sizeof *r->blocks);
	r->nr_chunks = DIV_ROUND_UP(o->blocks[o->nr_blocks - 1].off + o->blocks[o->nr_blocks - 1].len, PV_CHUNK_SIZE);
	*out = r;
	return 0;
}

void pv_reader_free(struct pv_reader *r)
{
	if (!r)
		return;
	free(r->blocks);
	free(r);
}

static const struct pv_block *block_of(const struct pv_reader *r, uint64_t chunk)
{
	const struct pv_block *b = r->blocks;

	while (b + 1 < r->blocks + r->o.nr_blocks && chunk * PV_CHUNK_SIZE >= b[1].off)
		b++;
	return b;
}

// Takes the pages out that are behind the end of their block.
static void cut(const struct pv_reader *r, uint64_t chunk, uint64_t map[PV_WORDS])
{
	const struct pv_block *b = block_of(r, chunk);

	for (uint64_t i = (b->off + b->len - chunk * PV_CHUNK_SIZE) / PAGE_SIZE; i < PV_CHUNK_PAGES; i++)
		bitmap_clear(map, i);
}

// Of each word valid comes first: a page that is not valid has a home already. The homes are read in the order in which the first
// one counts, so that a page on its way from one home to another may be found in none, but not where it never was.
static void look(const struct pv_pages *p, struct view *v)
{
	v->drops = __atomic_load_n(&p->drops, __ATOMIC_SEQ_CST);
	for (unsigned w = 0; w < PV_WORDS; w++) {
		uint64_t valid = __atomic_load_n(&p->valid[w], __ATOMIC_ACQUIRE), zero = __atomic_load_n(&p->zero[w], __ATOMIC_ACQUIRE);
		uint64_t swap = __atomic_load_n(&p->swap[w], __ATOMIC_ACQUIRE), source = __atomic_load_n(&p->source[w], __ATOMIC_ACQUIRE);

		v->memory[w] = valid;
		v->zero[w] = zero & ~valid;
		v->swap_good[w] = swap & ~zero;
		v->swap[w] = swap & ~zero & ~valid;
		v->source[w] = source & ~swap & ~zero & ~valid;
	}
}

static void mask_all(struct view *v, const uint64_t want[PV_WORDS])
{
	for (unsigned w = 0; w < PV_WORDS; w++) {
		v->memory[w] &= want[w];
		v->zero[w] &= want[w];
		v->swap[w] &= want[w];
		v->source[w] &= want[w];
	}
}

static int read_runs(int fd, uint64_t off, const uint64_t which[PV_WORDS], char *dest)
{
	int err = 0;

	for (size_t i = 0, n; !err && (n = bitmap_next_run(which, PV_CHUNK_PAGES, &i)); i += n)
		err = io_pread_full(fd, dest + i * PAGE_SIZE, n * PAGE_SIZE, off + i * PAGE_SIZE);
	return err;
}

static int read_memory(const struct pv_reader *r, uint64_t chunk, const uint64_t which[PV_WORDS], char *dest)
{
	const struct pv_block *b = block_of(r, chunk);
	int err = read_runs(b->memfd, chunk * PV_CHUNK_SIZE - b->off, which, dest);

	if (err)
		log_err("chunk %lu of guest RAM cannot be read from memory: %s", chunk, strerror(-err));
	return err;
}

static int read_swap(const struct pv_reader *r, uint64_t chunk, const uint64_t which[PV_WORDS], char *dest)
{
	int err = r->o.swap_fd < 0 ? -EBADF : read_runs(r->o.swap_fd, chunk * PV_CHUNK_SIZE, which, dest);

	if (err)
		log_err("chunk %lu of guest RAM cannot be read from the swap image: %s", chunk, strerror(-err));
	return err;
}

static int read_source(const struct pv_reader *r, uint64_t chunk, const uint64_t which[PV_WORDS], char *dest)
{
	if (r->o.source_read)
		return r->o.source_read(r->o.ctx, chunk, which, dest);
	log_err("chunk %lu of guest RAM is with a page source that is not known here", chunk);
	return -EBADF;
}

// Those of `left` that are in the shadow, or were zero, as the snapshot has it; taken out of it.
static int read_saved(const struct pv_reader *r, uint64_t chunk, uint64_t left[PV_WORDS], char *dest)
{
	const struct pv_snapshot_chunk *sc = &r->o.snapshot->chunk[chunk];
	uint64_t saved[PV_WORDS];
	int err;

	for (unsigned w = 0; w < PV_WORDS; w++) {
		saved[w] = left[w] & __atomic_load_n(&sc->saved[w], __ATOMIC_ACQUIRE);
		left[w] &= ~saved[w];
	}
	err = read_runs(r->o.shadow_fd, chunk * PV_CHUNK_SIZE, saved, dest); // a hole is zeros
	if (err)
		log_err("chunk %lu of guest RAM cannot be read from what was saved of it: %s", chunk, strerror(-err));
	return err;
}

// Those that were saved while they were read where they lie may have changed before.
static void put_back_saved(const struct pv_reader *r, uint64_t chunk, const uint64_t before[PV_WORDS], uint64_t left[PV_WORDS])
{
	for (unsigned w = 0; w < PV_WORDS; w++)
		left[w] |= before[w] & __atomic_load_n(&r->o.snapshot->chunk[chunk].saved[w], __ATOMIC_ACQUIRE);
}

// What is given back now was read in time, if it was not given back before: that would have read as zeros.
static void keep(const struct pv_reader *r, uint64_t chunk, const uint64_t want[PV_WORDS], const char *dest)
{
	struct pv_snapshot_chunk *sc = &r->o.snapshot->chunk[chunk];
	uint64_t kept[PV_WORDS] = { 0 };

	for (size_t i = 0; i < PV_CHUNK_PAGES; i++)
		if (bitmap_test(want, i) && !mem_is_zero(dest + i * PAGE_SIZE, PAGE_SIZE))
			bitmap_set(kept, i);
	for (unsigned w = 0; w < PV_WORDS; w++)
		__atomic_fetch_or(&sc->kept[w], kept[w], __ATOMIC_SEQ_CST);
}

// Takes those out of `left` that have been read for good.
static int attempt(const struct pv_reader *r, uint64_t chunk, uint64_t left[PV_WORDS], char *dest)
{
	uint64_t before[PV_WORDS];
	const struct pv_pages *p = &r->o.pages[chunk];
	struct view v, now;
	int err = r->o.snapshot ? read_saved(r, chunk, left, dest) : 0;

	if (err)
		return err;
	memcpy(before, left, sizeof before);
	look(p, &v);
	mask_all(&v, left);
	for (size_t i = 0, n; (n = bitmap_next_run(v.zero, PV_CHUNK_PAGES, &i)); i += n)
		memset(dest + i * PAGE_SIZE, 0, n * PAGE_SIZE);
	err = bitmap_empty(v.source, PV_CHUNK_PAGES) ? 0 : read_source(r, chunk, v.source, dest);
	if (!err && !bitmap_empty(v.swap, PV_CHUNK_PAGES))
		err = read_swap(r, chunk, v.swap, dest);
	if (!err) // last, since it takes the least time to change
		err = read_memory(r, chunk, v.memory, dest);
	if (err)
		return err;
	atomic_thread_fence(memory_order_seq_cst);
	look(p, &now);
	for (unsigned w = 0; w < PV_WORDS; w++) {
		left[w] &= ~(v.zero[w] | v.source[w] | (v.swap[w] & now.swap_good[w]));
		if (now.drops == v.drops)
			left[w] &= ~v.memory[w];
	}
	if (r->o.snapshot)
		put_back_saved(r, chunk, before, left);
	return 0;
}

int pv_reader_read(struct pv_reader *r, uint64_t chunk, const uint64_t want[PV_WORDS], char *dest)
{
	uint64_t left[PV_WORDS], all[PV_WORDS];
	int err = 0;

	memcpy(left, want, sizeof left);
	cut(r, chunk, left);
	memcpy(all, left, sizeof all);
	for (unsigned n = 0; !err && !bitmap_empty(left, PV_CHUNK_PAGES); n++) {
		if (n == MAX_ATTEMPTS) {
			log_err("chunk %lu of guest RAM is paged out and in faster than it can be read: give the VM more memory (criu-vm set "
				"--ram), or dump it while it stands still", chunk);
			return -EAGAIN;
		}
		if (n)
			usleep(PAUSE_US);
		err = attempt(r, chunk, left, dest);
	}
	if (!err && r->o.snapshot)
		keep(r, chunk, all, dest);
	return err;
}

void pv_reader_present(const struct pv_reader *r, uint64_t chunk, uint64_t map[PV_WORDS])
{
	const struct pv_pages *p = &r->o.pages[chunk];
	struct view v;

	look(p, &v);
	for (unsigned w = 0; w < PV_WORDS; w++)
		map[w] = ~v.zero[w] | (r->o.snapshot ? __atomic_load_n(&r->o.snapshot->chunk[chunk].kept[w], __ATOMIC_ACQUIRE) : 0);
	cut(r, chunk, map);
}

void pv_reader_done(struct pv_reader *r, uint64_t chunk)
{
	__atomic_store_n(&r->o.snapshot->chunk[chunk].done, 1, __ATOMIC_SEQ_CST);
	if (fallocate(r->o.shadow_fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, (off_t)(chunk * PV_CHUNK_SIZE), PV_CHUNK_SIZE) < 0)
		log_warn("the shadow of chunk %lu cannot be given back: %s", chunk, strerror(errno));
}

bool pv_reader_wanted(struct pv_reader *r, uint64_t *chunk)
{
	uint64_t wants = __atomic_load_n(&r->o.snapshot->wants, __ATOMIC_SEQ_CST);

	for (uint64_t i = 0; wants != r->wants && i < r->nr_chunks; i++) {
		const struct pv_snapshot_chunk *sc = &r->o.snapshot->chunk[i];

		if (__atomic_load_n(&sc->wanted, __ATOMIC_ACQUIRE) && !__atomic_load_n(&sc->done, __ATOMIC_ACQUIRE)) {
			*chunk = i;
			return true;
		}
	}
	r->wants = wants;
	return false;
}

void pv_reader_take_dirty(struct pv_reader *r, uint64_t chunk, uint64_t map[PV_WORDS])
{
	for (unsigned w = 0; w < PV_WORDS; w++)
		map[w] = __atomic_exchange_n(&r->o.pages[chunk].dirty[w], 0, __ATOMIC_ACQ_REL);
}
