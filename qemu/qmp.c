// SPDX-License-Identifier: GPL-2.0-only
#include "qemu/qmp.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include "util/cleanup.h"
#include "util/clock.h"
#include "util/list.h"
#include "util/log.h"
#include "util/size.h"

#define MESSAGE_MAX (16 * MiB)
#define QUEUE_MAX 256
#define READ_STEP (64 * KiB)

struct queued {
	struct list node;
	struct qmp_msg msg;
};

struct qmp {
	int fd;
	char *path;
	int timeout_ms;
	int broken; // -errno once the connection is of no more use
	char *buf; // received and not yet parsed
	size_t len, room;
	bool fresh; // buf may hold a whole message that was not looked for yet
	uint64_t last_id; // of our own calls: sent negated, so that it never meets a qmp_send() id
	struct list queue; // what came while a call waited for its reply
	size_t nr_queued;
	char version[32];
	unsigned version_num;
	char *last_error;
};

void qmp_msg_fini(struct qmp_msg *m)
{
	free(m->text);
	json_decref(m->data);
	*m = (struct qmp_msg){ 0 };
}

static int break_off(struct qmp *q, int err)
{
	q->broken = err;
	return err;
}

static int bad_message(struct qmp *q, const char *why)
{
	log_err("%s: what answers there does not speak QMP as QEMU does: %s", q->path, why);
	return break_off(q, -EPROTO);
}

// ---- sending

static int wait_fd(int fd, short events, uint64_t deadline)
{
	for (;;) {
		struct pollfd p = { .fd = fd, .events = events };
		uint64_t now = clock_now_ns();
		int n;

		if (now >= deadline)
			return -ETIMEDOUT;
		n = poll(&p, 1, (int)DIV_ROUND_UP(deadline - now, NSEC_PER_MSEC));
		if (n > 0)
			return 0;
		if (n < 0 && errno != EINTR)
			return -errno;
	}
}

// Part of a command sent would garble the next: anything but all of it breaks the connection off.
static int send_text(struct qmp *q, const char *text, size_t len, int fd, uint64_t deadline)
{
	char control[CMSG_SPACE(sizeof fd)] = { 0 };

	while (len) {
		struct iovec iov = { .iov_base = (void *)text, .iov_len = len };
		struct msghdr msg = { .msg_iov = &iov, .msg_iovlen = 1 };
		ssize_t n;

		if (fd >= 0) {
			struct cmsghdr *c;

			msg.msg_control = control;
			msg.msg_controllen = sizeof control;
			c = CMSG_FIRSTHDR(&msg);
			*c = (struct cmsghdr){ .cmsg_len = CMSG_LEN(sizeof fd), .cmsg_level = SOL_SOCKET, .cmsg_type = SCM_RIGHTS };
			memcpy(CMSG_DATA(c), &fd, sizeof fd);
		}
		n = sendmsg(q->fd, &msg, MSG_NOSIGNAL | MSG_DONTWAIT);
		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0 && errno == EAGAIN && deadline) {
			int ret = wait_fd(q->fd, POLLOUT, deadline);

			if (ret)
				return break_off(q, ret);
			continue;
		}
		if (n < 0)
			return break_off(q, -EPIPE);
		fd = -1; // travels with the first byte
		text += n;
		len -= (size_t)n;
	}
	return 0;
}

// deadline 0: do not wait.
static int send_command(struct qmp *q, const char *cmd, json_t *args, int64_t id, int fd, uint64_t deadline)
{
	json_t *j = json_pack("{s:s, s:o*, s:I}", "execute", cmd, "arguments", args, "id", (json_int_t)id);
	_cleanup_free_ char *text = NULL;
	size_t len;

	if (q->broken) {
		json_decref(j);
		return q->broken;
	}
	text = j ? json_dumps(j, JSON_COMPACT) : NULL;
	json_decref(j);
	if (!text)
		return -ENOMEM;
	len = strlen(text);
	text[len] = '\n'; // JSON needs no NUL
	return send_text(q, text, len + 1, fd, deadline);
}

// ---- receiving

// What is there now. -EAGAIN if nothing.
static int receive_bytes(struct qmp *q)
{
	ssize_t n;

	if (q->len >= MESSAGE_MAX)
		return bad_message(q, "a message of more than 16 MiB");
	if (q->room < q->len + READ_STEP) {
		size_t room = q->room ? q->room * 2 : 2 * READ_STEP;
		char *bigger = realloc(q->buf, room);

		if (!bigger)
			return -ENOMEM;
		q->buf = bigger;
		q->room = room;
	}
	do
		n = recv(q->fd, q->buf + q->len, READ_STEP, MSG_DONTWAIT);
	while (n < 0 && errno == EINTR);
	if (n < 0 && errno == EAGAIN)
		return -EAGAIN;
	if (n <= 0)
		return break_off(q, -EPIPE);
	// QEMU ends each message with a newline; a pretty-printing one has more of them.
	q->fresh |= memchr(q->buf + q->len, '\n', (size_t)n) != NULL;
	q->len += (size_t)n;
	return 0;
}

