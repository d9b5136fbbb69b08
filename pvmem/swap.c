// SPDX-License-Identifier: GPL-2.0-only
#include "pvmem/swap.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/magic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <sys/statfs.h>
#include <unistd.h>

#include "util/log.h"
#include "util/size.h"

static int reserve(int fd, const char *path, uint64_t len, bool sparse)
{
	struct statfs fs;
	char want[16], have[16];
	int r;

	if (fstatfs(fd, &fs) < 0)
		goto failed;
	if (fs.f_type == TMPFS_MAGIC || fs.f_type == RAMFS_MAGIC) {
		log_err("swap image %s: its file system is in memory, which would save none; choose a path on a disk", path);
		return -EOPNOTSUPP;
	}
	r = sparse ? ftruncate(fd, (off_t)len) : fallocate(fd, 0, 0, (off_t)len);
	if (!r)
		return 0;
	if (errno == ENOSPC || errno == EFBIG) {
		r = -errno;
		log_err("swap image %s: %s are needed, %s are free; make room, choose another disk with --swap, or do without a "
			"reservation by --swap-sparse",
			path, size_format(len, want), size_format((uint64_t)fs.f_bavail * (uint64_t)fs.f_bsize, have));
		return r;
	}
failed:
	r = -errno;
	log_err("swap image %s: cannot reserve %s: %s", path, size_format(len, want), strerror(-r));
	return r;
}

int pv_swap_create(const char *path, uint64_t len, bool sparse, struct pv_swap *s)
{
	int r, fd = open(path, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600);

	*s = PV_SWAP_NONE;
	if (fd < 0) {
		r = -errno;
		if (r == -EEXIST)
			log_err("swap image %s exists already; if no VM uses it (criu-vm stat), delete it", path);
		else
			log_err("cannot create swap image %s: %s", path, strerror(-r));
		return r;
	}
	r = reserve(fd, path, len, sparse);
	if (!r && fcntl(fd, F_SETFL, O_DIRECT) < 0) {
		r = -EOPNOTSUPP;
		log_err("swap image %s: its file system has no O_DIRECT; choose a path on another one", path);
	}
	if (!r && flock(fd, LOCK_EX | LOCK_NB) < 0) {
		r = -errno;
		log_err("swap image %s: cannot lock it: %s", path, strerror(-r));
	}
	if (r) {
		unlink(path);
		close(fd);
		return r;
	}
	return pv_swap_adopt(fd, path, len, sparse, s);
}

int pv_swap_adopt(int fd, const char *path, uint64_t len, bool sparse, struct pv_swap *s)
{
	*s = (struct pv_swap){ .fd = fd, .path = strdup(path), .len = len, .sparse = sparse };
	if (s->path)
		return 0;
	pv_swap_close(s);
	return -ENOMEM;
}

void pv_swap_close(struct pv_swap *s)
{
	if (s->fd >= 0)
		close(s->fd);
	free(s->path);
	*s = PV_SWAP_NONE;
}

void pv_swap_delete(int fd, const char *path, uint64_t len)
{
	// Page-wise writes have left many extents; made into one first, they are discarded at once and not one by one.
	fallocate(fd, FALLOC_FL_ZERO_RANGE | FALLOC_FL_KEEP_SIZE, 0, (off_t)len);
	if (unlink(path) < 0 && errno != ENOENT)
		log_warn("cannot delete swap image %s: %s", path, strerror(errno));
}

void pv_swap_destroy(struct pv_swap *s)
{
	if (s->path)
		pv_swap_delete(s->fd, s->path, s->len);
	pv_swap_close(s);
}

void pv_swap_forget(const struct pv_swap *s, uint64_t off, uint64_t len)
{
	if (s->sparse && fallocate(s->fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, (off_t)off, (off_t)len) < 0)
		log_dbg("swap image %s: cannot give space back: %s", s->path, strerror(errno));
}
