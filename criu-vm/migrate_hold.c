// SPDX-License-Identifier: GPL-2.0-only
#include "criu-vm/migrate_hold.h"

#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "qemu/freeze.h"
#include "util/cleanup.h"
#include "util/clock.h"
#include "util/io.h"
#include "util/log.h"
#include "util/process.h"
#include "util/size.h"

#define FREEZE_MS 5000
#define END_MS 30000
#define TRACED_NS (30 * NSEC_PER_SEC)
#define TRACED_STEP_US 20000
#define RAN_NS (20 * NSEC_PER_MSEC)

static int send_signal(const struct hold *h, int signum)
{
	return syscall(SYS_pidfd_send_signal, h->pidfd, signum, NULL, 0) < 0 ? -errno : 0;
}

int hold_open(struct hold *h, pid_t pid, uint64_t start)
{
	*h = (struct hold){ .pid = pid, .pidfd = (int)syscall(SYS_pidfd_open, pid, 0) };
	if (h->pidfd < 0)
		return -errno;
	if (process_start(pid) == start)
		return 0;
	hold_close(h);
	return -ESRCH;
}

static bool is_traced(pid_t pid)
{
	static const char key[] = "\nTracerPid:";
	_cleanup_free_ char *text = NULL;
	const char *at;
	char path[40];
	size_t len;

	snprintf(path, sizeof path, "/proc/%d/status", pid);
	at = io_read_file(path, 64 * KiB, &text, &len) ? NULL : strstr(text, key);
	return at && atoi(at + strlen(key));
}

static void wait_untraced(pid_t pid)
{
	uint64_t end = clock_now_ns() + TRACED_NS;

	while (is_traced(pid) && clock_now_ns() < end)
		usleep(TRACED_STEP_US);
}

int hold_begin(struct hold *h)
{
	int r = send_signal(h, SIGSTOP);

	if (r || h->freezer)
		return r;
	wait_untraced(h->pid);
	if (qemu_freeze(h->pid, FREEZE_MS, &h->freezer)) {
		log_warn("QEMU %d is stopped by a signal alone, and must not be let go on: its VM is elsewhere, or may be", h->pid);
		return send_signal(h, SIGSTOP);
	}
	// It counts as stopped by a signal no longer, which it is to be again when the tracer lets go of it. It runs in neither case.
	r = send_signal(h, SIGCONT);
	return r ? r : send_signal(h, SIGSTOP);
}

int hold_go_on(struct hold *h)
{
	int r;

	if (!h->freezer)
		wait_untraced(h->pid);
	r = send_signal(h, SIGCONT);
	qemu_thaw(steal_ptr(&h->freezer));
	return r;
}

int hold_kill(struct hold *h)
{
	struct pollfd p = { .fd = h->pidfd, .events = POLLIN };
	int r = send_signal(h, SIGKILL);

	if (r && r != -ESRCH)
		return r;
	qemu_thaw(steal_ptr(&h->freezer)); // a thread that is traced ends only when it is let go
	return poll(&p, 1, END_MS) > 0 ? 0 : -ETIMEDOUT;
}

void hold_close(struct hold *h)
{
	qemu_thaw(steal_ptr(&h->freezer));
	if (h->pidfd >= 0)
		close(steal_fd(&h->pidfd));
}

bool hold_has_run(pid_t pid, uint64_t ran_ns)
{
	return ran_ns && qemu_ran_ns(pid) > ran_ns + RAN_NS;
}
