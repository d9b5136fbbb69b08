// SPDX-License-Identifier: GPL-2.0-only
#include "mm/uffd.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "mm/uapi.h"
#include "util/cleanup.h"
#include "util/log.h"
#include "util/size.h"

static const struct {
	uint64_t bit;
	const char *name;
} feature[] = {
	{ UFFD_FEATURE_PAGEFAULT_FLAG_WP, "write-protection of anonymous memory (Linux 5.7)" },
	{ UFFD_FEATURE_EVENT_REMOVE, "REMOVE events (Linux 4.11)" },
	{ UFFD_FEATURE_MISSING_SHMEM, "MISSING faults of shared memory (Linux 4.11)" },
	{ UFFD_FEATURE_THREAD_ID, "thread ids (Linux 4.14)" },
	{ UFFD_FEATURE_MINOR_HUGETLBFS, "MINOR faults of huge pages (Linux 5.13)" },
	{ UFFD_FEATURE_MINOR_SHMEM, "MINOR faults of shared memory (Linux 5.14)" },
	{ UFFD_FEATURE_EXACT_ADDRESS, "exact addresses (Linux 5.18)" },
	{ UFFD_FEATURE_WP_HUGETLBFS_SHMEM, "write-protection of shared memory (Linux 5.19)" },
	{ UFFD_FEATURE_WP_UNPOPULATED, "write-protection of empty pages (Linux 6.4)" },
	{ UFFD_FEATURE_POISON, "poisoned pages (Linux 6.6)" },
	{ UFFD_FEATURE_WP_ASYNC, "asynchronous write-protection (Linux 6.7)" },
};

// A userfaultfd tells its features only in the one handshake that it allows: ask with one of our own.
static int kernel_features(uint64_t *features)
{
	struct uffdio_api api = { .api = UFFD_API };
	_cleanup_close_ int fd = (int)syscall(SYS_userfaultfd, O_CLOEXEC | UFFD_USER_MODE_ONLY);

	if (fd < 0 || ioctl(fd, UFFDIO_API, &api))
		return -errno;
	*features = api.features;
	return 0;
}

int mm_uffd_api(int uffd, uint64_t want, uint64_t *got)
{
	struct uffdio_api api = { .api = UFFD_API, .features = want };
	char names[512] = "";
	uint64_t have = 0;
	int ret;

	if (!ioctl(uffd, UFFDIO_API, &api)) {
		if (got)
			*got = api.features;
		return 0;
	}
	ret = -errno;
	if (ret != -EINVAL || kernel_features(&have)) {
		log_err("userfaultfd handshake: %s", strerror(-ret));
		return ret;
	}
	if (!(want & ~have)) {
		log_err("userfaultfd handshake: this one was set up before");
		return -EALREADY;
	}
	for (size_t i = 0; i < ARRAY_SIZE(feature); i++)
		if (want & ~have & feature[i].bit)
			snprintf(names + strlen(names), sizeof names - strlen(names), "%s%s", *names ? ", " : "", feature[i].name);
	log_err("userfaultfd: this kernel lacks features 0x%llx (%s); a newer kernel is needed", (unsigned long long)(want & ~have),
		names);
	return -ENOSYS;
}

static int register_range(int uffd, uint64_t start, uint64_t len, uint64_t mode, uint64_t need)
{
	struct uffdio_register r = { .range = { start, len }, .mode = mode };
	int ret = 0;

	if (ioctl(uffd, UFFDIO_REGISTER, &r))
		ret = -errno;
	else if ((r.ioctls & need) != need)
		ret = -EINVAL;
	if (ret)
		log_err("cannot register 0x%llx-0x%llx for page faults: %s%s", (unsigned long long)start, (unsigned long long)(start + len),
			strerror(-ret), ret == -EBUSY ? ": another userfaultfd (a postcopy or a background snapshot?) has it" : "");
	return ret;
}

int mm_uffd_register(int uffd, uint64_t start, uint64_t len)
{
	return register_range(uffd, start, len, UFFDIO_REGISTER_MODE_MISSING | UFFDIO_REGISTER_MODE_MINOR | UFFDIO_REGISTER_MODE_WP,
			      1ULL << _UFFDIO_WAKE | 1ULL << _UFFDIO_CONTINUE | 1ULL << _UFFDIO_WRITEPROTECT);
}

int mm_uffd_register_wp(int uffd, uint64_t start, uint64_t len)
{
	return register_range(uffd, start, len, UFFDIO_REGISTER_MODE_WP, 1ULL << _UFFDIO_WAKE | 1ULL << _UFFDIO_WRITEPROTECT);
}

// What the kernel's answer means to a pager; logs what no pager can expect.
static int meaning(int err, const char *what, uint64_t start, uint64_t len)
{
	if (err == ENOENT)
		return -ENXIO;
	if (err != EAGAIN && err != EEXIST && err != ESRCH)
		log_err("%s of 0x%llx-0x%llx: %s", what, (unsigned long long)start, (unsigned long long)(start + len), strerror(err));
	return -err;
}

int mm_uffd_continue(int uffd, uint64_t start, uint64_t len, bool wp, bool wake, uint64_t *done)
{
	*done = 0;
	while (*done < len) {
		struct uffdio_continue c = { .range = { start + *done, len - *done },
			.mode = (wp ? UFFDIO_CONTINUE_MODE_WP : 0) | (wake ? 0 : UFFDIO_CONTINUE_MODE_DONTWAKE) };

		if (!ioctl(uffd, UFFDIO_CONTINUE, &c))
			c.mapped = (int64_t)c.range.len;
		else if (errno != EAGAIN || c.mapped <= 0) { // EAGAIN with a count is a short one: the next round tells why
			int err = errno;

			if (err == EEXIST && wake)
				mm_uffd_wake(uffd, start + *done, PAGE_SIZE);
			if (err == EFAULT)
				return -ENOENT; // so says mfill_atomic_pte_continue() of a hole
			if (err == EIO)
				return -EIO;
			return meaning(err, "mapping", start + *done, len - *done);
		}
		*done += (uint64_t)c.mapped;
	}
	return 0;
}

int mm_uffd_wake(int uffd, uint64_t start, uint64_t len)
{
	struct uffdio_range r = { start, len };

	return ioctl(uffd, UFFDIO_WAKE, &r) ? meaning(errno, "waking the faults", start, len) : 0;
}

int mm_uffd_writeprotect(int uffd, uint64_t start, uint64_t len, bool protect)
{
	struct uffdio_writeprotect w = { .range = { start, len }, .mode = protect ? UFFDIO_WRITEPROTECT_MODE_WP : 0 };

	return ioctl(uffd, UFFDIO_WRITEPROTECT, &w) ? meaning(errno, "write-protecting", start, len) : 0;
}
