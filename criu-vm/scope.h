// SPDX-License-Identifier: GPL-2.0-only
// A transient scope of systemd's: a control group that outlives who asked for it, and goes with its last process.
#pragma once
#include <sys/types.h>

// Starts criu-vm-NAME.scope in criu-vm.slice around a process, its memory kept out of the host's swap, and waits until it is in there.
// *unit and *group (path from the hierarchies' root) are the caller's. Blocks: milliseconds, 5 s for each step that systemd does not
// answer, half a minute if nobody does on the bus. -EEXIST: there is such a unit; other errors are logged as warnings.
int scope_start(const char *name, pid_t pid, char **unit, char **group);
