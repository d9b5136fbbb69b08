// SPDX-License-Identifier: GPL-2.0-only
#include "util/io.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <unistd.h>

#include "util/cleanup.h"

#define FULL(call) \
	while (len) { \
		ssize_t n = (call); \
		if (n < 0 && errno == EINTR) \
			continue; \
		if (n <= 0) \
			return n ? -errno : -ENODATA; \
		p += n; \
		off += (uint64_t)n; \
		len -= (size_t)n; \
	} \
	(void)off; \
	return 0

int io_read_full(int fd, void *buf, size_t len)
{
	char *p = buf;
	uint64_t off = 0;

	FULL(read(fd, p, len));
}

int io_write_full(int fd, const void *buf, size_t len)
{
	const char *p = buf;
	uint64_t off = 0;

	FULL(write(fd, p, len));
}

int io_pread_full(int fd, void *buf, size_t len, uint64_t off)
{
	char *p = buf;

	FULL(pread(fd, p, len, (off_t)off));
}

int io_pwrite_full(int fd, const void *buf, size_t len, uint64_t off)
{
	const char *p = buf;

	FULL(pwrite(fd, p, len, (off_t)off));
}

int io_read_file(const char *path, size_t max, char **buf, size_t *len)
{
	_cleanup_close_ int fd = open(path, O_RDONLY | O_CLOEXEC);
	_cleanup_free_ char *p = NULL;
	size_t have = 0, room = 0;

	if (fd < 0)
		return -errno;
	for (;;) {
		ssize_t n;

		if (have + 1 >= room) {
			char *bigger = realloc(p, room = room ? room * 2 : 4096);

			if (!bigger)
				return -ENOMEM;
			p = bigger;
		}
		n = read(fd, p + have, room - have - 1);
		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0)
			return -errno;
		if (!n)
			break;
		have += (size_t)n;
		if (have > max)
			return -EFBIG;
	}
	p[have] = 0;
	*len = have;
	*buf = steal_ptr(&p);
	return 0;
}
