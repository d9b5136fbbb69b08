// SPDX-License-Identifier: GPL-2.0-only
// The process that stays with a restored VM: attaches to what its run directory describes, serves it, and cleans up after it.
#pragma once
#include "criu-vm/run_dir.h"

// rd is the VM's run directory, locked by the caller; the callee's from now on. launch_fd: the line to the restore that
// starts this VM (launch.h). Returns an enum cmd_exit when the VM has ended or cannot be served; logs.
int vm_pager_run(struct run_dir *rd, int launch_fd);
