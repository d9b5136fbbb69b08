// SPDX-License-Identifier: GPL-2.0-only
// Rewrites its memory at a given rate, in a scattered order, and meanwhile goes through all of it and verifies. A page is verified
// before it is rewritten, too. A pass is once through all memory; it says how many pages have been rewritten so far, by which
// a reader knows the rate that was reached: a pause is not made up for, and a rate out of reach lets verification go on.
//
//	rate=BYTES	a second (0)
//
//	ok N pages P
#include "guest.h"

#define STRIDE		2654435761u	// a prime larger than any number of pages here
#define CHECKED		32u		// pages, between two looks at the clock
#define REWRITTEN	256u		// pages at one look, at most

static uint64_t nr, rate, written;	// written: pages; the next one is number `written` of the order that has no end
static uint64_t due;			// in microseconds times bytes a second
static uint32_t looked;

// What the page that comes `turn`-th in each round holds, after that many rounds.
static uint64_t key_of(uint64_t turn, uint64_t rounds)
{
	return pattern_hash(turn << 32 | rounds) | 1;
}

static uint64_t page_of(uint64_t turn)
{
	return turn * STRIDE % nr;
}

static void rewrite(void)
{
	uint64_t turn = written % nr, rounds = written / nr;

	check_page(page_of(turn), key_of(turn, rounds));
	fill_page(page_of(turn), key_of(turn, rounds + 1));
	written++;
}

static void rewrite_what_is_due(void)
{
	const uint64_t page = PAGE_SIZE * 1000000ull;
	uint32_t now = timer_now();

	due += elapsed_us(looked) * rate;
	looked = now;
	if (due > REWRITTEN * page)
		due = REWRITTEN * page;
	for (; due >= page; due -= page)
		rewrite();
}

void guest_main(void)
{
	nr = nr_pages();
	rate = option("rate", 0);
	for (uint64_t turn = 0; turn < nr; turn++)
		fill_page(page_of(turn), key_of(turn, 0));
	ready("rewrite");
	looked = timer_now();
	for (uint64_t n = 1; ; n++) {
		for (uint64_t turn = 0; turn < nr; turn++) {
			if (turn % CHECKED == 0)
				rewrite_what_is_due();
			check_page(page_of(turn), key_of(turn, written / nr + (turn < written % nr)));
		}
		say("ok %lu pages %lu", n, written);
	}
}
