// SPDX-License-Identifier: GPL-2.0-only
// The QMP client against a scripted server.
#include <check.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/sockios.h>
#include <poll.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include "qemu/qmp.h"
#include "util/log.h"
#include "util/size.h"

#define GREETING                                                                                                                 \
	"{\"QMP\": {\"version\": {\"qemu\": {\"micro\": 22, \"minor\": 2, \"major\": 7}, \"package\": \"x\"}, "                  \
	"\"capabilities\": [\"oob\"]}}\r\n"
#define OK "{\"return\": {}, \"id\": %lld}\r\n"
#define EVENT(name) "{\"timestamp\": {\"seconds\": 1, \"microseconds\": 2}, \"event\": \"" name "\", \"data\": {\"a\": 1}}\r\n"
#define SOON_MS 300       // a time-out that is to expire
#define PATIENCE_MS 20000 // one that is not, on a busy host either

// One thing that the server does.
struct step {
	bool await; // first read a command
	const char *say; // then say this, with the last command's id for %lld, or that of the one before for %2$lld
	size_t piece; // so many bytes at a time, the next when these have been read; 0: all at once
	size_t times; // so many times over; 0: once
	int wait_ms; // before it says it
	size_t flood; // so many letters more
};

#define MAX_STEPS 16

struct server {
	int fd;
	struct step step[MAX_STEPS];
	size_t nr;
	pthread_t thread;
	long long id; // of the last command, as those before it in ids[]
	long long ids[MAX_STEPS];
	size_t nr_ids;
	int passed_fd;
};

static void read_command(struct server *s)
{
	char line[1024], control[CMSG_SPACE(sizeof(int))];
	size_t len = 0;
	json_t *j;

	do {
		struct iovec iov = { line + len, 1 };
		struct msghdr m = { .msg_iov = &iov, .msg_iovlen = 1, .msg_control = control, .msg_controllen = sizeof control };

		if (recvmsg(s->fd, &m, 0) != 1)
			return;
		if (CMSG_FIRSTHDR(&m))
			memcpy(&s->passed_fd, CMSG_DATA(CMSG_FIRSTHDR(&m)), sizeof(int));
	} while (line[len++] != '\n' && len < sizeof line - 1);
	line[len] = 0;
	j = json_loads(line, 0, NULL);
	s->id = s->ids[s->nr_ids++] = json_integer_value(json_object_get(j, "id"));
	json_decref(j);
}

// Until the client has taken what was sent, or has gone.
static void wait_taken(const struct server *s)
{
	for (int unread = 1; !ioctl(s->fd, SIOCOUTQ, &unread) && unread;)
		usleep(50);
}

static void say(struct server *s, const struct step *step)
{
	char *text = NULL;
	size_t len, piece;

	ck_assert_int_gt(asprintf(&text, step->say, s->id, s->nr_ids > 1 ? s->ids[s->nr_ids - 2] : 0), 0);
	len = strlen(text);
	piece = step->piece ? step->piece : len;
	for (size_t at = 0; at < len; at += piece) {
		if (send(s->fd, text + at, len - at < piece ? len - at : piece, MSG_NOSIGNAL) < 0)
			break;
		if (step->piece)
			wait_taken(s);
	}
	free(text);
}

static void flood(struct server *s, size_t len)
{
	char block[65536];

	memset(block, 'x', sizeof block);
	for (size_t at = 0; at < len; at += sizeof block)
		if (send(s->fd, block, sizeof block, MSG_NOSIGNAL) < 0)
			break;
}

static void *serve(void *arg)
{
	struct server *s = arg;

	for (size_t i = 0; i < s->nr; i++) {
		const struct step *step = s->step + i;

		if (step->await)
			read_command(s);
		usleep((useconds_t)step->wait_ms * 1000);
		for (size_t k = 0; step->say && k < (step->times ? step->times : 1); k++)
			say(s, step);
		flood(s, step->flood);
	}
	shutdown(s->fd, SHUT_RDWR);
	return NULL;
}

// A server doing these steps; returns our end of its connection.
static int start(struct server *s, const struct step *step, size_t nr)
{
	int sv[2];

	ck_assert_int_eq(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, sv), 0);
	*s = (struct server){ .fd = sv[1], .nr = nr, .passed_fd = -1 };
	memcpy(s->step, step, nr * sizeof *step);
	ck_assert_int_eq(pthread_create(&s->thread, NULL, serve, s), 0);
	return sv[0];
}

