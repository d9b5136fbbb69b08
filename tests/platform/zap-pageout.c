// SPDX-License-Identifier: GPL-2.0-only
// Without a ring: process_madvise(MADV_PAGEOUT) on a host without swap zaps, keeps data and markers, and raises no REMOVE event.
// A page that somebody else maps stays, and is reported.
#include "tests/platform/platform.h"

#define PAGES 512

static int pageout(struct mm_zapper *z, uint64_t hva, uint64_t len)
{
	int res;

	CHECK(!mm_zap_queue(z, hva, len, 0) && !mm_zap_submit(z) && zap_finished(z, 1000, &res));
	return res;
}

int main(void)
{
	uint64_t written[PAGES / 64], expected[PAGES / 64] = { 0 };
	struct mm_zapper *z;
	struct mm_region r;
	struct victim v;
	struct stat st;
	int ret;

	victim_start(&v, PAGES * PAGE_SIZE, true);
	victim_plant(&v, PAGING_FEATURES | UFFD_FEATURE_EVENT_REMOVE);
	CHECK(!fstat(v.memfd, &st));
	r = (struct mm_region){ v.hva, v.len, st.st_dev, st.st_ino, 0 };
	ret = mm_zapper_new(v.pid, NULL, &r, 1, MM_ZAP_PAGEOUT, &z);
	if (ret == -EOPNOTSUPP)
		SKIP("this host has swap");
	CHECK(!ret);
	map_pages(&v, 0, PAGES, true);
	victim_does(&v, WRITE, 100, 7);
	bitmap_set_range(expected, 100, 7);

	CHECK(pageout(z, v.hva, v.len) == -EAGAIN); // we have it mapped
	CHECK(!madvise(v.ours, v.len, MADV_DONTNEED));
	CHECK(!pageout(z, v.hva, v.len));
	scan(&v, MM_SCAN_PRESENT, written);
	CHECK(bitmap_empty(written, PAGES));
	scan(&v, MM_SCAN_WRITTEN, written);
	CHECK(!memcmp(written, expected, sizeof written));
	CHECK(allocated_pages(v.memfd) == PAGES);
	for (size_t i = 0; i < PAGES; i++)
		CHECK(v.ours[i * PAGE_SIZE] == (char)(i + 1));
	victim_order(&v, READ, 9, 1);
	CHECK(next_fault(&v, 1000, NULL) == MINOR);
	map_pages(&v, 9, 1, true);
	CHECK(victim_done(&v, 1000) && v.box->seen == 10);
	mm_zapper_free(z);
	victim_end(&v);
	return 0;
}
