// SPDX-License-Identifier: GPL-2.0-only
#include "criu-vm/tracked.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <jansson.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include "criu-vm/run_dir.h"
#include "util/cleanup.h"
#include "util/log.h"
#include "util/process.h"

#define PREFIX ".tracked-"
#define LOCK_SUFFIX ".lock"
#define VERSION 1

static void path_of(const char *root, pid_t pid, const char *suffix, char path[PATH_MAX])
{
	snprintf(path, PATH_MAX, "%s/" PREFIX "%d%s", root, pid, suffix);
}

static int read_record(const char *root, pid_t pid, struct tracked *t)
{
	char path[PATH_MAX];
	const char *id = NULL;
	json_int_t start, uffd, uffd_id;
	int version, discards, r = 0;
	json_t *j;

	path_of(root, pid, "", path);
	j = json_load_file(path, 0, NULL);
	if (!j || json_unpack(j, "{s:i s:I s:I s:I s:b s?s}", "version", &version, "start", &start, "uffd", &uffd, "uffd_id", &uffd_id, "discards", &discards, "images_id", &id) ||
	    version != VERSION)
		r = -ENOENT;
	else
		*t = (struct tracked){ .pid = pid, .start = (uint64_t)start, .uffd = (int)uffd, .uffd_id = (uint64_t)uffd_id, .discards = discards, .known = id,
				       .images_id = id ? strtoull(id, NULL, 16) : 0 };
	json_decref(j);
	return r;
}

// One that its parent has not asked after yet has ended, too: it has no program any more.
static bool is_alive(pid_t pid, uint64_t start)
{
	char path[32], exe[8];

	snprintf(path, sizeof path, "/proc/%d/exe", pid);
	return process_start(pid) == start && (readlink(path, exe, sizeof exe) >= 0 || errno != ENOENT);
}

static void sweep(const char *root)
{
	DIR *dir = opendir(root);
	char path[PATH_MAX];
	const struct dirent *d;
	struct tracked t;

	while (dir && (d = readdir(dir))) {
		pid_t pid = !strncmp(d->d_name, PREFIX, strlen(PREFIX)) ? atoi(d->d_name + strlen(PREFIX)) : 0;

		if (pid > 0 && (read_record(root, pid, &t) || !is_alive(pid, t.start)))
			tracked_remove(root, pid);
		if (pid > 0 && !process_start(pid)) { // and the lock of a dump that was killed
			path_of(root, pid, LOCK_SUFFIX, path);
			unlink(path);
		}
	}
	if (dir)
		closedir(dir);
}

int tracked_lock(pid_t pid, int *fd)
{
	char path[PATH_MAX];
	struct stat st = { 0 };
	int r = 0;

	path_of(RUN_DIR_DEFAULT, pid, LOCK_SUFFIX, path);
	if (mkdir(RUN_DIR_DEFAULT, 0755) < 0 && errno != EEXIST)
		r = -errno;
	do { // until it is not one that was unlocked, and unlinked with that, just now
		*fd = r ? -1 : open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
		if (!r && (*fd < 0 || flock(*fd, LOCK_EX | LOCK_NB) < 0 || fstat(*fd, &st) < 0))
			r = errno == EWOULDBLOCK ? -EBUSY : -errno;
		if ((r || !st.st_nlink) && *fd >= 0)
			close(steal_fd(fd));
	} while (!r && *fd < 0);
	if (r == -EACCES && geteuid()) // who is not root can track nothing, and fails for better reasons
		return 0;
	if (r == -EBUSY)
		log_err("another dump of QEMU %d is under way; wait until it has ended", pid);
	else if (r)
		log_err("cannot lock %s: %s", path, strerror(-r));
	return r;
}

void tracked_unlock(pid_t pid, int fd)
{
	char path[PATH_MAX];

	if (fd < 0)
		return;
	path_of(RUN_DIR_DEFAULT, pid, LOCK_SUFFIX, path);
	unlink(path);
	close(fd);
}

int tracked_load(const char *run_root, pid_t pid, struct tracked *t)
{
	sweep(run_root);
	return read_record(run_root, pid, t);
}

int tracked_save(const char *run_root, const struct tracked *t)
{
	char path[PATH_MAX], beside[PATH_MAX], id[17];
	json_t *j = json_pack("{s:i s:I s:i s:I s:b}", "version", VERSION, "start", (json_int_t)t->start, "uffd", t->uffd, "uffd_id",
			      (json_int_t)t->uffd_id, "discards", t->discards);
	int r = 0;

	path_of(run_root, t->pid, "", path);
	path_of(run_root, t->pid, ".new", beside);
	snprintf(id, sizeof id, "%016" PRIx64, t->images_id);
	if (t->known)
		json_object_set_new(j, "images_id", json_string(id));
	if ((mkdir(run_root, 0755) < 0 && errno != EEXIST) || json_dump_file(j, beside, JSON_COMPACT) || rename(beside, path) < 0)
		r = errno ? -errno : -EIO;
	if (r) {
		log_err("cannot write %s: %s", path, strerror(-r));
		unlink(beside);
	}
	json_decref(j);
	return r;
}

void tracked_remove(const char *run_root, pid_t pid)
{
	char path[PATH_MAX];

	path_of(run_root, pid, "", path);
	unlink(path);
	if (process_start(pid)) // else nobody can want the lock any more
		return;
	path_of(run_root, pid, LOCK_SUFFIX, path);
	unlink(path);
}