static void stop(struct server *s, struct qmp *q)
{
	qmp_close(q);
	pthread_join(s->thread, NULL);
	close(s->fd);
}

// Greeted already, then the steps.
#define OPEN(s, q, ...) \
	do { \
		struct step step_[] = { { .say = GREETING }, { .await = true, .say = OK }, __VA_ARGS__ }; \
		ck_assert_int_eq(qmp_open_fd(start(&(s), step_, sizeof step_ / sizeof *step_), "test", PATIENCE_MS, &(q)), 0); \
	} while (0)

#define FAIL_OPEN(timeout_ms, err, ...) \
	do { \
		struct step step_[] = { __VA_ARGS__ }; \
		struct server s_; \
		struct qmp *q_; \
		ck_assert_int_eq(qmp_open_fd(start(&s_, step_, sizeof step_ / sizeof *step_), "test", timeout_ms, &q_), err); \
		stop(&s_, NULL); \
	} while (0)

START_TEST(greeting)
{
	struct server s;
	struct qmp *q;

	OPEN(s, q, { 0 });
	ck_assert_str_eq(qmp_version(q), "7.2.22");
	ck_assert_uint_eq(qmp_version_num(q), 70222);
	ck_assert_int_eq(qmp_peer_pid(q), getpid());
	stop(&s, q);
}
END_TEST

START_TEST(bad_greeting)
{
	FAIL_OPEN(PATIENCE_MS, -EPROTO, { .say = "SSH-2.0-OpenSSH_9.2\r\n" });
	FAIL_OPEN(PATIENCE_MS, -EPROTO, { .say = "{\"QMP\": {}}\r\n" });
	FAIL_OPEN(PATIENCE_MS, -EPROTO, { .say = "{\"QMP\": {\"version\": {\"qemu\": {\"micro\": 22, \"minor\": -2, \"major\": 7}}}}\r\n" });
	FAIL_OPEN(PATIENCE_MS, -EPROTO, { .say = "[]\r\n" });
	FAIL_OPEN(PATIENCE_MS, -EPROTO, { .say = "{\"QMP\": " }); // and then it closes
	FAIL_OPEN(SOON_MS, -EBUSY, { .await = true });
	ck_assert_ptr_nonnull(strstr(log_last_error(), "taken by another client"));
}
END_TEST

// An event and an answer, cut anywhere: a first read may end in the middle of a word, a number, an escape or a character of the second.
#define MIXED EVENT("STOP") "{\"return\": {\"status\": \"}{\\\"\\u00e4\u20ac\", \"on\": true, \"at\": -1.5e3}, \"id\": %lld}\r\n"

START_TEST(framing)
{
	struct server s;
	struct qmp *q;
	json_t *ret;

	OPEN(s, q, { .await = true, .say = MIXED, .piece = (size_t)_i });
	ck_assert_int_eq(qmp_call(q, "query-status", json_pack("{s:s}", "x", "y"), &ret), 0);
	ck_assert_str_eq(json_string_value(json_object_get(ret, "status")), "}{\"\u00e4\u20ac");
	ck_assert(json_is_true(json_object_get(ret, "on")));
	json_decref(ret);
	stop(&s, q);
}
END_TEST

START_TEST(pretty)
{
	struct server s;
	struct qmp *q;
	json_t *ret;

	OPEN(s, q,
		{ .await = true,
			.say = "{\r\n    \"return\": [\r\n        1,\r\n        2\r\n    ],\r\n    \"id\": %lld\r\n}\r\n",
			.piece = 7 });
	ck_assert_int_eq(qmp_call(q, "x", NULL, &ret), 0);
	ck_assert_uint_eq(json_array_size(ret), 2);
	json_decref(ret);
	stop(&s, q);
}
END_TEST

START_TEST(events_wait)
{
	struct server s;
	struct qmp_msg m;
	struct qmp *q;

	OPEN(s, q, { .await = true, .say = EVENT("STOP") EVENT("RESUME") OK EVENT("RESET") });
	ck_assert_int_eq(qmp_call(q, "x", NULL, NULL), 0);
	for (const char *const *name = (const char *const[]){ "STOP", "RESUME", "RESET", NULL }; *name; name++) {
		ck_assert_int_eq(qmp_receive(q, &m), 0);
		ck_assert_int_eq(m.kind, QMP_EVENT);
		ck_assert_str_eq(m.text, *name);
		ck_assert_int_eq(json_integer_value(json_object_get(m.data, "a")), 1);
		qmp_msg_fini(&m);
	}
	stop(&s, q);
}
END_TEST

