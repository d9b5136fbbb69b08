// SPDX-License-Identifier: GPL-2.0-only
// MADV_DONTNEED of private memory destroys it: the zapper refuses what is not, or not any more, a shared mapping of our memfd.
#include "tests/platform/platform.h"

#define PAGES 64

static void same_answer(pid_t pid, uint64_t hva)
{
	struct mm_maps by_query, by_text = { .pid = pid, .fd = -1 };
	struct mm_vma a = { 0 }, b = { 0 };

	CHECK(!mm_maps_open(pid, &by_query));
	CHECK(mm_maps_at(&by_query, hva, &a) == mm_maps_at(&by_text, hva, &b));
	CHECK(a.start == b.start && a.end == b.end && a.off == b.off && a.dev == b.dev && a.ino == b.ino && a.shared == b.shared);
	mm_maps_close(&by_query);
}

int main(void)
{
	struct mm_zapper *z;
	struct mm_region r;
	struct victim v;
	struct stat st;

	victim_start(&v, PAGES * PAGE_SIZE, true);
	victim_plant(&v, PAGING_FEATURES);
	CHECK(!fstat(v.memfd, &st));
	r = (struct mm_region){ v.hva, v.len, st.st_dev, st.st_ino, 0 };

	CHECK(mm_zap_queue(v.zapper, v.hva - PAGE_SIZE, PAGE_SIZE, 0) == -EPERM);
	CHECK(mm_zap_queue(v.zapper, v.hva + v.len - PAGE_SIZE, 2 * PAGE_SIZE, 0) == -EPERM);
	CHECK(mm_zap_queue(v.zapper, v.hva, -PAGE_SIZE, 0) == -EINVAL);
	CHECK(mm_zap_queue(v.zapper, v.hva + 1, PAGE_SIZE, 0) == -EINVAL);
	r.ino++;
	CHECK(mm_zapper_new(v.pid, &v.plant, &r, 1, MM_ZAP_RING, &z) == -EPERM);
	r.ino--;
	r.file_off = PAGE_SIZE;
	CHECK(mm_zapper_new(v.pid, &v.plant, &r, 1, MM_ZAP_RING, &z) == -EPERM);

	// Good a moment ago.
	zap(&v, 8, 4);
	victim_does(&v, REPLACE, 10, 2);
	CHECK(mm_zap_queue(v.zapper, v.hva + 8 * PAGE_SIZE, 4 * PAGE_SIZE, 0) == -EPERM);
	CHECK(mm_zap_queue(v.zapper, v.hva + 10 * PAGE_SIZE, PAGE_SIZE, 0) == -EPERM);
	CHECK(!mm_zap_pending(v.zapper) && !mm_zap_submit(v.zapper));
	victim_does(&v, READ, 10, 1);
	CHECK(v.box->seen == 'P');
	zap(&v, 8, 2);
	zap(&v, 12, 4);
	r.file_off = 0;
	CHECK(mm_zapper_new(v.pid, &v.plant, &r, 1, MM_ZAP_RING, &z) == -EPERM);

	same_answer(v.pid, v.hva);
	same_answer(v.pid, v.hva + 10 * PAGE_SIZE);
	same_answer(v.pid, v.hva + 12 * PAGE_SIZE);
	same_answer(v.pid, (uint64_t)(uintptr_t)v.box);
	same_answer(v.pid, PAGE_SIZE);
	victim_end(&v);
	return 0;
}
