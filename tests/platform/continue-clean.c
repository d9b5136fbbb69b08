// SPDX-License-Identifier: GPL-2.0-only
// UFFDIO_CONTINUE with MODE_WP maps a page that counts as unwritten, even one that was written before the zap: note that first.
// Without MODE_WP the marker is erased, and the page counts as written.
#include "tests/platform/platform.h"

#define PAGES 64

int main(void)
{
	uint64_t written;
	struct victim v;

	victim_start(&v, PAGES * PAGE_SIZE, true);
	victim_plant(&v, PAGING_FEATURES);
	map_pages(&v, 0, 4, true);
	victim_does(&v, WRITE, 0, 2);
	zap(&v, 0, 4);
	scan(&v, MM_SCAN_WRITTEN, &written);
	CHECK(written == 0x3);
	map_pages(&v, 0, 1, true);  // was written: forgotten
	map_pages(&v, 1, 1, false); // was written: kept
	map_pages(&v, 2, 1, true);
	map_pages(&v, 3, 1, false); // was not: lost
	scan(&v, MM_SCAN_WRITTEN, &written);
	CHECK(written == 0xa);
	victim_does(&v, WRITE, 0, 1);
	scan(&v, MM_SCAN_WRITTEN, &written);
	CHECK(written == 0xb);
	victim_end(&v);
	return 0;
}
