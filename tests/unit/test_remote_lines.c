// SPDX-License-Identifier: GPL-2.0-only
// Who is let in, and how it ends: lines that come and that we make, keys, TLS, COMPLETE and OVER, the end of the pager.
#include "tests/unit/remote_suite.h"
#include "tests/unit/wire_certs.h"

START_TEST(wrong_key)
{
	struct far *f;

	rig_open(&rig, 2, ANSWERS);
	f = far_start(&rig, 0, false, ANSWERS);
	f->key[_i * 15] ^= 1;
	far_hand_in(f);
	must_be(&rig, f->refused);
	ck_assert_int_eq(f->refused, WIRE_REFUSED_KEY);
	ck_assert_int_eq(f->left, -1);
	// Who has it keeps its place.
	ask(&rig, &q[0], 0, false, false);
	check_all(1);
	ck_assert_uint_eq(rig.far[0].nr_wants, 1);
	ck_assert(!rig.far[0].ended);
	rig_close(&rig);
}
END_TEST

// What the first has not answered, the second is asked for; if both answer, one of them is not heard.
START_TEST(another_takes_its_place)
{
	rig_open(&rig, 1, HOLDS);
	for (unsigned i = 0; i < 10; i++)
		ask(&rig, &q[i], i % NR_CHUNKS, false, true);
	must_be(&rig, rig.far[0].nr_wants >= 1);
	far_new(&rig, 0, ANSWERS);
	must_be(&rig, rig.far[1].left >= 0);
	rig.far[0].manner = ANSWERS;
	check_all(10);
	must_be(&rig, rig.far[0].ended);
	ck_assert(!rig.far[1].ended);
	ck_assert_uint_eq(rig_stats(&rig).lines, 1);
	ck_assert_uint_ge(rig.far[1].nr_wants, 9);
	far_new(&rig, 0, ANSWERS);
	ck_assert(rig_until(&rig, rig.far[1].ended, WIRE_LINE_LOST_MS / 2)); // it had nothing to do
	rig_close(&rig);
}
END_TEST

START_TEST(complete_and_over)
{
	struct far *late;

	rig_open(&rig, 2, ANSWERS);
	for (unsigned i = 0; i < 2; i++) {
		ck_assert_int_eq(rig.far[i].left, WIRE_LINE_WANTS);
		ck_assert_uint_eq(rig.far[i].missing, MISSING);
	}
	lp_remote_complete(rig.remote);
	for (unsigned i = 0; i < 2; i++) {
		ck_assert(rig_until(&rig, rig.far[i].left == WIRE_LINE_COMPLETE, 1000)); // not at the next tick
		ck_assert_uint_eq(rig.far[i].missing, 0);
	}
	far_cut(&rig.far[1]);
	late = far_new(&rig, 1, ANSWERS);
	must_be(&rig, late->left == WIRE_LINE_COMPLETE);
	ck_assert_uint_eq(rig.overs, 0);
	ok(wire_line_say(rig.far[0].pages, WIRE_OVER));
	must_be(&rig, rig.overs);
	ok(wire_line_say(late->pages, WIRE_OVER));
	must_be(&rig, late->ended && rig.far[0].ended);
	rig_pass(&rig, 20);
	ck_assert_uint_eq(rig.overs, 1);
	ck_assert_str_eq(said_text, "");
	rig_close(&rig);
}
END_TEST

// Pages go on coming from all lines until it returns, and none after it.
START_TEST(stopped_while_pages_come)
{
	uint64_t begun;

	for (unsigned round = 0; round < 10; round++) {
		rig_open(&rig, 3, ANSWERS);
		for (unsigned i = 0; i < 60; i++)
			ask(&rig, &q[i], i % NR_CHUNKS, i % 2, true);
		if (round % 2)
			must_be(&rig, q[0].answered);
		begun = clock_now_ns();
		lp_remote_stop(rig.remote);
		ck_assert_uint_lt(clock_now_ns() - begun, 5 * NSEC_PER_SEC);
		for (unsigned i = 0; i < 60; i++)
			free(q[i].rd.dest); // a sanitizer sees who still writes there
		rig_pass(&rig, 10);
		rig_close(&rig);
	}
}
END_TEST

static int idle_connection(void)
{
	struct sockaddr_in a = { .sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK), .sin_port = htons(rig.port) };
	int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);

	ok(connect(fd, (struct sockaddr *)&a, sizeof a));
	return fd;
}

