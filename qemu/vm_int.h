// SPDX-License-Identifier: GPL-2.0-only
#pragma once
#include <stddef.h>

struct qemu_vm;

// Where a path of QEMU's (relative to its folder, in its mount namespace) is reached from here. 0 or -ENAMETOOLONG.
int qemu_vm_path(const struct qemu_vm *vm, const char *path, char *out, size_t size);

// Path of the nth unix socket on which a command line has QEMU serve QMP, from 0. The caller's (free()), NULL if there is none.
char *qemu_argv_qmp_path(char *const *argv, int argc, size_t nth);
