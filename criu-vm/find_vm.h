// SPDX-License-Identifier: GPL-2.0-only
#pragma once
#include <stdbool.h>
#include <stddef.h>
#include <sys/types.h>

#include "criu-vm/run_dir.h"

// What a person calls a VM (a NAME that runs here, a pid, the path of a QMP socket) as qemu_vm_open() takes it. One that criu-vm
// runs has a monitor for commands, which is preferred. -ENOENT: there is no such NAME; -ESRCH: it does not run. Logs.
int find_vm(const char *run_root, const char *vm, char *spec, size_t size);

// The NAME of the VM that has this QEMU. False: it is none of ours.
bool find_vm_name(const char *run_root, pid_t qemu, char name[RUN_DIR_NAME_MAX + 1]);
