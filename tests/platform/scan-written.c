// SPDX-License-Identifier: GPL-2.0-only
// Asynchronous write-protection and PAGEMAP_SCAN name exactly the pages written, and get-and-clear forgets none and repeats none.
#include "tests/platform/platform.h"

#define PAGES 2048

int main(void)
{
	uint64_t written[PAGES / 64], expected[PAGES / 64];
	struct victim v;

	victim_start(&v, PAGES * PAGE_SIZE, true);
	victim_plant(&v, PAGING_FEATURES);
	map_pages(&v, 0, PAGES, true);
	for (size_t i = 1; i < PAGES; i += 2) // more runs of pages than one call returns
		victim_does(&v, WRITE, i, 1);
	scan(&v, MM_SCAN_WRITTEN_CLEAR, written);
	for (size_t i = 0; i < PAGES / 64; i++)
		CHECK(written[i] == 0xaaaaaaaaaaaaaaaa);
	srand(2);
	for (int round = 0; round < 5; round++) {
		memset(expected, 0, sizeof expected);
		for (int i = 0; i < 60; i++) {
			size_t page = (size_t)rand() % (PAGES - 8), nr = (size_t)rand() % 8;

			victim_does(&v, WRITE, page, nr);
			victim_does(&v, READ, (size_t)rand() % PAGES, 1);
			bitmap_set_range(expected, page, nr);
		}
		scan(&v, MM_SCAN_WRITTEN, written);
		CHECK(!memcmp(written, expected, sizeof written));
		scan(&v, MM_SCAN_WRITTEN_CLEAR, written);
		CHECK(!memcmp(written, expected, sizeof written));
		scan(&v, MM_SCAN_WRITTEN, written);
		CHECK(bitmap_empty(written, PAGES));
	}
	// Memory that is not registered cannot be asked.
	CHECK(mm_pagemap_scan(v.pagemap, (uint64_t)(uintptr_t)v.box, PAGE_SIZE, MM_SCAN_WRITTEN, written) == -EPERM);
	victim_end(&v);
	return 0;
}
