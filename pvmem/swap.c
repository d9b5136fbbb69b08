// SPDX-License-Identifier: GPL-2.0-only
#include "pvmem/swap.h"

#include <blkid/blkid.h>
#include <endian.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/fs.h>
#include <linux/magic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <sys/statfs.h>
#include <unistd.h>

#include "util/cleanup.h"
#include "util/io.h"
#include "util/log.h"
#include "util/size.h"

#ifndef FALLOC_FL_WRITE_ZEROES
#define FALLOC_FL_WRITE_ZEROES 0x80 // Linux 6.17
#endif
#define TRAILER_LEN sizeof(struct pv_swap_trailer)

static bool is_device(const char *path)
{
	struct stat st;

	return !stat(path, &st) && S_ISBLK(st.st_mode);
}

// Where a trailer lies whose image is of unknown length.
static int last_page(int fd, uint64_t *off)
{
	uint64_t size = 0;
	struct stat st;

	*off = 0;
	if (fstat(fd, &st) < 0)
		return -errno;
	if (S_ISREG(st.st_mode))
		size = (uint64_t)st.st_size;
	else if (S_ISBLK(st.st_mode) && ioctl(fd, BLKGETSIZE64, &size) < 0)
		return -errno;
	if (size < TRAILER_LEN)
		return -EBADMSG;
	*off = (size - TRAILER_LEN) & ~(PAGE_SIZE - 1);
	return 0;
}

static int write_trailer(const struct pv_swap *s, struct pv_swap_trailer *t)
{
	uint64_t last;
	int r = pv_swap_trailer_write(s->fd, s->len, t);

	if (!r && s->device && !(r = last_page(s->fd, &last)) && last != s->len)
		r = pv_swap_trailer_write(s->fd, last, t);
	return r;
}

// Where the disk makes zeros without writing any, of blocks that count as written. A page's first write to one that does not is noted in
// the file system's journal, and takes up to three times as long.
static int reserve(const struct pv_swap *s)
{
	if (!fallocate(s->fd, FALLOC_FL_WRITE_ZEROES, 0, (off_t)s->len))
		return 0;
	return fallocate(s->fd, 0, 0, (off_t)s->len) < 0 ? -errno : 0;
}

// The trailer comes first: a file is known for what it is from then on, whatever happens.
static int make_file(const struct pv_swap *s, struct pv_swap_trailer *t)
{
	char want[16], have[16];
	struct statfs fs;
	int r;

	if (!fstatfs(s->fd, &fs) && (fs.f_type == TMPFS_MAGIC || fs.f_type == RAMFS_MAGIC)) {
		log_err("swap image %s: its file system is in memory, which would save none; choose a path on a disk", s->path);
		return -EOPNOTSUPP;
	}
	if (fcntl(s->fd, F_SETFL, O_DIRECT) < 0) {
		log_err("swap image %s: its file system has no O_DIRECT; choose a path on another one", s->path);
		return -EOPNOTSUPP;
	}
	if (flock(s->fd, LOCK_EX | LOCK_NB) < 0) {
		r = -errno;
		log_err("swap image %s: cannot lock it: %s", s->path, strerror(-r));
		return r;
	}
	r = write_trailer(s, t);
	if (!r && !s->sparse)
		r = reserve(s);
	if ((r == -ENOSPC || r == -EFBIG) && !fstatfs(s->fd, &fs))
		log_err("swap image %s: %s are needed, %s are free; make room, choose another disk with --swap, or do without a "
			"reservation by --swap-sparse",
			s->path, size_format(s->len, want), size_format((uint64_t)fs.f_bavail * (uint64_t)fs.f_bsize, have));
	else if (r)
		log_err("swap image %s: cannot reserve %s: %s", s->path, size_format(s->len, want), strerror(-r));
	return r;
}

// What libblkid knows about: file systems, partitions, RAID members, the host's swap.
static int check_content(const struct pv_swap *s)
{
	blkid_probe p = blkid_new_probe();
	const char *what = "";
	int r = p && !blkid_probe_set_device(p, s->fd, 0, 0) && !blkid_probe_enable_partitions(p, 1) ? blkid_do_safeprobe(p) : -1;

	if (!r && blkid_probe_lookup_value(p, "TYPE", &what, NULL))
		blkid_probe_lookup_value(p, "PTTYPE", &what, NULL);
	if (r == -1)
		log_err("swap image %s: cannot find out whether the device holds something", s->path);
	else if (r != 1)
		log_err("swap image %s: the device holds something already%s%s; if it is not needed, remove it: wipefs -a %s", s->path,
			*what ? ": " : "", what, s->path);
	blkid_free_probe(p);
	return r == 1 ? 0 : r == -1 ? -EIO : -EEXIST;
}

