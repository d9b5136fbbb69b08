// SPDX-License-Identifier: GPL-2.0-only
#include "pvmem/adapt.h"

#define ONE 65536U // a share of everything

// What is known of a larger window in a chunk: 0 nothing, else the share of its pages that was used, 1 to SHARE_MAX; and whether the
// window is therefore worth it.
#define SHARE_MAX 127
#define WORTH_IT  128

// A window becomes worth it at `up`, and stops being so below `down`. It needs more than what the transfer costs, a fortieth of a miss for
// a page: each page that it brings pushes out another one.
static const struct level {
	uint32_t up, down;
	uint32_t rate; // of experiments, at least; more as they yield more than `down`
} levels[2] = {
	{ ONE / 20 * 9, ONE / 20 * 6, ONE / 64 },
	{ ONE / 20 * 15, ONE / 20 * 12, ONE / 256 },
};

#define CHUNK_MEMORY  8 // so many samples weigh as much as all before
#define DOUBT_MEMORY  2 // the same, where the rest of memory says otherwise
#define GLOBAL_MEMORY 64

void pv_adapt_init(struct pv_adapt *a)
{
	*a = (struct pv_adapt){ .share = { ONE, 0 }, .worth = { true, false }, .yield = { 0, ONE / 2 }, .random = 1 };
}

static bool chance(struct pv_adapt *a, uint32_t share)
{
	a->random ^= a->random << 13;
	a->random ^= a->random >> 17;
	a->random ^= a->random << 5;
	return (a->random >> 8) % ONE < share;
}

static bool worth_it(const struct pv_adapt *a, uint8_t known, unsigned level)
{
	return known ? known & WORTH_IT : a->worth[level];
}

static bool experiment(struct pv_adapt *a, unsigned level)
{
	uint32_t rate = levels[level].rate;

	if (a->yield[level] > levels[level].down)
		rate += (a->yield[level] - levels[level].down) / 2;
	return chance(a, rate);
}

enum pv_window pv_adapt_known(const struct pv_adapt *a, const struct pv_history *h)
{
	return worth_it(a, h->chunk, 1) ? PV_WINDOW_CHUNK : worth_it(a, h->block, 0) ? PV_WINDOW_BLOCK : PV_WINDOW_PAGE;
}

enum pv_window pv_adapt_window(struct pv_adapt *a, const struct pv_history *h)
{
	enum pv_window w = pv_adapt_known(a, h);

	return w != PV_WINDOW_CHUNK && experiment(a, w) ? w + 1 : w;
}

static uint32_t blend(uint32_t share, unsigned sampled, unsigned used, unsigned memory)
{
	return (uint32_t)(((uint64_t)share * memory + (uint64_t)used * ONE) / (memory + sampled));
}

static bool judge(unsigned level, bool before, uint32_t share)
{
	return share >= (before ? levels[level].down : levels[level].up);
}

void pv_adapt_learn(struct pv_adapt *a, struct pv_history *h, enum pv_window w, unsigned sampled, unsigned used)
{
	unsigned level = w == PV_WINDOW_CHUNK;
	uint8_t *known = level ? &h->chunk : &h->block;
	uint32_t share;
	bool worth;

	if (w == PV_WINDOW_PAGE || !sampled)
		return;
	worth = worth_it(a, *known, level);
	share = *known ? (*known & SHARE_MAX) * ONE / SHARE_MAX : a->share[level];
	share = blend(share, sampled, used, worth && !a->worth[level] ? DOUBT_MEMORY : CHUNK_MEMORY);
	if (!worth)
		a->yield[level] = blend(a->yield[level], sampled, used, GLOBAL_MEMORY);
	a->share[level] = blend(a->share[level], sampled, used, GLOBAL_MEMORY);
	a->worth[level] = judge(level, a->worth[level], a->share[level]);
	*known = (uint8_t)(1 + share * (SHARE_MAX - 1) / ONE);
	if (judge(level, worth, share))
		*known |= WORTH_IT;
}
