// SPDX-License-Identifier: GPL-2.0-only
#include "qemu/qmp_int.h"

#include <errno.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "util/cleanup.h"
#include "util/clock.h"
#include "util/log.h"
#include "util/size.h"

#define MESSAGE_MAX (16 * MiB)
#define QUEUE_MAX 256
#define READ_STEP (64 * KiB)
#define INTERRUPTED_MS 100 // how often is asked
#define ENDING_MS 1000     // an ending process has closed its sockets already

struct queued {
	struct list node;
	struct qmp_msg msg;
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

int qmp_bad_message(struct qmp *q, const char *why)
{
	log_err("%s: what answers there does not speak QMP as QEMU does: %s", q->path, why);
	return break_off(q, -EPROTO);
}

// ---- what the socket has

// The other side has closed: perhaps because it ends, which the one who watches is told.
static int closed(struct qmp *q)
{
	struct pollfd p = { .fd = q->watch_fd, .events = POLLIN };

	return break_off(q, q->watch_fd >= 0 && poll(&p, 1, ENDING_MS) > 0 ? -ESRCH : -EPIPE);
}

// What is there now. -EAGAIN if nothing.
static int receive_bytes(struct qmp *q)
{
	const char *newline;
	ssize_t n;

	if (q->len >= MESSAGE_MAX)
		return qmp_bad_message(q, "a message of more than 16 MiB");
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
		return closed(q);
	newline = memrchr(q->buf + q->len, '\n', (size_t)n);
	q->len += (size_t)n;
	if (newline)
		q->lines = (size_t)(newline + 1 - q->buf);
	return 0;
}

// ---- sending

int qmp_wait(struct qmp *q, short events, uint64_t deadline)
{
	for (;;) {
		struct pollfd p[] = { { .fd = q->fd, .events = events }, { .fd = q->watch_fd, .events = POLLIN } };
		uint64_t now = clock_now_ns(), ms;
		int n;

		if ((q->interrupted && q->interrupted()) || (q->gives_up && q->gives_up(q->gives_up_ctx)))
			return -EINTR;
		if (now >= deadline)
			return -ETIMEDOUT;
		ms = DIV_ROUND_UP(deadline - now, NSEC_PER_MSEC);
		if ((q->interrupted || q->gives_up) && ms > INTERRUPTED_MS)
			ms = INTERRUPTED_MS;
		n = poll(p, ARRAY_SIZE(p), (int)ms);
		if (n > 0)
			return p[0].revents ? 0 : -ESRCH;
		if (n < 0 && errno != EINTR)
			return -errno;
	}
}

// An ending QEMU may have said why, and this is still there to be read.
static int cannot_send(struct qmp *q)
{
	int ret;

	while (!(ret = receive_bytes(q)))
		;
	return ret == -EAGAIN ? closed(q) : break_off(q, ret);
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
			int ret = qmp_wait(q, POLLOUT, deadline);

			if (ret)
				return break_off(q, ret);
			continue;
		}
		if (n < 0)
			return cannot_send(q);
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

// QEMU has unsigned numbers of 64 bits, this library none: what ends at this place becomes a real number of the same length.
static bool make_real(char *text, size_t end)
{
	size_t len = 0;

	while (end && (text[end - 1] < '0' || text[end - 1] > '9'))
		end--;
	while (len < end && text[end - len - 1] >= '0' && text[end - len - 1] <= '9')
		len++;
	if (len != 19 && len != 20)
		return false;
	memmove(text + end - len + 2, text + end - len + 1, len - 5);
	text[end - len + 1] = '.';
	memcpy(text + end - 3, len == 20 ? "e19" : "e18", 3);
	return true;
}

// The first JSON value of the buffer, NULL and 0 if there is no whole one. Only whole lines are parsed: QEMU ends each message
// with a newline (one that prints prettily has more of them, between two tokens), and what is cut within a token, as "\" or
// "-" or half a character, could not be told from what never becomes JSON.
static int parse_value(struct qmp *q, json_t **value)
{
	json_error_t e;

	*value = NULL;
	if (!q->lines)
		return 0;
	do
		*value = json_loadb(q->buf, q->lines, JSON_DISABLE_EOF_CHECK, &e);
	while (!*value && json_error_code(&e) == json_error_numeric_overflow && make_real(q->buf, (size_t)e.position));
	if (!*value && json_error_code(&e) == json_error_premature_end_of_input) {
		q->lines = 0;
		return 0;
	}
	if (!*value)
		return qmp_bad_message(q, e.text);
	q->len -= (size_t)e.position;
	q->lines -= (size_t)e.position;
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
		return qmp_bad_message(q, "a message that is neither answer nor event");
	if (!json_is_integer(jid))
		return qmp_bad_message(q, "an answer to nothing that was asked");
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

int qmp_next_value(struct qmp *q, json_t **value)
{
	int ret = parse_value(q, value);

	while (!ret && !*value) {
		ret = q->broken ? q->broken : receive_bytes(q);
		if (!ret)
			ret = parse_value(q, value);
	}
	return ret;
}

// The next message of the socket, without waiting.
static int next_message(struct qmp *q, struct qmp_msg *m, int64_t *id)
{
	json_t *value;
	int ret = qmp_next_value(q, &value);

	*id = 0;
	if (ret)
		return ret;
	ret = interpret(q, value, m, id);
	json_decref(value);
	if (ret)
		qmp_msg_fini(m);
	return ret;
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
			ret = qmp_wait(q, POLLIN, deadline);
		if (ret)
			return ret;
	}
}

// ---- commands

uint64_t qmp_deadline(const struct qmp *q)
{
	return clock_now_ns() + (uint64_t)q->timeout_ms * NSEC_PER_MSEC;
}

static int call(struct qmp *q, const char *cmd, json_t *args, int fd, bool quiet, json_t **result)
{
	uint64_t deadline = qmp_deadline(q);
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
		else if (ret != -EPROTO && ret != -ESRCH && ret != -EINTR) // logged; or known to who watches
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
		ret = qmp_bad_message(q, "a human monitor that answers no text");
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

// ---- the client

void qmp_close(struct qmp *q)
{
	if (!q)
		return;
	while (!list_empty(&q->queue)) {
		struct qmp_msg m;

		dequeue(q, &m);
		qmp_msg_fini(&m);
	}
	if (q->fd >= 0)
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

void qmp_set_gives_up(struct qmp *q, bool (*gives_up)(void *ctx), void *ctx)
{
	q->gives_up = gives_up;
	q->gives_up_ctx = ctx;
}

int qmp_fd(const struct qmp *q)
{
	return q->fd;
}
