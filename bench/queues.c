// SPDX-License-Identifier: GPL-2.0-only
// What the chunk queues cost at the size of a large VM: every step once for each chunk, in random order, with the cache misses that
// this brings; and the end of a period, with chunks on all queues. `make bench-queues`.
#include <getopt.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "pvmem/chunk.h"
#include "pvmem/queues.h"
#include "util/clock.h"
#include "util/size.h"

#define DEFAULT_CHUNKS 25000000 // 24 TB
#define TICKS 64
#define LIMIT_STEP_NS 100.0
#define LIMIT_TICK_NS (double)NSEC_PER_MSEC

struct bench {
	struct pv_queues q;
	struct pv_chunk *chunk;
	uint32_t *order; // all chunks, at random
	uint64_t nr;
	uint64_t random;
};

struct figure {
	const char *name;
	double ns, limit;
};

// Other processes may have the CPU meanwhile.
static uint64_t cpu_now_ns(void)
{
	struct timespec t;

	clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
	return (uint64_t)t.tv_sec * NSEC_PER_SEC + (uint64_t)t.tv_nsec;
}

static uint64_t next_random(struct bench *b) // xorshift64
{
	b->random ^= b->random << 13;
	b->random ^= b->random >> 7;
	return b->random ^= b->random << 17;
}

static void shuffle(struct bench *b)
{
	for (uint64_t i = b->nr - 1; i; i--) {
		uint64_t j = next_random(b) % (i + 1);
		uint32_t other = b->order[j];

		b->order[j] = b->order[i];
		b->order[i] = other;
	}
}

static double page_in(struct bench *b)
{
	uint64_t begun = cpu_now_ns();

	for (uint64_t i = 0; i < b->nr; i++)
		pv_queues_add(&b->q, &b->chunk[b->order[i]]);
	return (double)(cpu_now_ns() - begun) / (double)b->nr;
}

static double touch(struct bench *b, uint64_t nr)
{
	uint64_t begun = cpu_now_ns();

	for (uint64_t i = 0; i < nr; i++)
		pv_queues_access(&b->q, &b->chunk[b->order[i]]);
	return (double)(cpu_now_ns() - begun) / (double)nr;
}

// Each is taken off its queue, as for page-out.
static double victim(struct bench *b)
{
	uint64_t begun = cpu_now_ns();

	for (struct pv_chunk *c; (c = pv_queues_oldest(&b->q));)
		pv_queues_remove(&b->q, c);
	return (double)(cpu_now_ns() - begun) / (double)b->nr;
}

// The longest of some, each at the end of a period in which a twentieth of all chunks was accessed.
static double tick(struct bench *b)
{
	uint64_t longest = 0;

	for (unsigned i = 0; i < TICKS; i++) {
		uint64_t begun, ns;

		for (uint64_t n = b->nr / 20; n; n--)
			pv_queues_access(&b->q, &b->chunk[next_random(b) % b->nr]);
		begun = cpu_now_ns();
		pv_queues_age(&b->q);
		ns = cpu_now_ns() - begun;
		longest = ns > longest ? ns : longest;
	}
	return (double)longest;
}

static void run(struct bench *b, unsigned bits, struct figure f[5])
{
	memset(b->chunk, 0, b->nr * sizeof *b->chunk);
	for (uint64_t i = 0; i < b->nr; i++)
		list_init(&b->chunk[i].link);
	pv_queues_init(&b->q, bits);
	shuffle(b);
	f[0] = (struct figure){ "page-in", page_in(b), LIMIT_STEP_NS };
	pv_queues_age(&b->q);
	shuffle(b);
	f[1] = (struct figure){ "touch", touch(b, b->nr), LIMIT_STEP_NS };
	shuffle(b);
	f[2] = (struct figure){ "touch again", touch(b, b->nr), LIMIT_STEP_NS };
	f[3] = (struct figure){ "tick", tick(b), LIMIT_TICK_NS };
	f[4] = (struct figure){ "victim", victim(b), LIMIT_STEP_NS };
}

static bool print(const struct bench *b, unsigned bits, const struct figure f[5], bool json)
{
	bool ok = sizeof(struct pv_chunk) <= 64;

	if (json)
		printf("{\"chunks\": %lu, \"queue_bits\": %u, \"chunk_bytes\": %zu", b->nr, bits, sizeof(struct pv_chunk));
	else
		printf("%lu chunks of %zu bytes, %u queues\n", b->nr, sizeof(struct pv_chunk), pv_queues_nr(&b->q));
	for (unsigned i = 0; i < 5; i++) {
		ok &= f[i].ns <= f[i].limit;
		if (json)
			printf(", \"%s_ns\": %.1f", f[i].name, f[i].ns);
		else
			printf("  %-12s %10.1f ns  at most %10.1f  %s\n", f[i].name, f[i].ns, f[i].limit, f[i].ns <= f[i].limit ? "ok" : "MISSED");
	}
	if (json)
		printf(", \"ok\": %s}\n", ok ? "true" : "false");
	return ok;
}

int main(int argc, char **argv)
{
	static const struct option options[] = { { "chunks", required_argument, NULL, 'n' }, { "queue-bits", required_argument, NULL, 'm' },
						 { "json", no_argument, NULL, 'j' }, { 0 } };
	static struct bench b = { .nr = DEFAULT_CHUNKS, .random = 88172645463325252 };
	unsigned bits = 8;
	bool json = false;
	struct figure f[5];

	for (int c; (c = getopt_long(argc, argv, "", options, NULL)) != -1;) {
		if (c == 'n')
			b.nr = strtoull(optarg, NULL, 0);
		else if (c == 'm')
			bits = (unsigned)strtoul(optarg, NULL, 0);
		else if (c == 'j')
			json = true;
		else
			return 2;
	}
	if (b.nr < 1000 || b.nr > UINT32_MAX || !bits || bits > PV_MAX_QUEUE_BITS) {
		fprintf(stderr, "usage: queues [--chunks N] [--queue-bits 1..%u] [--json]\n", PV_MAX_QUEUE_BITS);
		return 2;
	}
	b.chunk = aligned_alloc(2 * MiB, ROUND_UP(b.nr * sizeof *b.chunk, 2 * MiB));
	b.order = malloc(b.nr * sizeof *b.order);
	if (!b.chunk || !b.order) {
		fprintf(stderr, "no memory for %lu chunks\n", b.nr);
		return 1;
	}
	// As the engine does it: each step is at another place of a gigabyte.
	madvise(b.chunk, ROUND_UP(b.nr * sizeof *b.chunk, 2 * MiB), MADV_HUGEPAGE);
	for (uint64_t i = 0; i < b.nr; i++)
		b.order[i] = (uint32_t)i;
	run(&b, bits, f);
	free(b.chunk);
	free(b.order);
	return print(&b, bits, f, json) ? 0 : 1;
}
