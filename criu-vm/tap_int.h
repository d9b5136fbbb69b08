// SPDX-License-Identifier: GPL-2.0-only
// Network interfaces by netlink. Functions that return int: 0 or -errno; only links_open() logs.
#pragma once
#include "criu-vm/tap.h"

struct nl_sock;

struct link {
	int index, master; // master 0: none
	unsigned mtu, flags;
	char name[IFNAMSIZ];
	char kind[16]; // "tun", "bridge", ...; "": hardware
	bool tap, vnet_hdr; // of a tun
	unsigned queues;
	bool filters;  // of a bridge: VLANs
	bool isolated; // of a bridge's port
};

// A port's VLAN in a bridge.
struct link_vlan {
	uint16_t vid, flags; // BRIDGE_VLAN_INFO_*
};

// pid: as in tap.h. *s is freed by links_close().
int links_open(pid_t pid, struct nl_sock **s);
void links_close(struct nl_sock *s);

// By name, or, that being NULL, by index.
int link_get(struct nl_sock *s, const char *name, int index, struct link *l);
int link_set_up(struct nl_sock *s, const char *name, bool up);
int link_set_mtu(struct nl_sock *s, int index, unsigned mtu);
int link_set_address(struct nl_sock *s, int index, const uint8_t address[6]);
int link_set_master(struct nl_sock *s, int index, int master);

// In ascending order; there is room for TAP_VLANS_MAX.
int link_vlans(struct nl_sock *s, int index, struct link_vlan *v, size_t *nr);
// The port has these, and no others.
int link_set_vlans(struct nl_sock *s, int index, const struct link_vlan *v, size_t nr);
