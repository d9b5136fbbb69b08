// SPDX-License-Identifier: GPL-2.0-only
#include "pvmem/access_idle.h"

#include <errno.h>
#include <stdlib.h>

#include "mm/idle.h"
#include "pvmem/engine_int.h"

#define SAMPLES 8          // pages of a chunk that are marked
#define TRIES 12           // pages that are tried for it: some are not mapped
#define MAX_WATCHED 1024   // chunks, 200 KiB of memory

// A chunk of which pages are marked.
struct watched {
	uint64_t chunk;
	unsigned nr;
	struct mm_idle_page page[SAMPLES];
};

struct pv_access_idle {
	struct pv_engine *e;
	struct mm_idle *idle;
	uint64_t cursor; // the chunk at which the next period goes on
	uint64_t random;
	size_t nr_watched;
	struct watched watched[MAX_WATCHED];
};

int pv_access_idle_new(struct pv_engine *e, struct pv_access_idle **out)
{
	struct pv_access_idle *a = calloc(1, sizeof *a);
	int r = a ? mm_idle_open(mm_pagemap_pid(e->o.pagemap), &a->idle) : -ENOMEM;

	if (r) {
		free(a);
		return r;
	}
	a->e = e;
	a->random = 1;
	*out = a;
	return 0;
}

void pv_access_idle_free(struct pv_access_idle *a)
{
	if (!a)
		return;
	mm_idle_close(a->idle);
	free(a);
}

// splitmix64.
static uint64_t next_random(struct pv_access_idle *a)
{
	uint64_t z = a->random += 0x9e3779b97f4a7c15;

	z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9;
	z = (z ^ z >> 27) * 0x94d049bb133111eb;
	return z ^ z >> 31;
}

static bool was_touched(struct pv_access_idle *a, const struct watched *w)
{
	for (unsigned i = 0; i < w->nr; i++)
		if (mm_idle_look(a->idle, &w->page[i]) == MM_IDLE_TOUCHED)
			return true;
	return false;
}

// What a scan has gone through, and is in use since, is no longer what is used once.
static void touched(struct pv_engine *e, struct pv_chunk *c)
{
	if (!c->once) {
		pv_queues_access(&e->queues, c);
	} else if (!pv_streams_has(&e->streams, pv_chunk_index(e, c) * PV_CHUNK_PAGES)) {
		pv_chunk_unlist(e, c);
		pv_queues_add(&e->queues, c);
	}
}

// What there is no time for is forgotten: marks of a period before last would say less.
static void look(struct pv_access_idle *a, uint64_t end_ns)
{
	for (size_t i = 0; i < a->nr_watched && clock_now_ns() < end_ns; i++) {
		const struct watched *w = &a->watched[i];
		struct pv_chunk *c = &a->e->chunks[w->chunk];

		if ((c->queued || c->once) && was_touched(a, w))
			touched(a->e, c);
	}
	a->nr_watched = 0;
}

// One at random, or rather the next one with a bit, or PV_CHUNK_PAGES.
static size_t some_page(struct pv_access_idle *a, const uint64_t which[PV_WORDS])
{
	size_t page = bitmap_next(which, PV_CHUNK_PAGES, next_random(a) % PV_CHUNK_PAGES, true);

	return page < PV_CHUNK_PAGES ? page : bitmap_next(which, PV_CHUNK_PAGES, 0, true);
}

// Marks a few of its pages, any that are mapped. Nothing else can be touched unseen.
static void watch(struct pv_access_idle *a, const struct pv_chunk *c)
{
	struct watched *w = &a->watched[a->nr_watched];
	const uint64_t *mapped;

	w->chunk = pv_chunk_index(a->e, c);
	w->nr = 0;
	mapped = c->foreign ? pv_pages_of(a->e, w->chunk)->valid : pv_maps_of(a->e, w->chunk)->mapped;
	for (unsigned i = 0; i < TRIES && w->nr < SAMPLES; i++) {
		size_t page = some_page(a, mapped);

		if (page < PV_CHUNK_PAGES && !mm_idle_mark(a->idle, pv_chunk_hva(a->e, w->chunk) + page * PAGE_SIZE, &w->page[w->nr]))
			w->nr++;
	}
	if (w->nr)
		a->nr_watched++;
}

// The oldest of what a scan has gone through: where there is much of it, it is the first to go.
static void watch_once(struct pv_access_idle *a, size_t max, uint64_t end_ns)
{
	const struct list *once = &a->e->once;

	for (const struct list *node = once->next; node != once && a->nr_watched < max && clock_now_ns() < end_ns; node = node->next)
		watch(a, list_entry(node, struct pv_chunk, link));
}

// Chunks from c on towards the newest, max at most. Returns the next one, or NULL behind the newest.
static struct pv_chunk *watch_from(struct pv_access_idle *a, struct pv_chunk *c, size_t max, uint64_t end_ns)
{
	while (c && a->nr_watched < max && clock_now_ns() < end_ns) {
		watch(a, c);
		c = pv_queues_newer(&a->e->queues, c);
	}
	return c;
}

void pv_access_idle_tick(struct pv_access_idle *a, uint64_t budget_ns)
{
	uint64_t now = clock_now_ns(), end = now + budget_ns;
	struct pv_engine *e = a->e;
	struct pv_chunk *c;

	if (!e->active)
		return; // nothing will age, and the marks stay good
	look(a, now + budget_ns / 2); // it costs less than marking did
	now = clock_now_ns();
	if (now >= end)
		return;
	watch_once(a, MAX_WATCHED / 4, now + (end - now) / 4);
	c = watch_from(a, pv_queues_oldest(&e->queues), MAX_WATCHED / 2, now + (end - now) / 2);
	if (!c)
		return; // that was all of them
	if (e->chunks[a->cursor].queued && pv_queues_index(&e->queues, &e->chunks[a->cursor]) > pv_queues_index(&e->queues, c))
		c = &e->chunks[a->cursor];
	c = watch_from(a, c, MAX_WATCHED, end);
	a->cursor = c ? pv_chunk_index(e, c) : 0;
}
