// SPDX-License-Identifier: GPL-2.0-only
// Who else writes the VM's memory: devices and processes that neither a stopped QEMU nor its page tables know of. And the
// folder that it runs in.
#include <dirent.h>
#include <errno.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#include "qemu/args.h"
#include "qemu/cmdline.h"
#include "qemu/refuse_int.h"
#include "qemu/vm_int.h"
#include "util/cleanup.h"
#include "util/io.h"
#include "util/log.h"
#include "util/size.h"

// A folder whose name only looks as if it were deleted is still found by that name.
int refuse_folder(struct refusal *r)
{
	static const char mark[] = " (deleted)";
	size_t len = strlen(r->vm->cwd), n = strlen(mark);
	char real[64], path[PATH_MAX];
	struct stat is, named;

	if (len <= n || strcmp(r->vm->cwd + len - n, mark))
		return 0;
	snprintf(real, sizeof real, "/proc/%d/cwd", r->vm->pid);
	if (!qemu_vm_path(r->vm, r->vm->cwd, path, sizeof path) && !stat(path, &named) && !stat(real, &is) &&
	    is.st_ino == named.st_ino && is.st_dev == named.st_dev)
		return 0;
	refuse_because(r,
		"the folder %.*s that it was started in has been deleted since, and a restored VM is started where it was; start it in "
		"another one",
		(int)(len - n), r->vm->cwd);
	return 0;
}

static const struct {
	const char *prefix, *why;
} tell_tale[] = {
	{ "/dev/vfio/", "a host device is passed through to it (VFIO) and writes its memory unseen; unplug it, or use an "
			"emulated device" },
	{ "/dev/iommu", "a host device is passed through to it (VFIO) and writes its memory unseen; unplug it, or use an "
			"emulated device" },
	{ "/dev/vhost-vdpa", "a vDPA device writes its memory unseen; unplug it, or use an emulated device" },
	{ "/dev/infiniband/", "its memory is registered for RDMA, and written unseen" },
	{ "/dev/udmabuf", "its memory is shared with the host's graphics (virtio-gpu blob=on); use blob=off" },
	{ "/dev/sgx_vepc", "it has SGX enclaves, whose memory cannot be read" },
	{ "/dev/sev", "it is a confidential guest (SEV): its memory cannot be read from outside" },
};

// io_uring pins the buffers that a process registers.
static bool has_registered_buffers(pid_t pid, const char *fd)
{
	_cleanup_free_ char *text = NULL;
	const char *bufs;
	char path[PATH_MAX];
	size_t len;

	snprintf(path, sizeof path, "/proc/%d/fdinfo/%s", pid, fd);
	if (io_read_file(path, 16 * MiB, &text, &len))
		return false;
	bufs = strstr(text, "\nUserBufs:");
	return bufs && strtoul(bufs + strlen("\nUserBufs:"), NULL, 10);
}

static void refuse_paged(struct refusal *r)
{
	r->paged = true;
	refuse_because(r, "somebody serves its page faults (it has a userfaultfd open): QEMU's own post-copy or background snapshot, whose end "
			  "to wait for; a dump that is under way; or a criu-vm with another --run-dir");
}

int refuse_open_files(struct refusal *r)
{
	bool told[ARRAY_SIZE(tell_tale)] = { 0 }, told_buffers = false;
	char dir[64], target[PATH_MAX];
	struct dirent *e;
	DIR *d;

	snprintf(dir, sizeof dir, "/proc/%d/fd", r->vm->pid);
	d = opendir(dir);
	if (!d) {
		int ret = -errno;

		log_err("process %d: cannot see its open files: %s; run as root", r->vm->pid, strerror(-ret));
		return ret;
	}
	while ((e = readdir(d))) {
		ssize_t n = readlinkat(dirfd(d), e->d_name, target, sizeof target - 1);

		if (n < 0)
			continue;
		target[n] = 0;
		if (!r->paged && !strcmp(target, "anon_inode:[userfaultfd]") && atoi(e->d_name) != r->ours->uffd)
			refuse_paged(r);
		for (size_t i = 0; i < ARRAY_SIZE(tell_tale); i++) {
			if (told[i] || strncmp(target, tell_tale[i].prefix, strlen(tell_tale[i].prefix)))
				continue;
			told[i] = true;
			refuse_because(r, "%s (it has %s open)", tell_tale[i].why, target);
		}
		if (!told_buffers && !strcmp(target, "anon_inode:[io_uring]") && has_registered_buffers(r->vm->pid, e->d_name)) {
			told_buffers = true;
			refuse_because(r, "its memory is registered with io_uring and written unseen (descriptor %s)", e->d_name);
		}
	}
	closedir(d);
	return 0;
}

// The shared block that this line of somebody's /proc/PID/maps shows, or NULL.
static const struct qemu_ramblock *mapped_block(const struct refusal *r, const char *line)
{
	unsigned major, minor;
	unsigned long ino;

	if (sscanf(line, "%*x-%*x %*s %*x %x:%x %lu", &major, &minor, &ino) != 3 || !ino)
		return NULL;
	for (size_t i = 0; i < r->nr; i++) {
		const struct qemu_ramblock *b = r->blocks + i;

		if (b->kind == QEMU_RAM_FILE_SHARED && b->map_ino == ino && b->map_dev == makedev(major, minor))
			return b;
	}
	return NULL;
}

static void name_of_process(const char *pid, char *name, size_t size)
{
	_cleanup_free_ char *comm = NULL;
	char path[PATH_MAX];
	size_t len;

	snprintf(path, sizeof path, "/proc/%s/comm", pid);
	if (io_read_file(path, 4096, &comm, &len))
		comm = NULL;
	snprintf(name, size, "%.*s", comm ? (int)strcspn(comm, "\n") : 1, comm ? comm : "?");
}

static void refuse_sharer(struct refusal *r, const char *pid)
{
	_cleanup_fclose_ FILE *f = NULL;
	_cleanup_free_ char *line = NULL;
	char path[PATH_MAX], name[32];
	size_t room = 0;

	snprintf(path, sizeof path, "/proc/%s/maps", pid);
	f = fopen(path, "re");
	while (f && getline(&line, &room, f) > 0) {
		const struct qemu_ramblock *b = mapped_block(r, line);

		if (!b)
			continue;
		name_of_process(pid, name, sizeof name);
		refuse_because(r,
			"process %s (%s) has its RAM %s mapped too and writes it unseen: a vhost-user back-end, or a shared "
			"memory device; use an emulated device",
			pid, name, b->name);
		return;
	}
}

// A vhost-user back-end's RAM comes by a socket, and nothing in QEMU shows it; its own mappings do.
int refuse_shared_ram(struct refusal *r)
{
	bool any = false;
	struct dirent *e;
	DIR *d;

	for (size_t i = 0; i < r->nr && !r->paged; i++) // else the pager has it mapped, which is told already
		any |= r->blocks[i].kind == QEMU_RAM_FILE_SHARED;
	d = any ? opendir("/proc") : NULL;
	while (d && (e = readdir(d))) {
		int pid = atoi(e->d_name);

		if (pid > 0 && pid != r->vm->pid && pid != getpid())
			refuse_sharer(r, e->d_name);
	}
	if (d)
		closedir(d);
	return 0;
}
