// SPDX-License-Identifier: GPL-2.0-only
// Bitmaps of 64-bit words. Sizes and indices in bits. No allocation.
#pragma once
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#define BITMAP_WORDS(bits) (((bits) + 63) / 64)

static inline bool bitmap_test(const uint64_t *map, size_t i)
{
	return map[i / 64] >> (i % 64) & 1;
}

static inline void bitmap_set(uint64_t *map, size_t i)
{
	map[i / 64] |= 1ULL << (i % 64);
}

static inline void bitmap_clear(uint64_t *map, size_t i)
{
	map[i / 64] &= ~(1ULL << (i % 64));
}

static inline void bitmap_set_range(uint64_t *map, size_t first, size_t nr)
{
	for (size_t i = first; i < first + nr; i++)
		bitmap_set(map, i);
}

static inline void bitmap_clear_range(uint64_t *map, size_t first, size_t nr)
{
	for (size_t i = first; i < first + nr; i++)
		bitmap_clear(map, i);
}

static inline size_t bitmap_count(const uint64_t *map, size_t bits)
{
	size_t n = 0;

	for (size_t w = 0; w < bits / 64; w++)
		n += (size_t)__builtin_popcountll(map[w]);
	if (bits % 64)
		n += (size_t)__builtin_popcountll(map[bits / 64] & ((1ULL << (bits % 64)) - 1));
	return n;
}

static inline bool bitmap_empty(const uint64_t *map, size_t bits)
{
	return !bitmap_count(map, bits);
}

// First index >= i whose bit has the given value, or bits if there is none.
static inline size_t bitmap_next(const uint64_t *map, size_t bits, size_t i, bool value)
{
	while (i < bits) {
		uint64_t w = (value ? map[i / 64] : ~map[i / 64]) >> (i % 64);

		if (w) {
			i += (size_t)__builtin_ctzll(w);
			return i < bits ? i : bits;
		}
		i = (i / 64 + 1) * 64;
	}
	return bits;
}

// The last bit that is set; `bits` if none is.
static inline size_t bitmap_last(const uint64_t *map, size_t bits)
{
	for (size_t w = BITMAP_WORDS(bits); w--;)
		if (map[w])
			return w * 64 + 63 - (size_t)__builtin_clzl(map[w]);
	return bits;
}

// for (size_t i = 0, n; (n = bitmap_next_run(map, bits, &i)); i += n) visits each run [i, i + n) of set bits.
static inline size_t bitmap_next_run(const uint64_t *map, size_t bits, size_t *first)
{
	*first = bitmap_next(map, bits, *first, true);
	return *first < bits ? bitmap_next(map, bits, *first, false) - *first : 0;
}
