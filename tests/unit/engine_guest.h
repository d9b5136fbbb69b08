// SPDX-License-Identifier: GPL-2.0-only
// A guest for the engine's tests: a child whose threads write and verify pages of shared memory, give pages back, and have
// pages filled by direct I/O, each of them knowing at any moment what every page must hold.
//
// A page holds words counted up from its seed; seed 0: zeros. A page is changed by who has made its sequence number odd; who
// reads while that happens has touched the page, and compares nothing. A page given back holds zeros or what it held before.
#pragma once
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

#include "util/size.h"

#define GUEST_WORKERS 4
#define GUEST_MAX_PAGES (68 * 256)
#define GUEST_BLOCKS 2
#define GUEST_IOVS 16 // pages of one scattered read
#define WORDS (PAGE_SIZE / sizeof(uint64_t))

enum guest_order { GUEST_IDLE, GUEST_VERIFY, GUEST_WRITE, GUEST_DISCARD, GUEST_RANDOM, GUEST_DMA };

struct guest_block {
	size_t first, nr; // pages
	int memfd;
	_Atomic(char *) ram;
};

struct worker {
	_Atomic enum guest_order order;
	size_t first, nr; // pages, for an order that names some
	_Atomic pid_t tid;
	_Atomic uint64_t touched;    // pages
	_Atomic uint32_t drain_seen; // all I/O that this worker began before that drain has ended
};

// Shared by test and guest.
struct guest {
	struct guest_block block[GUEST_BLOCKS];
	size_t nr_blocks, nr_pages; // pages beyond the end of a block, up to a whole chunk, count but do not exist
	int dma_fd;                 // a file, O_DIRECT; page k has guest_mix(k)
	size_t dma_pages;
	bool reads_only;            // of GUEST_RANDOM
	bool keeps;                 // of GUEST_RANDOM: nothing is given back
	bool zeros;                 // what is given back must be zeros from then on
	_Atomic bool stop;
	_Atomic uint32_t drains;
	struct worker worker[GUEST_WORKERS];
	_Atomic uint32_t wrong;
	struct { size_t page, word; uint64_t want, got; } first_wrong;
	_Atomic uint32_t seq[GUEST_MAX_PAGES];
	uint64_t seed[GUEST_MAX_PAGES];
	uint64_t other[GUEST_MAX_PAGES]; // what else the page may hold; 0: nothing
};

static inline uint64_t guest_mix(uint64_t v) // splitmix64's; never 0
{
	v += 0x9e3779b97f4a7c15;
	v = (v ^ v >> 30) * 0xbf58476d1ce4e5b9;
	v = (v ^ v >> 27) * 0x94d049bb133111eb;
	return (v ^ v >> 31) | 1;
}

static inline uint64_t guest_word(uint64_t seed, size_t i)
{
	return seed ? seed + i * 0x9e3779b97f4a7c15 : 0;
}

static inline void guest_fill(void *page, uint64_t seed)
{
	uint64_t *w = page;

	for (size_t i = 0; i < WORDS; i++)
		w[i] = guest_word(seed, i);
}

// NULL: there is no such page.
static inline char *guest_page(const struct guest *g, size_t page)
{
	for (size_t i = 0; i < g->nr_blocks; i++)
		if (page >= g->block[i].first && page - g->block[i].first < g->block[i].nr)
			return g->block[i].ram + (page - g->block[i].first) * PAGE_SIZE;
	return NULL;
}

static inline void guest_compare(struct guest *g, size_t page, const void *data, uint64_t seed)
{
	const uint64_t *w = data;

	for (size_t i = 0; i < WORDS; i++)
		if (w[i] != guest_word(seed, i)) {
			if (!g->wrong++) {
				g->first_wrong.page = page;
				g->first_wrong.word = i;
				g->first_wrong.want = guest_word(seed, i);
				g->first_wrong.got = w[i];
			}
			return;
		}
}

static inline bool guest_acquire(struct guest *g, size_t page)
{
	uint32_t seq = atomic_load(&g->seq[page]);

	return guest_page(g, page) && !(seq & 1) && atomic_compare_exchange_strong(&g->seq[page], &seq, seq + 1);
}

static inline void guest_release(struct guest *g, size_t page, uint64_t seed, uint64_t other)
{
	// Who reads looks at seq again.
	__atomic_store_n(&g->seed[page], seed, __ATOMIC_RELAXED);
	__atomic_store_n(&g->other[page], other, __ATOMIC_RELAXED);
	atomic_fetch_add(&g->seq[page], 1);
}

// Of an acquired page. Of two things that it may hold, one is found; it must be that from then on.
static inline void guest_verify(struct guest *g, size_t page)
{
	uint64_t found = *(volatile uint64_t *)guest_page(g, page);

	if (g->other[page] && found == guest_word(g->other[page], 0))
		g->seed[page] = g->other[page];
	guest_compare(g, page, guest_page(g, page), g->seed[page]);
}

// False: somebody changed the page meanwhile, nothing was learnt.
static inline bool guest_read(struct guest *g, size_t page)
{
	uint32_t seq = atomic_load(&g->seq[page]);
	uint64_t seed = __atomic_load_n(&g->seed[page], __ATOMIC_RELAXED), copy[WORDS];

	if (seq & 1)
		return false;
	if (__atomic_load_n(&g->other[page], __ATOMIC_RELAXED)) {
		if (!guest_acquire(g, page))
			return false;
		guest_verify(g, page);
		guest_release(g, page, g->seed[page], 0);
		return true;
	}
	memcpy(copy, guest_page(g, page), PAGE_SIZE);
	atomic_thread_fence(memory_order_acquire);
	if (atomic_load(&g->seq[page]) != seq)
		return false;
	guest_compare(g, page, copy, seed);
	return true;
}

