// SPDX-License-Identifier: GPL-2.0-only
//
// DOC: chunk queues
//
// 2^m queues, m = 8, of VMemDirect (Muraoka and Kourai): an aging counter of m bits a chunk, kept by position instead of
// by arithmetic on every chunk.
//
//      page-out <-- [0] [1] ... [127] | [128] ... [255] <-- page-in
//                    |    |       ^        ^
//                    +-+--+       |        | accessed in this period: i -> i + 128
//       period's end: i -> i / 2, queue 2i's chunks before queue 2i+1's, whole lists spliced
//
// The index is what h = h >> 1 | accessed << 7 would be. In a period the lower half holds chunks not accessed in it, the
// upper half those that were. Ties go by the order of arrival.
#pragma once
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "util/list.h"

#define PV_NR_QUEUES 256

struct pv_chunk;

struct pv_queues {
	struct list queue[PV_NR_QUEUES];
	size_t nr[PV_NR_QUEUES];
	uint32_t period;
};

void pv_queues_init(struct pv_queues *q);

// A chunk that is on no list goes to the end of the last queue. O(1).
void pv_queues_add(struct pv_queues *q, struct pv_chunk *c);
// The same, with an age known from before (0 the oldest). O(1).
void pv_queues_add_at(struct pv_queues *q, struct pv_chunk *c, unsigned index);
// A chunk that was taken off comes back because it was accessed: to where pv_queues_access() would have moved it. O(1).
void pv_queues_return(struct pv_queues *q, struct pv_chunk *c);
// Harmless if it is on none. O(1).
void pv_queues_remove(struct pv_queues *q, struct pv_chunk *c);
// The chunk was accessed: once in a period it moves up. O(1).
void pv_queues_access(struct pv_queues *q, struct pv_chunk *c);
// A period ends. O(2^m), whatever the number of chunks: none is visited, each knows the period in which its index was right.
void pv_queues_age(struct pv_queues *q);
// The index of the queue that the chunk is on. O(1).
unsigned pv_queues_index(const struct pv_queues *q, const struct pv_chunk *c);
// The least recently used chunk, or NULL; stays where it is. O(2^m).
struct pv_chunk *pv_queues_oldest(const struct pv_queues *q);
