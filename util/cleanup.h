// SPDX-License-Identifier: GPL-2.0-only
// Scope-bound release of what a function builds; hand over with steal_ptr() / steal_fd() on success.
#pragma once
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

static inline void cleanup_free_p(void *p)
{
	free(*(void **)p);
}

static inline void cleanup_close_p(const int *fd)
{
	if (*fd >= 0)
		close(*fd);
}

static inline void cleanup_fclose_p(FILE **f)
{
	if (*f)
		fclose(*f);
}

#define _cleanup_free_ __attribute__((cleanup(cleanup_free_p)))
#define _cleanup_close_ __attribute__((cleanup(cleanup_close_p)))
#define _cleanup_fclose_ __attribute__((cleanup(cleanup_fclose_p)))

// The value leaves the scope's care and becomes the caller's.
static inline int steal_fd(int *fd)
{
	int v = *fd;

	*fd = -1;
	return v;
}

#define steal_ptr(p) \
	({ \
		typeof(*(p)) steal_v_ = *(p); \
		*(p) = NULL; \
		steal_v_; \
	})
