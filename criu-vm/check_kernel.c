// SPDX-License-Identifier: GPL-2.0-only
#include <errno.h>
#include <fcntl.h>
#include <liburing.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "criu-vm/check.h"
#include "mm/pagemap.h"
#include "mm/uapi.h"
#include "mm/uffd.h"
#include "pvmem/folio.h"
#include "util/cleanup.h"
#include "util/log.h"
#include "util/size.h"

bool check_read_line(const char *path, char *buf, int size)
{
	_cleanup_fclose_ FILE *f = fopen(path, "re");

	if (!f || !fgets(buf, size, f))
		return false;
	buf[strcspn(buf, "\n")] = 0;
	return true;
}

bool check_memfd(struct check_ctx *c, const struct check_item *item, struct check_answer *a)
{
	_cleanup_close_ int fd = memfd_create("check", MFD_CLOEXEC | MFD_ALLOW_SEALING);

	(void)c;
	(void)item;
	if (fd >= 0 && !ftruncate(fd, (off_t)PAGE_SIZE) && !fcntl(fd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW))
		return true;
	check_found(a, "memfd_create: %s", strerror(errno));
	return false;
}

// One that takes the kernel's faults too: QEMU's system calls touch guest RAM.
static int new_uffd(void)
{
	return (int)syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK);
}

// One to try the kernel with; whether we may have the other kind is an item of its own.
static int new_lesser_uffd(void)
{
	return (int)syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK | UFFD_USER_MODE_ONLY);
}

bool check_userfaultfd(struct check_ctx *c, const struct check_item *item, struct check_answer *a)
{
	_cleanup_close_ int fd = new_uffd();

	(void)c;
	(void)item;
	if (fd >= 0)
		return true;
	check_found(a, "userfaultfd: %s", strerror(errno));
	if (errno == EPERM)
		check_advise(a, "run criu-vm as root; in a container, allow userfaultfd in its seccomp profile");
	return false;
}

bool check_uffd_feature(struct check_ctx *c, const struct check_item *item, struct check_answer *a)
{
	_cleanup_close_ int fd = new_lesser_uffd();
	struct uffdio_api api = { .api = UFFD_API, .features = item->arg };

	(void)c;
	if (fd >= 0 && !ioctl(fd, UFFDIO_API, &api))
		return true;
	check_found(a, fd < 0 ? "userfaultfd: %s" : "the kernel does not offer it (%s)", strerror(errno));
	return false;
}

bool check_dev_userfaultfd(struct check_ctx *c, const struct check_item *item, struct check_answer *a)
{
	_cleanup_close_ int dev = open("/dev/userfaultfd", O_RDWR | O_CLOEXEC);
	_cleanup_close_ int fd = dev < 0 ? -1 : ioctl(dev, USERFAULTFD_IOC_NEW, O_CLOEXEC | O_NONBLOCK);
	char unprivileged[8] = "";

	(void)c;
	(void)item;
	if (fd >= 0)
		return true;
	check_found(a, "/dev/userfaultfd: %s", strerror(errno));
	if (!check_read_line("/proc/sys/vm/unprivileged_userfaultfd", unprivileged, sizeof unprivileged) || strcmp(unprivileged, "1"))
		return false;
	check_found(a, "vm.unprivileged_userfaultfd is set");
	return true;
}

// Pages 3 and 7 of a registered, write-protected memfd are written: exactly these must be told, and only once.
static bool try_scan(int memfd, int uffd, char *map, size_t nr, struct check_answer *a)
{
	const uint64_t start = (uint64_t)(uintptr_t)map, expected = 1 << 3 | 1 << 7;
	uint64_t done, written = 0, again = 0;
	struct mm_pagemap *pm = NULL;
	int r = mm_uffd_api(uffd, UFFD_FEATURE_MINOR_SHMEM | UFFD_FEATURE_WP_HUGETLBFS_SHMEM | UFFD_FEATURE_WP_ASYNC, NULL);

	if (!r)
		r = fallocate(memfd, 0, 0, (off_t)(nr * PAGE_SIZE)) ? -errno : 0;
	if (!r)
		r = mm_uffd_register(uffd, start, nr * PAGE_SIZE);
	if (!r)
		r = mm_uffd_continue(uffd, start, nr * PAGE_SIZE, true, true, &done);
	if (!r)
		r = mm_pagemap_open(getpid(), &pm);
	if (!r) {
		*(volatile char *)(map + 3 * PAGE_SIZE) = 1;
		*(volatile char *)(map + 7 * PAGE_SIZE) = 1;
		r = mm_pagemap_scan(pm, start, nr * PAGE_SIZE, MM_SCAN_WRITTEN_CLEAR, &written);
	}
	if (!r)
		r = mm_pagemap_scan(pm, start, nr * PAGE_SIZE, MM_SCAN_WRITTEN, &again);
	mm_pagemap_close(pm);
	if (r)
		check_found(a, "%s", *log_last_error() ? log_last_error() : strerror(-r));
	else if (written != expected || again)
		check_found(a, "it tells the wrong pages");
	return !r && written == expected && !again;
}

