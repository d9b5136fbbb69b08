// SPDX-License-Identifier: GPL-2.0-only
// A VM's network interface on the host: a tap, made at the destination as the source's is, down until the VM is to run.
#pragma once
#include <net/if.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#define TAP_VLANS_MAX 4094
#define TAP_QUEUES_MAX 256

struct tap_desc {
	char bridge[IFNAMSIZ]; // that it is joined to, "": none
	unsigned mtu;
	unsigned queues;
	bool vnet_hdr;
	bool up;
	bool filters;      // its bridge keeps VLANs apart, and these are the port's:
	bool pvid;         // the first is the port's own, sent untagged; the others are tagged
	size_t nr_vlans;
	uint16_t vlans[TAP_VLANS_MAX];
};

// What a network interface may be called, as the kernel has it; also of what a peer says.
bool tap_is_name(const char *name);

// Where pid is given, the interface is in the network namespace of that process; 0: in ours. These do not wait for anything but the
// kernel. All log, with what to do.

// -ENODEV: there is none; -EOPNOTSUPP: it is no tap, or joined to what is no Linux bridge, or its VLANs are of a kind that cannot be told.
int tap_describe(pid_t pid, const char *ifname, struct tap_desc *d);

// Makes one, down, in our network namespace; it goes away with the last of its descriptors. ifname: NULL: "vmtapN", N being free;
// name says what it is called. fds: as many as queues, close-on-exec, the caller's. The bridge has to be there. mtu 0: the kernel's.
// -EEXIST: there is such an interface already; -ENODEV: no such bridge; -EINVAL: a description that makes no sense; else the kernel's.
int tap_create(const struct tap_desc *wanted, const char *ifname, char name[IFNAMSIZ], int *fds, unsigned queues);

int tap_set_up(pid_t pid, const char *ifname, bool up);
