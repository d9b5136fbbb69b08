// SPDX-License-Identifier: GPL-2.0-only
// Fills its memory with random bytes and then sleeps, but for its ticks (tick=1 or 2 wakes it, and is needed). Rewrites what it has
// filled, again and again, if it is told to. Each byte that comes in on the serial line lets it verify all of that.
//
//	fill=BYTES	so much of it (all); chunks of 1 MiB that are filled and chunks of zeros are evenly spread
//	rate=BYTES	rewritten a second (0); not made up for what it does not reach: then it never sleeps
//	order=N		in which it rewrites them: 0 (the default) scattered, another order each time; 1 scattered, always the same; 2 ascending
//
//	pages P		rewritten until now: ten times a second, if rate is given
//	ok N pages P	verified for the N-th time; P have been rewritten until now
#include "guest.h"

#define BEHIND		256u		// pages, at most
#define AT_ONCE		16u		// pages between two looks at the clock
#define TOLD_US		100000u
#define CHUNK		256u		// pages

enum { ANOTHER, THE_SAME, ASCENDING };

static uint64_t nr_chunks, nr_filled;	// nr_filled: chunks
static uint64_t nr, rate, order;
static uint64_t written;		// pages; the next one is number `written` of the order that has no end
static uint64_t due;			// in microseconds times bytes a second
static uint32_t looked, told;

static uint64_t *page_of(uint64_t page)
{
	return page_at(page / CHUNK * nr_chunks / nr_filled * CHUNK + page % CHUNK);
}

// From one page that is rewritten to the next, in this round: primes larger than any number of pages here.
static uint64_t stride_of(uint64_t round)
{
	static const uint32_t strides[] = { 2654435761, 2272212871, 3960419417, 2962882037, 2850562469, 3738866393, 3304030187, 4213800203 };

	return order == ASCENDING ? 1 : strides[order == THE_SAME ? 0 : round % (sizeof(strides) / sizeof(strides[0]))];
}

// From which its words follow after so many rounds.
static uint64_t key_of(uint64_t page, uint64_t rounds)
{
	return pattern_hash(page << 32 | rounds);
}

// Begins a page of code: TCG chains no jumps between two of them, and with a loop across their border it was six times slower.
__attribute__((aligned(PAGE_SIZE))) static void fill(uint64_t page, uint64_t rounds)
{
	uint64_t *mem = page_of(page), word = key_of(page, rounds);

	for (unsigned i = 0; i < PAGE_WORDS; i++)
		mem[i] = pattern_hash(word++);
}

static void check(uint64_t page, uint64_t rounds)
{
	uint64_t *mem = page_of(page), word = key_of(page, rounds);

	for (unsigned i = 0; i < PAGE_WORDS; i++, word++)
		if (mem[i] != pattern_hash(word))
			bad((uint64_t)&mem[i], pattern_hash(word), mem[i]);
}

// In order: where memory is short, a scattered look at all of it takes minutes. A page's turn in this round tells whether it has been.
static void check_all(void)
{
	uint64_t round = written / nr, stride = stride_of(round), inverse = 1, turn = 0;

	while (inverse * stride % nr != 1)
		inverse++;
	for (uint64_t page = 0; page < nr; page++, turn = (turn + inverse) % nr)
		check(page, round + (turn < written % nr));
}

// Some of what is due; whether there is more.
static bool rewrite_what_is_due(void)
{
	const uint64_t page = PAGE_SIZE * 1000000ull;
	uint32_t now = timer_now();

	due += elapsed_us(looked) * rate;
	looked = now;
	if (due > BEHIND * page)
		due = BEHIND * page;
	for (unsigned i = 0; i < AT_ONCE && due >= page; i++, due -= page, written++)
		fill(written % nr * stride_of(written / nr) % nr, written / nr + 1);
	return due >= page;
}

static void tell_how_many(void)
{
	if (rate && elapsed_us(told) >= TOLD_US) {
		told = timer_now();
		say("pages %lu", written);
	}
}

void guest_main(void)
{
	uint64_t passes = 0;

	nr_chunks = nr_pages() / CHUNK;
	nr_filled = option("fill", nr_chunks * CHUNK * PAGE_SIZE) / (CHUNK * PAGE_SIZE);
	nr_filled = nr_filled < nr_chunks ? nr_filled : nr_chunks;
	nr = nr_filled * CHUNK;
	rate = option("rate", 0);
	order = option("order", ANOTHER);
	for (uint64_t page = 0; page < nr; page++)
		fill(page, 0);
	ready("idle");
	looked = told = timer_now();
	for (;;) {
		if (!rewrite_what_is_due())
			asm volatile("hlt");
		tell_how_many();
		if (serial_getc() < 0)
			continue;
		check_all();
		say("ok %lu pages %lu", ++passes, written);
	}
}
