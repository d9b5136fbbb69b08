// SPDX-License-Identifier: GPL-2.0-only
//
// DOC: chunk queues
//
// 2^m queues of VMemDirect (Muraoka and Kourai), m = 8 unless told otherwise: an aging counter of m bits a chunk, kept by position
// instead of by arithmetic on every chunk.
//
//      page-out <-- [0] [1] ... [127] | [128] ... [255] <-- page-in
//                    |    |       ^        ^
//                    +-+--+       |        | accessed in this period: i -> i + 128
//       period's end: i -> i / 2, queue 2i's chunks before queue 2i+1's, whole lists spliced
//
// The index is what h = h >> 1 | accessed << 7 would be. In a period the lower half holds chunks not accessed in it, the
// upper half those that were. Ties go by the order of arrival.
//
// No step depends on the number of chunks. A chunk does not know its queue: it knows an index, and the period in which that was
// right. The period has 52 bits, so that it never comes round, however long a chunk lies. Which queues have chunks is told by a
// bitmap of two levels, 64 x 64 bits: the oldest chunk is two steps away.
//
// A walk along a list of chunks that lie anywhere in a gigabyte waits for memory at each step, since the address of the next but
// one is not known before the next one is here. So a chunk has two more pointers, to those that were appended PV_QUEUE_AHEAD later, and half
// as many. These are fetched early. They are hints: nothing else is ever done with them. Two, since every other chunk has lost one by the
// time that it is a victim: who had it was accessed again, or whom it names.
#pragma once
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "util/list.h"

#define PV_MAX_QUEUE_BITS 12
#define PV_MAX_QUEUES (1U << PV_MAX_QUEUE_BITS)
#define PV_QUEUE_AHEAD 8
#define PV_QUEUE_BUCKETS 256 // of pv_queues_histogram()

struct pv_chunk;

// Not to be moved: the lists' ends point into it.
struct pv_queues {
	unsigned bits;
	uint64_t period;
	uint64_t filled_words;                 // a bit for each word of filled that is not 0
	uint64_t filled[PV_MAX_QUEUES / 64];   // a bit for each queue that has chunks
	size_t nr[PV_MAX_QUEUES];              // chunks
	struct list queue[PV_MAX_QUEUES];
	struct pv_chunk *recent[PV_MAX_QUEUES][PV_QUEUE_AHEAD]; // appended last; some may have left since
	uint8_t next_recent[PV_MAX_QUEUES];                    // the one to be replaced
};

// 2^bits queues, bits from 1 to PV_MAX_QUEUE_BITS.
void pv_queues_init(struct pv_queues *q, unsigned bits);

static inline unsigned pv_queues_nr(const struct pv_queues *q)
{
	return 1U << q->bits;
}

// A chunk that is on no list goes to the end of the last queue. O(1).
void pv_queues_add(struct pv_queues *q, struct pv_chunk *c);
// The same, with an age known from before: 0 the oldest, to pv_queues_nr() - 1. O(1).
void pv_queues_add_at(struct pv_queues *q, struct pv_chunk *c, unsigned index);
// A chunk that was taken off comes back because it was accessed: to where pv_queues_access() would have moved it. O(1).
void pv_queues_return(struct pv_queues *q, struct pv_chunk *c);
// Harmless if it is on none. O(1).
void pv_queues_remove(struct pv_queues *q, struct pv_chunk *c);
// The chunk was accessed: once in a period it moves up. Harmless if it is on none. O(1).
void pv_queues_access(struct pv_queues *q, struct pv_chunk *c);
// A period ends. O(2^m).
void pv_queues_age(struct pv_queues *q);
// The index of the queue that the chunk is on, or would return to the lower half's side of, had it stayed. O(1).
unsigned pv_queues_index(const struct pv_queues *q, const struct pv_chunk *c);

// The least recently used chunk, the next victim; it stays where it is. NULL: there is none. O(1).
struct pv_chunk *pv_queues_oldest(const struct pv_queues *q);
// The most recently used one, or NULL. O(1).
struct pv_chunk *pv_queues_newest(const struct pv_queues *q);
// Of a chunk that is on a queue, the next one that is newer, or older; or NULL. In this order all of them are victims. To remove
// a chunk while walking, take its neighbour first. O(1).
struct pv_chunk *pv_queues_newer(const struct pv_queues *q, const struct pv_chunk *c);
struct pv_chunk *pv_queues_older(const struct pv_queues *q, const struct pv_chunk *c);

// An index as an age for people and files, 1 (long ago) to 255 (just now), whatever m is; and back: any byte is taken, 0 as 1.
uint8_t pv_queues_age_of(const struct pv_queues *q, unsigned index);
unsigned pv_queues_index_of(const struct pv_queues *q, uint8_t age);

// How many chunks there are by age, the oldest first. Returns the number of buckets: a queue each, or several neighbours each where
// there are more queues than PV_QUEUE_BUCKETS. The others are 0.
unsigned pv_queues_histogram(const struct pv_queues *q, size_t bucket[PV_QUEUE_BUCKETS]);
