// SPDX-License-Identifier: GPL-2.0-only
#include <arpa/inet.h>
#include <check.h>
#include <netinet/in.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include "criu-vm/server_int.h"

#define NOBODY 65534

static const struct variant {
	int family;
	uid_t uid;
	bool closes; // before it is looked at
	bool is_trusted;
} variants[] = {
	{ AF_INET, 0, false, true },  { AF_INET, NOBODY, false, false },  { AF_INET, 0, true, false },  { AF_INET, NOBODY, true, false },
	{ AF_INET6, 0, false, true }, { AF_INET6, NOBODY, false, false }, { AF_INET6, NOBODY, true, false },
};

static int listen_on(int family, struct sockaddr_storage *at, socklen_t *len)
{
	int fd = socket(family, SOCK_STREAM | SOCK_CLOEXEC, 0);

	memset(at, 0, sizeof *at);
	at->ss_family = (sa_family_t)family;
	if (family == AF_INET)
		((struct sockaddr_in *)at)->sin_addr.s_addr = htonl(INADDR_LOOPBACK);
	else
		((struct sockaddr_in6 *)at)->sin6_addr = in6addr_loopback;
	*len = family == AF_INET ? sizeof(struct sockaddr_in) : sizeof(struct sockaddr_in6);
	ck_assert(fd >= 0 && !bind(fd, (struct sockaddr *)at, *len) && !listen(fd, 4));
	ck_assert(!getsockname(fd, (struct sockaddr *)at, len));
	return fd;
}

// Connects as the user, closes if it shall, says so by a byte, and waits for its end.
static pid_t start_client(const struct variant *v, const struct sockaddr *at, socklen_t len, const int line[2])
{
	pid_t pid = fork();
	int fd;

	if (pid)
		return pid;
	close(line[0]);
	if (setresuid(v->uid, v->uid, v->uid) < 0)
		_exit(1);
	fd = socket(v->family, SOCK_STREAM, 0);
	if (fd < 0 || connect(fd, at, len) < 0)
		_exit(2);
	if (v->closes)
		close(fd);
	if (write(line[1], "", 1) != 1 || read(line[1], &fd, 1) < 0)
		_exit(3);
	_exit(0);
}

START_TEST(who_connects)
{
	const struct variant *v = &variants[_i];
	struct sockaddr_storage at;
	socklen_t len;
	int listener = listen_on(v->family, &at, &len), line[2], fd, status;
	pid_t pid;
	char c;

	ck_assert_int_eq(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, line), 0);
	pid = start_client(v, (struct sockaddr *)&at, len, line);
	close(line[1]);
	fd = accept(listener, NULL, NULL);
	ck_assert(fd >= 0 && read(line[0], &c, 1) == 1);
	ck_assert_int_eq(server_peer_is_trusted(fd), v->is_trusted);
	ck_assert_int_eq(server_peer_is_ours(fd), v->is_trusted);
	close(line[0]);
	close(fd);
	close(listener);
	ck_assert(waitpid(pid, &status, 0) == pid && !status);
}
END_TEST

int main(void)
{
	Suite *s = suite_create("server_peer");
	TCase *t = tcase_create("server_peer");
	SRunner *r;
	int nr_failed;

	if (geteuid()) {
		puts("skip: only root can be somebody else");
		return 77;
	}
	tcase_add_loop_test(t, who_connects, 0, sizeof variants / sizeof variants[0]);
	suite_add_tcase(s, t);
	r = srunner_create(s);
	srunner_run_all(r, CK_NORMAL);
	nr_failed = srunner_ntests_failed(r);
	srunner_free(r);
	return nr_failed != 0;
}
