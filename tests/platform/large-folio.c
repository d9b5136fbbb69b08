// SPDX-License-Identifier: GPL-2.0-only
// Where a memfd has 1 MiB folios, paging one page in allocates 256, and the touch of another one, never read in, is a MINOR
// fault: the kind of a fault is a hint only. The mapping has to be aligned as the file is, or the folios are small; one with
// MADV_NOHUGEPAGE allocates single pages.
#include "tests/platform/platform.h"

#include "tests/unit/folio_setting.h"

int main(void)
{
	const char *why_not = folio_setting_on();
	char *large, *small;
	struct victim v;

	if (why_not)
		return printf("skip: %s\n", why_not), 77;
	victim_start(&v, 4 * MiB, false);
	victim_plant(&v, PAGING_FEATURES);
	large = mmap(NULL, v.len + MiB, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	large = (char *)ROUND_UP((uintptr_t)large, MiB);
	CHECK(mmap(large, v.len, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, v.memfd, 0) == large);
	CHECK(!madvise(large, v.len, MADV_HUGEPAGE));
	large[3 * PAGE_SIZE] = 1;
	CHECK(allocated_pages(v.memfd) == 256);
	victim_order(&v, READ, 5, 1);
	CHECK(next_fault(&v, 1000, NULL) == MINOR);
	map_pages(&v, 5, 1, true);
	CHECK(victim_done(&v, 1000));
	small = mmap(NULL, v.len, PROT_READ | PROT_WRITE, MAP_SHARED, v.memfd, 0);
	CHECK(small != MAP_FAILED && !madvise(small, v.len, MADV_NOHUGEPAGE));
	small[MiB + 3 * PAGE_SIZE] = 1;
	CHECK(allocated_pages(v.memfd) == 257);
	victim_end(&v);
	return 0;
}
