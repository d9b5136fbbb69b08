// SPDX-License-Identifier: GPL-2.0-only
// A child's end of its line to the server.
#include <errno.h>
#include <limits.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "criu-vm/cmd.h"
#include "criu-vm/server_int.h"
#include "util/cleanup.h"
#include "util/clock.h"

#define GLANCE_MS 100 // how often cmd_interrupted() is asked

// 0 when there is something to read, or the end. -ETIMEDOUT; -EINTR.
static int wait_for(int line, uint64_t end)
{
	for (;;) {
		struct pollfd p = { .fd = line, .events = POLLIN };
		uint64_t now = clock_now_ns(), ms = now < end ? (end - now - 1) / NSEC_PER_MSEC + 1 : 0;
		int n;

		if (cmd_interrupted())
			return -EINTR;
		n = poll(&p, 1, (int)(ms < GLANCE_MS ? ms : GLANCE_MS));
		if (n > 0)
			return 0;
		if (n < 0 && errno != EINTR)
			return -errno;
		if (!ms)
			return -ETIMEDOUT;
	}
}

// *fd: what came along, or -1.
static int take(int line, uint64_t end, struct server_message *m, int *fd)
{
	union {
		struct cmsghdr align;
		char buf[CMSG_SPACE(sizeof(int))];
	} control;
	struct iovec iov = { .iov_base = m, .iov_len = sizeof *m };
	struct msghdr msg = { .msg_iov = &iov, .msg_iovlen = 1, .msg_control = &control, .msg_controllen = sizeof control };
	struct cmsghdr *c;
	ssize_t n;
	int r;

	*fd = -1;
	do {
		r = wait_for(line, end);
		if (r)
			return r;
		n = recvmsg(line, &msg, MSG_DONTWAIT | MSG_CMSG_CLOEXEC);
	} while (n < 0 && (errno == EAGAIN || errno == EINTR));
	if (n <= 0)
		return n && errno != ECONNRESET ? -errno : -EPIPE;
	c = CMSG_FIRSTHDR(&msg);
	if (c && c->cmsg_level == SOL_SOCKET && c->cmsg_type == SCM_RIGHTS && c->cmsg_len == CMSG_LEN(sizeof *fd))
		memcpy(fd, CMSG_DATA(c), sizeof *fd);
	return n == sizeof *m ? 0 : -EPROTO;
}

int server_line_reserve(int line, const char *name, uint64_t bytes, char reason[512])
{
	struct server_request q = { .bytes = bytes };
	struct server_message m;

	snprintf(q.name, sizeof q.name, "%s", name);
	snprintf(reason, SERVER_REASON, "the server has ended");
	if (send(line, &q, sizeof q, MSG_NOSIGNAL) != sizeof q)
		return -EPIPE;
	for (;;) {
		_cleanup_close_ int fd = -1; // a connection that came too early
		int r = take(line, UINT64_MAX, &m, &fd);

		if (r)
			return r;
		if (m.kind == SERVER_PROMISE)
			break;
	}
	snprintf(reason, SERVER_REASON, "%s", m.reason);
	return m.error;
}

int server_line_undecided(int line)
{
	struct server_request q = { .undecided = true };

	return send(line, &q, sizeof q, MSG_NOSIGNAL) == sizeof q ? 0 : -EPIPE;
}

int server_line_introduced(int line)
{
	struct server_request q = { .introduced = true };

	return send(line, &q, sizeof q, MSG_NOSIGNAL) == sizeof q ? 0 : -EPIPE;
}

int server_line_channel(int line, unsigned timeout_ms, unsigned *channel, int *fd)
{
	uint64_t end = clock_now_ns() + timeout_ms * NSEC_PER_MSEC;
	struct server_message m;

	for (;;) {
		_cleanup_close_ int got = -1;
		int r = take(line, end, &m, &got);

		if (r)
			return r;
		if (m.kind != SERVER_CHANNEL || got < 0)
			continue;
		*channel = m.channel;
		*fd = steal_fd(&got);
		return 0;
	}
}
