// SPDX-License-Identifier: GPL-2.0-only
// UFFDIO_CONTINUE of a page that is mapped says EEXIST and wakes nobody: who waits for it hangs until UFFDIO_WAKE.
#include <sys/ioctl.h>

#include "tests/platform/platform.h"

#define PAGES 64

// The page is mapped, without a wake-up, while the victim waits for it.
static void wait_for_mapped_page(struct victim *v, size_t page)
{
	uint64_t done;

	victim_order(v, READ, page, 1);
	CHECK(next_fault(v, 1000, NULL) == MINOR);
	CHECK(!mm_uffd_continue(v->plant.uffd, v->hva + page * PAGE_SIZE, PAGE_SIZE, true, false, &done));
	CHECK(!victim_done(v, 100));
}

int main(void)
{
	struct uffdio_continue c = { 0 };
	struct victim v;
	uint64_t done;

	victim_start(&v, PAGES * PAGE_SIZE, true);
	victim_plant(&v, PAGING_FEATURES);
	wait_for_mapped_page(&v, 7);
	c.range.start = v.hva + 7 * PAGE_SIZE;
	c.range.len = PAGE_SIZE;
	CHECK(ioctl(v.plant.uffd, UFFDIO_CONTINUE, &c) == -1 && errno == EEXIST);
	CHECK(!victim_done(&v, 200));
	CHECK(!mm_uffd_wake(v.plant.uffd, v.hva + 7 * PAGE_SIZE, PAGE_SIZE));
	CHECK(victim_done(&v, 1000) && v.box->seen == 8);

	// Ours wakes.
	wait_for_mapped_page(&v, 9);
	CHECK(mm_uffd_continue(v.plant.uffd, v.hva + 8 * PAGE_SIZE, 2 * PAGE_SIZE, true, true, &done) == -EEXIST && done == PAGE_SIZE);
	CHECK(victim_done(&v, 1000) && v.box->seen == 10);
	victim_end(&v);
	return 0;
}
