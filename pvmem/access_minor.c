// SPDX-License-Identifier: GPL-2.0-only
//
// DOC: MINOR sampling
//
// Where nothing tells which pages are accessed, those are unmapped that are next to go, and who comes back is in use: a touch of what is
// in memory is a MINOR fault, which costs microseconds where a read would cost a hundred. The stage IDLE of the way out is this sample, as
// what the kernel's reclaim calls the inactive list. The longer it is, the surer is what goes, and the more faults there are: so its length
// is what a small part of the time pays for.
#include "pvmem/engine_int.h"

#define TOUCH_NS 10000 // a MINOR fault, as the guest feels it
#define ZAP_NS 60000   // a chunk that is unmapped, of pages of 4 KiB
#define SPENT_PART 20  // of a period: so much may it cost
#define PERIOD_NS NSEC_PER_SEC

uint64_t pv_sampling_goal(const struct pv_engine *e)
{
	if (e->stats.access != PV_ACCESS_MINOR || !e->sampling.periods_left)
		return 0;
	return e->goal >> e->sampling.share;
}

void pv_sampling_tick(struct pv_engine *e)
{
	struct pv_sampling *s = &e->sampling;
	uint64_t spent = s->touches * TOUCH_NS + s->zaps * ZAP_NS;

	if (spent > PERIOD_NS / SPENT_PART && s->share < PV_SAMPLE_SHARE_MAX)
		s->share++;
	else if (spent < PERIOD_NS / SPENT_PART / 4 && s->share > PV_SAMPLE_SHARE_MIN)
		s->share--;
	s->touches = s->zaps = 0;
	s->periods_left -= s->periods_left != 0;
}
