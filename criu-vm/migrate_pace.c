// SPDX-License-Identifier: GPL-2.0-only
#include "criu-vm/migrate_pace.h"

#include <time.h>

#include "util/clock.h"

#define BURST_NS (20 * NSEC_PER_MSEC)
#define PAUSE_NS (100 * NSEC_PER_MSEC)

void pace_wait(struct pace *p, const bool *ending)
{
	while (p->rate && !__atomic_load_n(ending, __ATOMIC_RELAXED)) {
		uint64_t now = clock_now_ns(), at, ns;

		pthread_mutex_lock(&p->lock);
		at = p->next_byte_ns;
		pthread_mutex_unlock(&p->lock);
		if (now >= at)
			return;
		ns = at - now < PAUSE_NS ? at - now : PAUSE_NS;
		nanosleep(&(struct timespec){ .tv_nsec = (long)ns }, NULL);
	}
}

void pace_sent(struct pace *p, uint64_t bytes)
{
	uint64_t now = clock_now_ns();

	if (!p->rate)
		return;
	pthread_mutex_lock(&p->lock);
	if (p->next_byte_ns + BURST_NS < now)
		p->next_byte_ns = now - BURST_NS;
	p->next_byte_ns += (uint64_t)((double)bytes * 1e9 / (double)p->rate);
	pthread_mutex_unlock(&p->lock);
}
