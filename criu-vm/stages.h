// SPDX-License-Identifier: GPL-2.0-only
// Long work as a table of named stages. Each leaves nothing behind when it fails; undo takes back what it did. Each name is a place for a
// fault (fault.h).
#pragma once
#include <stddef.h>

struct stage {
	const char *name;
	int (*run)(void *ctx);
	void (*undo)(void *ctx); // may be NULL
};

// In order. After a failure, or an interruption (-EINTR), the stages done are undone in reverse. Returns the first error.
int stages_run(const struct stage *stages, size_t nr, void *ctx);
// What comes when there is no way back: in order, whatever signals say; after a failure nothing is undone. Returns the first error.
int stages_finish(const struct stage *stages, size_t nr, void *ctx);
