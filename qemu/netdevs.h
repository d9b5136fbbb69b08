// SPDX-License-Identifier: GPL-2.0-only
// The host's network interfaces that a VM uses: its taps.
#pragma once
#include <stdbool.h>
#include <stddef.h>
#include <sys/types.h>

struct qemu_vm;

struct qemu_netdev {
	char *id;     // of the -netdev or -nic; of a -nic without one "#nicN", N counting all -nic from 0
	char *ifname; // NULL: the command line does not say
	unsigned queues;
	bool vhost;
};

// Those of a command line (qemu_now_cmdline()) or of what a peer says is one: -netdev and -nic of the types tap and bridge. *list is
// freed by qemu_netdevs_free(). Logs; -EOPNOTSUPP: one is a -net tap; -EINVAL: makes no sense; -ENOMEM.
int qemu_netdevs_list(char *const *argv, int argc, struct qemu_netdev **list, size_t *nr);
void qemu_netdevs_free(struct qemu_netdev *list, size_t nr); // accepts NULL

// Fills in the ifname that a helper or the kernel has chosen, by what the VM has open. Blocks on QMP. Logs; -EOPNOTSUPP: it cannot
// be told which is whose.
int qemu_netdevs_find(struct qemu_vm *vm, struct qemu_netdev *list, size_t nr);

// The interface behind a process's descriptor of /dev/net/tun; false if it is none.
bool qemu_fd_tap(pid_t pid, int fd, char name[64]);