// Of too many, the oldest events go; an answer stays.
START_TEST(events_bounded)
{
	struct server s;
	struct qmp_msg m;
	struct qmp *q;
	unsigned events = 0;

	OPEN(s, q, { .await = true, .say = EVENT("FIRST") OK }, { .await = true, .say = EVENT("STOP"), .times = 300 }, { .say = OK });
	ck_assert_int_eq(qmp_send(q, "a", NULL, 7), 0);
	ck_assert_int_eq(qmp_call(q, "b", NULL, NULL), 0);
	ck_assert_int_eq(qmp_receive(q, &m), 0);
	ck_assert_int_eq(m.kind, QMP_REPLY);
	ck_assert_uint_eq(m.id, 7);
	qmp_msg_fini(&m);
	while (!qmp_receive(q, &m)) {
		ck_assert_str_eq(m.text, "STOP");
		qmp_msg_fini(&m);
		events++;
	}
	ck_assert_uint_eq(events, 255);
	stop(&s, q);
}
END_TEST

START_TEST(error_answer)
{
	struct server s;
	struct qmp *q;

	OPEN(s, q,
		{ .await = true, .say = "{\"id\": %lld, \"error\": {\"class\": \"CommandNotFound\", \"desc\": \"no x\"}}\r\n" },
		{ .await = true, .say = "{\"id\": %lld, \"error\": {\"class\": \"GenericError\", \"desc\": \"no y\"}}\r\n" },
		{ .await = true, .say = OK });
	ck_assert_int_eq(qmp_call(q, "x", NULL, NULL), -EREMOTEIO);
	ck_assert_ptr_nonnull(strstr(log_last_error(), "no x"));
	ck_assert_int_eq(qmp_try(q, "y", NULL, NULL), -EREMOTEIO);
	ck_assert_str_eq(qmp_last_error(q), "no y");
	ck_assert_ptr_null(strstr(log_last_error(), "no y"));
	ck_assert_int_eq(qmp_call(q, "z", NULL, NULL), 0);
	stop(&s, q);
}
END_TEST

// The answer to a call that was given up is not taken for the next one's.
START_TEST(late_answer)
{
	struct server s;
	struct qmp_msg m;
	struct qmp *q;
	json_t *ret;

	OPEN(s, q, { .await = true },
	     { .await = true, .say = "{\"return\": \"late\", \"id\": %2$lld}\r\n{\"return\": \"mine\", \"id\": %1$lld}\r\n" });
	qmp_set_timeout(q, SOON_MS);
	ck_assert_int_eq(qmp_call(q, "slow", NULL, NULL), -ETIMEDOUT);
	qmp_set_timeout(q, PATIENCE_MS);
	ck_assert_int_eq(qmp_call(q, "next", NULL, &ret), 0);
	ck_assert_str_eq(json_string_value(ret), "mine");
	json_decref(ret);
	ck_assert_int_lt(qmp_receive(q, &m), 0);
	stop(&s, q);
}
END_TEST

static bool enough(void *ctx)
{
	return ++*(int *)ctx >= 3;
}

// QEMU waits for a page, and whoever wants to know how it is has better things to do.
START_TEST(call_given_up)
{
	struct server s;
	struct qmp *q;
	json_t *ret;
	int asked = 0;

	OPEN(s, q, { .await = true },
	     { .await = true, .say = "{\"return\": \"late\", \"id\": %2$lld}\r\n{\"return\": \"mine\", \"id\": %1$lld}\r\n" });
	qmp_set_timeout(q, PATIENCE_MS);
	qmp_set_gives_up(q, enough, &asked);
	ck_assert_int_eq(qmp_call(q, "slow", NULL, NULL), -EINTR);
	ck_assert_int_eq(asked, 3);
	asked = -1000;
	ck_assert_int_eq(qmp_call(q, "next", NULL, &ret), 0);
	ck_assert_str_eq(json_string_value(ret), "mine");
	json_decref(ret);
	stop(&s, q);
}
END_TEST

