// SPDX-License-Identifier: GPL-2.0-only
// Which page is touched next.
#pragma once
#include <stdbool.h>
#include <stdint.h>

#define PATTERN_OBJECT_PAGES 16 // 64 KiB

struct pattern {
	uint64_t (*next)(struct pattern *p);
	uint64_t first, nr_pages; // touched are these only
	uint64_t nr, dice;        // touches so far; state of the random numbers
	uint64_t object;          // whose pages are being touched
	const uint32_t *order;    // of pages or objects, or NULL: ascending
	uint64_t nr_ranks;        // zipf, of pages or objects
	double zeta, eta;
};

// "seq", "stride", "uniform", "zipf" (pages at random places), "zipf-near" (neighbours are about as hot), "zipf-64k" (objects at random
// places, all pages of one in order). Of all pages. False: there is none of that name.
bool pattern_init(struct pattern *p, const char *name, uint64_t nr_pages);
// Of nr_pages pages from first on, or of so many in an order (borrowed), random ones, all of equal chance.
void pattern_init_uniform(struct pattern *p, uint64_t first, uint64_t nr_pages, const uint32_t *order);
// A permutation of 0 ... nr - 1, always the same one, for ever. Aborts the process without memory.
const uint32_t *pattern_shuffled(uint64_t nr);

static inline uint64_t pattern_page(const struct pattern *p, uint64_t i)
{
	return p->order ? p->order[i] : i;
}

// splitmix64's finalizer (Vigna, public domain).
static inline uint64_t pattern_mix(uint64_t x)
{
	x += 0x9e3779b97f4a7c15;
	x = (x ^ x >> 30) * 0xbf58476d1ce4e5b9;
	x = (x ^ x >> 27) * 0x94d049bb133111eb;
	return x ^ x >> 31;
}
