// SPDX-License-Identifier: GPL-2.0-only
#include "pvmem/queues.h"

#include <string.h>

#include "pvmem/chunk.h"

_Static_assert(PV_MAX_QUEUES / 64 <= 64, "filled_words is one word");

void pv_queues_init(struct pv_queues *q, unsigned bits)
{
	q->bits = bits;
	q->period = q->filled_words = 0;
	memset(q->filled, 0, sizeof q->filled);
	for (unsigned i = 0; i < pv_queues_nr(q); i++) {
		q->nr[i] = q->next_recent[i] = 0;
		memset(q->recent[i], 0, sizeof q->recent[i]);
		list_init(&q->queue[i]);
	}
}

static void set_filled(struct pv_queues *q, unsigned i)
{
	bitmap_set(q->filled, i);
	q->filled_words |= 1ULL << i / 64;
}

static void set_empty(struct pv_queues *q, unsigned i)
{
	bitmap_clear(q->filled, i);
	if (!q->filled[i / 64])
		q->filled_words &= ~(1ULL << i / 64);
}

// The first queue from i on that has chunks, or PV_MAX_QUEUES.
static unsigned filled_from(const struct pv_queues *q, unsigned i)
{
	uint64_t words, in_word;

	if (i >= PV_MAX_QUEUES)
		return PV_MAX_QUEUES;
	in_word = q->filled[i / 64] >> i % 64;
	if (in_word)
		return i + (unsigned)__builtin_ctzll(in_word);
	words = q->filled_words & ~0ULL << i / 64 << 1;
	if (!words)
		return PV_MAX_QUEUES;
	i = (unsigned)__builtin_ctzll(words);
	return i * 64 + (unsigned)__builtin_ctzll(q->filled[i]);
}

// The last queue before i that has chunks, or PV_MAX_QUEUES.
static unsigned filled_before(const struct pv_queues *q, unsigned i)
{
	uint64_t in_word = i % 64 ? q->filled[i / 64] << (64 - i % 64) : 0, words;

	if (in_word)
		return i - 1 - (unsigned)__builtin_clzll(in_word);
	words = i / 64 < 64 ? q->filled_words & ~(~0ULL << i / 64) : q->filled_words;
	if (!words)
		return PV_MAX_QUEUES;
	i = 63 - (unsigned)__builtin_clzll(words);
	return i * 64 + 63 - (unsigned)__builtin_clzll(q->filled[i]);
}

unsigned pv_queues_index(const struct pv_queues *q, const struct pv_chunk *c)
{
	uint64_t periods = q->period - c->queue_period;

	return periods < PV_MAX_QUEUE_BITS ? (unsigned)c->queue >> periods : 0;
}

static void leave_hint(struct pv_queues *q, struct pv_chunk *c, unsigned index)
{
	unsigned last = q->next_recent[index]++;
	struct pv_chunk **before = &q->recent[index][last % PV_QUEUE_AHEAD];
	struct pv_chunk *near = q->recent[index][(last + PV_QUEUE_AHEAD / 2) % PV_QUEUE_AHEAD];

	if (*before)
		(*before)->ahead[0] = c;
	if (near)
		near->ahead[1] = c;
	*before = c;
}

static void take_hint(const struct pv_chunk *c)
{
	__builtin_prefetch(c->ahead[0], 1);
	__builtin_prefetch(c->ahead[1], 1);
}

void pv_queues_add_at(struct pv_queues *q, struct pv_chunk *c, unsigned index)
{
	list_append(&q->queue[index], &c->link);
	if (!q->nr[index]++)
		set_filled(q, index);
	c->queue = index;
	c->queue_period = q->period;
	c->queued = true;
	leave_hint(q, c, index);
}

void pv_queues_add(struct pv_queues *q, struct pv_chunk *c)
{
	pv_queues_add_at(q, c, pv_queues_nr(q) - 1);
}

void pv_queues_remove(struct pv_queues *q, struct pv_chunk *c)
{
	unsigned index;

	if (!c->queued)
		return;
	index = pv_queues_index(q, c);
	list_remove(&c->link);
	if (!--q->nr[index])
		set_empty(q, index);
	c->queued = false;
}

void pv_queues_return(struct pv_queues *q, struct pv_chunk *c)
{
	pv_queues_add_at(q, c, pv_queues_index(q, c) | pv_queues_nr(q) / 2);
}

void pv_queues_access(struct pv_queues *q, struct pv_chunk *c)
{
	if (!c->queued || pv_queues_index(q, c) >= pv_queues_nr(q) / 2)
		return;
	pv_queues_remove(q, c);
	pv_queues_return(q, c);
}

void pv_queues_age(struct pv_queues *q)
{
	// Queue 0 stays. Ascending, so that i / 2 has been emptied before.
	for (unsigned i = filled_from(q, 1); i < PV_MAX_QUEUES; i = filled_from(q, i + 1)) {
		list_splice(&q->queue[i / 2], &q->queue[i]);
		q->nr[i / 2] += q->nr[i];
		q->nr[i] = 0;
		set_filled(q, i / 2);
		set_empty(q, i);
	}
	q->period++;
}

static struct pv_chunk *first_of(const struct pv_queues *q, unsigned i)
{
	return i < PV_MAX_QUEUES ? list_first(&q->queue[i], struct pv_chunk, link) : NULL;
}

static struct pv_chunk *last_of(const struct pv_queues *q, unsigned i)
{
	return i < PV_MAX_QUEUES ? list_entry(q->queue[i].prev, struct pv_chunk, link) : NULL;
}

struct pv_chunk *pv_queues_oldest(const struct pv_queues *q)
{
	struct pv_chunk *c = first_of(q, filled_from(q, 0));

	if (c)
		take_hint(c);
	return c;
}

struct pv_chunk *pv_queues_newest(const struct pv_queues *q)
{
	return last_of(q, filled_before(q, PV_MAX_QUEUES));
}

// A neighbour of a chunk on a list may be the list itself.
static bool is_queue(const struct pv_queues *q, const struct list *node)
{
	return (uintptr_t)node - (uintptr_t)q->queue < sizeof q->queue;
}

struct pv_chunk *pv_queues_newer(const struct pv_queues *q, const struct pv_chunk *c)
{
	struct list *node = c->link.next;

	take_hint(c);
	return is_queue(q, node) ? first_of(q, filled_from(q, (unsigned)(node - q->queue) + 1)) : list_entry(node, struct pv_chunk, link);
}

struct pv_chunk *pv_queues_older(const struct pv_queues *q, const struct pv_chunk *c)
{
	struct list *node = c->link.prev;

	return is_queue(q, node) ? last_of(q, filled_before(q, (unsigned)(node - q->queue))) : list_entry(node, struct pv_chunk, link);
}

uint8_t pv_queues_age_of(const struct pv_queues *q, unsigned index)
{
	return (uint8_t)(1 + index * 254 / (pv_queues_nr(q) - 1));
}

unsigned pv_queues_index_of(const struct pv_queues *q, uint8_t age)
{
	return age ? ((age - 1U) * (pv_queues_nr(q) - 1) + 253) / 254 : 0; // rounded up, as pv_queues_age_of() rounds down
}

unsigned pv_queues_histogram(const struct pv_queues *q, size_t bucket[PV_QUEUE_BUCKETS])
{
	unsigned shift = q->bits > 8 ? q->bits - 8 : 0;

	memset(bucket, 0, PV_QUEUE_BUCKETS * sizeof *bucket);
	for (unsigned i = 0; i < pv_queues_nr(q); i++)
		bucket[i >> shift] += q->nr[i];
	return pv_queues_nr(q) >> shift;
}
