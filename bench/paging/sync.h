// SPDX-License-Identifier: GPL-2.0-only
// What a workload tells its pager before it touches anything.
#pragma once
#include <stdint.h>
#include <sys/types.h>

struct sync {
	uint64_t hva;
	pid_t tid[2]; // all its threads
};