static int check_device(const struct pv_swap *s)
{
	struct pv_swap_trailer t;
	char want[16], have[16];
	uint64_t last = 0;
	int r = last_page(s->fd, &last);

	if (r == -EBADMSG || (!r && last < s->len)) {
		log_err("swap image %s: the device has %s, %s are needed; choose another one with --swap", s->path, size_format(last, have),
			size_format(s->len, want));
		return -ENOSPC;
	}
	if (!r)
		r = pv_swap_trailer_read(s->fd, last, &t);
	if (r == -EBADMSG) {
		r = check_content(s);
	} else if (r == -EPROTO || (!r && !pv_swap_trailer_is_stale(&t))) {
		log_err("swap image %s: the device is the swap image of another VM; if that is gone (criu-vm stat), blkdiscard -fz %s", s->path, s->path);
		return -EEXIST;
	} else if (r) {
		log_err("swap image %s: cannot read the device: %s", s->path, strerror(-r));
	}
	// Only now: what libblkid reads is not aligned.
	return r ? r : fcntl(s->fd, F_SETFL, O_DIRECT) < 0 ? -errno : 0;
}

static int make_device(const struct pv_swap *s, struct pv_swap_trailer *t)
{
	int r = check_device(s);

	if (r)
		return r;
	r = write_trailer(s, t);
	if (r) {
		log_err("swap image %s: cannot write to the device: %s", s->path, strerror(-r));
		pv_swap_delete(s);
	}
	return r;
}

static int tell_open_failed(const char *path, int r)
{
	if (r == -EEXIST)
		log_err("swap image %s exists already; if no VM uses it (criu-vm stat), delete it", path);
	else if (r == -EBUSY)
		log_err("swap image %s: the device is mounted, or something else uses it", path);
	else
		log_err("cannot create swap image %s: %s", path, strerror(-r));
	return r;
}

// Its absolute path, though there is no such file yet.
static char *path_to_be(const char *path)
{
	const char *slash = strrchr(path, '/');
	_cleanup_free_ char *dir = slash ? strndup(path, (size_t)(slash - path) + 1) : strdup(".");
	_cleanup_free_ char *real = dir ? realpath(dir, NULL) : NULL;
	char *full = NULL;

	return real && asprintf(&full, "%s/%s", real, slash ? slash + 1 : path) > 0 ? full : NULL;
}

