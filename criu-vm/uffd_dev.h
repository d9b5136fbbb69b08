// SPDX-License-Identifier: GPL-2.0-only
// A QEMU that is not root may not call userfaultfd(2): it gets an open /dev/userfaultfd from us, for a moment.
#pragma once
#include <sys/types.h>

struct qmp;

// *target_fd: its number in QEMU; -1 if QEMU is root and needs none. Logs.
int uffd_dev_give(struct qmp *q, pid_t pid, int *target_fd);
void uffd_dev_take_back(struct qmp *q, int target_fd);
