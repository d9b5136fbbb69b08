// SPDX-License-Identifier: GPL-2.0-only
//
// DOC: who is who around a restored VM
//
//     supervisor ---- parent of ----> QEMU
//         |                            ^
//         +---------- parent of ----> pager: serves QEMU's faults, one at a time; killed or replaced, another follows
//
// The supervisor starts pagers, learns how QEMU ends, and then has what is left of the VM removed. It understands none of the
// VM's state: what a version of criu-vm wrote, that version's pager reads. So it never has to be replaced. If it is killed, the
// VM does not notice; `criu-vm lazy-pages --name NAME` starts another.
#pragma once
#include <sys/types.h>

#include "criu-vm/run_dir.h"

// Is the supervisor of this VM. qemu: its pid, if it is our child, else 0. launch_fd, lock_fd: handed to the first pager, the
// line to the restore and the locked run directory; or -1 both. Ends by becoming `criu-vm lazy-pages --bury`. Returns only if it
// cannot: an enum cmd_exit.
int supervisor_run(const struct run_dir *rd, pid_t qemu, int launch_fd, int lock_fd);

// Starts a supervisor that outlives the caller, for a VM that has lost its own. 0 or -errno, logged.
int supervisor_start(const struct run_dir *rd, const struct vm_state *s);

// Removes all that criu-vm had made for a VM whose QEMU has ended, and writes to the log how it ended. status: as of waitpid(), or
// -1 if nobody knows. rd is locked by the caller. An enum cmd_exit.
int supervisor_bury(struct run_dir *rd, int status);
