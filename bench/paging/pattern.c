// SPDX-License-Identifier: GPL-2.0-only
#include "bench/paging/pattern.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define THETA 0.99 // of zipf, as YCSB has it

static uint64_t random_below(uint64_t *dice, uint64_t n)
{
	return (uint64_t)((unsigned __int128)pattern_mix((*dice)++) * n >> 64);
}

const uint32_t *pattern_shuffled(uint64_t nr)
{
	uint32_t *order = malloc(nr * sizeof *order);
	uint64_t dice = nr << 32;

	if (!order) {
		perror("workload: order");
		exit(1);
	}
	for (uint64_t i = 0; i < nr; i++) {
		uint64_t k = random_below(&dice, i + 1);

		order[i] = order[k];
		order[k] = (uint32_t)i;
	}
	return order;
}

static uint64_t next_seq(struct pattern *p)
{
	return p->nr++ % p->nr_pages;
}

// One page of each object, the first one; then the second one of each.
static uint64_t next_stride(struct pattern *p)
{
	uint64_t objects = p->nr_pages / PATTERN_OBJECT_PAGES, nr = p->nr++;

	return nr % objects * PATTERN_OBJECT_PAGES + nr / objects % PATTERN_OBJECT_PAGES;
}

static uint64_t next_uniform(struct pattern *p)
{
	p->nr++;
	return pattern_page(p, p->first + random_below(&p->dice, p->nr_pages));
}

// Gray et al., Quickly Generating Billion-Record Synthetic Databases, SIGMOD 1994.
static uint64_t zipf_rank(struct pattern *p)
{
	double u = (double)(pattern_mix(p->dice++) >> 11) * 0x1p-53, uz = u * p->zeta;
	uint64_t rank = uz < 1 ? 0 : uz < 1 + pow(0.5, THETA) ? 1 : (uint64_t)((double)p->nr_ranks * pow(p->eta * (u - 1) + 1, 1 / (1 - THETA)));

	return rank < p->nr_ranks ? rank : p->nr_ranks - 1;
}

static void init_zipf(struct pattern *p, uint64_t nr_ranks)
{
	p->nr_ranks = nr_ranks;
	for (uint64_t i = 1; i <= nr_ranks; i++)
		p->zeta += pow((double)i, -THETA);
	p->eta = (1 - pow(2.0 / (double)nr_ranks, 1 - THETA)) / (1 - (1 + pow(0.5, THETA)) / p->zeta);
}

static uint64_t next_zipf(struct pattern *p)
{
	uint64_t rank = zipf_rank(p);

	p->nr++;
	return pattern_page(p, rank);
}

static uint64_t next_zipf_object(struct pattern *p)
{
	if (p->nr % PATTERN_OBJECT_PAGES == 0)
		p->object = p->order[zipf_rank(p)];
	return p->object * PATTERN_OBJECT_PAGES + p->nr++ % PATTERN_OBJECT_PAGES;
}

void pattern_init_uniform(struct pattern *p, uint64_t first, uint64_t nr_pages, const uint32_t *order)
{
	*p = (struct pattern){ .next = next_uniform, .first = first, .nr_pages = nr_pages, .order = order };
}

bool pattern_init(struct pattern *p, const char *name, uint64_t nr_pages)
{
	bool objects = !strcmp(name, "zipf-64k");
	uint64_t nr_ranks = objects ? nr_pages / PATTERN_OBJECT_PAGES : nr_pages;

	pattern_init_uniform(p, 0, nr_pages, NULL);
	if (!strcmp(name, "seq"))
		p->next = next_seq;
	else if (!strcmp(name, "stride"))
		p->next = next_stride;
	else if (!strncmp(name, "zipf", 4))
		p->next = objects ? next_zipf_object : next_zipf;
	else
		return !strcmp(name, "uniform");
	if (strncmp(name, "zipf", 4))
		return true;
	init_zipf(p, nr_ranks);
	if (strcmp(name, "zipf-near"))
		p->order = pattern_shuffled(nr_ranks);
	return objects || !strcmp(name, "zipf") || !strcmp(name, "zipf-near");
}