START_TEST(qemu_ends)
{
	struct server s;
	struct qmp_msg m;
	struct qmp *q;

	OPEN(s, q, { .await = true, .say = EVENT("SHUTDOWN") "{\"ret" });
	ck_assert_int_eq(qmp_call(q, "quit", NULL, NULL), -EPIPE);
	ck_assert_int_eq(qmp_call(q, "x", NULL, NULL), -EPIPE);
	ck_assert_int_eq(qmp_send(q, "x", NULL, 1), -EPIPE);
	ck_assert_int_eq(qmp_receive(q, &m), 0); // what it said before is still told
	ck_assert_str_eq(m.text, "SHUTDOWN");
	qmp_msg_fini(&m);
	ck_assert_int_eq(qmp_receive(q, &m), -EPIPE);
	stop(&s, q);
}
END_TEST

// What it said before it ended is told also when that is noticed by a command that cannot be sent.
START_TEST(ended_before_it_was_asked)
{
	struct server s;
	struct qmp_msg m;
	struct qmp *q;

	OPEN(s, q, { .say = EVENT("STOP") EVENT("SHUTDOWN") });
	ck_assert_int_eq(poll(&(struct pollfd){ .fd = qmp_fd(q), .events = POLLHUP }, 1, PATIENCE_MS), 1);
	if (_i)
		ck_assert_int_eq(qmp_call(q, "x", NULL, NULL), -EPIPE);
	else
		ck_assert_int_eq(qmp_send(q, "x", NULL, 1), -EPIPE);
	ck_assert_int_eq(qmp_receive(q, &m), 0);
	ck_assert_str_eq(m.text, "STOP");
	qmp_msg_fini(&m);
	ck_assert_int_eq(qmp_receive(q, &m), 0);
	ck_assert_str_eq(m.text, "SHUTDOWN");
	qmp_msg_fini(&m);
	ck_assert_int_eq(qmp_receive(q, &m), -EPIPE);
	stop(&s, q);
}
END_TEST

static const char *const garbage[] = {
	"what?\r\n",
	"{\"return\": {}}\r\n",
	"{\"id\": %lld}\r\n",
	"{\"return\": {}, \"id\": \"x\"}\r\n",
	"[1, 2]\r\n",
	"\"return\"\r\n",
	"{]\r\n",
};

START_TEST(bad_answer)
{
	struct server s;
	struct qmp *q;

	OPEN(s, q, { .await = true, .say = garbage[_i] });
	ck_assert_int_eq(qmp_call(q, "x", NULL, NULL), -EPROTO);
	ck_assert_int_eq(qmp_call(q, "x", NULL, NULL), -EPROTO);
	stop(&s, q);
}
END_TEST

START_TEST(endless_answer)
{
	struct server s;
	struct qmp *q;

	OPEN(s, q, { .await = true, .say = "{\"return\": \"", .flood = 17 * MiB });
	ck_assert_int_eq(qmp_call(q, "x", NULL, NULL), -EPROTO);
	ck_assert_ptr_nonnull(strstr(log_last_error(), "16 MiB"));
	stop(&s, q);
}
END_TEST

START_TEST(large_answer)
{
	struct server s;
	struct qmp *q;
	json_t *ret;

	OPEN(s, q, { .await = true, .say = "{\"id\": %lld, \"return\": \"", .flood = 4 * MiB }, { .say = "\"}\r\n" });
	ck_assert_int_eq(qmp_call(q, "x", NULL, &ret), 0);
	ck_assert_uint_eq(json_string_length(ret), 4 * MiB);
	json_decref(ret);
	stop(&s, q);
}
END_TEST

// For an event loop: answers to its own commands, also those that came during a call.
START_TEST(asynchronous)
{
	struct server s;
	struct qmp_msg m;
	struct qmp *q;
	int ret;

	OPEN(s, q, { .await = true }, { .await = true, .say = OK }, { .say = "{\"return\": 5, \"id\": 41}\r\n" },
	     { .wait_ms = 50, .say = "{\"error\": {\"desc\": \"why\"}, \"id\": 42}\r\n" });
	ck_assert_int_eq(qmp_receive(q, &m), -EAGAIN);
	ck_assert_int_eq(qmp_send(q, "transaction", json_pack("{s:[]}", "actions"), 41), 0);
	ck_assert_int_eq(qmp_call(q, "x", NULL, NULL), 0);
	while ((ret = qmp_receive(q, &m)) == -EAGAIN)
		usleep(1000);
	ck_assert_int_eq(ret, 0);
	ck_assert(m.kind == QMP_REPLY && m.ok && m.id == 41 && json_integer_value(m.data) == 5);
	qmp_msg_fini(&m);
	while ((ret = qmp_receive(q, &m)) == -EAGAIN)
		usleep(1000);
	ck_assert_int_eq(ret, 0);
	ck_assert(m.kind == QMP_REPLY && !m.ok && m.id == 42 && !strcmp(m.text, "why"));
	qmp_msg_fini(&m);
	ck_assert_int_eq(s.ids[1], 41);
	ck_assert_int_lt(s.ids[2], 0);
	stop(&s, q);
}
END_TEST

