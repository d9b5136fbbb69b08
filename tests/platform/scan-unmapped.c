// SPDX-License-Identifier: GPL-2.0-only
// Pages that were never mapped scan as written when they lie beside mapped ones: mask with residency.
#include "tests/platform/platform.h"

#define PAGES 1024 // two page tables: one with a mapped page, one without

int main(void)
{
	struct mm_plant_opts o = { .ring_entries = 8, .sq_idle_ms = 1, .target_uffd_dev = -1 };
	uint64_t written[PAGES / 64], present[PAGES / 64];
	struct victim v;

	victim_start(&v, PAGES * PAGE_SIZE, true);
	CHECK(!mm_plant(v.pid, &o, &v.plant) && !mm_uffd_api(v.plant.uffd, PAGING_FEATURES, NULL));
	CHECK(!mm_uffd_register(v.plant.uffd, v.hva, v.len) && !mm_pagemap_open(v.pid, &v.pagemap));
	map_pages(&v, 3, 1, true);
	scan(&v, MM_SCAN_WRITTEN, written);
	scan(&v, MM_SCAN_PRESENT, present);
	CHECK(bitmap_count(present, PAGES) == 1 && bitmap_test(present, 3));
	CHECK(!bitmap_test(written, 3));
	CHECK(bitmap_test(written, 2) && bitmap_test(written, 4)); // never mapped, never written
	victim_end(&v);
	return 0;
}
