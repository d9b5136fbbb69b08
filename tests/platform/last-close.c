// SPDX-License-Identifier: GPL-2.0-only
// The last close of a userfaultfd turns faults into zero pages: silent corruption. With the copy that a plant leaves inside the
// process they wait, and a new handler that fetches that copy serves them.
#include <sys/ioctl.h>
#include <sys/syscall.h>

#include "tests/platform/platform.h"

#define PAGES 64

static void zeros_after_last_close(void)
{
	int memfd = memfd_create("self", MFD_CLOEXEC), uffd = (int)syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK);
	volatile char *p = mmap(NULL, PAGE_SIZE, PROT_READ | PROT_WRITE, MAP_SHARED, memfd, 0);

	CHECK(memfd >= 0 && uffd >= 0 && !ftruncate(memfd, PAGE_SIZE));
	CHECK(!mm_uffd_api(uffd, PAGING_FEATURES, NULL) && !mm_uffd_register(uffd, (uint64_t)(uintptr_t)p, PAGE_SIZE));
	close(uffd);
	alarm(5);
	CHECK(!*p); // would wait for ever, were it still registered
	alarm(0);
	CHECK(allocated_pages(memfd) == 1);
}

int main(void)
{
	struct victim v;
	struct mm_plant first;

	zeros_after_last_close();
	victim_start(&v, PAGES * PAGE_SIZE, false);
	victim_plant(&v, PAGING_FEATURES);
	first = v.plant;
	mm_plant_fini(&v.plant);
	mm_zapper_free(v.zapper);
	v.zapper = NULL;
	victim_order(&v, READ, 3, 1);
	CHECK(!victim_done(&v, 300));
	CHECK(allocated_pages(v.memfd) == 0);

	CHECK(mm_plant_fetch(v.pid, 0, -1, 64, &v.plant) == -EBADF); // not what was planted
	CHECK(!mm_plant_fetch(v.pid, first.target_uffd, first.target_ring, first.ring.sq_entries, &v.plant));
	CHECK(!memcmp(&v.plant.ring.sq_off, &first.ring.sq_off, sizeof first.ring.sq_off));
	CHECK(next_fault(&v, 1000, NULL) == MISSING);
	v.ours[3 * PAGE_SIZE] = 42;
	map_pages(&v, 3, 1, true);
	CHECK(victim_done(&v, 1000) && v.box->seen == 42);
	victim_end(&v);
	return 0;
}
