// SPDX-License-Identifier: GPL-2.0-only
// A child that is followed from instruction to instruction, or from system call to system call, and killed where a test wants it.
#pragma once
#include <check.h>
#include <errno.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/ptrace.h>
#include <sys/user.h>
#include <sys/wait.h>
#include <unistd.h>

// Stops before the job. Its end is that of the process, status 0.
static inline pid_t traced_fork(void (*job)(void *arg), void *arg)
{
	pid_t pid = fork();
	int status;

	ck_assert_int_ge(pid, 0);
	if (!pid) {
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		ptrace(PTRACE_TRACEME, 0, NULL, NULL);
		raise(SIGSTOP);
		job(arg);
		_exit(0);
	}
	ck_assert_int_eq(waitpid(pid, &status, 0), pid);
	ck_assert(WIFSTOPPED(status));
	ck_assert_int_eq(ptrace(PTRACE_SETOPTIONS, pid, NULL, PTRACE_O_EXITKILL | PTRACE_O_TRACESYSGOOD), 0);
	return pid;
}

// One instruction more (PTRACE_SINGLESTEP), or up to the next entry to or exit from the kernel (PTRACE_SYSCALL). False: it has ended.
static inline bool traced_step(pid_t pid, enum __ptrace_request how)
{
	int status, signum = 0;

	do {
		ck_assert_int_eq(ptrace(how, pid, NULL, signum), 0);
		ck_assert_int_eq(waitpid(pid, &status, 0), pid);
		if (WIFEXITED(status)) {
			ck_assert_int_eq(WEXITSTATUS(status), 0);
			return false;
		}
		ck_assert_msg(WIFSTOPPED(status), "the child was killed by signal %d", WTERMSIG(status));
		signum = WSTOPSIG(status);
	} while (signum != SIGTRAP && signum != (SIGTRAP | 0x80));
	return true;
}

// The system call that it is about to enter, or has just left; -1: it is not.
static inline long traced_entering(pid_t pid)
{
	struct user_regs_struct regs;

	ck_assert_int_eq(ptrace(PTRACE_GETREGS, pid, NULL, &regs), 0);
	return (long)regs.rax == -ENOSYS ? (long)regs.orig_rax : -1;
}

static inline long traced_left(pid_t pid)
{
	struct user_regs_struct regs;

	ck_assert_int_eq(ptrace(PTRACE_GETREGS, pid, NULL, &regs), 0);
	return (long)regs.rax == -ENOSYS ? -1 : (long)regs.orig_rax;
}

static inline void traced_kill(pid_t pid)
{
	int status;

	kill(pid, SIGKILL);
	ck_assert_int_eq(waitpid(pid, &status, 0), pid);
	ck_assert(WIFSIGNALED(status));
}
