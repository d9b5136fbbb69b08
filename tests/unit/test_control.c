// SPDX-License-Identifier: GPL-2.0-only
// The control socket, both of its sides, and what neither may do to the other.
#include <check.h>
#include <errno.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include "lazy-pages/control.h"
#include "util/clock.h"
#include "util/list.h"
#include "util/size.h"

#define PATIENCE_MS 20000 // on a busy host
#define MAX_CLIENTS 16 // the server's
#define BIG (64 * KiB)

static char dir[] = "/tmp/criu-vm-test.XXXXXX";
static char path[sizeof dir + 8];

static void make_dir(void)
{
	if (!mkdtemp(dir))
		abort();
	snprintf(path, sizeof path, "%s/sock", dir);
}

static void remove_dir(void)
{
	unlink(path);
	rmdir(dir);
}

static int listener(int backlog)
{
	struct sockaddr_un at = { .sun_family = AF_UNIX };
	int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);

	memcpy(at.sun_path, path, strlen(path) + 1);
	unlink(path);
	ck_assert_int_eq(bind(fd, (const struct sockaddr *)&at, sizeof at), 0);
	ck_assert_int_eq(listen(fd, backlog), 0);
	return fd;
}

static int client(int flags)
{
	struct sockaddr_un to = { .sun_family = AF_UNIX };
	int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | flags, 0);

	memcpy(to.sun_path, path, strlen(path) + 1);
	if (connect(fd, (const struct sockaddr *)&to, sizeof to) < 0) {
		close(fd);
		return -1;
	}
	return fd;
}

// A pager's loop with nothing but a control socket, in a thread.
struct server {
	struct loop loop;
	struct lp_control *control;
	struct loop_timer look;
	int listen_fd;
	pthread_t thread;
	_Atomic bool stop, up;
	_Atomic unsigned asked;
};

static json_t *answer(void *ctx, const json_t *request)
{
	const char *what = json_string_value(json_object_get(request, "execute"));
	struct server *s = ctx;
	char *big;
	json_t *reply;

	s->asked++;
	if (!what || strcmp(what, "big"))
		return json_pack("{s:s?}", "you said", what);
	big = malloc(BIG);
	memset(big, 'x', BIG);
	reply = json_pack("{s:s#}", "big", big, (int)BIG);
	free(big);
	return reply;
}

static void looked(struct loop_op *op, int res)
{
	struct server *s = list_entry(op, struct server, look.op);

	(void)res;
	loop_timer(&s->loop, &s->look, NSEC_PER_MSEC);
}

static void *serve(void *arg)
{
	struct server *s = arg;

	if (loop_init(&s->loop, 64) || lp_control_new(&s->loop, s->listen_fd, answer, s, &s->control))
		abort();
	s->look.op.done = looked;
	loop_timer(&s->loop, &s->look, NSEC_PER_MSEC);
	for (s->up = true; !s->stop;)
		if (loop_round(&s->loop, true))
			abort();
	loop_fini(&s->loop);
	lp_control_free(s->control);
	return NULL;
}

static void server_start(struct server *s)
{
	*s = (struct server){ .listen_fd = listener(64) };
	ck_assert_int_eq(pthread_create(&s->thread, NULL, serve, s), 0);
	while (!s->up)
		usleep(100);
}

static void server_stop(struct server *s)
{
	s->stop = true;
	pthread_join(s->thread, NULL);
	close(s->listen_fd);
}

// All that comes until the server hangs up, which it must; what counts is not how it hangs up.
static char *hear(int fd)
{
	char *text = calloc(1, 2 * BIG);
	size_t have = 0;
	ssize_t n = 1;

	while (n > 0) {
		struct pollfd p = { fd, POLLIN, 0 };

		ck_assert_int_eq(poll(&p, 1, PATIENCE_MS), 1);
		n = recv(fd, text + have, 2 * BIG - 1 - have, 0);
		have += n > 0 ? (size_t)n : 0;
	}
	close(fd);
	return text;
}

static void expect(int fd, const char *want)
{
	char *text = hear(fd);

	ck_assert_str_eq(text, want);
	free(text);
}

static void say(int fd, const char *text)
{
	ck_assert_int_eq(send(fd, text, strlen(text), MSG_NOSIGNAL), (ssize_t)strlen(text));
}