bool check_pagemap_scan(struct check_ctx *c, const struct check_item *item, struct check_answer *a)
{
	enum { NR = 16 };
	_cleanup_close_ int memfd = memfd_create("check", MFD_CLOEXEC), uffd = new_lesser_uffd();
	char *map = memfd < 0 || ftruncate(memfd, (off_t)(NR * PAGE_SIZE)) ?
			    MAP_FAILED : mmap(NULL, NR * PAGE_SIZE, PROT_READ | PROT_WRITE, MAP_SHARED, memfd, 0);
	bool there;

	(void)c;
	(void)item;
	if (map == MAP_FAILED || uffd < 0) {
		check_found(a, "not tried: no memfd or no userfaultfd");
		if (map != MAP_FAILED)
			munmap(map, NR * PAGE_SIZE);
		return false;
	}
	there = try_scan(memfd, uffd, map, NR, a);
	munmap(map, NR * PAGE_SIZE);
	return there;
}

bool check_io_uring(struct check_ctx *c, const struct check_item *item, struct check_answer *a)
{
	static const int needed[] = { IORING_OP_READ, IORING_OP_READV, IORING_OP_WRITE, IORING_OP_POLL_ADD, IORING_OP_TIMEOUT,
				      IORING_OP_ASYNC_CANCEL, IORING_OP_MADVISE };
	struct io_uring_probe *ops;
	struct io_uring ring;
	int r = io_uring_queue_init(8, &ring, 0);
	bool all = true;

	(void)c;
	(void)item;
	if (r) {
		check_found(a, "io_uring_setup: %s", strerror(-r));
		return false;
	}
	ops = io_uring_get_probe_ring(&ring);
	for (size_t i = 0; i < ARRAY_SIZE(needed); i++)
		all = all && ops && io_uring_opcode_supported(ops, needed[i]);
	if (!all) {
		check_found(a, "it lacks operations that are needed");
		check_advise(a, "run Linux 5.6 or later");
	}
	if (ops)
		io_uring_free_probe(ops);
	io_uring_queue_exit(&ring);
	return all;
}

bool check_thp(struct check_ctx *c, const struct check_item *item, struct check_answer *a)
{
	char larger[96];
	enum pv_folios here = pv_folios_here(larger);

	(void)c;
	(void)item;
	if (here == PV_FOLIOS_ALWAYS)
		check_found(a, "a touched page takes more although it is advised not to");
	if (here == PV_FOLIOS_LARGER) {
		check_found(a, "shared memory may get pages above 1 MiB (%s): a chunk going out would hold or split its neighbours", larger);
		check_advise(a, "write 'never' to " PV_FOLIOS_DIR "hugepages-%s/shmem_enabled", strchr(larger, ' ') ? "SIZE" : larger);
	}
	return here != PV_FOLIOS_ALWAYS && here != PV_FOLIOS_LARGER;
}

bool check_folios(struct check_ctx *c, const struct check_item *item, struct check_answer *a)
{
	(void)c;
	(void)item;
	switch (pv_folios_here(NULL)) {
	case PV_FOLIOS_YES:
		if (!pv_folio_is_free())
			check_found(a, "permitted, but no MiB of memory is in one piece just now; pages of 4 KiB are taken then");
		return true;
	case PV_FOLIOS_OFF:
		check_found(a, "they are switched off");
		check_advise(a, "echo advise > " PV_FOLIOS_SETTING "; to make that last: echo 'w " PV_FOLIOS_SETTING " - - - - advise' > "
				"/etc/tmpfiles.d/criu-vm.conf");
		return false;
	case PV_FOLIOS_NONE:
		check_found(a, "this kernel has none of that size for shared memory");
		return false;
	default:
		check_found(a, "there are other sizes than 4 KiB and 1 MiB");
		check_advise(a, "see thp");
		return false;
	}
}
