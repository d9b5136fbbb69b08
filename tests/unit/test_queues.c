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
	unsigned h;    // h = h >> 1 | accessed << 7 at the end of each period
	bool accessed; // in this period
	bool on;       // on the queues
};

struct model {
	struct pv_queues q;
	struct pv_chunk chunk[NR_CHUNKS];
	struct counter counter[NR_CHUNKS];
	// The chunks that are on the queues, the next victim first. Ages change in the same order, so a period's end leaves it.
	unsigned order[NR_CHUNKS];
	size_t nr;
};

static unsigned index_of(const struct counter *c)
{
	return c->h >> 1 | (unsigned)c->accessed << 7;
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

	for (; at && index_of(&m->counter[m->order[at - 1]]) > index_of(&m->counter[i]); at--)
		m->order[at] = m->order[at - 1];
	m->order[at] = i;
	m->counter[i].on = true;
}

static void model_init(struct model *m, uint32_t period)
{
	*m = (struct model){ .nr = 0 };
	pv_queues_init(&m->q);
	m->q.period = period;
	for (unsigned i = 0; i < NR_CHUNKS; i++)
		list_init(&m->chunk[i].link);
}

static bool same(const struct model *m)
{
	size_t nr[PV_NR_QUEUES] = { 0 }, at = 0;

	for (size_t i = 0; i < m->nr; i++)
		nr[index_of(&m->counter[m->order[i]])]++;
	for (unsigned i = 0; i < PV_NR_QUEUES; i++)
		list_for_each(&m->q.queue[i], node) {
			const struct pv_chunk *c = list_entry(node, struct pv_chunk, link);

			if (at == m->nr || c != &m->chunk[m->order[at++]] || pv_queues_index(&m->q, c) != i)
				return false;
		}
	return at == m->nr && !memcmp(m->q.nr, nr, sizeof nr);
}

static void age(struct model *m)
{
	pv_queues_age(&m->q);
	for (unsigned i = 0; i < NR_CHUNKS; i++) {
		m->counter[i].h = index_of(&m->counter[i]);
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
	unsigned known = (unsigned)rand() % PV_NR_QUEUES;

	switch (what) {
	case 0: // nothing, harmlessly
		pv_queues_remove(&m->q, &m->chunk[i]);
		pv_queues_access(&m->q, &m->chunk[i]);
		return;
	case 1:
		pv_queues_add_at(&m->q, &m->chunk[i], known);
		*c = (struct counter){ .h = known << 1 & 0xff, .accessed = known >> 7 };
		break;
	case 2:
	case 3:
	case 4:
		pv_queues_return(&m->q, &m->chunk[i]);
		c->accessed = true;
		break;
	default:
		pv_queues_add(&m->q, &m->chunk[i]);
		*c = (struct counter){ .h = 0xff, .accessed = true };
	}
	put_in(m, i);
}

// The first passes around the wrap of the period counter.
static const uint32_t first_period[] = { UINT32_MAX - 20, 0, 1000 };

START_TEST(random_life)
{
	static struct model m;

	srand((unsigned)_i + 1);
	model_init(&m, first_period[_i]);
	for (unsigned step = 0; step < NR_STEPS; step++) {
		unsigned i = (unsigned)rand() % NR_CHUNKS;

		if (rand() % 300 == 0)
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
	ck_assert(same(&m));
}
END_TEST

START_TEST(long_idle)
{
	static struct model m;

	// One stays on the queues and one off them, both untouched for far longer than the counter has bits.
	model_init(&m, UINT32_MAX - 50);
	happen_off(&m, 0, 7);
	happen_off(&m, 1, 7);
	happen_on(&m, 1, 0);
	for (unsigned i = 0; i < 1000; i++) {
		age(&m);
		ck_assert(same(&m));
	}
	ck_assert_uint_eq(pv_queues_index(&m.q, &m.chunk[0]), 0);
	happen_off(&m, 1, 2);
	ck_assert(same(&m));
	ck_assert_uint_eq(pv_queues_index(&m.q, &m.chunk[1]), PV_NR_QUEUES / 2);
	ck_assert_ptr_eq(pv_queues_oldest(&m.q), &m.chunk[0]);
}
END_TEST

int main(void)
{
	Suite *s = suite_create("queues");
	TCase *t = tcase_create("queues");
	SRunner *sr;
	int failed;

	tcase_add_loop_test(t, random_life, 0, ARRAY_SIZE(first_period));
	tcase_add_test(t, long_idle);
	suite_add_tcase(s, t);
	sr = srunner_create(s);
	srunner_run_all(sr, CK_ENV);
	failed = srunner_ntests_failed(sr);
	srunner_free(sr);
	return failed ? 1 : 0;
}