START_TEST(ask)
{
	static struct server s;
	json_t *reply = NULL;

	server_start(&s);
	for (unsigned i = 0; i < 100; i++) { // far more than there are places
		ck_assert_int_eq(lp_control_ask(path, "stat", PATIENCE_MS, &reply), 0);
		ck_assert_str_eq(json_string_value(json_object_get(reply, "you said")), "stat");
		json_decref(reply);
	}
	ck_assert_int_eq(lp_control_ask(path, "big", PATIENCE_MS, &reply), 0);
	ck_assert_uint_eq(json_string_length(json_object_get(reply, "big")), BIG);
	json_decref(reply);
	server_stop(&s);
}
END_TEST

START_TEST(in_pieces)
{
	static const char request[] = "{\"execute\":\"slowly\"}\n";
	static struct server s;
	int fd;

	server_start(&s);
	fd = client(0);
	for (const char *c = request; *c; c++) {
		ck_assert_uint_eq(s.asked, 0);
		ck_assert_int_eq(send(fd, c, 1, MSG_NOSIGNAL), 1);
		usleep(1000);
	}
	expect(fd, "{\"you said\":\"slowly\"}\n");
	server_stop(&s);
}
END_TEST

static const char *const not_requests[] = { "\n", "hello\n", "[1,2]\n", "\"stat\"\n", "{\"execute\":\n", "{} {}\n", "\xff\xfe\n", "{\"a\":\"\xc3\"}\n" };

START_TEST(not_a_request)
{
	static struct server s;
	int fd;

	server_start(&s);
	fd = client(0);
	say(fd, not_requests[_i]);
	expect(fd, "{\"error\":\"not a JSON object\"}\n");
	fd = client(0); // an object, at least
	say(fd, "{\"execute\":7}\n");
	expect(fd, "{\"you said\":null}\n");
	ck_assert_uint_eq(s.asked, 1);
	server_stop(&s);
}
END_TEST

// Neither a line without an end nor a client that goes away hurts the next one.
START_TEST(rude_clients)
{
	static struct server s;
	json_t *reply;
	char *text, flood[40000];
	int fd;

	server_start(&s);
	memset(flood, '[', sizeof flood);
	for (unsigned i = 0; i < 50; i++) {
		fd = client(0);
		send(fd, flood, sizeof flood, MSG_NOSIGNAL);
		text = hear(fd);
		ck_assert(!*text || strstr(text, "error")); // what it has not read, makes the kernel reset the connection
		free(text);
		fd = client(0);
		send(fd, flood, (size_t)(i * 7), MSG_NOSIGNAL);
		close(fd);
		fd = client(0);
		say(fd, "{\"execute\":\"big\"}\n"); // and does not stay to hear it
		close(fd);
	}
	ck_assert_int_eq(lp_control_ask(path, "stat", PATIENCE_MS, &reply), 0);
	json_decref(reply);
	server_stop(&s);
}
END_TEST

START_TEST(crowd)
{
	static struct server s;
	int fd[MAX_CLIENTS];
	json_t *reply;

	server_start(&s);
	for (unsigned i = 0; i < MAX_CLIENTS; i++)
		fd[i] = client(0);
	expect(client(0), ""); // one too many is sent away
	say(fd[3], "{\"execute\":\"third\"}\n");
	expect(fd[3], "{\"you said\":\"third\"}\n");
	ck_assert_int_eq(lp_control_ask(path, "stat", PATIENCE_MS, &reply), 0); // in its place
	json_decref(reply);
	for (unsigned i = 0; i < MAX_CLIENTS; i++)
		if (i != 3)
			close(fd[i]);
	server_stop(&s); // some clients may still be there
}
END_TEST

START_TEST(nobody_there)
{
	char name[200];
	json_t *reply;

	unlink(path);
	ck_assert_int_eq(lp_control_ask(path, "stat", PATIENCE_MS, &reply), -ENOENT);
	close(listener(1));
	ck_assert_int_eq(lp_control_ask(path, "stat", PATIENCE_MS, &reply), -ECONNREFUSED);
	memset(name, 'a', sizeof name - 1);
	name[sizeof name - 1] = 0;
	ck_assert_int_eq(lp_control_ask(name, "stat", PATIENCE_MS, &reply), -ENAMETOOLONG);
}
END_TEST

