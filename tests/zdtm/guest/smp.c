// SPDX-License-Identifier: GPL-2.0-only
// Checks memory from all processors at once. Page i belongs to processor i % n, so that all of them meet in every chunk; each
// verifies its pages and rewrites half of them in a pass. All add to the same counters, which lie on pages spread over the
// memory, and once all have ended a pass every counter must be exactly what was added.
#include "guest.h"

#define NR_COUNTERS	64

static unsigned cpus;
static uint64_t arrived;
static volatile uint64_t released;

static uint64_t counter_page(unsigned i)
{
	return nr_pages() * i / NR_COUNTERS;
}

static bool is_counter(uint64_t page)
{
	uint64_t i = page * NR_COUNTERS / nr_pages();

	return page == counter_page(i) || (i + 1 < NR_COUNTERS && page == counter_page(i + 1));
}

static uint64_t key_after(uint64_t page, uint64_t nr)
{
	uint64_t odd = pattern_hash(page) & 1;

	return pattern_hash(page << 32 | (nr + odd) / 2) | 1;
}

// The last one to arrive checks the counters and lets all go on.
static void meet(uint64_t nr)
{
	if (__atomic_add_fetch(&arrived, 1, __ATOMIC_SEQ_CST) == cpus * nr) {
		for (unsigned i = 0; i < NR_COUNTERS; i++)
			if (*page_at(counter_page(i)) != cpus * nr)
				bad((uint64_t)page_at(counter_page(i)), cpus * nr, *page_at(counter_page(i)));
		__atomic_store_n(&released, nr, __ATOMIC_SEQ_CST);
	}
	while (released < nr)
		relax();
}

void guest_cpu(unsigned cpu)
{
	uint64_t pages = nr_pages();

	for (uint64_t n = 1; ; n++) {
		unsigned c = 0;

		for (uint64_t p = cpu; p < pages; p += cpus) {
			if (is_counter(p))
				continue;
			check_page(p, key_after(p, n - 1));
			if (key_after(p, n) != key_after(p, n - 1))
				fill_page(p, key_after(p, n));
			if (p * NR_COUNTERS / pages > c)
				__atomic_add_fetch(page_at(counter_page(c++)), 1, __ATOMIC_SEQ_CST);
		}
		while (c < NR_COUNTERS)
			__atomic_add_fetch(page_at(counter_page(c++)), 1, __ATOMIC_SEQ_CST);
		meet(n);
		if (!cpu)
			pass(n);
	}
}

void guest_main(void)
{
	cpus = nr_cpus();
	for (uint64_t p = 0; p < nr_pages(); p++)
		fill_page(p, is_counter(p) ? 0 : key_after(p, 0));
	start_cpus();
	ready("smp");
	guest_cpu(0);
}