// The first JSON value of the buffer, NULL and 0 if there is no whole one.
static int parse_value(struct qmp *q, json_t **value)
{
	size_t skip = 0;
	json_error_t e;

	*value = NULL;
	if (!q->fresh)
		return 0;
	while (skip < q->len && strchr(" \t\r\n", q->buf[skip]) && q->buf[skip])
		skip++;
	q->len -= skip;
	memmove(q->buf, q->buf + skip, q->len);
	if (!q->len) {
		q->fresh = false;
		return 0;
	}
	*value = json_loadb(q->buf, q->len, JSON_DISABLE_EOF_CHECK, &e);
	if (!*value && json_error_code(&e) == json_error_premature_end_of_input) {
		q->fresh = false;
		return 0;
	}
	if (!*value)
		return bad_message(q, e.text);
	q->len -= (size_t)e.position;
	memmove(q->buf, q->buf + e.position, q->len);
	return 0;
}

static char *strdup_or_empty(const char *s)
{
	return strdup(s ? s : "");
}

// One JSON value as a message; the value stays the caller's. A reply's id is negative if it answers one of our own calls.
static int interpret(struct qmp *q, json_t *value, struct qmp_msg *m, int64_t *id)
{
	const char *event = json_string_value(json_object_get(value, "event"));
	json_t *ret = json_object_get(value, "return"), *err = json_object_get(value, "error");
	json_t *jid = json_object_get(value, "id");

	*m = (struct qmp_msg){ .kind = event ? QMP_EVENT : QMP_REPLY };
	if (event) {
		m->text = strdup(event);
		m->data = json_incref(json_object_get(value, "data"));
		return m->text ? 0 : -ENOMEM;
	}
	if (!ret && !err)
		return bad_message(q, "a message that is neither answer nor event");
	if (!json_is_integer(jid))
		return bad_message(q, "an answer to nothing that was asked");
	*id = json_integer_value(jid);
	m->id = (uint64_t)*id;
	m->ok = !err;
	if (!err) {
		m->data = json_incref(ret);
		return 0;
	}
	m->text = strdup_or_empty(json_string_value(json_object_get(err, "desc")));
	return m->text ? 0 : -ENOMEM;
}

// The next message of the socket, without waiting.
static int next_message(struct qmp *q, struct qmp_msg *m, int64_t *id)
{
	*id = 0;
	for (;;) {
		json_t *value;
		int ret = parse_value(q, &value);

		if (ret)
			return ret;
		if (value) {
			ret = interpret(q, value, m, id);
			json_decref(value);
			if (ret)
				qmp_msg_fini(m);
			return ret;
		}
		if (q->broken)
			return q->broken;
		ret = receive_bytes(q);
		if (ret)
			return ret;
	}
}

// Takes over *m. When there are too many, the oldest event goes; answers are owed.
static int enqueue(struct qmp *q, struct qmp_msg *m)
{
	struct queued *new = malloc(sizeof *new);

	if (!new) {
		qmp_msg_fini(m);
		return -ENOMEM;
	}
	if (q->nr_queued >= QUEUE_MAX) {
		list_for_each(&q->queue, node) {
			struct queued *old = list_entry(node, struct queued, node);

			if (old->msg.kind != QMP_EVENT)
				continue;
			log_dbg("%s: too many events wait, %s is dropped", q->path, old->msg.text);
			list_remove(node);
			qmp_msg_fini(&old->msg);
			free(old);
			q->nr_queued--;
			break;
		}
	}
	new->msg = *m;
	list_append(&q->queue, &new->node);
	q->nr_queued++;
	return 0;
}

static void dequeue(struct qmp *q, struct qmp_msg *m)
{
	struct queued *first = list_first(&q->queue, struct queued, node);

	list_remove(&first->node);
	q->nr_queued--;
	*m = first->msg;
	free(first);
}

static int await_reply(struct qmp *q, int64_t want, uint64_t deadline, struct qmp_msg *m)
{
	for (;;) {
		int64_t id;
		int ret = next_message(q, m, &id);

		if (!ret && m->kind == QMP_REPLY && id == want)
			return 0;
		if (!ret && id < 0)
			qmp_msg_fini(m); // answers a call that was given up
		else if (!ret)
			ret = enqueue(q, m);
		else if (ret == -EAGAIN)
			ret = wait_fd(q->fd, POLLIN, deadline);
		if (ret)
			return ret;
	}
}

