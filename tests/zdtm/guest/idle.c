// SPDX-License-Identifier: GPL-2.0-only
// Fills its memory with random bytes and then sleeps, but for its ticks (tick=1 or 2 wakes it, and is needed). Rewrites what it has
// filled, in a scattered order, if it is told to. Each byte that comes in on the serial line lets it verify all of that.
//
//	fill=BYTES	so much of it (all); chunks of 1 MiB that are filled and chunks of zeros are evenly spread
//	rate=BYTES	rewritten a second (0); not made up for what it does not reach
//
//	ok N pages P	verified for the N-th time; P have been rewritten until now
#include "guest.h"

#define STRIDE		2654435761u	// a prime larger than any number of pages here
#define REWRITTEN	256u		// pages after one tick, at most
#define CHUNK		256u		// pages

static uint64_t nr_chunks, nr_filled;	// nr_filled: chunks
static uint64_t nr, rate, written;	// written: pages; the next one is number `written` of the order that has no end
static uint64_t due;			// in microseconds times bytes a second
static uint32_t looked;

static uint64_t *page_of(uint64_t turn)
{
	uint64_t page = turn * STRIDE % nr;

	return page_at(page / CHUNK * nr_chunks / nr_filled * CHUNK + page % CHUNK);
}

// From which the words of the page that comes `turn`-th in each round follow, after that many rounds.
static uint64_t key_of(uint64_t turn, uint64_t rounds)
{
	return pattern_hash(turn << 32 | rounds);
}

static void fill(uint64_t turn, uint64_t rounds)
{
	uint64_t *page = page_of(turn), word = key_of(turn, rounds);

	for (unsigned i = 0; i < PAGE_WORDS; i++)
		page[i] = pattern_hash(word++);
}

static void check(uint64_t turn, uint64_t rounds)
{
	uint64_t *page = page_of(turn), word = key_of(turn, rounds);

	for (unsigned i = 0; i < PAGE_WORDS; i++, word++)
		if (page[i] != pattern_hash(word))
			bad((uint64_t)&page[i], pattern_hash(word), page[i]);
}

static void rewrite_what_is_due(void)
{
	const uint64_t page = PAGE_SIZE * 1000000ull;
	uint32_t now = timer_now();

	due += elapsed_us(looked) * rate;
	looked = now;
	if (due > REWRITTEN * page)
		due = REWRITTEN * page;
	for (; due >= page; due -= page, written++)
		fill(written % nr, written / nr + 1);
}

void guest_main(void)
{
	uint64_t passes = 0;

	nr_chunks = nr_pages() / CHUNK;
	nr_filled = option("fill", nr_chunks * CHUNK * PAGE_SIZE) / (CHUNK * PAGE_SIZE);
	nr_filled = nr_filled < nr_chunks ? nr_filled : nr_chunks;
	nr = nr_filled * CHUNK;
	rate = option("rate", 0);
	for (uint64_t turn = 0; turn < nr; turn++)
		fill(turn, 0);
	ready("idle");
	looked = timer_now();
	for (;;) {
		asm volatile("hlt");
		rewrite_what_is_due();
		if (serial_getc() < 0)
			continue;
		for (uint64_t turn = 0; turn < nr; turn++)
			check(turn, written / nr + (turn < written % nr));
		say("ok %lu pages %lu", ++passes, written);
	}
}
