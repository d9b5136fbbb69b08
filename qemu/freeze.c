// SPDX-License-Identifier: GPL-2.0-only
#include "qemu/freeze.h"

#include <dirent.h>
#include <errno.h>
#include <pthread.h>
#include <semaphore.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ptrace.h>
#include <sys/wait.h>
#include <unistd.h>

#include "util/cleanup.h"
#include "util/clock.h"
#include "util/io.h"
#include "util/log.h"
#include "util/size.h"

// include/linux/sched.h: threads that never run user code.
#define PF_IO_WORKER 0x00000010
#define PF_USER_WORKER 0x00004000

#define NAP_US 200

struct frozen_thread {
	pid_t tid;
	bool seized, stopped;
	int signal; // it was about to get this one when it stopped
};

// A thread of its own is the tracer: a stop that was asked for cannot be taken back, and a thread that did not reach it yet
// cannot be detached, but the end of the tracer does both.
struct qemu_freezer {
	pid_t pid;
	uint64_t deadline;
	pthread_t tracer;
	pid_t tracer_tid;
	sem_t frozen, thaw;
	int ret; // valid once frozen is posted
	struct frozen_thread *threads; // the tracer's
	size_t nr;
};

static bool is_known(const struct qemu_freezer *f, pid_t tid)
{
	for (size_t i = 0; i < f->nr; i++)
		if (f->threads[i].tid == tid)
			return true;
	return false;
}

enum nature { GONE, KERNEL_WORKER, ORDINARY };

// io_uring's and vhost's threads are the kernel's own, working in this process's memory.
static enum nature nature_of(pid_t pid, pid_t tid)
{
	_cleanup_free_ char *stat = NULL;
	const char *rest;
	unsigned flags;
	char path[64], state;
	size_t len;

	snprintf(path, sizeof path, "/proc/%d/task/%d/stat", pid, tid);
	if (io_read_file(path, 64 * KiB, &stat, &len))
		return GONE;
	rest = strrchr(stat, ')'); // behind the name: state ppid pgrp session tty tpgid flags
	if (!rest || sscanf(rest + 1, " %c %*d %*d %*d %*d %*d %u", &state, &flags) != 2)
		return ORDINARY;
	if (state == 'Z' || state == 'X')
		return GONE;
	return flags & (PF_IO_WORKER | PF_USER_WORKER) ? KERNEL_WORKER : ORDINARY;
}

static uint64_t thread_ran_ns(pid_t pid, pid_t tid)
{
	_cleanup_free_ char *text = NULL;
	char path[64];
	size_t len;

	snprintf(path, sizeof path, "/proc/%d/task/%d/schedstat", pid, tid);
	return io_read_file(path, 4 * KiB, &text, &len) ? 0 : strtoull(text, NULL, 10);
}

uint64_t qemu_ran_ns(pid_t pid)
{
	char path[64];
	const struct dirent *e;
	uint64_t ns = 0;
	DIR *d;

	snprintf(path, sizeof path, "/proc/%d/task", pid);
	d = opendir(path);
	while (d && (e = readdir(d))) {
		pid_t tid = atoi(e->d_name);

		if (tid > 0 && tid != pid && nature_of(pid, tid) == ORDINARY)
			ns += thread_ran_ns(pid, tid);
	}
	if (d)
		closedir(d);
	return ns;
}

static int seize(struct qemu_freezer *f, pid_t tid)
{
	struct frozen_thread *bigger = reallocarray(f->threads, f->nr + 1, sizeof *bigger), *t;

	if (!bigger)
		return -ENOMEM;
	f->threads = bigger;
	t = f->threads + f->nr;
	*t = (struct frozen_thread){ .tid = tid, .stopped = true };
	if (nature_of(f->pid, tid) == ORDINARY) {
		if (!ptrace(PTRACE_SEIZE, tid, 0, 0)) {
			ptrace(PTRACE_INTERRUPT, tid, 0, 0);
			t->seized = true;
			t->stopped = false;
		} else if (nature_of(f->pid, tid) != GONE) {
			log_err("process %d: its thread %d cannot be stopped: %s; run as root, and detach the debugger if one is "
				"attached",
				f->pid, tid, strerror(errno));
			return -EPERM;
		}
	}
	f->nr++;
	return 0;
}

