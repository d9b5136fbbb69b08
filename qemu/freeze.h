// SPDX-License-Identifier: GPL-2.0-only
// Every thread of a process stopped, so that nothing in it writes memory.
#pragma once
#include <stdint.h>
#include <sys/types.h>

struct qemu_freezer;

// Stops pid's threads by ptrace, those too that appear meanwhile, and waits until each has stopped. io_uring's and vhost's
// kernel threads in it run on: they have no work once QMP `stop` has drained the VM, and a ring planted there still answers. A
// vCPU that waits in a userfault does not stop before its page comes: after timeout_ms all is undone. If the calling process
// dies, the kernel thaws pid by itself. Freeze and thaw may be called from any thread. Blocks. Logs and returns -ETIMEDOUT,
// -ESRCH (it ended), -EPERM (no right to, or a debugger has it).
int qemu_freeze(pid_t pid, int timeout_ms, struct qemu_freezer **f);

// All threads run on. Accepts NULL.
void qemu_thaw(struct qemu_freezer *f);

// CPU time, in ns, that threads of pid have had which are not its first one, nor the kernel's own: vCPUs are among them. It stands still
// while they are stopped, but for some microseconds each time that they are stopped or let go. 0: the kernel does not tell.
uint64_t qemu_ran_ns(pid_t pid);
