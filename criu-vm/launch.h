// SPDX-License-Identifier: GPL-2.0-only
//
// DOC: starting a restored VM
//
//   criu-vm restore                     pager                                QEMU
//        | fork ----------------------->| setsid, fork, exec --------------->| -incoming defer -S
//        |<------------- "qemu PID" ----| waits                              |
//        | QMP, planting, state --------------------------------------------->|
//        | "go" ----------------------->| exec criu-vm lazy-pages --name NAME |
//        |<--------------- "serving" ---| serves faults                      |
//        | device state ---------------------------------------------------->| loads, touching guest RAM
//        | "run" ---------------------->| QMP is the pager's from now on, cont -->| runs
//        |<--------------- "running" ---|
//
// If the line is cut before "running", whoever cut it, the pager ends QEMU and removes everything. The pager is QEMU's
// parent, so it learns how QEMU ended.
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
	const char *log; // gets the pager's messages and QEMU's output
};

struct launch {
	int fd; // the line
	pid_t pager, qemu;
	int qemu_pidfd;
};

#define LAUNCH_NONE ((struct launch){ .fd = -1, .qemu_pidfd = -1 })

int launch_start(const struct launch_opts *o, struct launch *l);
int launch_tell(const struct launch *l, const char *msg);
// Waits for this message; interruptible: no longer than until Ctrl-C (-EINTR). -EREMOTEIO: the pager said why it cannot go on (logged); -EPIPE: it ended; -ETIMEDOUT.
int launch_wait(const struct launch *l, const char *msg, bool interruptible, int timeout_ms);
// Cuts the line and waits until pager and QEMU are gone and nothing is left. Accepts LAUNCH_NONE.
void launch_abort(struct launch *l);
// Lets go of a VM that runs by itself now. Accepts LAUNCH_NONE.
void launch_done(struct launch *l);

// The pager's side of the line.
int launch_send(int fd, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