START_TEST(descriptor)
{
	struct server s;
	struct qmp *q;
	int p[2];
	char c;

	ck_assert_int_eq(pipe(p), 0);
	OPEN(s, q, { .await = true, .say = OK });
	ck_assert_int_eq(qmp_call_fd(q, "getfd", json_pack("{s:s}", "fdname", "x"), p[1], NULL), 0);
	ck_assert_int_ge(s.passed_fd, 0);
	ck_assert_int_eq(write(s.passed_fd, "z", 1), 1);
	ck_assert_int_eq(read(p[0], &c, 1), 1);
	ck_assert_int_eq(c, 'z');
	close(s.passed_fd);
	close(p[0]);
	close(p[1]);
	stop(&s, q);
}
END_TEST

// ---- the socket's file

static int listen_at(const char *path)
{
	struct sockaddr_un a = { .sun_family = AF_UNIX };
	int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);

	snprintf(a.sun_path, sizeof a.sun_path, "%s", path);
	ck_assert_int_eq(bind(fd, (struct sockaddr *)&a, sizeof a), 0);
	ck_assert_int_eq(listen(fd, 0), 0);
	return fd;
}

START_TEST(socket_file)
{
	char dir[] = "/tmp/test-qmp-XXXXXX", path[64], far[512];
	struct qmp *q, *more[4];
	int fd;

	ck_assert_ptr_nonnull(mkdtemp(dir));
	snprintf(path, sizeof path, "%s/q", dir);
	ck_assert_int_eq(qmp_open(path, 100, &q), -ENOENT);
	ck_assert_int_eq(qmp_open(dir, 100, &q), -ENOTSOCK);
	fd = listen_at(path);
	ck_assert_int_eq(qmp_open(path, 100, &q), -EBUSY); // nobody accepts; the later ones find the backlog full
	for (int i = 0; i < 4; i++)
		ck_assert_int_eq(qmp_open_quiet(path, 100, more + i), -EBUSY);
	snprintf(far, sizeof far, "%s/", dir);
	for (int i = 0; i < 60; i++)
		strcat(far, "./");
	strcat(far, "q");
	ck_assert_uint_gt(strlen(far), sizeof ((struct sockaddr_un *)0)->sun_path);
	ck_assert_int_eq(qmp_open(far, 100, &q), -EBUSY);
	close(fd);
	ck_assert_int_eq(qmp_open(path, 100, &q), -ECONNREFUSED);
	unlink(path);
	rmdir(dir);
}
END_TEST

// ---- a QEMU that is starting, or ends

#define LATE_MS 50

static const struct late_case {
	bool full;    // others wait before us
	bool accepts; // after a while, and does the steps
	bool ends;    // which is seen a while after the connection is closed
	struct step step[2];
	int timeout_ms, err;
	bool logs;
} late_cases[] = {
	{ .accepts = true, .ends = true, .step = { { .say = GREETING }, { .await = true, .say = OK, .wait_ms = LATE_MS } },
	  .timeout_ms = PATIENCE_MS },
	{ .ends = true, .timeout_ms = PATIENCE_MS, .err = -ESRCH },
	{ .full = true, .ends = true, .timeout_ms = PATIENCE_MS, .err = -ESRCH },
	{ .accepts = true, .ends = true, .timeout_ms = PATIENCE_MS, .err = -ESRCH },
	{ .accepts = true, .step = { { .say = GREETING }, { .await = true } }, .ends = true, .timeout_ms = PATIENCE_MS, .err = -ESRCH },
	{ .accepts = true, .timeout_ms = PATIENCE_MS, .err = -EPROTO, .logs = true },
	{ .accepts = true, .step = { { .say = GREETING }, { .await = true } }, .timeout_ms = PATIENCE_MS, .err = -EPIPE, .logs = true },
	{ .timeout_ms = SOON_MS, .err = -EBUSY },
	{ .full = true, .timeout_ms = SOON_MS, .err = -EBUSY },
};

