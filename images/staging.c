// SPDX-License-Identifier: GPL-2.0-only
#include "images/staging_int.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <unistd.h>

#include "images/file_int.h"
#include "util/cleanup.h"
#include "util/log.h"

static bool is_dot(const char *name)
{
	return !strcmp(name, ".") || !strcmp(name, "..");
}

static bool is_empty(int fd)
{
	_cleanup_close_ int copy = openat(fd, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	DIR *d = copy >= 0 ? fdopendir(copy) : NULL;
	struct dirent *e;

	if (!d)
		return false;
	steal_fd(&copy);
	do
		e = readdir(d);
	while (e && is_dot(e->d_name));
	closedir(d);
	return !e;
}

// An existing place: must be an empty directory that can be renamed over.
static int check_taken(const char *path)
{
	_cleanup_close_ int fd = -1;
	struct statx sx;

	if (statx(AT_FDCWD, path, AT_SYMLINK_NOFOLLOW, STATX_TYPE, &sx))
		return errno == ENOENT ? 0 : img_io_error(path, "look at", -errno);
	if (!S_ISDIR(sx.stx_mode)) {
		log_err("%s: exists and is no directory: name one that is new or empty", path);
		return -ENOTDIR;
	}
	if (sx.stx_attributes & STATX_ATTR_MOUNT_ROOT) {
		log_err("%s: is a mount point, which cannot be replaced: name a directory inside it", path);
		return -EBUSY;
	}
	fd = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	if (fd < 0)
		return img_io_error(path, "look into", -errno);
	if (is_empty(fd))
		return 0;
	log_err("%s: is not empty: a checkpoint needs a directory that is new or empty", path);
	return -ENOTEMPTY;
}

// Absolute, without symbolic links, also if its last part is not there yet.
static int resolve(const char *dir, char path[PATH_MAX])
{
	_cleanup_free_ char *copy = NULL, *parent = NULL;
	size_t len = strlen(dir);
	char *slash;

	if (realpath(dir, path))
		return 0;
	if (errno != ENOENT || !len)
		return img_io_error(len ? dir : "\"\"", "find", len ? -errno : -ENOENT);
	copy = strdup(dir);
	if (!copy)
		return img_io_error(dir, "find", -ENOMEM);
	while (copy[len - 1] == '/')
		copy[--len] = 0;
	slash = strrchr(copy, '/');
	if (slash)
		*slash = 0;
	parent = realpath(!slash ? "." : slash == copy ? "/" : copy, NULL);
	if (!parent)
		return img_io_error(dir, "find the directory around it", -errno);
	if (snprintf(path, PATH_MAX, "%s/%s", strcmp(parent, "/") ? parent : "", slash ? slash + 1 : copy) >= PATH_MAX)
		return img_io_error(dir, "find", -ENAMETOOLONG);
	return 0;
}

// Who may write into the directory around it may have put something else there: we would fill it, and at a failure empty it.
static int open_partial(struct img_staging *s)
{
	_cleanup_close_ int fd = openat(s->parent_fd, s->name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
	struct stat st;

	if (fd < 0 || fstat(fd, &st))
		return img_io_error(s->path, "open", -errno);
	if (st.st_uid != geteuid() || st.st_mode & (S_IWGRP | S_IWOTH) || !is_empty(fd)) {
		log_err("%s: is not the directory that was just made; name one inside a directory of your own", s->path);
		return -EPERM;
	}
	s->fd = steal_fd(&fd);
	return 0;
}

static int make_partial(struct img_staging *s)
{
	for (int tries = 0; tries < 100; tries++) {
		uint16_t r;

		if (getrandom(&r, sizeof r, 0) != sizeof r)
			return img_io_error(s->final_path, "create", -errno);
		if (snprintf(s->name, sizeof s->name, "%s.%04x.partial", s->final_name, r) >= (int)sizeof s->name ||
		    snprintf(s->path, sizeof s->path, "%s.%04x.partial", s->final_path, r) >= (int)sizeof s->path)
			return img_io_error(s->final_path, "create", -ENAMETOOLONG);
		if (!mkdirat(s->parent_fd, s->name, 0700)) {
			s->made = true;
			return open_partial(s);
		}
		if (errno != EEXIST)
			break;
	}
	return img_io_error(s->path, "create", -errno);
}

int img_staging_open(struct img_staging *s, const char *dir)
{
	char *slash;
	int ret;

	memset(s, 0, sizeof *s);
	s->fd = s->parent_fd = -1;
	ret = resolve(dir, s->final_path);
	if (!ret)
		ret = check_taken(s->final_path);
	if (ret)
		return ret;
	slash = strrchr(s->final_path, '/');
	if (snprintf(s->final_name, sizeof s->final_name, "%s", slash + 1) >= (int)sizeof s->final_name)
		return img_io_error(dir, "create", -ENAMETOOLONG);

	*slash = 0;
	s->parent_fd = open(*s->final_path ? s->final_path : "/", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	*slash = '/';
	if (s->parent_fd < 0)
		return img_io_error(dir, "open the directory around it", -errno);
	return make_partial(s);
}

int img_staging_commit(struct img_staging *s)
{
	int ret;

	if (fsync(s->fd))
		return img_io_error(s->path, "sync", -errno);
	if (renameat(s->parent_fd, s->name, s->parent_fd, s->final_name)) {
		ret = -errno;
		log_err("%s: cannot rename the checkpoint to it: %s", s->final_path, strerror(-ret));
		return ret;
	}
	if (fsync(s->parent_fd)) {
		ret = img_io_error(s->final_path, "sync the directory around it", -errno);
		if (renameat(s->parent_fd, s->final_name, s->parent_fd, s->name))
			img_io_error(s->final_path, "take the name back", -errno);
		return ret;
	}
	s->made = false;
	return 0;
}

static void remove_partial(struct img_staging *s)
{
	struct dirent *e;
	DIR *d = s->fd >= 0 ? fdopendir(s->fd) : NULL;

	if (d) {
		s->fd = -1;
		rewinddir(d); // btrfs shows what was there when the directory was opened
		while ((e = readdir(d)))
			if (!is_dot(e->d_name))
				unlinkat(dirfd(d), e->d_name, 0);
		closedir(d);
	}
	if (unlinkat(s->parent_fd, s->name, AT_REMOVEDIR))
		img_io_error(s->path, "remove", -errno);
}

void img_staging_fini(struct img_staging *s)
{
	if (s->made)
		remove_partial(s);
	if (s->fd >= 0)
		close(s->fd);
	if (s->parent_fd >= 0)
		close(s->parent_fd);
}
