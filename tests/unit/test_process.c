// SPDX-License-Identifier: GPL-2.0-only
#include <check.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/pidfd.h>
#include <sys/wait.h>
#include <unistd.h>

#include "util/process.h"
#include "util/size.h"

#define TIMES 3
#define MEMORY (64 * MiB) // that is given back while it ends

static pid_t child;

// Has written to its memory, and waits. It gets our CPU only when we have no use for it: what it does when it is killed, it does later.
static void set_up(void)
{
	cpu_set_t cpu;
	int fds[2];
	char c;

	CPU_ZERO(&cpu);
	CPU_SET((unsigned)sched_getcpu(), &cpu);
	ck_assert_int_eq(sched_setaffinity(0, sizeof cpu, &cpu), 0);
	ck_assert_int_eq(pipe(fds), 0);
	child = fork();
	ck_assert_int_ge(child, 0);
	if (!child) {
		char *p = mmap(NULL, MEMORY, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

		memset(p, 1, MEMORY);
		sched_setscheduler(0, SCHED_IDLE, &(struct sched_param){ 0 });
		signal(SIGTERM, SIG_DFL); // libcheck has its own
		if (write(fds[1], "", 1) != 1)
			_exit(1);
		for (;;)
			pause();
	}
	ck_assert_int_eq(read(fds[0], &c, 1), 1);
	close(fds[0]);
	close(fds[1]);
}

static void tear_down(void)
{
	kill(child, SIGKILL);
	waitpid(child, NULL, 0);
}

START_TEST(lives)
{
	ck_assert(!process_is_ending(child));
	ck_assert_int_eq(kill(child, SIGSTOP), 0);
	ck_assert_int_eq(waitpid(child, NULL, WUNTRACED), child);
	ck_assert(!process_is_ending(child));
	ck_assert(process_is_stopped(child));
	ck_assert_int_eq(kill(child, SIGCONT), 0);
	ck_assert(!process_is_ending(child));
}
END_TEST

// At once, and all the time until it has ended.
START_TEST(is_killed)
{
	static const int signals[] = { SIGKILL, SIGTERM };

	for (unsigned i = 0; i < TIMES; i++) {
		int pidfd = pidfd_open(child, 0);

		ck_assert_int_eq(kill(child, signals[_i]), 0);
		do
			ck_assert_msg(process_is_ending(child), "in attempt %u", i);
		while (!poll(&(struct pollfd){ .fd = pidfd, .events = POLLIN }, 1, 1));
		ck_assert(process_is_ending(child));
		ck_assert_int_eq(waitpid(child, NULL, 0), child);
		ck_assert(process_is_ending(child));
		close(pidfd);
		set_up();
	}
}
END_TEST

int main(void)
{
	Suite *s = suite_create("process");
	TCase *t = tcase_create("ending");
	SRunner *sr;
	int nr_failed;

	tcase_add_checked_fixture(t, set_up, tear_down);
	tcase_set_timeout(t, 60);
	tcase_add_test(t, lives);
	tcase_add_loop_test(t, is_killed, 0, 2);
	suite_add_tcase(s, t);
	sr = srunner_create(s);
	srunner_run_all(sr, CK_ENV);
	nr_failed = srunner_ntests_failed(sr);
	srunner_free(sr);
	return nr_failed ? 1 : 0;
}
