// SPDX-License-Identifier: GPL-2.0-only
// The new files of a VM are made, filled and deleted as the VM's user: where a path leads, what an image says is below it, and which
// qemu-img lies beside a QEMU, is that user's choice.
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <linux/openat2.h>
#include <spawn.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "qemu/disks_int.h"
#include "qemu/vm.h"
#include "qemu/vm_int.h"
#include "util/cleanup.h"
#include "util/log.h"
#include "util/user.h"

extern char **environ;

struct order {
	int root; // of the paths
	const char *path; // of the new file
	gid_t gid;
	mode_t mode;
	const char *qemu, *base, *format;
	uint64_t size;
};

struct disk_user disk_user_of(const struct qemu_vm *vm)
{
	return (struct disk_user){ .vm = vm, .uid = vm->uid, .gid = vm->gid };
}

// By root, since another user may not look into /proc of a QEMU that has dropped its privileges.
static int call(const struct disk_user *u, int (*fn)(void *ctx), struct order *o)
{
	_cleanup_close_ int root = -1;
	char path[PATH_MAX] = "/";

	if (u->vm && qemu_vm_path(u->vm, "/", path, sizeof path))
		return -ENAMETOOLONG;
	root = open(path, O_PATH | O_DIRECTORY | O_CLOEXEC);
	if (root < 0)
		return -errno;
	o->root = root;
	o->gid = u->gid;
	return user_call(u->uid, u->gid, fn, o);
}

// The folder of the new file: links, absolute ones too, stay in the root. *name is the file's name in it.
static int open_folder(const struct order *o, const char **name)
{
	struct open_how how = { .flags = O_PATH | O_DIRECTORY | O_CLOEXEC, .resolve = RESOLVE_IN_ROOT };
	const char *slash = strrchr(o->path, '/');
	char folder[PATH_MAX];
	int fd;

	if (!slash)
		return -EINVAL;
	if (snprintf(folder, sizeof folder, "%.*s/", (int)(slash - o->path), o->path) >= (int)sizeof folder)
		return -ENAMETOOLONG;
	*name = slash + 1;
	fd = (int)syscall(SYS_openat2, o->root, folder, &how, sizeof how);
	return fd < 0 ? -errno : fd;
}

static int make(void *ctx)
{
	const struct order *o = ctx;
	const char *name;
	_cleanup_close_ int folder = open_folder(o, &name), fd = -1;

	if (folder < 0)
		return folder;
	fd = openat(folder, name, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
	if (fd < 0)
		return -errno;
	// Who is not root, and not in the group, runs the VM as himself.
	if ((!fchown(fd, (uid_t)-1, o->gid) || errno == EPERM) && !fchmod(fd, o->mode))
		return 0;
	unlinkat(folder, name, 0);
	return -EIO;
}

int disk_file_make(const struct disk_user *u, const char *path, mode_t mode)
{
	return call(u, make, &(struct order){ .path = path, .mode = mode });
}

static int delete(void *ctx)
{
	const struct order *o = ctx;
	const char *name;
	_cleanup_close_ int folder = open_folder(o, &name);

	if (folder < 0)
		return folder;
	return unlinkat(folder, name, 0) ? -errno : 0;
}

void disk_file_delete(const struct disk_user *u, const char *path)
{
	int r = call(u, delete, &(struct order){ .path = path });

	if (r && r != -ENOENT)
		log_warn("%s cannot be deleted: %s; delete it, nobody needs it", path, strerror(-r));
}

static const char *find_qemu_img(const char *qemu, char *path, size_t size)
{
	const char *slash = strrchr(qemu, '/');

	snprintf(path, size, "%.*sqemu-img", slash ? (int)(slash + 1 - qemu) : 0, qemu);
	return slash && !access(path, X_OK) ? path : "qemu-img";
}

// out: where what it says goes. file: what it gets to work on.
static int run(char *const *argv, int out, int file, int *status)
{
	posix_spawn_file_actions_t a;
	pid_t pid;
	int r = -posix_spawn_file_actions_init(&a);

	if (r)
		return r;
	r = -posix_spawn_file_actions_addopen(&a, 0, "/dev/null", O_RDONLY, 0);
	if (!r)
		r = -posix_spawn_file_actions_adddup2(&a, out, 1);
	if (!r)
		r = -posix_spawn_file_actions_adddup2(&a, out, 2);
	if (!r)
		r = -posix_spawn_file_actions_adddup2(&a, file, file);
	if (!r)
		r = -posix_spawnp(&pid, argv[0], &a, NULL, argv, environ);
	posix_spawn_file_actions_destroy(&a);
	while (!r && waitpid(pid, status, 0) < 0 && errno == EINTR) {
		// again
	}
	return r;
}

static int fill(const struct order *o, int file, int out)
{
	char path[PATH_MAX], bytes[24], target[32], said[1024];
	const char *qemu_img = find_qemu_img(o->qemu, path, sizeof path);
	char *of_base[] = { (char *)qemu_img, "create", "-q", "-f", "qcow2", "-F", (char *)o->format, "-b", (char *)o->base, target, NULL };
	char *of_size[] = { (char *)qemu_img, "create", "-q", "-u", "-f", "qcow2", "-F", (char *)o->format, "-b", (char *)o->base, target,
			    bytes, NULL };
	int status = 0, r;
	ssize_t n;

	snprintf(bytes, sizeof bytes, "%llu", (unsigned long long)o->size);
	snprintf(target, sizeof target, "/proc/self/fd/%d", file);
	r = run(o->size ? of_size : of_base, out, file, &status);
	if (r) {
		if (r != -ENOENT)
			log_err("cannot run %s: %s", qemu_img, strerror(-r));
		return r;
	}
	if (!status)
		return 0;
	n = pread(out, said, sizeof said - 1, 0);
	for (said[n > 0 ? n : 0] = 0; n > 0 && said[n - 1] == '\n';)
		said[--n] = 0;
	log_err("no new file %s over the disk %s: %s", o->path, o->base, *said ? said : "qemu-img failed");
	return -EIO;
}

static int create(void *ctx)
{
	const struct order *o = ctx;
	const char *name;
	_cleanup_close_ int folder = open_folder(o, &name), file = -1, out = memfd_create("qemu-img", MFD_CLOEXEC);

	if (folder >= 0)
		file = openat(folder, name, O_RDWR | O_NOFOLLOW | O_CLOEXEC);
	if (file >= 0 && out >= 0)
		return fill(o, file, out);
	log_err("the new file %s over the disk %s cannot be opened: %s", o->path, o->base, strerror(folder < 0 ? -folder : errno));
	return -EIO;
}

int disk_create(const struct disk_user *u, const char *qemu, const char *base, const char *format, uint64_t size, const char *file)
{
	return call(u, create, &(struct order){ .path = file, .qemu = qemu, .base = base, .format = format, .size = size });
}
