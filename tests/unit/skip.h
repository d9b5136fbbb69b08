// SPDX-License-Identifier: GPL-2.0-only
// Cases that cannot run on this host. Whole programs end with 77 instead, having said why.
#pragma once
#include <check.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "util/io.h"
#include "util/size.h"

// Ends the case; for tests/check.py, which counts such lines as skips instead of as passed. Straight to the descriptor: a case that
// runs in a process of its own, or does not, says it once.
#define SKIP_CASE(why)                                                                                                             \
	do {                                                                                                                       \
		dprintf(STDOUT_FILENO, "skip %.*s:%d: %s\n", (int)(strlen(__func__) - strlen("_fn")), __func__, _i, why);             \
		return;                                                                                                            \
	} while (0)

static inline bool host_has_swap(void)
{
	size_t len;
	char *text;
	bool on;

	if (io_read_file("/proc/swaps", MiB, &text, &len))
		return false;
	on = strchr(text, '/'); // of a path: there is none in its headline
	free(text);
	return on;
}
