// SPDX-License-Identifier: GPL-2.0-only
// --max-bandwidth: bytes go no faster, but for a burst, and what each sender sends at once. How many they will be is not known before: who
// has sent says so, who is next waits.
#pragma once
#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>

struct pace {
	uint64_t rate; // bytes a second, 0: no limit
	pthread_mutex_t lock;
	uint64_t next_byte_ns; // when the next byte may go
};

// From several threads. ending: what to look at a few times a second (atomic); it ends the wait.
void pace_wait(struct pace *p, const bool *ending);
void pace_sent(struct pace *p, uint64_t bytes);