// Seizes the threads that are not yet; *more: there was one.
static int seize_new(struct qemu_freezer *f, bool *more)
{
	char path[64];
	struct dirent *e;
	int ret = 0;
	DIR *d;

	*more = false;
	snprintf(path, sizeof path, "/proc/%d/task", f->pid);
	d = opendir(path);
	if (!d) {
		log_err("process %d: it has ended", f->pid);
		return -ESRCH;
	}
	while (!ret && (e = readdir(d))) {
		pid_t tid = atoi(e->d_name);

		if (tid <= 0 || is_known(f, tid))
			continue;
		*more = true;
		ret = seize(f, tid);
	}
	closedir(d);
	return ret;
}

// True once it has stopped or ended. A thread that gets a signal on its way stops too, and gets it at the thaw.
static bool has_stopped(struct frozen_thread *t)
{
	int status;
	pid_t got = waitpid(t->tid, &status, __WALL | WNOHANG);

	if (!got)
		return false;
	t->stopped = true;
	if (got < 0 || !WIFSTOPPED(status))
		t->seized = false; // it ended
	else if (status >> 16 != PTRACE_EVENT_STOP)
		t->signal = WSTOPSIG(status);
	return true;
}

static int wait_stopped(struct qemu_freezer *f)
{
	for (size_t i = 0; i < f->nr; i++) {
		while (!f->threads[i].stopped && !has_stopped(f->threads + i)) {
			if (clock_now_ns() >= f->deadline) {
				log_err("process %d: its thread %d does not stop: it may wait for a page of its memory or for a "
					"device",
					f->pid, f->threads[i].tid);
				return -ETIMEDOUT;
			}
			usleep(NAP_US);
		}
	}
	return 0;
}

static int stop_all(struct qemu_freezer *f)
{
	bool more = true;
	int ret = 0;

	// Only a thread that runs can start another: none new after all known ones stopped means that there are no more.
	while (!ret && more) {
		ret = seize_new(f, &more);
		if (!ret)
			ret = wait_stopped(f);
	}
	return ret;
}

static void *trace(void *arg)
{
	struct qemu_freezer *f = arg;

	f->tracer_tid = gettid();
	f->ret = stop_all(f);
	sem_post(&f->frozen);
	while (sem_wait(&f->thaw)) {
		// EINTR
	}
	for (size_t i = 0; i < f->nr; i++)
		if (f->threads[i].seized && f->threads[i].stopped)
			ptrace(PTRACE_DETACH, f->threads[i].tid, 0, f->threads[i].signal);
	return NULL;
}

int qemu_freeze(pid_t pid, int timeout_ms, struct qemu_freezer **out)
{
	struct qemu_freezer *f = calloc(1, sizeof *f);
	int ret;

	if (!f)
		return -ENOMEM;
	f->pid = pid;
	f->deadline = clock_now_ns() + (uint64_t)timeout_ms * NSEC_PER_MSEC;
	sem_init(&f->frozen, 0, 0);
	sem_init(&f->thaw, 0, 0);
	ret = -pthread_create(&f->tracer, NULL, trace, f);
	if (ret) {
		log_err("process %d: cannot be stopped: no thread to trace it from: %s", pid, strerror(-ret));
		free(f);
		return ret;
	}
	while (sem_wait(&f->frozen)) {
		// EINTR
	}
	ret = f->ret;
	if (ret)
		qemu_thaw(f);
	else
		*out = f;
	return ret;
}

void qemu_thaw(struct qemu_freezer *f)
{
	char path[64];

	if (!f)
		return;
	sem_post(&f->thaw);
	pthread_join(f->tracer, NULL);
	// Joined does not mean that the kernel is done with it, and what it had not stopped is let go only at its very end.
	snprintf(path, sizeof path, "/proc/self/task/%d", f->tracer_tid);
	while (!access(path, F_OK))
		usleep(NAP_US);
	sem_destroy(&f->frozen);
	sem_destroy(&f->thaw);
	free(f->threads);
	free(f);
}