static inline bool guest_write(struct guest *g, size_t page, uint64_t seed, bool verify)
{
	if (!guest_acquire(g, page))
		return false;
	if (verify)
		guest_verify(g, page);
	guest_fill(guest_page(g, page), seed);
	guest_release(g, page, seed, 0);
	return true;
}

// As many of nr pages as can be had, up to the end of the block.
static inline void guest_discard(struct guest *g, size_t first, size_t nr)
{
	size_t n = 0;

	while (n < nr && first + n < g->nr_pages && guest_acquire(g, first + n))
		n++;
	if (n && madvise(guest_page(g, first), n * PAGE_SIZE, MADV_REMOVE))
		g->wrong++;
	for (size_t i = first; i < first + n; i++)
		guest_release(g, i, 0, g->zeros ? 0 : g->other[i] ? g->other[i] : g->seed[i]);
}

// One read of consecutive pages of the file into pages here and there.
static inline void guest_dma(struct guest *g, size_t nr, uint64_t *random)
{
	struct iovec iov[GUEST_IOVS];
	size_t page[GUEST_IOVS], n = 0, from = (*random = guest_mix(*random)) % (g->dma_pages - GUEST_IOVS);

	while (nr--) {
		page[n] = (*random = guest_mix(*random)) / 64 % g->nr_pages;
		if (guest_acquire(g, page[n])) {
			iov[n] = (struct iovec){ guest_page(g, page[n]), PAGE_SIZE };
			n++;
		}
	}
	if (n && preadv(g->dma_fd, iov, (int)n, (off_t)(from * PAGE_SIZE)) != (ssize_t)(n * PAGE_SIZE))
		g->wrong++;
	for (size_t i = 0; i < n; i++)
		guest_release(g, page[i], guest_mix(from + i), 0);
}

static inline void guest_random_op(struct guest *g, uint64_t *random)
{
	uint64_t r = *random = guest_mix(*random);
	unsigned what = r >> 8 & 63;
	size_t page = (r >> 16) % g->nr_pages;

	if (r >> 60) // mostly where others have been lately
		page = (page % (g->nr_pages / 16) + (*random >> 40) % 3 * (g->nr_pages / 3)) % g->nr_pages;
	if (!guest_page(g, page))
		return;
	if (g->reads_only || what < 40)
		guest_read(g, page);
	else if (what < 62)
		guest_write(g, page, guest_mix(r), what & 1);
	else if (g->keeps)
		return;
	else if (what < 63)
		guest_discard(g, page, 1 + (r >> 32) % 40);
	else if (r >> 32 & 1)
		guest_discard(g, page / 256 * 256, 256); // exactly a chunk
	else
		guest_discard(g, page, 700);
}

static inline void guest_obey(struct guest *g, struct worker *w, enum guest_order order, uint64_t *random)
{
	if (order == GUEST_DISCARD)
		guest_discard(g, w->first, w->nr);
	for (size_t page = w->first; page < w->first + w->nr && (order == GUEST_VERIFY || order == GUEST_WRITE); page++) {
		*random = guest_mix(*random);
		while (guest_page(g, page) &&
		       !(order == GUEST_VERIFY ? guest_read(g, page) : guest_write(g, page, *random, false)))
			sched_yield();
		w->touched++;
	}
	while ((order == GUEST_RANDOM || order == GUEST_DMA) && !g->stop) {
		w->drain_seen = g->drains;
		if (order == GUEST_DMA)
			guest_dma(g, 1 + *random / 32 % GUEST_IOVS, random);
		else
			guest_random_op(g, random);
		w->touched++;
	}
}

struct worker_arg {
	struct guest *g;
	struct worker *w;
};

static inline void *guest_worker(void *arg)
{
	struct worker_arg *a = arg;
	uint64_t random = guest_mix((uint64_t)(a->w - a->g->worker));

	for (a->w->tid = (pid_t)syscall(SYS_gettid);; usleep(50)) {
		enum guest_order order = a->w->order;

		a->w->drain_seen = a->g->drains;
		if (order == GUEST_IDLE) // what is ordered just now is not to be forgotten
			continue;
		guest_obey(a->g, a->w, order, &random);
		a->w->order = GUEST_IDLE;
	}
	return NULL;
}

// The child's life. Its blocks are mapped neither on a chunk nor next to each other.
static inline void guest_main(struct guest *g)
{
	static struct worker_arg arg[GUEST_WORKERS];
	pthread_t thread;

	prctl(PR_SET_PDEATHSIG, SIGKILL);
	for (size_t i = 0; i < g->nr_blocks; i++) {
		size_t len = g->block[i].nr * PAGE_SIZE;
		char *at = mmap(NULL, len + 4 * MiB, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);

		at = (char *)ROUND_UP((uintptr_t)at, MiB) + (5 + i) * PAGE_SIZE;
		g->block[i].ram = mmap(at, len, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, g->block[i].memfd, 0);
	}
	for (size_t i = 0; i < GUEST_WORKERS; i++) {
		arg[i] = (struct worker_arg){ g, &g->worker[i] };
		if (pthread_create(&thread, NULL, guest_worker, &arg[i]))
			_exit(1);
	}
	for (;;)
		pause();
}
