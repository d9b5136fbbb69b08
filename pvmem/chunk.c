// SPDX-License-Identifier: GPL-2.0-only
#include "pvmem/chunk.h"

#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>

static const char *const state_name[PV_NR_CHUNK_STATES] = { "absent", "resident", "zapping", "idle", "draining", "writing", "standby",
	"stripping" };

#define TO(s) (1u << (s))
static const unsigned char next_states[PV_NR_CHUNK_STATES] = {
	[PV_ABSENT]    = TO(PV_RESIDENT) | TO(PV_STRIPPING),
	[PV_RESIDENT]  = TO(PV_ZAPPING) | TO(PV_ABSENT),
	[PV_ZAPPING]   = TO(PV_IDLE) | TO(PV_RESIDENT),
	[PV_IDLE]      = TO(PV_DRAINING) | TO(PV_RESIDENT),
	[PV_DRAINING]  = TO(PV_WRITING) | TO(PV_RESIDENT),
	[PV_WRITING]   = TO(PV_STANDBY) | TO(PV_RESIDENT),
	[PV_STANDBY]   = TO(PV_ABSENT) | TO(PV_RESIDENT),
	[PV_STRIPPING] = TO(PV_ABSENT),
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
	return bitmap_test(p->zero, page)     ? PV_HOME_ZERO :
	       bitmap_test(p->swap, page)     ? PV_HOME_SWAP :
	       bitmap_test(p->source, page) ? PV_HOME_SOURCE :
					      PV_HOME_NONE;
}

void pv_page_set_home(struct pv_pages *p, unsigned page, enum pv_home home)
{
	uint64_t one[PV_WORDS] = { 0 };

	bitmap_set(one, page);
	pv_pages_set_home(p, one, home);
}

static uint64_t homes_in_word(const struct pv_pages *p, enum pv_home home, unsigned w)
{
	switch (home) {
	case PV_HOME_ZERO:
		return p->zero[w];
	case PV_HOME_SWAP:
		return p->swap[w] & ~p->zero[w];
	case PV_HOME_SOURCE:
		return p->source[w] & ~p->swap[w] & ~p->zero[w];
	default:
		return ~(p->zero[w] | p->swap[w] | p->source[w]);
	}
}

void pv_pages_of_home(const struct pv_pages *p, enum pv_home home, uint64_t map[PV_WORDS])
{
	for (unsigned w = 0; w < PV_WORDS; w++)
		map[w] = homes_in_word(p, home, w);
}

// What is after it is not brought before it: for who reads this after us, and for who reads it meanwhile.
#define KEEP_ORDER() atomic_thread_fence(memory_order_acq_rel)
// Whole words: of each, who reads it meanwhile finds what it was or what it is.
#define SET_WORD(word, value) __atomic_store_n(&(word), (value), __ATOMIC_RELAXED)

void pv_pages_set_home(struct pv_pages *p, const uint64_t which[PV_WORDS], enum pv_home home)
{
	uint64_t *const homes[] = { [PV_HOME_ZERO] = p->zero, [PV_HOME_SWAP] = p->swap, [PV_HOME_SOURCE] = p->source };

	if (home != PV_HOME_NONE)
		for (unsigned w = 0; w < PV_WORDS; w++)
			SET_WORD(homes[home][w], homes[home][w] | which[w]);
	for (enum pv_home h = PV_HOME_SOURCE; h != PV_HOME_NONE; h--) { // the one that is meant is cleared last
		KEEP_ORDER();
		for (unsigned w = 0; h != home && w < PV_WORDS; w++)
			SET_WORD(homes[h][w], homes[h][w] & ~which[w]);
	}
	KEEP_ORDER();
}

void pv_pages_set_valid(struct pv_pages *p, const uint64_t which[PV_WORDS], bool valid)
{
	KEEP_ORDER();
	for (unsigned w = 0; w < PV_WORDS; w++)
		SET_WORD(p->valid[w], valid ? p->valid[w] | which[w] : p->valid[w] & ~which[w]);
	KEEP_ORDER();
}

void pv_pages_set_dirty(struct pv_pages *p, const uint64_t which[PV_WORDS])
{
	for (unsigned w = 0; w < PV_WORDS; w++)
		if (which[w])
			__atomic_fetch_or(&p->dirty[w], which[w], __ATOMIC_ACQ_REL);
	KEEP_ORDER();
}

void pv_pages_count_drop(struct pv_pages *p)
{
	__atomic_fetch_add(&p->drops, 1, __ATOMIC_SEQ_CST);
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
