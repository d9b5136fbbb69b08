// SPDX-License-Identifier: GPL-2.0-only
// How a QMP client begins: connect, be greeted, negotiate.
#include "qemu/qmp_int.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include "util/cleanup.h"
#include "util/clock.h"
#include "util/log.h"

#define CONNECT_AGAIN_MS 10

static int connect_errno(const struct qmp *q, int err)
{
	const char *path = q->path;

	if (err == ENOENT && !q->quiet)
		log_err("%s: there is no such socket; start QEMU with -qmp unix:PATH,server=on,wait=off", path);
	else if (err == ECONNREFUSED && !q->quiet)
		log_err("%s: nobody listens on this socket: its QEMU has ended", path);
	else if (err == EACCES)
		log_err("%s: no permission to use this QMP socket; run as root or as the user who runs QEMU", path);
	else if (err == ENOTSOCK)
		log_err("%s: this is no socket", path);
	else if (err != ENOENT && err != ECONNREFUSED)
		log_err("cannot connect to the QMP socket %s: %s", path, strerror(err));
	return -err;
}

static int taken(const struct qmp *q)
{
	if (!q->quiet && q->watch_fd < 0)
		log_err("%s: QEMU does not greet: this QMP socket is taken by another client; close that, or start QEMU with a "
			"second -qmp unix:PATH,server=on,wait=off",
			q->path);
	return -EBUSY;
}

// Through a descriptor of the socket's file, so that a path of any length will do.
static int connect_unix(struct qmp *q, uint64_t deadline)
{
	_cleanup_close_ int file = open(q->path, O_PATH | O_CLOEXEC);
	_cleanup_close_ int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	struct sockaddr_un a = { .sun_family = AF_UNIX };
	struct stat st;

	if (file < 0 || fstat(file, &st))
		return connect_errno(q, errno);
	if (!S_ISSOCK(st.st_mode))
		return connect_errno(q, ENOTSOCK);
	if (fd < 0)
		return connect_errno(q, errno);
	snprintf(a.sun_path, sizeof a.sun_path, "/proc/self/fd/%d", file);
	// A full backlog would make a blocking connect() wait for ever.
	while (connect(fd, (struct sockaddr *)&a, sizeof a)) {
		int ret;

		if (errno != EAGAIN && errno != EINTR)
			return connect_errno(q, errno);
		if (clock_now_ns() >= deadline)
			return taken(q);
		ret = qmp_wait(q, 0, clock_now_ns() + CONNECT_AGAIN_MS * NSEC_PER_MSEC);
		if (ret != -ETIMEDOUT)
			return ret;
	}
	q->fd = steal_fd(&fd);
	return 0;
}

static int greet(struct qmp *q, uint64_t deadline)
{
	int major, minor, micro, ret;
	json_t *value;

	while ((ret = qmp_next_value(q, &value)) == -EAGAIN && !(ret = qmp_wait(q, POLLIN, deadline)))
		;
	if (ret == -ETIMEDOUT && !q->len)
		return taken(q);
	if (ret == -ETIMEDOUT || ret == -EPIPE)
		return qmp_bad_message(q, ret == -EPIPE ? "it closed the connection without a greeting; has it ended?" : "no greeting");
	if (ret)
		return ret;
	ret = json_unpack(value, "{s:{s:{s:{s:i, s:i, s:i}}}}", "QMP", "version", "qemu", "major", &major, "minor", &minor,
		"micro", &micro);
	json_decref(value);
	if (ret || major < 0 || major > 9999 || minor < 0 || minor > 99 || micro < 0 || micro > 99)
		return qmp_bad_message(q, "no greeting of QEMU");
	snprintf(q->version, sizeof q->version, "%d.%d.%d", major, minor, micro);
	q->version_num = (unsigned)(major * 10000 + minor * 100 + micro);
	return qmp_call(q, "qmp_capabilities", NULL, NULL);
}

// how: fd (taken over) or -1, timeout_ms, and how it is opened.
static int open_as(const struct qmp *how, const char *path, struct qmp **out)
{
	struct qmp *q = malloc(sizeof *q);
	uint64_t deadline;
	int ret = 0;

	if (!q) {
		if (how->fd >= 0)
			close(how->fd);
		return -ENOMEM;
	}
	*q = *how;
	list_init(&q->queue);
	deadline = qmp_deadline(q);
	q->path = strdup(path);
	if (!q->path)
		ret = -ENOMEM;
	else if (q->fd < 0)
		ret = connect_unix(q, deadline);
	if (!ret)
		ret = greet(q, deadline);
	if (ret) {
		qmp_close(q);
		return ret;
	}
	q->watch_fd = -1;
	q->interrupted = NULL;
	*out = q;
	return 0;
}

int qmp_open_fd(int fd, const char *name, int timeout_ms, struct qmp **q)
{
	return open_as(&(struct qmp){ .fd = fd, .timeout_ms = timeout_ms, .watch_fd = -1 }, name, q);
}

int qmp_open(const char *path, int timeout_ms, struct qmp **q)
{
	return open_as(&(struct qmp){ .fd = -1, .timeout_ms = timeout_ms, .watch_fd = -1 }, path, q);
}

int qmp_open_quiet(const char *path, int timeout_ms, struct qmp **q)
{
	return open_as(&(struct qmp){ .fd = -1, .timeout_ms = timeout_ms, .watch_fd = -1, .quiet = true }, path, q);
}

int qmp_open_watching(const char *path, int timeout_ms, int watch_fd, bool (*interrupted)(void), struct qmp **q)
{
	return open_as(&(struct qmp){ .fd = -1, .timeout_ms = timeout_ms, .watch_fd = watch_fd, .interrupted = interrupted }, path, q);
}
