// SPDX-License-Identifier: GPL-2.0-only
// UFFDIO_CONTINUE stops at a hole in the memfd, says how far it came, and mapped what was before it.
#include "tests/platform/platform.h"

#define PAGES 64

int main(void)
{
	uint64_t present, done;
	struct victim v;

	victim_start(&v, PAGES * PAGE_SIZE, true);
	victim_plant(&v, PAGING_FEATURES);
	punch(&v, 10, 2);
	CHECK(mm_uffd_continue(v.plant.uffd, v.hva, 20 * PAGE_SIZE, true, true, &done) == -ENOENT && done == 10 * PAGE_SIZE);
	scan(&v, MM_SCAN_PRESENT, &present);
	CHECK(present == 0x3ff);
	CHECK(mm_uffd_continue(v.plant.uffd, v.hva + 11 * PAGE_SIZE, PAGE_SIZE, true, true, &done) == -ENOENT && !done);
	CHECK(allocated_pages(v.memfd) == PAGES - 2);
	// Where nothing is registered, and where nobody lives any more.
	CHECK(mm_uffd_continue(v.plant.uffd, (uint64_t)(uintptr_t)v.box, PAGE_SIZE, true, true, &done) == -ENXIO && !done);
	kill(v.pid, SIGKILL);
	waitpid(v.pid, NULL, 0);
	CHECK(mm_uffd_continue(v.plant.uffd, v.hva + 12 * PAGE_SIZE, PAGE_SIZE, true, true, &done) == -ESRCH && !done);
	victim_end(&v);
	return 0;
}
