// SPDX-License-Identifier: GPL-2.0-only
//
// DOC: starting a restored VM
//
//   criu-vm restore                     supervisor                              QEMU
//        | fork ----------------------->| setsid, fork, exec ------------------>| -incoming defer -S
//        |<------------- "qemu PID" ----| waits                                 |
//        | QMP, planting, state ------------------------------------------------>|
//        | "go" ----------------------->| becomes criu-vm lazy-pages, starts the pager
//        |                                               |
//        |<------------------ "pager PID", "serving" ----| serves faults        |
//        | device state -------------------------------------------------------->| loads, touching guest RAM
//        | "run" --------------------------------------->| QMP is the pager's from now on, cont -->| runs
//        |<------------------------------- "running" ----|
//
// If the line is cut before "running", whoever cut it, QEMU is ended and everything removed.
//
// Of a VM that arrives from another host (receive.h) the restore is the receiver, and the pager says "attached" before any page has come;
// then, and from "committed" on a cut line changes nothing any more (vm_arrival.c):
//
//        | "arrived" ----------------------------------->| <- "serving"
//        | device state
//        | "commit" ------------------------------------>| makes the record <- "committed" <- "running"
#pragma once
#include <stdbool.h>
#include <stddef.h>
#include <sys/types.h>

#include "criu-vm/run_dir.h"

#define LAUNCH_MSG_MAX 512

struct launch_opts {
	const char *root, *name; // of the run directory
	const struct run_dir *rd;
	char *const *argv; // QEMU's
	const char *cwd;
	uid_t uid; // as whom QEMU runs; 0: as we do
	gid_t gid;
	const int *fds; // that QEMU inherits, with the numbers they have here
	size_t nr_fds;
	const char *log; // gets the supervisor's and pager's messages, and QEMU's output
};

struct launch {
	int fd; // the line
	pid_t supervisor, qemu;
	pid_t pager; // 0 until it has said so
	int qemu_pidfd;
};

#define LAUNCH_NONE ((struct launch){ .fd = -1, .qemu_pidfd = -1 })

int launch_start(const struct launch_opts *o, struct launch *l);
int launch_tell(const struct launch *l, const char *msg);
// Waits for this message; interruptible: no longer than until Ctrl-C (-EINTR). -EREMOTEIO: the pager said why it cannot go on (logged); -EPIPE: it ended; -ETIMEDOUT.
int launch_wait(struct launch *l, const char *msg, bool interruptible, int timeout_ms);
// Has the pager ended (-EPIPE), or said why it cannot go on (-EREMOTEIO)? Does not wait. Logs.
int launch_look(struct launch *l);
// Cuts the line and waits until pager and QEMU are gone and nothing is left. Accepts LAUNCH_NONE.
void launch_abort(struct launch *l);
// Lets go of a VM that runs by itself now. Accepts LAUNCH_NONE.
void launch_done(struct launch *l);

// The pager's side of the line.
int launch_send(int fd, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
