// SPDX-License-Identifier: GPL-2.0-only
#include "images/pages_int.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <linux/fs.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include "images/file_int.h"
#include "images/format.h"
#include "util/io.h"
#include "util/log.h"

// A buffer goes out when less than a chunk fits: writes are of more than 3 MiB, but for the last.
#define BUF_SIZE (4 * MiB)
// The file grows by so much at once. A write that makes a file longer is one that others wait for.
#define GROW_SIZE (256 * MiB)

static int init_buffers(struct img_pages *p)
{
	int ret;

	for (int i = 0; i < IMG_PAGES_BUFS; i++) {
		p->buf[i].data = aligned_alloc(PAGE_SIZE, BUF_SIZE);
		if (!p->buf[i].data)
			return img_io_error(p->path, "create", -ENOMEM);
	}
	ret = io_uring_queue_init(IMG_PAGES_BUFS, &p->ring, 0);
	if (ret)
		log_err("cannot set up io_uring: %s; is it allowed here (sysctl kernel.io_uring_disabled, seccomp)?", strerror(-ret));
	p->have_ring = !ret;
	return ret;
}

int img_pages_open(struct img_pages *p, int dirfd, const char *dir, const char *name)
{
	const int flags = O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC;

	memset(p, 0, sizeof *p);
	p->fd = -1;
	if (snprintf(p->path, sizeof p->path, "%s/%s", dir, name) >= (int)sizeof p->path)
		return p->err = img_io_error(name, "create", -ENAMETOOLONG);
	p->fd = openat(dirfd, name, flags | O_DIRECT, 0600);
	// A file system without O_DIRECT may say so after it has created the file.
	if (p->fd < 0 && errno == EINVAL)
		p->fd = openat(dirfd, name, flags & ~O_EXCL, 0600);
	if (p->fd < 0)
		return p->err = img_io_error(p->path, "create", -errno);
	return p->err = init_buffers(p);
}

int img_pages_open_stream(struct img_pages *p, struct img_stream_out *stream)
{
	memset(p, 0, sizeof *p);
	p->fd = -1;
	p->stream = stream;
	snprintf(p->path, sizeof p->path, "the stream");
	p->buf[0].data = aligned_alloc(PAGE_SIZE, IMG_CHUNK_SIZE);
	return p->err = p->buf[0].data ? 0 : img_io_error(p->path, "write", -ENOMEM);
}

static int write_failed(struct img_pages *p, uint64_t off, int err)
{
	char have[16], missing[16];

	if (err != -ENOSPC && err != -EDQUOT)
		return img_io_error(p->path, "write", err);
	log_err("%s: %s: %s of it written, at most %s missing; free that much or name a directory elsewhere", p->path, strerror(-err),
		size_format(off, have), size_format(p->len - off + p->ahead, missing));
	return err;
}

// Takes one completion. A write that was cut short is finished here, or says why it cannot be. False: no completion can be had.
static bool reap(struct img_pages *p)
{
	struct io_uring_cqe *cqe;
	size_t done;
	int ret, i;

	do
		ret = io_uring_wait_cqe(&p->ring, &cqe);
	while (ret == -EINTR);
	if (ret) {
		if (!p->err)
			p->err = img_io_error(p->path, "wait for a write", ret);
		return false;
	}
	i = (int)cqe->user_data;
	ret = cqe->res;
	io_uring_cqe_seen(&p->ring, cqe);
	p->buf[i].writing = false;

	done = ret > 0 ? (size_t)ret & ~(PAGE_SIZE - 1) : 0;
	// The kernel cancels what it has not begun yet of a thread that ends; the buffer is as it was.
	if (ret >= 0 || ret == -EINTR || ret == -EAGAIN || ret == -ECANCELED)
		ret = io_pwrite_full(p->fd, p->buf[i].data + done, p->buf[i].len - done, p->buf[i].off + done);
	if (ret && !p->err)
		p->err = write_failed(p, p->buf[i].off + done, ret);
	return true;
}

