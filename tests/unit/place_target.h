// SPDX-License-Identifier: GPL-2.0-only
// The memory of a VM that comes from somewhere, and a model of it. Who includes this says before: CHUNKS of all, FIRST_BLOCK of
// the first of two blocks, the last of which has SHORT pages only.
#pragma once
#include <check.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "pvmem/place.h"

#define NR_PAGES (CHUNKS * PV_CHUNK_PAGES)

static char dir[] = "/var/tmp/criu-vm-test.XXXXXX"; // not in memory
static char swap_path[sizeof dir + 8];

// Once for all tests; each may find the file of one that failed.
static inline void make_dir(void)
{
	if (!mkdtemp(dir))
		abort();
	snprintf(swap_path, sizeof swap_path, "%s/swap", dir);
}

static inline void remove_file(void)
{
	unlink(swap_path);
}

static inline void remove_dir(void)
{
	remove_file();
	rmdir(dir);
}

#define LATER UINT32_MAX

struct target {
	struct loop loop;
	struct pv_swap swap;
	struct pv_block block[2];
	struct pv_pages pages[CHUNKS];
	struct pv_placement placement;
	struct pv_placer placer;
	unsigned version[NR_PAGES]; // what was placed last; 0: nothing; LATER: that comes when the VM runs
};

static inline void target_init(struct target *t, uint64_t ram_pages, bool swap)
{
	*t = (struct target){ .swap = PV_SWAP_NONE };
	ck_assert_int_eq(loop_init(&t->loop, 16), 0);
	if (swap)
		ck_assert_int_eq(pv_swap_create(swap_path, CHUNKS * PV_CHUNK_SIZE, true, &t->swap), 0);
	for (size_t i = 0; i < 2; i++) {
		struct pv_block *b = &t->block[i];

		b->off = i * FIRST_BLOCK * PV_CHUNK_SIZE;
		b->len = i ? (CHUNKS - FIRST_BLOCK) * PV_CHUNK_SIZE : (FIRST_BLOCK - 1) * PV_CHUNK_SIZE + SHORT * PAGE_SIZE;
		b->memfd = memfd_create("target", MFD_CLOEXEC);
		ck_assert(b->memfd >= 0 && !ftruncate(b->memfd, (off_t)b->len));
		b->map = mmap(NULL, b->len, PROT_READ | PROT_WRITE, MAP_SHARED, b->memfd, 0);
		ck_assert_ptr_ne(b->map, MAP_FAILED);
	}
	for (size_t i = 0; i < NR_PAGES; i++)
		pv_page_set_home(&t->pages[i / PV_CHUNK_PAGES], i % PV_CHUNK_PAGES, PV_HOME_ZERO);
	ck_assert_int_eq(pv_placement_init(&t->placement, &t->swap, t->block, 2, t->pages, CHUNKS, ram_pages * PAGE_SIZE), 0);
	t->placer = (struct pv_placer){ .placement = &t->placement, .loop = &t->loop };
}

static inline void target_fini(struct target *t)
{
	loop_fini(&t->loop);
	pv_placement_fini(&t->placement);
	pv_swap_destroy(&t->swap);
	for (size_t i = 0; i < 2; i++) {
		munmap(t->block[i].map, t->block[i].len);
		close(t->block[i].memfd);
	}
}

static inline uint64_t memory_pages(const struct target *t)
{
	uint64_t sum = 0;
	struct stat st;

	for (size_t i = 0; i < 2; i++) {
		ck_assert_int_eq(fstat(t->block[i].memfd, &st), 0);
		sum += (uint64_t)st.st_blocks * 512 / PAGE_SIZE;
	}
	return sum;
}

static inline unsigned chunk_pages(uint64_t chunk)
{
	return chunk == FIRST_BLOCK - 1 ? SHORT : PV_CHUNK_PAGES;
}

static inline void fill(void *at, size_t page, unsigned version)
{
	uint64_t *w = at;

	for (size_t i = 0; i < PAGE_SIZE / 8; i++)
		w[i] = version ? page << 32 | version << 16 | i : 0;
}

static inline bool is_valid(const struct target *t, size_t page)
{
	return bitmap_test(t->pages[page / PV_CHUNK_PAGES].valid, page % PV_CHUNK_PAGES);
}

static inline uint64_t nr_valid(const struct target *t)
{
	uint64_t n = 0;

	for (size_t i = 0; i < NR_PAGES; i++)
		n += is_valid(t, i);
	return n;
}

static inline uint64_t nr_not_empty(const struct target *t)
{
	uint64_t n = 0;

	for (size_t i = 0; i < NR_PAGES; i++)
		n += t->version[i] && t->version[i] != LATER;
	return n;
}

// No page of memory is lost, or there twice.
static inline void verify_room(const struct target *t)
{
	const struct pv_placement *pm = &t->placement;
	uint64_t promised = 0;

	for (uint64_t i = 0; i < CHUNKS; i++)
		promised += pm->chunks[i].promised;
	ck_assert_uint_eq(memory_pages(t), nr_valid(t));
	ck_assert_uint_eq(nr_valid(t) + promised + pm->reserve_left + pm->ram_left, pm->ram);
}

// What is wrong with a page, or NULL: it is where the table says, with the content that came last. swapped: its chunk of the swap image.
static inline const char *page_fault(const struct target *t, size_t page, const char *swapped)
{
	enum pv_home home = pv_page_home(&t->pages[page / PV_CHUNK_PAGES], page % PV_CHUNK_PAGES);
	const struct pv_block *b = &t->block[page >= FIRST_BLOCK * PV_CHUNK_PAGES];
	static char want[PAGE_SIZE];

	if (!t->version[page])
		return !is_valid(t, page) && home == PV_HOME_ZERO ? NULL : "is not empty";
	if (t->version[page] == LATER)
		return !is_valid(t, page) && home == PV_HOME_SOURCE ? NULL : "does not come later";
	if (home != (is_valid(t, page) ? PV_HOME_NONE : PV_HOME_SWAP))
		return "has another home";
	fill(want, page, t->version[page]);
	return memcmp(is_valid(t, page) ? b->map + (page * PAGE_SIZE - b->off) : swapped + page % PV_CHUNK_PAGES * PAGE_SIZE, want, PAGE_SIZE) ?
		       "has another content" :
		       NULL;
}

static inline void verify(const struct target *t)
{
	char *swapped = aligned_alloc(PAGE_SIZE, PV_CHUNK_SIZE);

	for (size_t i = 0; i < NR_PAGES; i++) { // each ck_assert() writes to a file
		const char *fault;

		if (i % PV_CHUNK_PAGES == 0 && t->swap.fd >= 0)
			ck_assert_int_eq(pread(t->swap.fd, swapped, PV_CHUNK_SIZE, (off_t)(i * PAGE_SIZE)), PV_CHUNK_SIZE);
		fault = page_fault(t, i, swapped);
		if (fault)
			ck_abort_msg("page %zu %s", i, fault);
	}
	for (size_t i = 0; i < CHUNKS; i++)
		ck_assert(pv_pages_sane(&t->pages[i]));
	verify_room(t);
	free(swapped);
}
