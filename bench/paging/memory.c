// SPDX-License-Identifier: GPL-2.0-only
#include "bench/paging/memory.h"

#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>

#include "bench/paging/pattern.h"
#include "util/size.h"

#define PAGE_WORDS (PAGE_SIZE / sizeof(uint64_t))
#define MAX_PAGES (UINT64_C(1) << 28) // that the words' keys tell apart

void memory_map(struct memory *m, int fd, bool shared, uint64_t nr_pages)
{
	int flags = (shared || fd >= 0 ? MAP_SHARED : MAP_PRIVATE) | (fd < 0 ? MAP_ANONYMOUS : 0);

	*m = (struct memory){ .nr_pages = nr_pages, .generation = calloc(nr_pages, sizeof *m->generation) };
	m->map = mmap(NULL, nr_pages * PAGE_SIZE, PROT_READ | PROT_WRITE, flags | MAP_NORESERVE, fd, 0);
	if (m->map == MAP_FAILED || !m->generation || nr_pages > MAX_PAGES) {
		perror("workload: memory");
		exit(1);
	}
}

// Only the first word says how often the page was rewritten.
static uint64_t word_of(uint64_t page, unsigned i, uint32_t generation)
{
	return pattern_mix((page << 9 | i) ^ (uint64_t)(i ? 0 : generation) << 37);
}

void memory_fill(struct memory *m, uint64_t page)
{
	uint64_t *word = (uint64_t *)(m->map + page * PAGE_SIZE);

	for (unsigned i = 0; i < PAGE_WORDS; i++)
		word[i] = word_of(page, i, m->generation[page]);
}

static void verify(const struct memory *m, uint64_t page, unsigned i)
{
	const volatile uint64_t *word = (const uint64_t *)(m->map + page * PAGE_SIZE) + i;
	uint64_t got = *word, want = word_of(page, i, m->generation[page]);

	if (got == want)
		return;
	printf("{\"wrong\": \"page %lu, word %u is %#lx, not %#lx; now it is %#lx\"}\n", page, i, got, want, *word);
	fflush(stdout);
	_Exit(1);
}

void memory_touch(struct memory *m, uint64_t page, bool write)
{
	uint64_t nr = __atomic_fetch_add(&m->touches, 1, __ATOMIC_RELAXED);

	verify(m, page, 0);
	verify(m, page, 1 + nr % (PAGE_WORDS - 1));
	if (write)
		*(volatile uint64_t *)(m->map + page * PAGE_SIZE) = word_of(page, 0, ++m->generation[page]);
}

bool memory_is_resident(const struct memory *m, uint64_t page)
{
	unsigned char is = 1;

	return mincore(m->map + page * PAGE_SIZE, PAGE_SIZE, &is) || is & 1;
}
