// SPDX-License-Identifier: GPL-2.0-only
// With UFFD_FEATURE_EVENT_REMOVE, a MADV_REMOVE (a balloon) and our own zap each raise an event with their range. Neither goes on
// until it was read, and until then UFFDIO_CONTINUE only says EAGAIN.
#include "tests/platform/platform.h"

#define PAGES 64

int main(void)
{
	struct uffd_msg m;
	struct victim v;
	uint64_t done, present;
	int res;

	victim_start(&v, PAGES * PAGE_SIZE, true);
	victim_plant(&v, PAGING_FEATURES | UFFD_FEATURE_EVENT_REMOVE);
	map_pages(&v, 0, PAGES, true);

	victim_order(&v, REMOVE, 8, 4);
	CHECK(!victim_done(&v, 100) && allocated_pages(v.memfd) == PAGES);
	CHECK(next_event(v.plant.uffd, 1000, &m) && m.event == UFFD_EVENT_REMOVE);
	CHECK(m.arg.remove.start == v.hva + 8 * PAGE_SIZE && m.arg.remove.end == v.hva + 12 * PAGE_SIZE);
	CHECK(victim_done(&v, 1000) && allocated_pages(v.memfd) == PAGES - 4);

	CHECK(!mm_zap_queue(v.zapper, v.hva, 4 * PAGE_SIZE, 0) && !mm_zap_submit(v.zapper));
	CHECK(!zap_finished(v.zapper, 100, &res));
	CHECK(mm_uffd_continue(v.plant.uffd, v.hva + 8 * PAGE_SIZE, PAGE_SIZE, true, true, &done) == -EAGAIN && !done);
	CHECK(next_event(v.plant.uffd, 1000, &m) && m.event == UFFD_EVENT_REMOVE);
	CHECK(m.arg.remove.start == v.hva && m.arg.remove.end == v.hva + 4 * PAGE_SIZE);
	CHECK(zap_finished(v.zapper, 1000, &res) && !res);
	scan(&v, MM_SCAN_PRESENT, &present);
	CHECK(!(present & 0xf) && v.ours[2 * PAGE_SIZE] == 3);
	victim_end(&v);
	return 0;
}