// ---- commands

static uint64_t deadline_of(const struct qmp *q)
{
	return clock_now_ns() + (uint64_t)q->timeout_ms * NSEC_PER_MSEC;
}

static int call(struct qmp *q, const char *cmd, json_t *args, int fd, bool quiet, json_t **result)
{
	uint64_t deadline = deadline_of(q);
	int64_t id = -(int64_t)++q->last_id;
	int ret = send_command(q, cmd, args, id, fd, deadline);
	struct qmp_msg m;

	if (result)
		*result = NULL;
	if (!ret)
		ret = await_reply(q, id, deadline, &m);
	if (ret) {
		if (ret == -ETIMEDOUT)
			log_err("%s: QEMU did not answer the QMP command %s within %d ms", q->path, cmd, q->timeout_ms);
		else if (ret == -EPIPE)
			log_err("%s: QEMU closed the connection while the QMP command %s was under way: it has ended, or is "
				"about to",
				q->path, cmd);
		else if (ret != -EPROTO)
			log_err("%s: QMP command %s: %s", q->path, cmd, strerror(-ret));
		return ret;
	}
	if (m.ok) {
		if (result)
			*result = steal_ptr(&m.data);
	} else {
		free(q->last_error);
		q->last_error = steal_ptr(&m.text);
		if (!quiet)
			log_err("%s: QEMU refused the QMP command %s: %s", q->path, cmd, q->last_error);
		ret = -EREMOTEIO;
	}
	qmp_msg_fini(&m);
	return ret;
}

int qmp_call(struct qmp *q, const char *cmd, json_t *args, json_t **ret)
{
	return call(q, cmd, args, -1, false, ret);
}

int qmp_call_fd(struct qmp *q, const char *cmd, json_t *args, int fd, json_t **ret)
{
	return call(q, cmd, args, fd, false, ret);
}

int qmp_try(struct qmp *q, const char *cmd, json_t *args, json_t **ret)
{
	return call(q, cmd, args, -1, true, ret);
}

const char *qmp_last_error(const struct qmp *q)
{
	return q->last_error ? q->last_error : "";
}

int qmp_hmp(struct qmp *q, const char *line, char **text)
{
	json_t *reply;
	int ret = qmp_call(q, "human-monitor-command", json_pack("{s:s}", "command-line", line), &reply);

	*text = NULL;
	if (ret)
		return ret;
	if (!json_is_string(reply))
		ret = bad_message(q, "a human monitor that answers no text");
	else if (!(*text = strdup(json_string_value(reply))))
		ret = -ENOMEM;
	json_decref(reply);
	return ret;
}

int qmp_send(struct qmp *q, const char *cmd, json_t *args, uint64_t id)
{
	return send_command(q, cmd, args, (int64_t)id, -1, 0);
}

int qmp_receive(struct qmp *q, struct qmp_msg *m)
{
	int64_t id;
	int ret;

	if (!list_empty(&q->queue)) {
		dequeue(q, m);
		return 0;
	}
	while (!(ret = next_message(q, m, &id)) && id < 0)
		qmp_msg_fini(m);
	return ret;
}

// ---- connecting

static int connect_errno(const char *path, int err, bool quiet)
{
	if (err == ENOENT && !quiet)
		log_err("%s: there is no such socket; start QEMU with -qmp unix:PATH,server=on,wait=off", path);
	else if (err == ECONNREFUSED && !quiet)
		log_err("%s: nobody listens on this socket: its QEMU has ended", path);
	else if (err == EACCES)
		log_err("%s: no permission to use this QMP socket; run as root or as the user who runs QEMU", path);
	else if (err == ENOTSOCK)
		log_err("%s: this is no socket", path);
	else if (err != ENOENT && err != ECONNREFUSED)
		log_err("cannot connect to the QMP socket %s: %s", path, strerror(err));
	return -err;
}

static int taken(const char *path, bool quiet)
{
	if (!quiet)
		log_err("%s: QEMU does not greet: this QMP socket is taken by another client; close that, or start QEMU with a "
			"second "
			"-qmp unix:PATH,server=on,wait=off",
			path);
	return -EBUSY;
}

