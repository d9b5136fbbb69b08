// SPDX-License-Identifier: GPL-2.0-only
#include "pvmem/queues.h"

#include "pvmem/chunk.h"

void pv_queues_init(struct pv_queues *q)
{
	*q = (struct pv_queues){ .period = 0 };
	for (unsigned i = 0; i < PV_NR_QUEUES; i++)
		list_init(&q->queue[i]);
}

unsigned pv_queues_index(const struct pv_queues *q, const struct pv_chunk *c)
{
	uint32_t periods = q->period - c->queue_period;

	return periods < 16 ? (unsigned)c->queue >> periods : 0;
}

void pv_queues_add_at(struct pv_queues *q, struct pv_chunk *c, unsigned index)
{
	list_append(&q->queue[index], &c->link);
	q->nr[index]++;
	c->queue = (uint16_t)index;
	c->queue_period = q->period;
	c->queued = true;
}

void pv_queues_add(struct pv_queues *q, struct pv_chunk *c)
{
	pv_queues_add_at(q, c, PV_NR_QUEUES - 1);
}

void pv_queues_remove(struct pv_queues *q, struct pv_chunk *c)
{
	if (!c->queued)
		return;
	list_remove(&c->link);
	q->nr[pv_queues_index(q, c)]--;
	c->queued = false;
}

void pv_queues_return(struct pv_queues *q, struct pv_chunk *c)
{
	pv_queues_add_at(q, c, pv_queues_index(q, c) | PV_NR_QUEUES / 2);
}

void pv_queues_access(struct pv_queues *q, struct pv_chunk *c)
{
	if (!c->queued || pv_queues_index(q, c) >= PV_NR_QUEUES / 2)
		return;
	pv_queues_remove(q, c);
	pv_queues_return(q, c);
}

void pv_queues_age(struct pv_queues *q)
{
	for (unsigned i = 1; i < PV_NR_QUEUES; i++) { // queue 0 stays; ascending, so that i / 2 has been emptied before
		list_splice(&q->queue[i / 2], &q->queue[i]);
		q->nr[i / 2] += q->nr[i];
		q->nr[i] = 0;
	}
	q->period++;
}

struct pv_chunk *pv_queues_oldest(const struct pv_queues *q)
{
	for (unsigned i = 0; i < PV_NR_QUEUES; i++)
		if (q->nr[i])
			return list_first(&q->queue[i], struct pv_chunk, link);
	return NULL;
}
