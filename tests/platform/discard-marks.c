// SPDX-License-Identifier: GPL-2.0-only
// What asynchronous write-protection says of a page that was discarded: private memory forgets the mark, shared memory and a
// private file's keep that of an unwritten page, also through a read that fills it with zeros. A userfaultfd that only tracks
// gives everything back with its last close.
#include <sys/ioctl.h>
#include <sys/syscall.h>

#include "tests/platform/platform.h"

enum { UNTOUCHED, UNWRITTEN, UNWRITTEN_THEN_READ, WRITTEN, WRITTEN_THEN_READ, PAGES };

static struct mm_pagemap *pagemap;

static char *make(int flags, int fd)
{
	char *p = mmap(NULL, PAGES * PAGE_SIZE, PROT_READ | PROT_WRITE, flags, fd, 0);

	CHECK(p != MAP_FAILED);
	for (size_t i = UNWRITTEN; i < PAGES; i++)
		p[i * PAGE_SIZE] = 1;
	return p;
}

static uint64_t scan_pages(const char *p, enum mm_scan what)
{
	uint64_t bitmap[1];

	CHECK(!mm_pagemap_scan(pagemap, (uint64_t)(uintptr_t)p, PAGES * PAGE_SIZE, what, bitmap));
	return bitmap[0];
}

// Of what was discarded, whether it counts as written.
static uint64_t written_after_discard(char *p, int fd)
{
	const uint64_t start = (uint64_t)(uintptr_t)p;
	int uffd = (int)syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK);
	uint64_t written;

	CHECK(uffd >= 0 && !mm_uffd_api(uffd, UFFD_FEATURE_PAGEFAULT_FLAG_WP | UFFD_FEATURE_WP_HUGETLBFS_SHMEM | UFFD_FEATURE_WP_ASYNC, NULL));
	CHECK(!mm_uffd_register_wp(uffd, start, PAGES * PAGE_SIZE));
	CHECK(!mm_uffd_writeprotect(uffd, start, PAGES * PAGE_SIZE, true) && !scan_pages(p, MM_SCAN_WRITTEN));
	p[WRITTEN * PAGE_SIZE] = p[WRITTEN_THEN_READ * PAGE_SIZE] = 2;
	CHECK(scan_pages(p, MM_SCAN_WRITTEN) == (1 << WRITTEN | 1 << WRITTEN_THEN_READ));
	CHECK(fd < 0 || !fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 0, PAGES * PAGE_SIZE));
	CHECK(!madvise(p, PAGES * PAGE_SIZE, MADV_DONTNEED));
	CHECK(!((volatile char *)p)[UNWRITTEN_THEN_READ * PAGE_SIZE] && !((volatile char *)p)[WRITTEN_THEN_READ * PAGE_SIZE]);
	written = scan_pages(p, MM_SCAN_WRITTEN);
	close(uffd);
	for (size_t i = 0; i < PAGES; i++)
		p[i * PAGE_SIZE] = (char)(i + 3);
	for (size_t i = 0; i < PAGES; i++)
		CHECK(p[i * PAGE_SIZE] == (char)(i + 3));
	return written;
}

int main(void)
{
	const uint64_t all = (1 << PAGES) - 1, touched = 1 << WRITTEN | 1 << WRITTEN_THEN_READ;
	int memfd = memfd_create("memory", MFD_CLOEXEC), file = memfd_create("private", MFD_CLOEXEC);

	CHECK(memfd >= 0 && file >= 0 && !ftruncate(memfd, PAGES * PAGE_SIZE) && !ftruncate(file, PAGES * PAGE_SIZE));
	CHECK(!mm_pagemap_open(getpid(), &pagemap));
	CHECK(written_after_discard(make(MAP_PRIVATE | MAP_ANONYMOUS, -1), -1) == all);
	CHECK(written_after_discard(make(MAP_SHARED, memfd), memfd) == touched);
	CHECK(written_after_discard(make(MAP_PRIVATE, file), -1) == touched);
	mm_pagemap_close(pagemap);
	return 0;
}
