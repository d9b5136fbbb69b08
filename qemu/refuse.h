// SPDX-License-Identifier: GPL-2.0-only
// What makes a VM impossible to dump, found before anything is touched.
#pragma once
#include <stdbool.h>
#include <stddef.h>

struct qemu_vm;
struct qemu_ramblock;

// What criu-vm itself has put into the VM, which is no reason against a dump.
struct qemu_ours {
	int uffd;   // descriptor of a userfaultfd in QEMU, or -1
	bool paged; // a pager of ours serves its page faults, and has its RAM mapped for that
};

// Looks at the VM's open files, its devices, disks, jobs and RAM, and at what its command line says of them. Logs every
// reason against a dump, each with what to change. Blocks on QMP; changes nothing in the VM, which may run. 0, or -EOPNOTSUPP
// if there is a reason, or those of qmp_call() when the VM cannot be asked.
int qemu_refuse(struct qemu_vm *vm, const struct qemu_ramblock *blocks, size_t nr, const struct qemu_ours *ours);
