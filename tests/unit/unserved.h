// SPDX-License-Identifier: GPL-2.0-only
// The rig's guest, planted and registered, whom nobody serves: for tests of what a pager finds when it comes.
#pragma once
#include "engine_rig.h"

// After rig_init(). The page table is in shared memory from here on.
static inline void unserved_start(struct rig *r)
{
	struct mm_plant_opts po = { .ring_entries = 128, .sq_idle_ms = 1, .target_uffd_dev = -1 };
	size_t len = r->nr_chunks * sizeof *r->pages;
	struct pv_pages *shared = mmap(NULL, len, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);

	ck_assert(shared != MAP_FAILED);
	memcpy(shared, r->pages, len);
	free(r->pages);
	r->pages = shared;
	rig_start_guest(r);
	ck_assert_int_eq(mm_plant(r->pid, &po, &r->plant), 0);
	ck_assert_int_eq(mm_uffd_api(r->plant.uffd, RIG_FEATURES, NULL), 0);
	for (size_t i = 0; i < r->nr_blocks; i++)
		ck_assert_int_eq(mm_uffd_register(r->plant.uffd, r->block[i].hva, r->block[i].len), 0);
	ck_assert_int_eq(mm_pagemap_open(r->pid, &r->pagemap), 0);
}

static inline void unserved_end(struct rig *r)
{
	rig_check(r);
	kill(r->pid, SIGKILL);
	waitpid(r->pid, NULL, 0);
	mm_zapper_free(r->zapper);
	mm_pagemap_close(r->pagemap);
	mm_plant_fini(&r->plant);
	pv_swap_close(&r->swap);
	for (size_t i = 0; i < r->nr_blocks; i++) {
		pv_block_unmap(&r->block[i]);
		close(r->block[i].memfd);
	}
	close(r->g->dma_fd);
	munmap(r->g, sizeof *r->g);
	munmap(r->pages, r->nr_chunks * sizeof *r->pages);
	free(r->source_seed);
}

// Until it is so: nobody serves, and others work on it.
#define unserved_until(so, ms) \
	({ \
		uint64_t end_ = clock_now_ns() + (ms) * NSEC_PER_MSEC; \
		while (!(so) && clock_now_ns() < end_) \
			usleep(50); \
		(bool)(so); \
	})

// The guest does it without a fault that would wait.
static inline void unserved_do(struct rig *r, size_t worker, enum guest_order order, size_t first, size_t nr)
{
	rig_order(r, worker, order, first, nr);
	ck_assert_msg(unserved_until(rig_idle(r), 2000), "the guest waits at a page from %zu on", first);
}

static inline const struct pv_block *unserved_block(const struct rig *r, size_t page)
{
	return &r->block[r->nr_blocks > 1 && page * PAGE_SIZE >= r->block[1].off];
}

static inline uint64_t unserved_hva(const struct rig *r, size_t page)
{
	const struct pv_block *b = unserved_block(r, page);

	return b->hva + (page * PAGE_SIZE - b->off);
}

static inline void unserved_map(struct rig *r, size_t page, bool clean)
{
	uint64_t done;

	ck_assert_int_eq(mm_uffd_continue(r->plant.uffd, unserved_hva(r, page), PAGE_SIZE, clean, true, &done), 0);
}

static inline void unserved_punch(struct rig *r, size_t page)
{
	const struct pv_block *b = unserved_block(r, page);

	ck_assert_int_eq(fallocate(b->memfd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, (off_t)(page * PAGE_SIZE - b->off), PAGE_SIZE), 0);
}

static inline bool unserved_has_data(const struct rig *r, size_t page)
{
	const struct pv_block *b = unserved_block(r, page);
	off_t at = (off_t)(page * PAGE_SIZE - b->off);

	return lseek(b->memfd, at, SEEK_DATA) == at;
}

static inline size_t unserved_chunk_pages(const struct rig *r, size_t chunk)
{
	const struct guest_block *b = &r->g->block[r->nr_blocks > 1 && chunk * PV_CHUNK_PAGES >= r->g->block[1].first];
	size_t left = b->first + b->nr - chunk * PV_CHUNK_PAGES;

	return left < PV_CHUNK_PAGES ? left : PV_CHUNK_PAGES;
}
