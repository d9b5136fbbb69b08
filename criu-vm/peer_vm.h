// SPDX-License-Identifier: GPL-2.0-only
// What another host's description of a VM may make this host do: as whom QEMU runs, which binary is run, in which folder. The command line
// itself is rebuilt from what is allowed (qemu/cmdline.h).
#pragma once
#include <stdbool.h>
#include <sys/types.h>

#include "images/vm.pb-c.h"

struct peer_vm_opts {
	const char *qemu; // binary that somebody of this host has named; NULL: the description's
	const char *user; // as whom QEMU runs, as they have said; NULL: as whom it ran
	bool is_root;     // the other side is root of this very host, or who we are
	const char *give_qemu, *give_user; // how they say so, for messages: "start its server with --qemu FILE"
};

// By name or number. -ENOENT.
int peer_vm_user(const char *value, uid_t *uid, gid_t *gid);

// What is wrong with it beyond what img_vm_fault() says; NULL: nothing.
const char *peer_vm_fault(const VmEntry *vm);
// Of one without faults: may it be here? Sets user and folder as they are to be here. name: for messages. Logs; -ENOENT, -EPERM.
int peer_vm_check(const struct peer_vm_opts *o, VmEntry *vm, const char *name);
