// SPDX-License-Identifier: GPL-2.0-only
#pragma once
#include <stdint.h>
#include <time.h>

#define NSEC_PER_MSEC 1000000UL
#define NSEC_PER_SEC 1000000000UL

// CLOCK_MONOTONIC in nanoseconds.
static inline uint64_t clock_now_ns(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return (uint64_t)t.tv_sec * NSEC_PER_SEC + (uint64_t)t.tv_nsec;
}
