// SPDX-License-Identifier: GPL-2.0-only
// Memory whose content follows from page and generation, and is verified at each touch. A wrong page ends the process.
#pragma once
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct memory {
	char *map;
	uint64_t nr_pages;
	uint32_t *generation; // of each page: how often it was rewritten
	uint64_t touches;     // of no meaning but to look at another word each time; may be counted by several threads
};

// fd: a memfd of that size, or -1: anonymous memory, shared or private. Aborts the process if there is none.
void memory_map(struct memory *m, int fd, bool shared, uint64_t nr_pages);
// All words of the page.
void memory_fill(struct memory *m, uint64_t page);
// Verifies two words of it; write: and changes one.
void memory_touch(struct memory *m, uint64_t page, bool write);
// In the page cache or the swap cache, mapped or not.
bool memory_is_resident(const struct memory *m, uint64_t page);
