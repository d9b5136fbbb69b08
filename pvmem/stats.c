// SPDX-License-Identifier: GPL-2.0-only
#include "pvmem/engine_int.h"

// Where the pages of a chunk are.
static void count_pages(const struct pv_engine *e, uint64_t chunk, struct pv_stats *s)
{
	const struct pv_pages *p = pv_pages_of(e, chunk);
	unsigned nr = pv_chunk_nr_pages(e, chunk);
	uint64_t *const count[] = { NULL, &s->empty, &s->swapped, &s->remote };

	s->resident += bitmap_count(p->valid, nr);
	for (enum pv_home h = PV_HOME_ZERO; h <= PV_HOME_SOURCE; h++) {
		uint64_t map[PV_WORDS];

		pv_pages_of_home(p, h, map);
		if (h == PV_HOME_SOURCE)
			s->source += bitmap_count(map, nr);
		for (unsigned w = 0; w < PV_WORDS; w++)
			map[w] &= ~p->valid[w];
		*count[h] += bitmap_count(map, nr);
	}
}

static uint64_t earlier(uint64_t a, uint64_t b)
{
	return a && a < b ? a : b;
}

void pv_engine_stats(const struct pv_engine *e, struct pv_stats *s)
{
	uint64_t now = clock_now_ns(), read = now, trouble = now; // when the oldest began

	*s = e->stats;
	s->budget = e->goal;
	s->charged = e->charged;
	s->reserve = e->reserve;
	s->idle = e->nr_idle;
	s->standby = e->nr_standby;
	s->page_out_under_way = e->nr_out;
	s->shadow = e->snapping.shadow_pages;
	s->overdraft = e->charged > e->budget ? e->charged - e->budget : 0;
	s->nr_queue_buckets = pv_queues_histogram(&e->queues, s->queue);
	s->queue[0] += e->nr_once; // they go first
	for (uint64_t i = 0; i < e->nr_chunks; i++) {
		count_pages(e, i, s);
		for (const struct pv_request *r = e->chunks[i].requests; r; r = r->next) {
			s->reads++;
			read = earlier(r->begun_ns, read);
			if (r->waiting)
				trouble = earlier(r->begun_ns, trouble);
		}
	}
	s->read_ns = now - read;
	s->reads_waiting = e->reads_waiting;
	s->filling = e->fill.active;
	for (const struct list *node = e->delayed.next; node != &e->delayed; node = node->next)
		s->faults_waiting++;
	if (e->drain_busy)
		s->drain_now_ns = now - e->drain_begun_ns;
	if (!e->reads_waiting && !e->out_failing_since_ns && !e->drain_late && !e->fill.failing_since_ns)
		return;
	trouble = earlier(e->fill.failing_since_ns, trouble);
	if (e->out_failing_since_ns)
		trouble = earlier(e->out_failing_since_ns, trouble);
	if (e->drain_late)
		trouble = earlier(e->drain_begun_ns, trouble);
	s->trouble = e->trouble;
	s->trouble_err = e->trouble_err;
	s->trouble_ns = now - trouble;
}
