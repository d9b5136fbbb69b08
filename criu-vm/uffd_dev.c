// SPDX-License-Identifier: GPL-2.0-only
#include "criu-vm/uffd_dev.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "qemu/qmp.h"
#include "qemu/vm.h"
#include "util/cleanup.h"
#include "util/log.h"

// QEMU's name for it.
#define FD_NAME "criu-vm-uffd"

static int find(pid_t pid)
{
	char path[64], link[64];
	const struct dirent *d;
	int found = -1;
	DIR *dir;

	snprintf(path, sizeof path, "/proc/%d/fd", pid);
	dir = opendir(path);
	while (dir && found < 0 && (d = readdir(dir))) {
		ssize_t n = readlinkat(dirfd(dir), d->d_name, link, sizeof link - 1);

		if (n > 0) {
			link[n] = 0;
			if (!strcmp(link, "/dev/userfaultfd"))
				found = atoi(d->d_name);
		}
	}
	if (dir)
		closedir(dir);
	return found;
}

int uffd_dev_give(struct qmp *q, pid_t pid, int *target_fd)
{
	_cleanup_close_ int dev = -1;
	uid_t uid;
	gid_t gid;
	int r = qemu_process_ids(pid, &uid, &gid);

	*target_fd = -1;
	if (r || !uid)
		return r;
	dev = open("/dev/userfaultfd", O_RDWR | O_CLOEXEC);
	if (dev < 0) {
		r = -errno;
		log_err("QEMU %d runs as user %u, for which /dev/userfaultfd is needed: %s", pid, uid, strerror(-r));
		return r;
	}
	r = qmp_call_fd(q, "getfd", json_pack("{s:s}", "fdname", FD_NAME), dev, NULL);
	if (r)
		return r;
	*target_fd = find(pid);
	if (*target_fd >= 0)
		return 0;
	log_err("QEMU %d did not take the userfaultfd device", pid);
	uffd_dev_take_back(q, 0);
	return -ENOENT;
}

void uffd_dev_take_back(struct qmp *q, int target_fd)
{
	if (target_fd >= 0)
		qmp_call(q, "closefd", json_pack("{s:s}", "fdname", FD_NAME), NULL);
}
