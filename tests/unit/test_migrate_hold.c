// SPDX-License-Identifier: GPL-2.0-only
// A process that must not run, whoever says what to it. It is started from a session leader, as by a login shell, in a process group of its
// own, and has a thread that works whenever it can.
#include <check.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include "criu-vm/migrate_hold.h"
#include "qemu/freeze.h"
#include "util/clock.h"
#include "util/log.h"
#include "util/process.h"

#define LIFE_NS (30 * NSEC_PER_SEC) // should the test be killed
#define PATIENCE_NS (20 * NSEC_PER_SEC)

static struct shared {
	pid_t vm;
	uint64_t turns;
} *shared;
static pid_t shell;
static int exit_shell; // closed: it exits
static struct hold hold;

static uint64_t turns(void)
{
	return __atomic_load_n(&shared->turns, __ATOMIC_RELAXED);
}

static void *work(void *ctx)
{
	uint64_t end = clock_now_ns() + LIFE_NS;

	while (clock_now_ns() < end)
		__atomic_fetch_add(&shared->turns, 1, __ATOMIC_RELAXED);
	_exit(ctx != NULL);
}

static void __attribute__((noreturn)) be_vm(void)
{
	pthread_t thread;

	setpgid(0, 0);
	pthread_create(&thread, NULL, work, NULL);
	for (;;)
		pause();
}

static void __attribute__((noreturn)) be_shell(int line)
{
	char byte;
	pid_t pid;

	setsid();
	pid = fork();
	if (!pid)
		be_vm();
	shared->vm = pid;
	if (read(line, &byte, 1) < 0)
		_exit(1);
	_exit(0);
}

static void wait_turns(void)
{
	uint64_t was = turns();

	while (turns() == was || !shared->vm)
		usleep(1000);
}

static void set_up(void)
{
	int line[2];

	log_init(getenv("VERBOSE") ? 2 : -1, LOG_WARN, NULL, false);
	shared = mmap(NULL, sizeof *shared, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	prctl(PR_SET_CHILD_SUBREAPER, 1);
	ck_assert_int_eq(pipe2(line, O_CLOEXEC), 0);
	shell = fork();
	if (!shell) {
		close(line[1]);
		be_shell(line[0]);
	}
	close(line[0]);
	exit_shell = line[1];
	wait_turns();
	ck_assert_int_eq(hold_open(&hold, shared->vm, process_start(shared->vm)), 0);
}

static void end_shell(void)
{
	close(exit_shell);
	exit_shell = -1;
	ck_assert_int_eq(waitpid(shell, NULL, 0), shell);
}

static void tear_down(void)
{
	kill(shared->vm, SIGKILL);
	hold_close(&hold);
	if (exit_shell >= 0)
		end_shell();
	waitpid(shared->vm, NULL, 0);
	munmap(shared, sizeof *shared);
}

static void wait_state(char state)
{
	for (uint64_t end = clock_now_ns() + PATIENCE_NS; process_state(shared->vm) != state && clock_now_ns() < end;)
		usleep(1000);
}

static void expect_stands(char state)
{
	uint64_t was = turns();

	wait_state(state);
	usleep(200000);
	ck_assert_int_eq(process_state(shared->vm), state);
	ck_assert_uint_eq(turns(), was);
}

// The kernel sends SIGHUP and SIGCONT to who is stopped by a signal then; this one it would end.
START_TEST(shell_ends)
{
	ck_assert_int_eq(kill(shared->vm, SIGSTOP), 0);
	wait_state('T');
	ck_assert_int_eq(hold_begin(&hold), 0);
	end_shell();
	expect_stands('t');
	hold_close(&hold);
	expect_stands('T');
}
END_TEST

START_TEST(somebody_lets_it_go_on)
{
	uint64_t ran;

	ck_assert_int_eq(hold_begin(&hold), 0);
	ran = qemu_ran_ns(shared->vm);
	ck_assert_uint_gt(ran, 0);
	ck_assert_int_eq(kill(shared->vm, SIGCONT), 0);
	expect_stands('t');
	ck_assert(!hold_has_run(shared->vm, ran));
	ck_assert_int_eq(hold_begin(&hold), 0); // is stopped again when it is let go
	hold_close(&hold);
	expect_stands('T');
	ck_assert(!hold_has_run(shared->vm, ran));
	ck_assert_int_eq(kill(shared->vm, SIGCONT), 0);
	for (uint64_t end = clock_now_ns() + PATIENCE_NS; !hold_has_run(shared->vm, ran) && clock_now_ns() < end;)
		usleep(1000);
	ck_assert(hold_has_run(shared->vm, ran));
	ck_assert(!hold_has_run(shared->vm, 0)); // it is not known
}
END_TEST

START_TEST(goes_on)
{
	ck_assert_int_eq(hold_begin(&hold), 0);
	expect_stands('t');
	ck_assert_int_eq(hold_go_on(&hold), 0);
	wait_turns();
	ck_assert(!process_is_stopped(shared->vm));
}
END_TEST

START_TEST(killed)
{
	ck_assert_int_eq(hold_begin(&hold), 0);
	ck_assert_int_eq(hold_kill(&hold), 0);
	ck_assert_int_ne(process_state(shared->vm), 't');
}
END_TEST

// Who held it before lets go a little later.
static void *let_go(void *freezer)
{
	usleep(300000);
	qemu_thaw(freezer);
	return NULL;
}

START_TEST(held_by_another)
{
	struct qemu_freezer *other;
	pthread_t thread;

	ck_assert_int_eq(qemu_freeze(shared->vm, 1000, &other), 0);
	pthread_create(&thread, NULL, let_go, other);
	ck_assert_int_eq(hold_begin(&hold), 0);
	pthread_join(thread, NULL);
	expect_stands('t');
}
END_TEST

START_TEST(another_process)
{
	struct hold h;

	ck_assert_int_eq(hold_open(&h, shared->vm, process_start(shared->vm) + 1), -ESRCH);
	ck_assert_int_eq(h.pidfd, -1);
}
END_TEST

int main(void)
{
	TCase *t = tcase_create("hold");
	Suite *s = suite_create("migrate hold");
	SRunner *r = srunner_create(s);
	int failed;

	tcase_add_checked_fixture(t, set_up, tear_down);
	tcase_set_timeout(t, 60);
	tcase_add_test(t, shell_ends);
	tcase_add_test(t, somebody_lets_it_go_on);
	tcase_add_test(t, goes_on);
	tcase_add_test(t, killed);
	tcase_add_test(t, held_by_another);
	tcase_add_test(t, another_process);
	suite_add_tcase(s, t);
	srunner_run_all(r, CK_NORMAL);
	failed = srunner_ntests_failed(r);
	srunner_free(r);
	return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
