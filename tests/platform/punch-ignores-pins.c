// SPDX-License-Identifier: GPL-2.0-only
// DMA is not seen by what the page tables say: hence zap, drain, then read and punch; and scan-and-clear, drain, then read.
// A registered io_uring buffer stands for a guest's O_DIRECT read in flight: both hold a pin, taken before, used after.
#include <liburing.h>
#include <sys/syscall.h>

#include "tests/platform/platform.h"

#define PAGES 64

// The DMA: reads 4 KiB of the file into page `page` of the memory that was pinned.
static void dma(struct io_uring *ring, int file, char *p, size_t page)
{
	struct io_uring_cqe *cqe;

	io_uring_prep_read_fixed(io_uring_get_sqe(ring), file, p + page * PAGE_SIZE, PAGE_SIZE, 0, 0);
	CHECK(io_uring_submit(ring) == 1 && !io_uring_wait_cqe(ring, &cqe));
	CHECK(cqe->res == (int)PAGE_SIZE); // no error in any case
	io_uring_cqe_seen(ring, cqe);
}

int main(void)
{
	int memfd = memfd_create("ram", MFD_CLOEXEC), file = memfd_create("disk", MFD_CLOEXEC), uffd;
	char *p = mmap(NULL, PAGES * PAGE_SIZE, PROT_READ | PROT_WRITE, MAP_SHARED, memfd, 0);
	struct iovec pinned = { p, PAGES * PAGE_SIZE };
	uint64_t hva = (uint64_t)(uintptr_t)p, written, done;
	char page[PAGE_SIZE], was[PAGE_SIZE];
	struct mm_pagemap *pm;
	struct io_uring ring;

	CHECK(memfd >= 0 && file >= 0 && !ftruncate(memfd, PAGES * PAGE_SIZE));
	memset(page, 'd', sizeof page);
	CHECK(write(file, page, sizeof page) == sizeof page);
	memset(p, 'm', PAGES * PAGE_SIZE);
	if (io_uring_queue_init(4, &ring, 0) || io_uring_register_buffers(&ring, &pinned, 1))
		SKIP("no io_uring with registered buffers here");

	// Written pages: read from the guest's disk after the scan that clears, and nobody will ever report it.
	uffd = (int)syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK);
	CHECK(!mm_uffd_api(uffd, PAGING_FEATURES, NULL) && !mm_uffd_register(uffd, hva, PAGES * PAGE_SIZE));
	CHECK(!mm_pagemap_open(getpid(), &pm));
	CHECK(!mm_pagemap_scan(pm, hva, PAGES * PAGE_SIZE, MM_SCAN_WRITTEN_CLEAR, &written) && written == UINT64_MAX);
	dma(&ring, file, p, 3);
	CHECK(!mm_pagemap_scan(pm, hva, PAGES * PAGE_SIZE, MM_SCAN_WRITTEN, &written) && !written);
	CHECK(pread(memfd, was, PAGE_SIZE, 3 * PAGE_SIZE) == (ssize_t)PAGE_SIZE && was[0] == 'd');

	// A punch succeeds, and the DMA that ends after it fills a page which is nobody's.
	CHECK(!madvise(p + 5 * PAGE_SIZE, PAGE_SIZE, MADV_DONTNEED)); // zap
	CHECK(!fallocate(memfd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 5 * PAGE_SIZE, PAGE_SIZE));
	dma(&ring, file, p, 5);
	CHECK(pread(memfd, was, PAGE_SIZE, 5 * PAGE_SIZE) == (ssize_t)PAGE_SIZE && was[0] == 0);

	// Zap, drain, and only then read: all is there.
	CHECK(!madvise(p + 6 * PAGE_SIZE, PAGE_SIZE, MADV_DONTNEED));
	dma(&ring, file, p, 6);
	CHECK(pread(memfd, was, PAGE_SIZE, 6 * PAGE_SIZE) == (ssize_t)PAGE_SIZE && was[0] == 'd');
	CHECK(!mm_uffd_continue(uffd, hva + 6 * PAGE_SIZE, PAGE_SIZE, true, true, &done) && p[6 * PAGE_SIZE] == 'd');
	mm_pagemap_close(pm);
	io_uring_queue_exit(&ring);
	return 0;
}
