// SPDX-License-Identifier: GPL-2.0-only
// The chunk queues against the aging counter that they stand for, computed the naive way for every chunk.
#include <check.h>
#include <stdlib.h>
#include <string.h>

#include "pvmem/chunk.h"
#include "pvmem/queues.h"
#include "util/size.h"

#define NR_CHUNKS 300
#define NR_STEPS 60000

// What the queues are an encoding of.
struct counter {
	unsigned h;    // of m bits; h = h >> 1 | accessed << (m - 1) at the end of each period
	bool accessed; // in this period
	bool on;       // on the queues
};

struct model {
	unsigned bits; // m
	struct pv_queues q;
	struct pv_chunk chunk[NR_CHUNKS];
	struct counter counter[NR_CHUNKS];
	// The chunks that are on the queues, the next victim first. Ages change in the same order, so a period's end leaves it.
	unsigned order[NR_CHUNKS];
	size_t nr;
};

static unsigned index_of(const struct model *m, const struct counter *c)
{
	return c->h >> 1 | (unsigned)c->accessed << (m->bits - 1);
}

static void take_out(struct model *m, unsigned i)
{
	size_t at = 0;

	while (m->order[at] != i)
		at++;
	m->nr--;
	for (; at < m->nr; at++)
		m->order[at] = m->order[at + 1];
	m->counter[i].on = false;
}

// Behind all that are as old.
static void put_in(struct model *m, unsigned i)
{
	size_t at = m->nr++;

	for (; at && index_of(m, &m->counter[m->order[at - 1]]) > index_of(m, &m->counter[i]); at--)
		m->order[at] = m->order[at - 1];
	m->order[at] = i;
	m->counter[i].on = true;
}

static void model_init(struct model *m, unsigned bits, uint64_t period)
{
	*m = (struct model){ .bits = bits };
	pv_queues_init(&m->q, bits);
	m->q.period = period;
	for (unsigned i = 0; i < NR_CHUNKS; i++)
		list_init(&m->chunk[i].link);
}

// All of the model's order, from both ends.
static bool same_order(const struct model *m)
{
	const struct pv_chunk *c = pv_queues_oldest(&m->q);
	size_t at = 0;

	for (; c && at < m->nr; at++, c = pv_queues_newer(&m->q, c))
		if (c != &m->chunk[m->order[at]] || pv_queues_index(&m->q, c) != index_of(m, &m->counter[m->order[at]]))
			return false;
	if (c || at < m->nr)
		return false;
	for (c = pv_queues_newest(&m->q); c && at; c = pv_queues_older(&m->q, c))
		if (c != &m->chunk[m->order[--at]])
			return false;
	return !c && !at;
}

// What is counted, and that each chunk is on the list of its index.
static bool same(const struct model *m)
{
	static size_t nr[PV_MAX_QUEUES];
	size_t bucket[PV_QUEUE_BUCKETS];
	unsigned nr_buckets = pv_queues_histogram(&m->q, bucket), each = pv_queues_nr(&m->q) / nr_buckets;

	memset(nr, 0, sizeof nr);
	for (size_t i = 0; i < m->nr; i++)
		nr[index_of(m, &m->counter[m->order[i]])]++;
	for (unsigned i = 0; i < pv_queues_nr(&m->q); i++) {
		size_t found = 0;

		list_for_each(&m->q.queue[i], node) {
			found++;
			if (pv_queues_index(&m->q, list_entry(node, struct pv_chunk, link)) != i)
				return false;
		}
		if (found != nr[i] || m->q.nr[i] != nr[i])
			return false;
		bucket[i / each] -= nr[i];
	}
	for (unsigned i = 0; i < PV_QUEUE_BUCKETS; i++)
		if (bucket[i])
			return false;
	return same_order(m);
}

static void age(struct model *m)
{
	pv_queues_age(&m->q);
	for (unsigned i = 0; i < NR_CHUNKS; i++) {
		m->counter[i].h = index_of(m, &m->counter[i]);
		m->counter[i].accessed = false;
	}
}

// Something happens to a chunk that is on the queues.
static void happen_on(struct model *m, unsigned i, int what)
{
	struct counter *c = &m->counter[i];

	if (what < 3) {
		pv_queues_remove(&m->q, &m->chunk[i]);
		take_out(m, i);
	} else {
		pv_queues_access(&m->q, &m->chunk[i]);
		if (!c->accessed) { // the first access in a period moves it, the others change nothing
			take_out(m, i);
			c->accessed = true;
			put_in(m, i);
		}
	}
}