// How long it took to find out that nobody answers.
static uint64_t timed_out_ms(void)
{
	uint64_t begun = clock_now_ns();
	json_t *reply;

	alarm(PATIENCE_MS / 1000); // ends the test if it waits for ever
	ck_assert_int_eq(lp_control_ask(path, "stat", 200, &reply), -ETIMEDOUT);
	alarm(0);
	return (clock_now_ns() - begun) / NSEC_PER_MSEC;
}

// A pager that is stopped, or stuck.
START_TEST(no_answer)
{
	int fd = listener(16);
	uint64_t ms = timed_out_ms();

	ck_assert_uint_ge(ms, 190);
	ck_assert_uint_lt(ms, PATIENCE_MS);
	close(fd);
}
END_TEST

// The same, and many have asked it before.
START_TEST(no_place)
{
	int fd = listener(1), waiting[8];
	size_t n = 0;

	while (n < ARRAY_SIZE(waiting) && (waiting[n] = client(SOCK_NONBLOCK)) >= 0)
		n++;
	ck_assert(n && n < ARRAY_SIZE(waiting));
	ck_assert_uint_lt(timed_out_ms(), PATIENCE_MS);
	while (n)
		close(waiting[--n]);
	close(fd);
}
END_TEST

struct liar {
	int listen_fd;
	const char *says;
	size_t times;
	useconds_t pause; // before it goes on
};

static void *lie(void *arg)
{
	const struct liar *l = arg;
	int fd = accept(l->listen_fd, NULL, NULL);
	char request[256];

	if (recv(fd, request, sizeof request, 0) > 0)
		for (size_t i = 0; i < l->times; i++)
			if (send(fd, l->says, strlen(l->says), MSG_NOSIGNAL) < 0 || (l->pause && usleep(l->pause)))
				break;
	close(fd);
	return NULL;
}

static const struct liar liars[] = {
	{ .says = "", .times = 0 }, { .says = "garbage", .times = 1 }, { .says = "{\"a\":1", .times = 1 }, { .says = "{}{}", .times = 1 },
	{ .says = "[[[[[[[[[[[[[[[[", .times = 100000 }, // more than is taken
};

START_TEST(bad_answer)
{
	struct liar l = liars[_i];
	pthread_t thread;
	json_t *reply;

	l.listen_fd = listener(1);
	ck_assert_int_eq(pthread_create(&thread, NULL, lie, &l), 0);
	ck_assert_int_eq(lp_control_ask(path, "stat", PATIENCE_MS, &reply), l.times ? -EPROTO : -ECONNRESET);
	pthread_join(thread, NULL);
	close(l.listen_fd);
}
END_TEST

// It says something again and again, and never all of it.
START_TEST(endless_answer)
{
	struct liar l = { .listen_fd = listener(1), .says = "[", .times = 10000, .pause = 20000 };
	pthread_t thread;

	ck_assert_int_eq(pthread_create(&thread, NULL, lie, &l), 0);
	ck_assert_uint_lt(timed_out_ms(), PATIENCE_MS);
	pthread_join(thread, NULL);
	close(l.listen_fd);
}
END_TEST

int main(void)
{
	Suite *s = suite_create("control");
	TCase *t = tcase_create("control");
	SRunner *sr;
	int failed;

	signal(SIGPIPE, SIG_IGN); // as the command does
	tcase_set_timeout(t, 60);
	tcase_add_unchecked_fixture(t, make_dir, remove_dir);
	tcase_add_test(t, ask);
	tcase_add_test(t, in_pieces);
	tcase_add_loop_test(t, not_a_request, 0, ARRAY_SIZE(not_requests));
	tcase_add_test(t, rude_clients);
	tcase_add_test(t, crowd);
	tcase_add_test(t, nobody_there);
	tcase_add_test(t, no_answer);
	tcase_add_test(t, no_place);
	tcase_add_test(t, endless_answer);
	tcase_add_loop_test(t, bad_answer, 0, ARRAY_SIZE(liars));
	suite_add_tcase(s, t);
	sr = srunner_create(s);
	srunner_run_all(sr, CK_ENV);
	failed = srunner_ntests_failed(sr);
	srunner_free(sr);
	return failed ? 1 : 0;
}
