// SPDX-License-Identifier: GPL-2.0-only
// A running QEMU: its process, its QMP monitor, and what it says about itself.
#pragma once
#include <stdbool.h>
#include <sys/types.h>

struct qmp;

struct qemu_vm {
	pid_t pid;
	int pidfd; // readable when QEMU has ended
	struct qmp *qmp;
	char *qmp_path; // as we reach it
	char *exe; // the binary's path, as QEMU sees it
	char **argv; // NULL-terminated
	int argc;
	char *cwd;
	uid_t uid; // effective
	gid_t gid;
	char *machine; // full machine type: "pc-i440fx-7.2"
	char *run_state; // query-status, when opened: "running", "paused", ...
	char *name; // -name, or NULL
	bool kvm;

	char *cmdline; // backs argv
};

// spec: a decimal pid, or the path of a QMP socket. Blocks on QMP, some seconds at most. Logs and returns -ESRCH (no such
// process), -EPERM / -EACCES (not ours to look at), -ENOTSUP (no QEMU), -ENXIO (a QEMU without QMP socket; the message names
// the option to add), and those of qmp_open().
int qemu_vm_open(const char *spec, struct qemu_vm **vm);

// The ids that a process acts with, which those of /proc/PID are not always: a process that dropped its privileges has it owned
// by root. Logs and returns -ESRCH, or what reading /proc gave.
int qemu_process_ids(pid_t pid, uid_t *uid, gid_t *gid);

// Accepts NULL and half-built.
void qemu_vm_close(struct qemu_vm *vm);
