// SPDX-License-Identifier: GPL-2.0-only
// What a VM is now, not what it was started as: hot-plug, changed media, snapshots and block jobs make its command line stale.
#pragma once
#include <stddef.h>
#include <stdint.h>

struct qemu_vm;

// The command line that makes the VM as it is now: that of its start, with the differences that can be rebuilt (devices, memory and
// CPUs that were plugged or unplugged, media that were changed, files under its disks) put in. *argv, NULL-terminated, is the
// caller's, freed by qemu_cmdline_free(). Logs every difference that cannot be rebuilt, with what to do: -EOPNOTSUPP. Blocks on
// QMP; changes nothing in the VM, which may run.
int qemu_now_cmdline(struct qemu_vm *vm, char ***argv, int *argc);

// A mark that is another one when devices, disks or media have been changed. Takes a millisecond or two, for a VM that is
// to stand still only shortly.
int qemu_now_mark(struct qemu_vm *vm, uint64_t *mark);
// 0, or -EAGAIN (logged): the mark is another one now.
int qemu_now_same(struct qemu_vm *vm, uint64_t mark);
