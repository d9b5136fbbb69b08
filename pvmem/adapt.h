// SPDX-License-Identifier: GPL-2.0-only
//
// DOC: how much comes with a touched page
//
// A page, its block of 16, or its chunk. Whether what came unasked was used is learnt from samples: of it, the engine leaves a few pages
// unmapped (one of a block, eight of a chunk). One that is touched was used, one that leaves untouched was not.
//
//      PAGE  --- the block's other pages are used --->  BLOCK  --- the chunk's, too --->  CHUNK
//            <--- not, or pushed out before ----------         <--- not ------------
//
// Each chunk has its own shares of pages used, by size of window; a chunk of which nothing is known goes by those of all, and one that had
// use of a window where others have none gives that up sooner. While memory is short, blocks of which nothing was used count before their
// chunk leaves, when some more of it are missed: what was right when memory was filled is so forgotten in seconds. One size
// larger is tried now and then, and the more often the more the last ones tried have yielded: so a guest that changes its ways is
// followed in a few passes, and single pages cost next to nothing more. Where most of what is touched at random is in memory, what comes
// unasked is often touched before it leaves; the more of it comes, the sooner it leaves, so this ends in a mixture of sizes, a tenth
// slower than the best.
//
// The shares are exponential averages; between `up` and `down` (adapt.c) a decision stays. No I/O, O(1).
#pragma once
#include <stdbool.h>
#include <stdint.h>

#define PV_BLOCK_PAGES 16

enum pv_window { PV_WINDOW_PAGE, PV_WINDOW_BLOCK, PV_WINDOW_CHUNK, PV_NR_WINDOWS }; // 1, 16 (aligned), all pages of the chunk

struct pv_history { // of a chunk; zero: nothing known
	uint8_t block, chunk;
};

struct pv_adapt { // [0]: of blocks, [1]: of chunks
	uint32_t share[2]; // of the pages that came unasked, how many were used, of 65536
	bool worth[2];     // so many that a chunk of which nothing is known gets this window
	uint32_t yield[2]; // the share of experiments only
	uint32_t random;
};

void pv_adapt_init(struct pv_adapt *a);
// What is worth it, by what is known of the chunk.
enum pv_window pv_adapt_known(const struct pv_adapt *a, const struct pv_history *h);
// What to bring with a missed page of the chunk. It may be an experiment: asked twice, it may answer differently.
enum pv_window pv_adapt_window(struct pv_adapt *a, const struct pv_history *h);
// Of pages that came unasked with windows of w, `sampled` were looked at, and `used` of these were touched. To be called at once when a
// sample is touched (1, 1), and with all that were not when their chunk leaves (n, 0): a change is then seen before memory has turned over.
void pv_adapt_learn(struct pv_adapt *a, struct pv_history *h, enum pv_window w, unsigned sampled, unsigned used);