// Who only connects keeps nobody out, and does not hold up the end.
START_TEST(idle_connections)
{
	int theirs[60], refused = 0;
	uint64_t begun;

	rig_start(&rig, 1);
	for (unsigned i = 0; i < 60; i++) {
		theirs[i] = idle_connection();
		refused += lp_remote_accept(rig.remote, 0, accept4(rig.listen_fd, NULL, NULL, SOCK_CLOEXEC)) == -EBUSY;
		rig_pass(&rig, 5);
	}
	ck_assert_int_gt(refused, 10);
	for (unsigned i = 0; !rig_stats(&rig).lines && i < 3; i++) {
		struct far *f = far_start(&rig, 0, false, ANSWERS);
		int fd;
		uint8_t buf[WIRE_PREAMBLE_LEN];

		ok(pthread_create(&f->thread, NULL, far_thread, f));
		fd = accept4(rig.listen_fd, NULL, NULL, SOCK_CLOEXEC);
		ok(io_read_full(fd, buf, sizeof buf));
		lp_remote_accept(rig.remote, 0, fd);
		rig_until(&rig, rig_stats(&rig).lines, 300);
	}
	ask(&rig, &q[0], 0, false, false);
	check_all(1);
	begun = clock_now_ns();
	lp_remote_stop(rig.remote);
	ck_assert_uint_lt(clock_now_ns() - begun, 5 * NSEC_PER_SEC);
	for (unsigned i = 0; i < 60; i++)
		close(theirs[i]);
	rig_close(&rig);
}
END_TEST

static struct wire_tls *tls_of(bool server)
{
	static const char key[] = "vm:00112233445566778899aabbccddeeff\n";
	char dir[] = "/tmp/test_remote.XXXXXX";
	struct wire_tls *tls;

	ck_assert_ptr_nonnull(mkdtemp(dir));
	write_file(dir, "keys.psk", key, strlen(key), 0600);
	ok(wire_tls_load(dir, server, &tls));
	empty_dir(dir);
	ok(rmdir(dir));
	return tls;
}

// By two threads each; and who never gets on with the handshake does not hold up the end.
START_TEST(encrypted)
{
	struct wire_tls *client = tls_of(false), *server = tls_of(true);
	uint64_t begun;
	int theirs;

	rig_init(&rig);
	rig.o.nr_lines = 2;
	rig.o.tls = server;
	ok(lp_remote_new(&rig.o, &rig.remote));
	for (unsigned i = 0; i < 2; i++) {
		struct far *f = far_start(&rig, i, false, ANSWERS);

		f->tls = client;
		far_hand_in(f);
	}
	for (unsigned i = 0; i < NR_QUESTIONS; i++)
		ask(&rig, &q[i], i % NR_CHUNKS, i % 3, i % 4 == 0);
	check_all(NR_QUESTIONS);
	theirs = idle_connection();
	ok(lp_remote_accept(rig.remote, 0, accept4(rig.listen_fd, NULL, NULL, SOCK_CLOEXEC)));
	rig_pass(&rig, 50);
	begun = clock_now_ns();
	lp_remote_stop(rig.remote);
	ck_assert_uint_lt(clock_now_ns() - begun, 5 * NSEC_PER_SEC);
	close(theirs);
	rig_close(&rig);
	wire_tls_free(client);
	wire_tls_free(server);
}
END_TEST

START_TEST(no_such_line)
{
	int fd[2];

	rig_start(&rig, 2);
	ck_assert_str_eq(rig_trouble(&rig), "the other side has not connected yet");
	ok(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, fd));
	ck_assert_int_eq(lp_remote_accept(rig.remote, 2, fd[0]), -EINVAL);
	ck_assert_int_eq(read(fd[1], said_text, 1), 0); // it was closed
	close(fd[1]);
	ask(&rig, &q[0], 3, false, true);
	rig_pass(&rig, 20);
	ck_assert_uint_eq(rig_stats(&rig).waiting, 1);
	far_new(&rig, 1, ANSWERS);
	check_all(1);
	rig_close(&rig);
}
END_TEST

// We connect, again and again, until nothing is missing.
START_TEST(we_connect)
{
	struct far *f[3];

	rig_init(&rig);
	rig.o.host = "127.0.0.1";
	rig.o.port = rig.port;
	rig.o.nr_lines = 1;
	memset(rig.o.token, 0x77, sizeof rig.o.token);
	f[0] = far_start(&rig, 0, true, REFUSES);
	far_hand_in(f[0]);
	ok(lp_remote_new(&rig.o, &rig.remote));
	ask(&rig, &q[0], 1, false, true);
	must_be(&rig, strstr(rig_trouble(&rig), "another checkpoint is served there"));
	ck_assert_int_eq(f[0]->preamble.kind, WIRE_IMAGE_LINE);
	ck_assert_mem_eq(f[0]->preamble.token, rig.o.token, WIRE_TOKEN_LEN);
	f[1] = far_start(&rig, 0, true, ANSWERS);
	far_hand_in(f[1]);
	check_all(1);
	far_cut(f[1]);
	must_be(&rig, !rig_stats(&rig).lines);
	f[2] = far_start(&rig, 0, true, ANSWERS);
	far_hand_in(f[2]);
	ask(&rig, &q[0], 2, true, true);
	check_all(1);
	lp_remote_complete(rig.remote);
	must_be(&rig, f[2]->left == WIRE_LINE_COMPLETE);
	far_cut(f[2]);
	must_be(&rig, !rig_stats(&rig).lines);
	ck_assert_int_eq(poll(&(struct pollfd){ .fd = rig.listen_fd, .events = POLLIN }, 1, 500), 0);
	rig_close(&rig);
}
END_TEST

