// SPDX-License-Identifier: GPL-2.0-only
// The new files of a restored VM, over the disks that its checkpoint keeps as they are.
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <spawn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include "qemu/cmdline.h"
#include "qemu/disks_int.h"
#include "util/cleanup.h"
#include "util/log.h"

#define MAX_FILES 10000 // of one VM name over one disk

extern char **environ;

static const char *find_qemu_img(const char *qemu, char *path, size_t size)
{
	const char *slash = strrchr(qemu, '/');

	snprintf(path, size, "%.*sqemu-img", slash ? (int)(slash + 1 - qemu) : 0, qemu);
	return slash && !access(path, X_OK) ? path : "qemu-img";
}

// out: where what it says goes.
static int run(char *const *argv, int out, int *status)
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
		r = -posix_spawnp(&pid, argv[0], &a, NULL, argv, environ);
	posix_spawn_file_actions_destroy(&a);
	while (!r && waitpid(pid, status, 0) < 0 && errno == EINTR) {
		// again
	}
	return r;
}

int disk_create(const char *qemu, const char *base, const char *format, uint64_t size, const char *file)
{
	_cleanup_close_ int out = memfd_create("qemu-img", MFD_CLOEXEC);
	char path[PATH_MAX], bytes[24], said[1024];
	const char *qemu_img = find_qemu_img(qemu, path, sizeof path);
	char *of_base[] = { (char *)qemu_img, "create", "-q", "-f", "qcow2", "-F", (char *)format, "-b", (char *)base, (char *)file, NULL };
	char *of_size[] = { (char *)qemu_img, "create", "-q", "-u", "-f", "qcow2", "-F", (char *)format, "-b", (char *)base, (char *)file,
			    bytes, NULL };
	int status = 0, r;
	ssize_t n;

	snprintf(bytes, sizeof bytes, "%llu", (unsigned long long)size);
	r = out < 0 ? -errno : run(size ? of_size : of_base, out, &status);
	if (r) {
		if (r != -ENOENT)
			log_err("cannot run %s: %s", qemu_img, strerror(-r));
		return r;
	}
	n = pread(out, said, sizeof said - 1, 0);
	for (said[n > 0 ? n : 0] = 0; n > 0 && said[n - 1] == '\n';)
		said[--n] = 0;
	if (status) {
		log_err("no new file %s over the disk %s: %s", file, base, *said ? said : "qemu-img failed");
		return -EIO;
	}
	return 0;
}

// The first name that nobody has yet; an earlier VM of this name may have left its disk.
static int make_file(const struct qemu_overlay_opts *o, const VmDiskEntry *e, char **file)
{
	_cleanup_close_ int fd = -1;
	char suffix[128];
	int r = 0;

	for (unsigned n = 1; fd < 0 && n <= MAX_FILES; n++) {
		snprintf(suffix, sizeof suffix, n > 1 ? "%s-restored-%u" : "%s-restored", o->name, n);
		r = disk_beside(e->path, suffix, file);
		if (r)
			break;
		fd = open(*file, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
		r = fd < 0 ? -errno : 0;
		if (r) {
			free(*file);
			*file = NULL;
		}
		if (r != -EEXIST)
			break;
	}
	if (!r && fchown(fd, o->uid, o->gid))
		r = -errno;
	if (r)
		log_err("no new file can be made beside the disk %s: %s", e->path, strerror(-r));
	else if ((r = disk_create(o->qemu, e->path, e->format, 0, *file)) == -ENOENT)
		log_err("the disk %s needs a new file over it, but there is no qemu-img to make it: install it (Debian: qemu-utils)", e->path);
	return r;
}

int qemu_disks_overlay(const struct qemu_overlay_opts *opts, struct qemu_overlays *o)
{
	struct disk_rewrite w = { .cwd = opts->cwd };
	int r = disk_rewrite_init(&w, opts->argv, opts->argc);

	*o = (struct qemu_overlays){ .files = calloc(opts->nr + 1, sizeof *o->files) };
	if (!o->files)
		r = -ENOMEM;
	for (size_t i = 0; i < opts->nr && !r; i++) {
		const VmDiskEntry *e = opts->disks[i];

		if (!e->snapshot)
			continue;
		r = disk_check_recorded(e) ?: make_file(opts, e, &o->files[o->nr_files]);
		if (!o->files[o->nr_files])
			break;
		w.path = e->path;
		w.overlay = o->files[o->nr_files++];
		r = r ?: disk_rewrite(&w);
		if (!r)
			log_info("the disk %s stays as it is; the restored VM writes to %s", e->path, w.overlay);
	}
	o->argv = w.v;
	o->argc = w.nr;
	if (r) {
		qemu_disks_overlay_undo(o);
		qemu_disks_overlay_fini(o);
	}
	return r;
}

void qemu_disks_overlay_undo(struct qemu_overlays *o)
{
	for (size_t i = 0; o->files && i < o->nr_files; i++)
		if (unlink(o->files[i]) && errno != ENOENT)
			log_warn("%s cannot be deleted: %s; delete it, nobody needs it", o->files[i], strerror(errno));
}

void qemu_disks_overlay_fini(struct qemu_overlays *o)
{
	for (size_t i = 0; o->files && i < o->nr_files; i++)
		free(o->files[i]);
	free(o->files);
	qemu_cmdline_free(o->argv);
	*o = (struct qemu_overlays){ 0 };
}
