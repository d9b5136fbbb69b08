// SPDX-License-Identifier: GPL-2.0-only
//
// DOC: looking for a while before sleeping
//
// A sleep costs who is waited for some 25 us: the CPU falls asleep as well and must be woken. Looking costs CPU time, which is cheap
// only where nobody else wants it. So how long waits last is learnt, and a wait begins with as much looking as was worth its
// price with the last ones:
//
//      what the waits that end within `limit` save   -   price * what all waits would spend looking, at most `limit` each
//
// is the largest with the best limit, which may be 0: with waits that last, nothing is spent at all. Of two kinds of waits each is
// learnt by itself. Nothing is spent while more threads want to run than there are CPUs, nor for a while after somebody else has got
// ours.
#pragma once
#include <stdbool.h>
#include <stdint.h>

#define SPIN_BUCKETS 6 // of waits: up to 8 us, 16, 32, 64, 128, 192 us; and those that last longer
#define SPIN_MAX_NS 192000

enum spin_kind { SPIN_REST, SPIN_IO /* reads or writes are in flight */, SPIN_NR_KINDS };

struct spin {
	bool on;
	int load_fd;
	struct spin_waits {
		unsigned nr[SPIN_BUCKETS + 1], total;
		uint64_t limit_ns;
	} waits[SPIN_NR_KINDS];
	bool to_spare;         // a CPU is, as of
	uint64_t looked_ns;
	long preempted;         // so often, when it was looked at last
	uint64_t not_before_ns; // somebody else has got our CPU lately
};

// Of the calling thread; it begins with no waits known. Never fails: where it cannot be seen how busy the CPUs are, they are.
void spin_init(struct spin *s);
void spin_fini(struct spin *s);
// Until when to look, in a wait that began at begun_ns: at most SPIN_MAX_NS later. 0: sleep.
uint64_t spin_until(struct spin *s, enum spin_kind kind, uint64_t begun_ns, uint64_t now_ns);
// A wait has lasted so long; slept: for the most part by sleeping, the time that the waking took included.
void spin_learn(struct spin *s, enum spin_kind kind, uint64_t ns, bool slept);
// Between two looks so long has passed. True: somebody else of this host had the CPU, so sleep.
bool spin_lost_cpu(struct spin *s, uint64_t gap_ns, uint64_t now_ns);
