// SPDX-License-Identifier: GPL-2.0-only
// The QMP client against a scripted server.
#include <check.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
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
#define TIMEOUT_MS 300

// One thing that the server does.
struct step {
	bool await; // first read a command
	const char *say; // then say this, with the last command's id for each %lld
	size_t piece; // in writes of so many bytes; 0: all at once
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

static void say(struct server *s, const struct step *step)
{
	char *text = NULL;
	size_t len, piece;

	ck_assert_int_gt(asprintf(&text, step->say, s->id, s->id), 0);
	len = strlen(text);
	piece = step->piece ? step->piece : len;
	for (size_t at = 0; at < len; at += piece)
		if (send(s->fd, text + at, len - at < piece ? len - at : piece, MSG_NOSIGNAL) < 0)
			break;
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
		ck_assert_int_eq(qmp_open_fd(start(&(s), step_, sizeof step_ / sizeof *step_), "test", TIMEOUT_MS, &(q)), 0); \
	} while (0)

#define FAIL_OPEN(err, ...) \
	do { \
		struct step step_[] = { __VA_ARGS__ }; \
		struct server s_; \
		struct qmp *q_; \
		ck_assert_int_eq(qmp_open_fd(start(&s_, step_, sizeof step_ / sizeof *step_), "test", TIMEOUT_MS, &q_), err); \
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
	FAIL_OPEN(-EPROTO, { .say = "SSH-2.0-OpenSSH_9.2\r\n" });
	FAIL_OPEN(-EPROTO, { .say = "{\"QMP\": {}}\r\n" });
	FAIL_OPEN(-EPROTO, { .say = "{\"QMP\": {\"version\": {\"qemu\": {\"micro\": 22, \"minor\": -2, \"major\": 7}}}}\r\n" });
	FAIL_OPEN(-EPROTO, { .say = "[]\r\n" });
	FAIL_OPEN(-EPROTO, { .say = "{\"QMP\": " }); // and then it closes
	FAIL_OPEN(-EBUSY, { .wait_ms = 2 * TIMEOUT_MS });
	ck_assert_ptr_nonnull(strstr(log_last_error(), "taken by another client"));
}
END_TEST

// Every message a byte at a time, or two of them in one write.
START_TEST(framing)
{
	struct server s;
	struct qmp *q;
	json_t *ret;

	OPEN(s, q,
		{ .await = true,
			.say = EVENT("STOP") "{\"return\": {\"status\": \"}{\\\"\"}, \"id\": %lld}\r\n",
			.piece = (size_t)_i });
	ck_assert_int_eq(qmp_call(q, "query-status", json_pack("{s:s}", "x", "y"), &ret), 0);
	ck_assert_str_eq(json_string_value(json_object_get(ret, "status")), "}{\"");
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

	OPEN(s, q, { .await = true, .wait_ms = TIMEOUT_MS + 100, .say = "{\"return\": \"late\", \"id\": %lld}\r\n" },
	     { .await = true, .say = "{\"return\": \"mine\", \"id\": %lld}\r\n" });
	ck_assert_int_eq(qmp_call(q, "slow", NULL, NULL), -ETIMEDOUT);
	qmp_set_timeout(q, 2000);
	ck_assert_int_eq(qmp_call(q, "next", NULL, &ret), 0);
	ck_assert_str_eq(json_string_value(ret), "mine");
	json_decref(ret);
	ck_assert_int_lt(qmp_receive(q, &m), 0);
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
	qmp_set_timeout(q, 20000);
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
	qmp_set_timeout(q, 20000);
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
	tcase_add_loop_test(t, framing, 0, 6);
	tcase_add_test(t, pretty);
	tcase_add_test(t, events_wait);
	tcase_add_test(t, events_bounded);
	tcase_add_test(t, error_answer);
	tcase_add_test(t, late_answer);
	tcase_add_test(t, qemu_ends);
	tcase_add_loop_test(t, bad_answer, 0, ARRAY_SIZE(garbage));
	tcase_add_test(t, endless_answer);
	tcase_add_test(t, large_answer);
	tcase_add_test(t, asynchronous);
	tcase_add_test(t, descriptor);
	tcase_add_test(t, socket_file);
	suite_add_tcase(s, t);
	sr = srunner_create(s);
	srunner_run_all(sr, CK_ENV);
	failed = srunner_ntests_failed(sr);
	srunner_free(sr);
	return failed ? 1 : 0;
}