struct late {
	const struct late_case *c;
	struct server s;
	int listen_fd, watched;
};

static void *serve_late(void *arg)
{
	struct late *l = arg;

	usleep(LATE_MS * 1000);
	if (l->c->accepts) {
		l->s.fd = accept(l->listen_fd, NULL, NULL);
		serve(&l->s);
		usleep(LATE_MS * 1000);
	}
	if (l->c->ends)
		close(l->watched);
	return NULL;
}

static int open_late(const struct late_case *c, bool (*interrupted)(void), struct qmp **q)
{
	struct late l = { .c = c, .s = { .nr = ARRAY_SIZE(c->step), .passed_fd = -1 } };
	char dir[] = "/tmp/test-qmp-XXXXXX", path[64];
	int watch[2], err;

	memcpy(l.s.step, c->step, sizeof c->step);
	ck_assert_ptr_nonnull(mkdtemp(dir));
	snprintf(path, sizeof path, "%s/q", dir);
	l.listen_fd = listen_at(path);
	for (unsigned i = 0; c->full && i < 4; i++)
		ck_assert_int_eq(qmp_open_quiet(path, 0, q), -EBUSY);
	ck_assert_int_eq(pipe(watch), 0);
	l.watched = watch[1];
	ck_assert_int_eq(pthread_create(&l.s.thread, NULL, serve_late, &l), 0);
	err = qmp_open_watching(path, c->timeout_ms, watch[0], interrupted, q);
	pthread_join(l.s.thread, NULL);
	fcntl(l.listen_fd, F_SETFL, O_NONBLOCK);
	ck_assert(!c->accepts || accept(l.listen_fd, NULL, NULL) < 0); // it had connected once
	close(l.listen_fd);
	unlink(path);
	rmdir(dir);
	return err;
}

START_TEST(late_greeting)
{
	struct qmp *q = NULL;

	ck_assert_int_eq(open_late(late_cases + _i, NULL, &q), late_cases[_i].err);
	ck_assert_int_eq(*log_last_error() != 0, late_cases[_i].logs);
	if (q)
		ck_assert_int_eq(qmp_call(q, "x", NULL, NULL), -EPIPE); // it is watched no longer
	qmp_close(q);
}
END_TEST

static unsigned asked;

static bool third_time(void)
{
	return ++asked == 3;
}

START_TEST(late_interrupted)
{
	struct qmp *q;

	ck_assert_int_eq(open_late(&(struct late_case){ .full = _i, .timeout_ms = PATIENCE_MS }, third_time, &q), -EINTR);
	ck_assert_str_eq(log_last_error(), "");
}
END_TEST

int main(void)
{
	Suite *s = suite_create("qmp");
	TCase *t = tcase_create("qmp");
	SRunner *sr;
	int failed;

	log_init(open("/dev/null", O_WRONLY | O_CLOEXEC), LOG_ERROR, NULL, false);
	tcase_set_timeout(t, 60);
	tcase_add_test(t, greeting);
	tcase_add_test(t, bad_greeting);
	tcase_add_loop_test(t, framing, 0, sizeof MIXED);
	tcase_add_test(t, pretty);
	tcase_add_test(t, events_wait);
	tcase_add_test(t, events_bounded);
	tcase_add_test(t, error_answer);
	tcase_add_test(t, late_answer);
	tcase_add_test(t, call_given_up);
	tcase_add_test(t, qemu_ends);
	tcase_add_loop_test(t, ended_before_it_was_asked, 0, 2);
	tcase_add_loop_test(t, bad_answer, 0, ARRAY_SIZE(garbage));
	tcase_add_test(t, endless_answer);
	tcase_add_test(t, large_answer);
	tcase_add_test(t, asynchronous);
	tcase_add_test(t, descriptor);
	tcase_add_test(t, socket_file);
	tcase_add_loop_test(t, late_greeting, 0, ARRAY_SIZE(late_cases));
	tcase_add_loop_test(t, late_interrupted, 0, 2);
	suite_add_tcase(s, t);
	sr = srunner_create(s);
	srunner_run_all(sr, CK_ENV);
	failed = srunner_ntests_failed(sr);
	srunner_free(sr);
	return failed ? 1 : 0;
}