static atomic_bool trusted;

static bool trusts(int fd)
{
	ck_assert_int_ge(fd, 0);
	return trusted;
}

// Where the server was, somebody else listens: nothing of what he sends is used. Meanwhile we are as alone as before.
START_TEST(nobody_to_trust)
{
	rig_init(&rig);
	rig.o.host = "127.0.0.1";
	rig.o.port = rig.port;
	rig.o.nr_lines = 1;
	rig.o.trusts = trusts;
	trusted = false;
	ok(lp_remote_new(&rig.o, &rig.remote));
	ask(&rig, &q[0], 1, false, true);
	for (unsigned i = 0; i < 2; i++) {
		struct far *f = far_start(&rig, 0, true, ANSWERS);

		far_hand_in(f);
		must_be(&rig, f->ended);
		must_be(&rig, strstr(rig_trouble(&rig), "who answers there is not trusted"));
		ck_assert_uint_eq(q[0].answered, 0);
		check_untouched(&q[0]);
	}
	trusted = true;
	far_hand_in(far_start(&rig, 0, true, ANSWERS));
	check_all(1);
	rig_close(&rig);
}
END_TEST

// A connection that brings nothing does not change since when there is none.
START_TEST(alone_for_long)
{
	uint64_t begun, alone;

	rig_init(&rig);
	rig.o.host = "127.0.0.1";
	rig.o.port = rig.port;
	rig.o.nr_lines = 1;
	ok(lp_remote_new(&rig.o, &rig.remote));
	rig_pass(&rig, 1000);
	for (unsigned i = 0; i < 2; i++) {
		struct far *f = far_start(&rig, 0, true, REFUSES);

		far_hand_in(f);
		must_be(&rig, f->ended);
		must_be(&rig, !rig_stats(&rig).lines);
		ck_assert_uint_gt(rig_stats(&rig).alone_ns, NSEC_PER_SEC);
	}
	far_hand_in(far_start(&rig, 0, true, ANSWERS));
	ask(&rig, &q[0], 1, false, true);
	check_all(1);
	ck_assert_uint_eq(rig_stats(&rig).alone_ns, 0);
	begun = clock_now_ns();
	far_cut(&rig.far[2]);
	must_be(&rig, !rig_stats(&rig).lines);
	alone = rig_stats(&rig).alone_ns;
	ck_assert_uint_le(alone, clock_now_ns() - begun);
	rig_close(&rig);
}
END_TEST

// Nobody listens, and then nobody answers.
START_TEST(we_stop_connecting)
{
	uint64_t begun;

	rig_init(&rig);
	rig.o.host = "127.0.0.1";
	rig.o.port = rig.port;
	rig.o.nr_lines = 9;
	if (_i)
		shutdown(rig.listen_fd, SHUT_RDWR);
	ok(lp_remote_new(&rig.o, &rig.remote));
	if (_i)
		must_be(&rig, strstr(rig_trouble(&rig), "cannot connect to 127.0.0.1"));
	rig_pass(&rig, 300);
	begun = clock_now_ns();
	lp_remote_stop(rig.remote);
	ck_assert_uint_lt(clock_now_ns() - begun, 5 * NSEC_PER_SEC);
	lp_remote_stop(rig.remote);
	rig_close(&rig);
}
END_TEST

int main(void)
{
	TCase *t = tcase_create("lines");

	tcase_add_loop_test(t, wrong_key, 0, 2);
	tcase_add_test(t, another_takes_its_place);
	tcase_add_test(t, complete_and_over);
	tcase_add_test(t, stopped_while_pages_come);
	tcase_add_test(t, idle_connections);
	tcase_add_test(t, encrypted);
	tcase_add_test(t, no_such_line);
	tcase_add_test(t, we_connect);
	tcase_add_test(t, nobody_to_trust);
	tcase_add_test(t, alone_for_long);
	tcase_add_loop_test(t, we_stop_connecting, 0, 2);
	return run_lines(t);
}
