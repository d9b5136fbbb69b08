// SPDX-License-Identifier: GPL-2.0-only
//
// DOC: accesses from the kernel's bitmap of idle pages
//
// At the end of each period some pages of some chunks are marked idle, at the end of the next one it is seen which of them were
// touched, and their chunks move up on the queues.
//
//      page-out <-- used once, oldest first    oldest ................................... newest
//                   |<-- each period anew -->|-->|             |<-- from a cursor on -->|
//                      nearest to eviction                     goes on behind it in the next period
//
// Half of the time is for those that will be victims soon: what is seen there decides. The other half is for a cursor over all
// queues, so that what is far from eviction is ranked better than by its page-ins alone. How many chunks fit depends on the time given,
// nothing on the size of the guest. Nothing is unmapped: neither guest nor pager has a fault more.
#pragma once
#include <stdint.h>

struct pv_engine;
struct pv_access_idle;

// -EOPNOTSUPP: this kernel has no such bitmap; does not log. Else as mm_idle_open(), or -ENOMEM.
int pv_access_idle_new(struct pv_engine *e, struct pv_access_idle **a);
void pv_access_idle_free(struct pv_access_idle *a);
// A period ends, and the queues have not been aged yet. Takes budget_ns, and at most one chunk's looks more; no time at all where
// nothing was paged in the period.
void pv_access_idle_tick(struct pv_access_idle *a, uint64_t budget_ns);
