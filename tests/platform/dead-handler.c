// SPDX-License-Identifier: GPL-2.0-only
// A fault that a handler had read before it died is not delivered again, until UFFDIO_WAKE over everything raises it again.
// The new handler takes over the ring, too: what the dead one had zapped is not taken for its own.
#include "tests/platform/platform.h"

#define PAGES 64

static void handler_that_dies(struct victim *v)
{
	pid_t pid = fork();

	if (!pid) {
		CHECK(!mm_zap_queue(v->zapper, v->hva + 32 * PAGE_SIZE, PAGE_SIZE, 1) && !mm_zap_submit(v->zapper)); // never reaped
		CHECK(next_fault(v, 1000, NULL) == MINOR);
		kill(getpid(), SIGKILL);
	}
	waitpid(pid, NULL, 0);
}

int main(void)
{
	struct mm_region all;
	struct victim v;
	struct stat st;
	uint64_t tag = 0;
	size_t page;
	int res;

	victim_start(&v, PAGES * PAGE_SIZE, true);
	victim_plant(&v, PAGING_FEATURES);
	victim_order(&v, READ, 3, 1);
	handler_that_dies(&v);
	CHECK(next_fault(&v, 300, NULL) == NO_FAULT);
	CHECK(!mm_uffd_wake(v.plant.uffd, v.hva, v.len));
	CHECK(next_fault(&v, 1000, &page) == MINOR && page == 3);
	map_pages(&v, 3, 1, true);
	CHECK(victim_done(&v, 1000) && v.box->seen == 4);

	CHECK(!fstat(v.memfd, &st));
	all = (struct mm_region){ v.hva, v.len, st.st_dev, st.st_ino, 0 };
	mm_zapper_free(v.zapper);
	CHECK(!mm_zapper_new(v.pid, &v.plant, &all, 1, MM_ZAP_RING, &v.zapper));
	CHECK(!mm_zap_queue(v.zapper, v.hva + 3 * PAGE_SIZE, PAGE_SIZE, 99) && !mm_zap_submit(v.zapper));
	for (int i = 0; i < 1000 && !mm_zap_reap(v.zapper, &tag, &res); i++)
		usleep(1000);
	CHECK(tag == 99 && !res);
	usleep(50000); // whatever else may come
	CHECK(!mm_zap_reap(v.zapper, &tag, &res) && !mm_zap_pending(v.zapper));
	victim_end(&v);
	return 0;
}
