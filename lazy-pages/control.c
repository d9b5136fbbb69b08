// SPDX-License-Identifier: GPL-2.0-only
#include "lazy-pages/control.h"

#include <errno.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include "util/cleanup.h"
#include "util/clock.h"
#include "util/list.h"

#define MAX_CLIENTS 16
#define REQUEST_MAX 16384
#define REPLY_MAX (1 << 20)

struct client {
	struct loop_op op;
	struct lp_control *control;
	int fd; // -1: unused
	size_t have;
	char request[REQUEST_MAX];
};

struct lp_control {
	struct loop_op accept_op;
	struct loop *loop;
	int listen_fd;
	json_t *(*answer)(void *ctx, const json_t *request);
	void *ctx;
	struct client clients[MAX_CLIENTS];
};

static void client_close(struct client *c)
{
	close(c->fd);
	c->fd = -1;
	c->have = 0;
}

static void client_answer(struct client *c)
{
	json_t *request = json_loads(c->request, 0, NULL), *reply;
	char *text;

	reply = json_is_object(request) ? c->control->answer(c->control->ctx, request) : json_pack("{s:s}", "error", "not a JSON object");
	text = json_dumps(reply, JSON_COMPACT);
	// A client that does not take some KiB at once is not waited for.
	if (text && send(c->fd, text, strlen(text), MSG_DONTWAIT | MSG_NOSIGNAL) > 0)
		send(c->fd, "\n", 1, MSG_DONTWAIT | MSG_NOSIGNAL);
	free(text);
	json_decref(request);
	json_decref(reply);
}

static void client_readable(struct loop_op *op, int res)
{
	struct client *c = list_entry(op, struct client, op);
	ssize_t n = res < 0 ? -1 : recv(c->fd, c->request + c->have, REQUEST_MAX - 1 - c->have, MSG_DONTWAIT);

	if (n < 0 && errno == EAGAIN && res >= 0) {
		loop_poll_in(c->control->loop, op, c->fd);
		return;
	}
	if (n > 0) {
		c->have += (size_t)n;
		c->request[c->have] = 0;
		if (!strchr(c->request, '\n') && c->have < REQUEST_MAX - 1) {
			loop_poll_in(c->control->loop, op, c->fd);
			return;
		}
		client_answer(c);
	}
	client_close(c);
}

static void acceptable(struct loop_op *op, int res)
{
	struct lp_control *control = list_entry(op, struct lp_control, accept_op);
	int fd;

	if (res < 0)
		return;
	fd = accept4(control->listen_fd, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);
	for (unsigned i = 0; fd >= 0 && i < MAX_CLIENTS; i++) {
		struct client *c = &control->clients[i];

		if (c->fd >= 0)
			continue;
		c->fd = fd;
		fd = -1;
		loop_poll_in(control->loop, &c->op, c->fd);
	}
	if (fd >= 0)
		close(fd); // too many at once
	loop_poll_in(control->loop, op, control->listen_fd);
}

int lp_control_new(struct loop *l, int listen_fd, json_t *(*answer)(void *ctx, const json_t *request), void *ctx, struct lp_control **out)
{
	struct lp_control *c = calloc(1, sizeof *c);

	if (!c)
		return -ENOMEM;
	*c = (struct lp_control){ .accept_op.done = acceptable, .loop = l, .listen_fd = listen_fd, .answer = answer, .ctx = ctx };
	for (unsigned i = 0; i < MAX_CLIENTS; i++) {
		c->clients[i].op.done = client_readable;
		c->clients[i].control = c;
		c->clients[i].fd = -1;
	}
	loop_poll_in(l, &c->accept_op, listen_fd);
	*out = c;
	return 0;
}

void lp_control_free(struct lp_control *c)
{
	if (!c)
		return;
	for (unsigned i = 0; i < MAX_CLIENTS; i++)
		if (c->clients[i].fd >= 0)
			close(c->clients[i].fd);
	free(c);
}

static int exchange(const char *path, const char *request, int timeout_ms, json_t **reply)
{
	// Not blocking: connecting to a pager that is stuck would wait for ever once its backlog is full.
	_cleanup_close_ int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	struct sockaddr_un to = { .sun_family = AF_UNIX };
	uint64_t end = clock_now_ns() + (uint64_t)timeout_ms * NSEC_PER_MSEC;
	_cleanup_free_ char *text = NULL;
	size_t have = 0;

	if (fd < 0)
		return -errno;
	if (strlen(path) >= sizeof to.sun_path)
		return -ENAMETOOLONG;
	memcpy(to.sun_path, path, strlen(path) + 1);
	if (connect(fd, (const struct sockaddr *)&to, sizeof to) < 0)
		return errno == EAGAIN ? -ETIMEDOUT : -errno;
	text = malloc(REPLY_MAX);
	if (!text)
		return -ENOMEM;
	if (send(fd, request, strlen(request), MSG_NOSIGNAL) != (ssize_t)strlen(request)) // it fits into an empty socket
		return -ECONNRESET;
	for (;;) {
		struct pollfd p = { .fd = fd, .events = POLLIN };
		uint64_t now = clock_now_ns();
		ssize_t n;

		if (now >= end || poll(&p, 1, (int)((end - now) / NSEC_PER_MSEC) + 1) == 0)
			return -ETIMEDOUT;
		n = recv(fd, text + have, REPLY_MAX - have, MSG_DONTWAIT);
		if (n < 0 && (errno == EAGAIN || errno == EINTR))
			continue;
		if (n <= 0 && !have)
			return -ECONNRESET;
		if (n <= 0)
			break;
		have += (size_t)n;
		if (have == REPLY_MAX)
			return -EPROTO;
	}
	*reply = json_loadb(text, have, 0, NULL);
	return *reply ? 0 : -EPROTO;
}

int lp_control_request(const char *path, json_t *request, int timeout_ms, json_t **reply)
{
	_cleanup_free_ char *text = json_dumps(request, JSON_COMPACT), *line = NULL;

	json_decref(request);
	return text && asprintf(&line, "%s\n", text) > 0 ? exchange(path, line, timeout_ms, reply) : -ENOMEM;
}

int lp_control_ask(const char *path, const char *command, int timeout_ms, json_t **reply)
{
	return lp_control_request(path, json_pack("{s:s}", "execute", command), timeout_ms, reply);
}