static void wait_for(struct img_pages *p, unsigned i)
{
	while (p->buf[i].writing && reap(p))
		;
}

// Makes the file longer ahead of the writes, where the file system can: without, they work as well.
static void grow(struct img_pages *p, uint64_t end)
{
	uint64_t step = p->ahead < GROW_SIZE ? p->ahead : GROW_SIZE;

	if (end <= p->allocated)
		return;
	if (fallocate(p->fd, 0, (off_t)p->allocated, (off_t)(end + step - p->allocated)))
		step = 0;
	p->allocated = end + step;
}

// Sends the current buffer off and turns to the next.
static int flush(struct img_pages *p)
{
	unsigned cur = p->cur, next = (cur + 1) % IMG_PAGES_BUFS;
	struct io_uring_sqe *sqe = io_uring_get_sqe(&p->ring);
	int ret;

	grow(p, p->buf[cur].off + p->buf[cur].len);
	io_uring_prep_write(sqe, p->fd, p->buf[cur].data, (unsigned)p->buf[cur].len, p->buf[cur].off);
	io_uring_sqe_set_data64(sqe, cur);
	do
		ret = io_uring_submit(&p->ring);
	while (ret == -EINTR);
	if (ret < 0)
		return p->err = img_io_error(p->path, "submit a write", ret);
	p->buf[cur].writing = true;

	wait_for(p, next);
	p->buf[next].off = p->buf[cur].off + p->buf[cur].len;
	p->buf[next].len = 0;
	p->cur = next;
	return p->err;
}

int img_pages_room(struct img_pages *p, uint8_t **room)
{
	if (!p->err && !p->stream && p->buf[p->cur].len + IMG_CHUNK_SIZE > BUF_SIZE)
		flush(p);
	*room = p->buf[p->cur].data + p->buf[p->cur].len;
	return p->err;
}

int img_pages_add(struct img_pages *p, struct img_place at, struct img_chunk *c, size_t len, uint64_t checksum)
{
	c->off = p->len;
	c->stored = (uint32_t)len;
	c->checksum = checksum;
	if (p->stream && !p->err)
		p->err = img_stream_out_chunk(p->stream, at.block, at.chunk, c, p->buf[0].data);
	else
		p->buf[p->cur].len += len;
	p->len += len;
	return p->err;
}

// Beyond what is buffered, which is written to its place whenever that is.
int img_pages_clone(struct img_pages *p, struct img_chunk *c, int from, uint64_t off)
{
	struct file_clone_range range = { .src_fd = from, .src_offset = off, .src_length = c->stored, .dest_offset = p->len };

	if (p->err)
		return p->err;
	if (p->stream || p->no_clone || ioctl(p->fd, FICLONERANGE, &range)) {
		p->no_clone = true;
		return -EOPNOTSUPP;
	}
	c->off = p->len;
	if (p->buf[p->cur].len)
		flush(p);
	p->len += c->stored;
	p->buf[p->cur].off = p->len;
	return p->err;
}

int img_pages_close(struct img_pages *p)
{
	if (p->stream)
		return p->err;
	if (!p->err && p->buf[p->cur].len)
		flush(p);
	for (unsigned i = 0; i < IMG_PAGES_BUFS; i++)
		wait_for(p, i);
	if (!p->err && (ftruncate(p->fd, (off_t)p->len) || fsync(p->fd)))
		p->err = write_failed(p, p->len, -errno);
	if (close(p->fd) && !p->err)
		p->err = write_failed(p, p->len, -errno);
	p->fd = -1;
	return p->err;
}

void img_pages_fini(struct img_pages *p)
{
	for (unsigned i = 0; i < IMG_PAGES_BUFS; i++) {
		wait_for(p, i);
		// One whose write cannot be waited for is left to the kernel.
		if (!p->buf[i].writing)
			free(p->buf[i].data);
	}
	if (p->have_ring)
		io_uring_queue_exit(&p->ring);
	if (p->fd >= 0)
		close(p->fd);
}
