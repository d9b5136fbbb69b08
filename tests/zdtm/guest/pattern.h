// SPDX-License-Identifier: GPL-2.0-only
// What a checked page holds: 512 words that follow from one key. Key 0 is a page of zeros. Two keys differ in every word, so
// that an old page, another page, a page of zeros or a torn page is never taken for the right one.
#pragma once
#include <stdint.h>

#define PAGE_SIZE	4096u
#define PAGE_WORDS	(PAGE_SIZE / sizeof(uint64_t))

static inline uint64_t pattern_hash(uint64_t x) // the finalizer of SplitMix64
{
	x = (x ^ x >> 30) * 0xbf58476d1ce4e5b9;
	x = (x ^ x >> 27) * 0x94d049bb133111eb;
	return x ^ x >> 31;
}

static inline uint64_t pattern_step(uint64_t key)
{
	return key ? 0x9e3779b97f4a7c15 : 0;
}

static inline uint64_t pattern_word(uint64_t key, unsigned i)
{
	return key + i * pattern_step(key);
}

// Of the words, every stride-th: 1 is all of them.
static inline void pattern_fill(volatile uint64_t *page, uint64_t key, unsigned stride)
{
	uint64_t word = key, step = stride * pattern_step(key);

	for (unsigned i = 0; i < PAGE_WORDS; i += stride, word += step)
		page[i] = word;
}

// The first word that is wrong, or PAGE_WORDS.
static inline unsigned pattern_check(const volatile uint64_t *page, uint64_t key, unsigned stride)
{
	uint64_t word = key, step = stride * pattern_step(key);

	for (unsigned i = 0; i < PAGE_WORDS; i += stride, word += step)
		if (page[i] != word)
			return i;
	return PAGE_WORDS;
}
