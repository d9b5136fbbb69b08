// SPDX-License-Identifier: GPL-2.0-only
#pragma once
#include <stddef.h>

// What a person calls a VM (a NAME that runs here, a pid, the path of a QMP socket) as qemu_vm_open() takes it.
// -ENOENT: there is no such NAME; logged.
int find_vm(const char *run_root, const char *vm, char *spec, size_t size);