// Through a descriptor of the socket's file, so that a path of any length will do.
static int connect_unix(const char *path, uint64_t deadline, bool quiet, int *out)
{
	_cleanup_close_ int file = open(path, O_PATH | O_CLOEXEC);
	_cleanup_close_ int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
	struct sockaddr_un a = { .sun_family = AF_UNIX };
	struct stat st;

	if (file < 0 || fstat(file, &st))
		return connect_errno(path, errno, quiet);
	if (!S_ISSOCK(st.st_mode))
		return connect_errno(path, ENOTSOCK, quiet);
	if (fd < 0)
		return connect_errno(path, errno, quiet);
	snprintf(a.sun_path, sizeof a.sun_path, "/proc/self/fd/%d", file);
	// A full backlog makes a blocking connect() wait for ever.
	fcntl(fd, F_SETFL, O_NONBLOCK);
	while (connect(fd, (struct sockaddr *)&a, sizeof a)) {
		if (errno != EAGAIN && errno != EINTR)
			return connect_errno(path, errno, quiet);
		if (clock_now_ns() >= deadline)
			return taken(path, quiet);
		usleep(10000);
	}
	*out = steal_fd(&fd);
	return 0;
}

static int greet(struct qmp *q, uint64_t deadline, bool quiet)
{
	int major, minor, micro, ret;
	json_t *value;

	for (;;) {
		ret = parse_value(q, &value);
		if (ret)
			return ret;
		if (value)
			break;
		ret = receive_bytes(q);
		if (ret == -EAGAIN)
			ret = wait_fd(q->fd, POLLIN, deadline);
		if (ret == -ETIMEDOUT && !q->len)
			return taken(q->path, quiet);
		if (ret == -ETIMEDOUT || ret == -EPIPE)
			return bad_message(q, "no greeting");
		if (ret)
			return ret;
	}
	ret = json_unpack(value, "{s:{s:{s:{s:i, s:i, s:i}}}}", "QMP", "version", "qemu", "major", &major, "minor", &minor,
		"micro", &micro);
	json_decref(value);
	if (ret || major < 0 || major > 9999 || minor < 0 || minor > 99 || micro < 0 || micro > 99)
		return bad_message(q, "no greeting of QEMU");
	snprintf(q->version, sizeof q->version, "%d.%d.%d", major, minor, micro);
	q->version_num = (unsigned)(major * 10000 + minor * 100 + micro);
	return qmp_call(q, "qmp_capabilities", NULL, NULL);
}

// Takes over fd.
static int open_fd(int fd, const char *name, int timeout_ms, bool quiet, struct qmp **out)
{
	struct qmp *q = calloc(1, sizeof *q);
	int ret;

	if (!q) {
		close(fd);
		return -ENOMEM;
	}
	*q = (struct qmp){ .fd = fd, .path = strdup(name), .timeout_ms = timeout_ms };
	list_init(&q->queue);
	ret = q->path ? greet(q, deadline_of(q), quiet) : -ENOMEM;
	if (ret) {
		qmp_close(q);
		return ret;
	}
	*out = q;
	return 0;
}

static int open_path(const char *path, int timeout_ms, bool quiet, struct qmp **q)
{
	uint64_t deadline = clock_now_ns() + (uint64_t)timeout_ms * NSEC_PER_MSEC;
	int fd = -1, ret = connect_unix(path, deadline, quiet, &fd);

	return ret ? ret : open_fd(fd, path, timeout_ms, quiet, q);
}

int qmp_open_fd(int fd, const char *name, int timeout_ms, struct qmp **q)
{
	return open_fd(fd, name, timeout_ms, false, q);
}

int qmp_open(const char *path, int timeout_ms, struct qmp **q)
{
	return open_path(path, timeout_ms, false, q);
}

int qmp_open_quiet(const char *path, int timeout_ms, struct qmp **q)
{
	return open_path(path, timeout_ms, true, q);
}

void qmp_close(struct qmp *q)
{
	if (!q)
		return;
	while (!list_empty(&q->queue)) {
		struct qmp_msg m;

		dequeue(q, &m);
		qmp_msg_fini(&m);
	}
	close(q->fd);
	free(q->path);
	free(q->buf);
	free(q->last_error);
	free(q);
}

const char *qmp_version(const struct qmp *q)
{
	return q->version;
}

unsigned qmp_version_num(const struct qmp *q)
{
	return q->version_num;
}

pid_t qmp_peer_pid(const struct qmp *q)
{
	struct ucred cred;
	socklen_t len = sizeof cred;

	return getsockopt(q->fd, SOL_SOCKET, SO_PEERCRED, &cred, &len) ? 0 : cred.pid;
}

void qmp_set_timeout(struct qmp *q, int timeout_ms)
{
	q->timeout_ms = timeout_ms;
}

int qmp_fd(const struct qmp *q)
{
	return q->fd;
}
