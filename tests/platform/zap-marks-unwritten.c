// SPDX-License-Identifier: GPL-2.0-only
// A zap through the planted ring keeps the data, and leaves a marker on exactly the pages that were not written, through a
// punch too. The next touch is a MINOR fault, and after the punch a MISSING one.
#include "tests/platform/platform.h"

#define PAGES 512

int main(void)
{
	uint64_t written[PAGES / 64], expected[PAGES / 64] = { 0 };
	struct victim v;

	victim_start(&v, PAGES * PAGE_SIZE, true);
	victim_plant(&v, PAGING_FEATURES);
	map_pages(&v, 0, PAGES, true);
	srand(1);
	for (int i = 0; i < 100; i++) {
		size_t page = (size_t)rand() % PAGES;

		victim_does(&v, WRITE, page, 1);
		bitmap_set(expected, page);
	}
	zap(&v, 0, PAGES);
	scan(&v, MM_SCAN_PRESENT, written);
	CHECK(bitmap_empty(written, PAGES));
	scan(&v, MM_SCAN_WRITTEN, written);
	CHECK(!memcmp(written, expected, sizeof written));
	for (size_t i = 0; i < PAGES; i++) // the data is there, the victim's writes too
		CHECK(v.ours[i * PAGE_SIZE] == (char)(i + 1) && !!v.ours[i * PAGE_SIZE + 1] == bitmap_test(expected, i));

	victim_order(&v, READ, 5, 1);
	CHECK(next_fault(&v, 1000, NULL) == MINOR);
	map_pages(&v, 5, 1, true);
	CHECK(victim_done(&v, 1000) && v.box->seen == 6);

	punch(&v, 0, PAGES);
	CHECK(allocated_pages(v.memfd) == 0);
	scan(&v, MM_SCAN_WRITTEN, written);
	CHECK(!memcmp(written, expected, sizeof written));
	victim_order(&v, READ, 5, 1);
	CHECK(next_fault(&v, 1000, NULL) == MISSING);
	v.ours[5 * PAGE_SIZE] = 77; // paged in
	map_pages(&v, 5, 1, true);
	CHECK(victim_done(&v, 1000) && v.box->seen == 77);
	victim_end(&v);
	return 0;
}
