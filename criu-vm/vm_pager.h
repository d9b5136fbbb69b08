// SPDX-License-Identifier: GPL-2.0-only
// The process that serves a restored VM: attaches to what its run directory describes, and stays as long as it can.
#pragma once
#include "criu-vm/run_dir.h"

// Exit status beside enum cmd_exit: another pager is to follow at once.
#define VM_PAGER_REPLACED 4

// rd is the VM's run directory, locked by the caller. launch_fd: the line to the restore that starts this VM (launch.h), or -1:
// the VM runs, its pager was lost or is to be replaced. Returns CMD_OK when QEMU has ended, VM_PAGER_REPLACED, or CMD_FAILED;
// logs. Cleans up nothing but its own.
int vm_pager_run(struct run_dir *rd, int launch_fd);
