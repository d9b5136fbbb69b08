// SPDX-License-Identifier: GPL-2.0-only
// Where this host keeps what has to outlive a reboot: CRIU_VM_STATE_DIR in the environment, or /var/lib/criu-vm.
#pragma once
#include <limits.h>

#define STATE_DIR_DEFAULT "/var/lib/criu-vm"

// STATE_DIR/SUB. Returns buf.
const char *state_dir(const char *sub, char buf[PATH_MAX]);
// Makes that folder, and those above it, mode 0700, if they are not there; what is made is on disk. 1: it is new; 0: it was there; or -errno.
// Silent.
int state_dir_make(const char *path);
