// SPDX-License-Identifier: GPL-2.0-only
//
// DOC: warm
//
// What was in memory when the VM was dumped comes into memory again in the background, the hottest chunks first, from wherever its
// pages are, while the guest runs. So a guest that was restored lazily is back at its speed although nothing of it was read before it ran.
//
//   list, sorted --> next chunk --> its pages that are neither here nor empty --> read, unasked --> in memory, unmapped until touched
//                                                                                                   at the end of the queue of its age
//
// Demand comes first: two chunks at a time; one while the guest pages in, and then nothing for as long as that one took; none while a
// fault waits for memory, or something cannot be read. Nothing is ever paged out for it: it ends as soon as the next chunk would
// leave less free than target and reserve, or when it has come to the end. A chunk on its way out was touched, and has had its turn.
//
// It is not repeated: the next pager of the VM, should there be one meanwhile, leaves what is left of it to the guest's faults.
#pragma once
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "pvmem/chunk.h"
#include "util/loop.h"

struct pv_engine;

struct pv_warm_chunk {
	uint64_t chunk;
	uint64_t pages[PV_WORDS];
	uint8_t age; // 255: the hottest
};

#define PV_WARM_READS 2

struct pv_warm {
	size_t next; // of the list
	bool active;
	uint64_t left, brought; // pages: of the list, that have not had their turn; that were read
	struct pv_warm_read {
		const struct pv_warm_chunk *c; // NULL: none
		uint64_t pages[PV_WORDS], begun_ns;
	} reads[PV_WARM_READS];
	uint64_t begun_ns, not_before_ns;
	struct loop_timer timer;
};

// With pv_opts.warm. Part of pv_engine_new().
void pv_warm_init(struct pv_engine *e);
// One step, if it is time for one. True: the search goes on, do another round now.
bool pv_warm_step(struct pv_engine *e);
// It goes on: pages that it has read, and of its list that have not had their turn, at most so many. Any may be NULL.
bool pv_warm_is_active(const struct pv_engine *e, uint64_t *brought, uint64_t *left);
