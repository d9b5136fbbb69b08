// SPDX-License-Identifier: GPL-2.0-only
#include "pvmem/chunk.h"

#include <stdio.h>
#include <stdlib.h>

static const char *const state_name[PV_NR_CHUNK_STATES] = { "absent", "resident", "zapping", "draining", "writing", "standby" };

#define TO(s) (1u << (s))
static const unsigned char next_states[PV_NR_CHUNK_STATES] = {
	[PV_ABSENT]   = TO(PV_RESIDENT),
	[PV_RESIDENT] = TO(PV_ZAPPING) | TO(PV_ABSENT),
	[PV_ZAPPING]  = TO(PV_DRAINING) | TO(PV_RESIDENT),
	[PV_DRAINING] = TO(PV_WRITING) | TO(PV_RESIDENT),
	[PV_WRITING]  = TO(PV_STANDBY) | TO(PV_RESIDENT),
	[PV_STANDBY]  = TO(PV_ABSENT) | TO(PV_RESIDENT),
};

const char *pv_chunk_state_name(enum pv_chunk_state s)
{
	return s < PV_NR_CHUNK_STATES ? state_name[s] : "?";
}

bool pv_chunk_may_become(enum pv_chunk_state from, enum pv_chunk_state to)
{
	return from < PV_NR_CHUNK_STATES && to < PV_NR_CHUNK_STATES && next_states[from] & TO(to);
}

void pv_chunk_set_state(struct pv_chunk *c, enum pv_chunk_state to)
{
	if (!pv_chunk_may_become(c->state, to)) {
		// Going on could give the guest a wrong page; faults wait for another pager instead.
		fprintf(stderr, "chunk: %s must not become %s\n", pv_chunk_state_name(c->state), pv_chunk_state_name(to));
		abort();
	}
	c->state = (uint8_t)to;
}

enum pv_home pv_page_home(const struct pv_pages *p, unsigned page)
{
	return (enum pv_home)((unsigned)bitmap_test(p->home[0], page) | (unsigned)bitmap_test(p->home[1], page) << 1);
}

void pv_page_set_home(struct pv_pages *p, unsigned page, enum pv_home home)
{
	uint64_t one[PV_WORDS] = { 0 };

	bitmap_set(one, page);
	pv_pages_set_home(p, one, home);
}

void pv_pages_of_home(const struct pv_pages *p, enum pv_home home, uint64_t map[PV_WORDS])
{
	for (unsigned w = 0; w < PV_WORDS; w++)
		map[w] = (home & 1 ? p->home[0][w] : ~p->home[0][w]) & (home & 2 ? p->home[1][w] : ~p->home[1][w]);
}

void pv_pages_set_home(struct pv_pages *p, const uint64_t which[PV_WORDS], enum pv_home home)
{
	for (unsigned bit = 0; bit < 2; bit++)
		for (unsigned w = 0; w < PV_WORDS; w++)
			p->home[bit][w] = home >> bit & 1 ? p->home[bit][w] | which[w] : p->home[bit][w] & ~which[w];
}

bool pv_pages_sane(const struct pv_pages *p)
{
	uint64_t homeless[PV_WORDS];

	pv_pages_of_home(p, PV_HOME_NONE, homeless);
	for (unsigned w = 0; w < PV_WORDS; w++)
		if (homeless[w] & ~p->valid[w])
			return false; // a page that is nowhere
	return true;
}
