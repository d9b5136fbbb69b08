// SPDX-License-Identifier: GPL-2.0-only
// Answers at once and touches little: in each pass 16 pages spread over all memory are verified and one of them is rewritten.
// For the time from a restore to the first answer, however large the memory. Each byte that comes in on the serial line is
// answered by "pong N".
//
//	fill=PERCENT	how much of the memory, from its start, is filled first (0)
#include "guest.h"

#define NR_TOUCHED	256		// more would make huge pages of all memory on the host

static uint64_t generation[NR_TOUCHED];

static uint64_t page_of(unsigned i)
{
	return nr_pages() * i / NR_TOUCHED;
}

static uint64_t key_of(unsigned i)
{
	return pattern_hash((uint64_t)i << 32 | generation[i]) | 1;
}

void guest_main(void)
{
	uint64_t filled = nr_pages() / 100 * option("fill", 0);
	unsigned next = 0;

	for (uint64_t i = 0; i < filled; i++)
		fill_page(i, pattern_hash(i) | 1);
	for (unsigned i = 0; i < NR_TOUCHED; i++)
		fill_page(page_of(i), key_of(i));
	ready("touch");
	for (uint64_t n = 1; ; n++) {
		for (unsigned k = 0; k < 16; k++) {
			next = (next + 61) % NR_TOUCHED;
			check_page(page_of(next), key_of(next));
		}
		generation[next]++;
		fill_page(page_of(next), key_of(next));
		for (uint32_t start = timer_now(); elapsed_us(start) < 50000; relax())
			if (serial_getc() >= 0)
				say("pong %lu", n);
		pass(n);
	}
}