// Something happens to a chunk that is on none.
static void happen_off(struct model *m, unsigned i, int what)
{
	struct counter *c = &m->counter[i];
	unsigned known = (unsigned)rand() % pv_queues_nr(&m->q);

	switch (what) {
	case 0: // nothing, harmlessly
		pv_queues_remove(&m->q, &m->chunk[i]);
		pv_queues_access(&m->q, &m->chunk[i]);
		return;
	case 1:
		pv_queues_add_at(&m->q, &m->chunk[i], known);
		*c = (struct counter){ .h = known << 1 & (pv_queues_nr(&m->q) - 1), .accessed = known >> (m->bits - 1) };
		break;
	case 2:
	case 3:
	case 4:
		pv_queues_return(&m->q, &m->chunk[i]);
		c->accessed = true;
		break;
	default:
		pv_queues_add(&m->q, &m->chunk[i]);
		*c = (struct counter){ .h = pv_queues_nr(&m->q) - 1, .accessed = true };
	}
	put_in(m, i);
}

// The first passes by where 32 bits for the period would wrap.
static const struct {
	unsigned bits;
	uint64_t period;
} life[] = { { 8, UINT32_MAX - 20 }, { 8, 0 }, { 1, 1000 }, { 2, 0 }, { 7, 0 }, { 9, 0 }, { PV_MAX_QUEUE_BITS, 0 } };

START_TEST(random_life)
{
	static struct model m;

	srand((unsigned)_i + 1);
	model_init(&m, life[_i].bits, life[_i].period);
	for (unsigned step = 0; step < NR_STEPS; step++) {
		unsigned i = (unsigned)rand() % NR_CHUNKS;

		if (rand() % 300 == 0)
			age(&m);
		else if (rand() % 3000 == 0) // and nothing for long
			for (unsigned n = (unsigned)rand() % 30; n; n--)
				age(&m);
		else if (m.counter[i].on)
			happen_on(&m, i, rand() % 10);
		else
			happen_off(&m, i, rand() % 8);
		if (step % 50 == 0)
			ck_assert(same(&m));
		if (pv_queues_oldest(&m.q) != (m.nr ? &m.chunk[m.order[0]] : NULL))
			ck_abort_msg("step %u: not the oldest", step);
	}
	for (; m.nr; take_out(&m, m.order[0])) { // and out they go
		ck_assert_ptr_eq(pv_queues_oldest(&m.q), &m.chunk[m.order[0]]);
		pv_queues_remove(&m.q, &m.chunk[m.order[0]]);
	}
	ck_assert_ptr_null(pv_queues_oldest(&m.q));
	ck_assert_ptr_null(pv_queues_newest(&m.q));
	ck_assert(same(&m));
}
END_TEST

START_TEST(long_idle)
{
	static struct model m;

	// One stays on the queues and one off them, both untouched for far longer than the counter has bits.
	model_init(&m, 8, UINT32_MAX - 50);
	happen_off(&m, 0, 7);
	happen_off(&m, 1, 7);
	happen_on(&m, 1, 0);
	for (unsigned i = 0; i < 1000; i++) {
		age(&m);
		ck_assert(same(&m));
	}
	m.q.period += (1UL << 32) - 998; // 32 bits would take it for two periods
	ck_assert(same(&m));
	ck_assert_uint_eq(pv_queues_index(&m.q, &m.chunk[0]), 0);
	happen_off(&m, 1, 2);
	ck_assert(same(&m));
	ck_assert_uint_eq(pv_queues_index(&m.q, &m.chunk[1]), pv_queues_nr(&m.q) / 2);
	ck_assert_ptr_eq(pv_queues_oldest(&m.q), &m.chunk[0]);
}
END_TEST

// What a dump says of a chunk brings it back to the same queue, or, where there are more queues than ages, near it.
START_TEST(ages)
{
	static struct pv_queues q;

	for (unsigned bits = 1; bits <= PV_MAX_QUEUE_BITS; bits++) {
		unsigned last = (1U << bits) - 1, before = 0;

		pv_queues_init(&q, bits);
		ck_assert_uint_eq(pv_queues_age_of(&q, 0), 1);
		ck_assert_uint_eq(pv_queues_age_of(&q, last), 255);
		for (unsigned i = 0; i <= last; i++) {
			unsigned back = pv_queues_index_of(&q, pv_queues_age_of(&q, i));

			ck_assert_uint_le(back, i);
			ck_assert_uint_le(i - back, bits <= 7 ? 0 : last / 254);
		}
		for (unsigned age = 0; age <= 255; age++) {
			unsigned i = pv_queues_index_of(&q, (uint8_t)age);

			ck_assert_uint_le(i, last);
			ck_assert_uint_ge(i, before);
			before = i;
		}
	}
}
END_TEST

int main(void)
{
	Suite *s = suite_create("queues");
	TCase *t = tcase_create("queues");
	SRunner *sr;
	int failed;

	tcase_add_loop_test(t, random_life, 0, ARRAY_SIZE(life));
	tcase_add_test(t, long_idle);
	tcase_add_test(t, ages);
	suite_add_tcase(s, t);
	sr = srunner_create(s);
	srunner_run_all(sr, CK_ENV);
	failed = srunner_ntests_failed(sr);
	srunner_free(sr);
	return failed ? 1 : 0;
}
