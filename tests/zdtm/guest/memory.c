// SPDX-License-Identifier: GPL-2.0-only
// Checks memory: fills all of it, then verifies every page in every pass, and rewrites some: a quarter of the 1 MiB chunks never,
// a quarter as a whole every 8th pass, the others page by page, an 8th of them in each pass. Some pages are zeros, and become so.
//
//	random=1	goes through the pages in a scattered order
#include "guest.h"

#define PERIOD		8
#define NEVER		(-1)
#define STRIDE		2654435761u	// a prime larger than any number of pages here

static int turn_of(uint64_t page)
{
	uint64_t chunk = pattern_hash(page >> 8);

	switch (chunk % 4) {
	case 0:
		return NEVER;
	case 1:
		return chunk / 4 % PERIOD;
	default:
		return pattern_hash(~page) % PERIOD;
	}
}

// What the page holds once pass nr has ended: follows from the number of the pass in which it was last written.
static uint64_t key_after(uint64_t page, uint64_t nr)
{
	int turn = turn_of(page);
	uint64_t age = (nr - turn) % PERIOD;
	uint64_t written = turn == NEVER || age > nr ? 0 : nr - age;
	uint64_t key = pattern_hash(page << 32 | written);

	return key % 16 ? key | 1 : 0;
}

void guest_main(void)
{
	uint64_t nr = nr_pages();
	uint64_t stride = option("random", 0) ? STRIDE : 1;

	for (uint64_t i = 0; i < nr; i++)
		fill_page(i, key_after(i, 0));
	ready("memory");
	for (uint64_t n = 1; ; n++) {
		for (uint64_t i = 0; i < nr; i++) {
			uint64_t page = i * stride % nr;

			check_page(page, key_after(page, n - 1));
			if (turn_of(page) == (int)(n % PERIOD))
				fill_page(page, key_after(page, n));
		}
		pass(n);
	}
}
