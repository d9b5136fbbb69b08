// SPDX-License-Identifier: GPL-2.0-only
#pragma once
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

// len at least 8. Stops at the first byte that is not zero; otherwise as fast as memcmp().
static inline bool mem_is_zero(const void *p, size_t len)
{
	uint64_t head;

	memcpy(&head, p, sizeof head);
	return !head && !memcmp(p, (const char *)p + 8, len - 8);
}