// A file without a name, where the file system has such: if we are killed nothing is left of it.
static int open_file(struct pv_swap *s)
{
	_cleanup_free_ char *dir = strndup(s->path, (size_t)(strrchr(s->path, '/') - s->path) + 1);

	if (!faccessat(AT_FDCWD, s->path, F_OK, AT_SYMLINK_NOFOLLOW))
		return -EEXIST;
	s->fd = dir ? open(dir, O_TMPFILE | O_RDWR | O_CLOEXEC, 0600) : -1;
	s->unnamed = s->fd >= 0;
	if (s->fd < 0)
		s->fd = open(s->path, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
	return s->fd < 0 ? -errno : 0;
}

int pv_swap_prepare(const char *path, uint64_t len, bool sparse, struct pv_swap *s)
{
	bool device = is_device(path);
	struct pv_swap_trailer t;
	int r = 0;

	*s = (struct pv_swap){ .fd = -1, .path = device ? realpath(path, NULL) : path_to_be(path), .len = len, .sparse = sparse, .device = device };
	if (!s->path)
		return tell_open_failed(path, errno > 0 ? -errno : -ENOMEM);
	if (!device)
		r = open_file(s);
	else if ((s->fd = open(s->path, O_RDWR | O_EXCL | O_CLOEXEC)) < 0)
		r = -errno;
	if (!r)
		r = pv_swap_trailer_new(&t, len);
	if (r) {
		tell_open_failed(path, r);
	} else {
		memcpy(s->token, t.token, sizeof t.token);
		r = device ? make_device(s, &t) : make_file(s, &t);
	}
	if (!r)
		return 0;
	if (s->fd >= 0 && !device && !s->unnamed)
		unlink(s->path);
	pv_swap_close(s);
	return r;
}

int pv_swap_publish(struct pv_swap *s)
{
	char self[40];

	snprintf(self, sizeof self, "/proc/self/fd/%d", s->fd);
	if (s->unnamed && linkat(AT_FDCWD, self, AT_FDCWD, s->path, AT_SYMLINK_FOLLOW) < 0)
		return tell_open_failed(s->path, -errno);
	s->unnamed = false;
	return 0;
}

int pv_swap_create(const char *path, uint64_t len, bool sparse, struct pv_swap *s)
{
	int r = pv_swap_prepare(path, len, sparse, s);

	if (!r && (r = pv_swap_publish(s)))
		pv_swap_close(s);
	return r;
}

static int open_image(const char *path, uint64_t len, const char *token, bool alone, struct pv_swap *s)
{
	struct pv_swap_trailer t;
	int r = 0;

	*s = (struct pv_swap){ .fd = -1, .path = realpath(path, NULL), .len = len, .device = is_device(path) };
	snprintf(s->token, sizeof s->token, "%.*s", PV_SWAP_TOKEN_LEN, token);
	if (s->path)
		s->fd = open(s->path, O_RDWR | O_DIRECT | O_NOFOLLOW | O_CLOEXEC | (alone && s->device ? O_EXCL : 0));
	if (s->fd < 0)
		r = errno == EBUSY ? -EWOULDBLOCK : -errno;
	else if (alone && !s->device && flock(s->fd, LOCK_EX | LOCK_NB) < 0)
		r = -errno;
	else if (!(r = pv_swap_trailer_read(s->fd, len, &t)))
		r = strncmp(s->token, t.token, sizeof t.token) ? -EMEDIUMTYPE : le64toh(t.len) != len ? -EBADMSG : 0;
	if (r)
		pv_swap_close(s);
	else if (alone && s->device && write_trailer(s, &t)) // it may have been copied from a file, or another device
		log_warn("swap image %s: cannot mark the end of the device as in use", path);
	return r;
}

const char *pv_swap_reason(int err)
{
	switch (-err) {
	case EWOULDBLOCK:
		return "another process has it locked";
	case EMEDIUMTYPE:
		return "it is another VM's, this one would see wrong pages";
	case EBADMSG:
		return "it is no swap image, or damaged, or was not copied as a whole";
	case EPROTO:
		return "it is of another version of criu-vm";
	default:
		return strerror(-err);
	}
}

int pv_swap_open(const char *path, uint64_t len, const char *token, bool sparse, struct pv_swap *s)
{
	int r = open_image(path, len, token, true, s);

	s->sparse = sparse;
	if (r)
		log_err("cannot use swap image %s: %s", path, pv_swap_reason(r));
	return r;
}

int pv_swap_find(const char *path, uint64_t len, const char *token, struct pv_swap *s)
{
	return open_image(path, len, token, false, s);
}

// Looked at first, and used only then: a pager that wants its image at this moment must find it free.
int pv_swap_find_stale(const char *path, struct pv_swap *s)
{
	_cleanup_close_ int fd = open(path, O_RDONLY | O_DIRECT | O_NONBLOCK | O_CLOEXEC);
	struct pv_swap_trailer t;
	uint64_t off;
	int r;

	*s = PV_SWAP_NONE;
	if (fd < 0)
		return errno == EINVAL ? -EBADMSG : -errno; // no image was ever made where O_DIRECT does not work
	r = last_page(fd, &off);
	if (!r)
		r = pv_swap_trailer_read(fd, off, &t);
	if (r)
		return r;
	return pv_swap_trailer_is_stale(&t) ? open_image(path, le64toh(t.len), t.token, true, s) : -EBUSY;
}

void pv_swap_close(struct pv_swap *s)
{
	if (s->fd >= 0)
		close(s->fd);
	free(s->path);
	*s = PV_SWAP_NONE;
}

static void wipe_device(const struct pv_swap *s)
{
	static const struct pv_swap_trailer zero;
	uint64_t range[2] = { 0, s->len }, last;

	if (io_pwrite_full(s->fd, &zero, sizeof zero, s->len) || last_page(s->fd, &last) || io_pwrite_full(s->fd, &zero, sizeof zero, last) ||
	    fdatasync(s->fd) < 0)
		log_warn("cannot wipe the end of swap image %s: %s", s->path, strerror(errno));
	ioctl(s->fd, BLKDISCARD, range); // where it can
}

static void delete_file(const struct pv_swap *s)
{
	struct stat ours, there;

	// Page-wise writes have left many extents; made into one first, they are discarded at once and not one by one.
	fallocate(s->fd, FALLOC_FL_ZERO_RANGE | FALLOC_FL_KEEP_SIZE, 0, (off_t)(s->len + TRAILER_LEN));
	if (fstat(s->fd, &ours) < 0 || lstat(s->path, &there) < 0 || ours.st_ino != there.st_ino || ours.st_dev != there.st_dev)
		return;
	if (unlink(s->path) < 0 && errno != ENOENT)
		log_warn("cannot delete swap image %s: %s", s->path, strerror(errno));
}

void pv_swap_delete(const struct pv_swap *s)
{
	if (s->device)
		wipe_device(s);
	else
		delete_file(s);
}

void pv_swap_destroy(struct pv_swap *s)
{
	if (s->fd >= 0)
		pv_swap_delete(s);
	pv_swap_close(s);
}

void pv_swap_forget(const struct pv_swap *s, uint64_t off, uint64_t len)
{
	if (s->sparse && fallocate(s->fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, (off_t)off, (off_t)len) < 0)
		log_dbg("swap image %s: cannot give space back: %s", s->path, strerror(errno));
}
