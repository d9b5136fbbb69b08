// SPDX-License-Identifier: GPL-2.0-only
#include "util/spin.h"

#include <fcntl.h>
#include <sched.h>
#include <stdio.h>
#include <sys/resource.h>
#include <unistd.h>

#include "util/clock.h"

#define WAKE_NS 25000                        // what a sleep costs
#define PRICE 8                              // so much CPU time is worth as much as a part of latency
#define MEMORY 128                           // waits; then the old ones fade
#define LEARNT 8                             // waits, before there is anything to go by
#define SPARE_LOOK_NS (4 * NSEC_PER_MSEC)    // how long it is known that a CPU is to spare
#define GAP_NS 50000                         // between two looks, which take less than a microsecond
#define LOST_NS (4 * NSEC_PER_MSEC)          // no looking, after somebody else got our CPU

static const uint64_t bound_ns[SPIN_BUCKETS] = { 8000, 16000, 32000, 64000, 128000, SPIN_MAX_NS };

// How often this thread had to give its CPU up.
static long times_preempted(void)
{
	struct rusage u;

	return getrusage(RUSAGE_THREAD, &u) ? 0 : u.ru_nivcsw;
}

void spin_init(struct spin *s)
{
	*s = (struct spin){ .on = true, .load_fd = open("/proc/loadavg", O_RDONLY | O_CLOEXEC), .preempted = times_preempted() };
}

void spin_fini(struct spin *s)
{
	if (s->on && s->load_fd >= 0)
		close(s->load_fd);
	s->on = false;
}

// Threads that run or want to, we among them, against the CPUs that we may use: there may be more, which are others'.
static bool cpu_to_spare(const struct spin *s)
{
	unsigned running;
	cpu_set_t cpus;
	char text[64];
	ssize_t n;

	if (s->load_fd < 0 || sched_getaffinity(0, sizeof cpus, &cpus) < 0 || CPU_COUNT(&cpus) < 2)
		return false;
	n = pread(s->load_fd, text, sizeof text - 1, 0);
	text[n > 0 ? n : 0] = 0;
	return sscanf(text, "%*s %*s %*s %u/", &running) == 1 && running <= (unsigned)CPU_COUNT(&cpus);
}

uint64_t spin_until(struct spin *s, enum spin_kind kind, uint64_t begun_ns, uint64_t now_ns)
{
	uint64_t limit = s->on ? s->waits[kind].limit_ns : 0;

	if (now_ns - begun_ns >= limit || now_ns < s->not_before_ns)
		return 0;
	if (!s->looked_ns || now_ns - s->looked_ns > SPARE_LOOK_NS) {
		s->to_spare = cpu_to_spare(s);
		s->looked_ns = now_ns;
	}
	return s->to_spare ? begun_ns + limit : 0;
}

bool spin_lost_cpu(struct spin *s, uint64_t gap_ns, uint64_t now_ns)
{
	long before = s->preempted;

	if (gap_ns < GAP_NS)
		return false;
	s->preempted = times_preempted();
	if (s->preempted == before) // an interrupt, or the host of this host
		return false;
	s->not_before_ns = now_ns + LOST_NS;
	return true;
}

static uint64_t best_limit(const struct spin_waits *w)
{
	uint64_t ended = 0, spent = 0, below = 0; // waits within the bound, and what these spend
	int64_t most = 0;
	uint64_t best = 0;

	for (unsigned i = 0; i < SPIN_BUCKETS; i++) {
		int64_t worth;

		ended += w->nr[i];
		spent += w->nr[i] * (bound_ns[i] + below) / 2;
		worth = (int64_t)(ended * WAKE_NS) - (int64_t)((spent + (w->total - ended) * bound_ns[i]) / PRICE);
		if (worth > most) {
			most = worth;
			best = bound_ns[i];
		}
		below = bound_ns[i];
	}
	return best;
}

void spin_learn(struct spin *s, enum spin_kind kind, uint64_t ns, bool slept)
{
	struct spin_waits *w = &s->waits[kind];
	unsigned i = 0;

	if (!s->on)
		return;
	if (slept)
		ns -= ns < WAKE_NS ? ns : WAKE_NS;
	while (i < SPIN_BUCKETS && ns > bound_ns[i])
		i++;
	w->nr[i]++;
	if (++w->total >= MEMORY) {
		w->total = 0;
		for (i = 0; i <= SPIN_BUCKETS; i++)
			w->total += w->nr[i] /= 2;
	}
	w->limit_ns = w->total < LEARNT ? 0 : best_limit(w);
}
