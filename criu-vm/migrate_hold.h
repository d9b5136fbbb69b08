// SPDX-License-Identifier: GPL-2.0-only
//
// DOC: a QEMU that must not run, since its VM is elsewhere, or may be
//
// A signal has stopped it (SIGSTOP), so that it stands whoever of us is killed. That is not enough for long: when the shell
// that it was started from ends, the kernel sends SIGHUP and SIGCONT to each of its process groups that has a stopped member; and anybody's
// SIGCONT lets it go on, up to what was said to its monitors meanwhile. So who sees to it holds it by a tracer, too, as long as it is there:
// nothing lets it run then but SIGKILL, and for the kernel it is not stopped by a signal, that being pending.
//
// That it has not run between two of them is seen by the CPU time of its vCPUs (qemu_ran_ns()).
#pragma once
#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

struct qemu_freezer;

struct hold {
	pid_t pid;
	int pidfd; // -1: it has ended
	struct qemu_freezer *freezer;
};

#define HOLD_NONE { .pidfd = -1 }

// That process of process_start(). -ESRCH: it has ended; -errno. Silent.
int hold_open(struct hold *h, pid_t pid, uint64_t start);
// Stopped by a signal from here on: 0, or -errno, silently. By a tracer, too, if it can be, else that is logged; waits for somebody
// else's to let go of it, for half a minute.
int hold_begin(struct hold *h);
// Lets it go on. -errno, silently.
int hold_go_on(struct hold *h);
// Ends it. -errno, silently.
int hold_kill(struct hold *h);
// The tracer lets go of it; the signal does not.
void hold_close(struct hold *h);

// Of what had run for so long when it was stopped (0: not known): it has run since, by more than what being stopped takes.
bool hold_has_run(pid_t pid, uint64_t ran_ns);
