// SPDX-License-Identifier: GPL-2.0-only
// What taps need of rtnetlink: links, and the VLANs of bridge ports, which have no other way in.
#include <errno.h>
#include <fcntl.h>
#include <linux/if_bridge.h>
#include <linux/if_link.h>
#include <linux/if_tun.h>
#include <linux/rtnetlink.h>
#include <netlink/attr.h>
#include <netlink/errno.h>
#include <netlink/msg.h>
#include <netlink/netlink.h>
#include <netlink/socket.h>
#include <pthread.h>
#include <sched.h>
#include <stdio.h>
#include <string.h>

#include "criu-vm/tap_int.h"
#include "util/cleanup.h"
#include "util/log.h"
#include "util/size.h"

// ---- the line to the kernel

struct opening {
	struct nl_sock *s;
	int ns; // network namespace to do it in, -1: ours
	int err;
};

// A netlink socket stays in the network namespace that it was made in, whoever uses it.
static void *open_socket(void *arg)
{
	struct opening *o = arg;

	if (o->ns >= 0 && setns(o->ns, CLONE_NEWNET))
		o->err = -errno;
	else if (nl_connect(o->s, NETLINK_ROUTE))
		o->err = -ECONNREFUSED;
	return NULL;
}

// In a thread of its own, whose namespace is nobody's but its own.
static int open_there(struct opening *o, pid_t pid)
{
	_cleanup_close_ int ns = -1;
	pthread_t thread;
	char path[64];
	int r;

	snprintf(path, sizeof path, "/proc/%d/ns/net", pid);
	ns = open(path, O_RDONLY | O_CLOEXEC);
	if (ns < 0)
		return -errno;
	o->ns = ns;
	r = -pthread_create(&thread, NULL, open_socket, o);
	if (!r)
		pthread_join(thread, NULL);
	return r ?: o->err;
}

int links_open(pid_t pid, struct nl_sock **s)
{
	struct opening o = { .s = nl_socket_alloc(), .ns = -1 };
	int r = o.s ? 0 : -ENOMEM;

	if (!r)
		nl_socket_disable_auto_ack(o.s);
	if (!r && pid)
		r = open_there(&o, pid);
	else if (!r)
		r = (open_socket(&o), o.err);
	if (!r) {
		nl_socket_enable_msg_peek(o.s); // a bridge's ports can have thousands of VLANs
		*s = o.s;
		return 0;
	}
	nl_socket_free(o.s);
	if (pid)
		log_err("process %d: cannot look at its network: %s; run as root", pid, strerror(-r));
	else
		log_err("cannot look at this host's network: %s", strerror(-r));
	return r;
}

void links_close(struct nl_sock *s)
{
	nl_socket_free(s);
}

static int on_error(struct sockaddr_nl *from, struct nlmsgerr *e, void *err)
{
	(void)from;
	*(int *)err = e->error;
	return NL_STOP;
}

// Sends it, frees it and takes what comes back: one answer (take may be NULL: only whether it was done), or all of a dump.
static int ask(struct nl_sock *s, struct nl_msg *m, int (*take)(struct nl_msg *m, void *ctx), void *ctx)
{
	struct nl_cb *cb = nl_cb_alloc(NL_CB_DEFAULT);
	int err = 0, r = -NLE_NOMEM;

	if (cb && m) {
		nl_cb_err(cb, NL_CB_CUSTOM, on_error, &err);
		if (take)
			nl_cb_set(cb, NL_CB_VALID, NL_CB_CUSTOM, take, ctx);
		r = nl_send_auto(s, m);
		if (r >= 0)
			r = nl_recvmsgs(s, cb);
	}
	nlmsg_free(m);
	nl_cb_put(cb);
	if (err)
		return err;
	if (r < 0)
		log_dbg("netlink: %s", nl_geterror(r));
	return r >= 0 ? 0 : r == -NLE_NOMEM ? -ENOMEM : -EIO;
}

// A message about an interface, with room for the VLANs of a port.
static struct nl_msg *request(int type, int flags, const struct ifinfomsg *i)
{
	struct nl_msg *m = nlmsg_alloc_size(64 * KiB);

	if (m && (!nlmsg_put(m, NL_AUTO_PORT, NL_AUTO_SEQ, type, 0, NLM_F_REQUEST | flags) || nlmsg_append(m, (void *)i, sizeof *i, NLMSG_ALIGNTO))) {
		nlmsg_free(m);
		m = NULL;
	}
	return m;
}

// ---- links

static void take_tun(struct link *l, struct nlattr *data)
{
	struct nlattr *a[IFLA_TUN_MAX + 1];

	if (nla_parse_nested(a, IFLA_TUN_MAX, data, NULL))
		return;
	l->tap = a[IFLA_TUN_TYPE] && nla_get_u8(a[IFLA_TUN_TYPE]) == IFF_TAP;
	l->vnet_hdr = a[IFLA_TUN_VNET_HDR] && nla_get_u8(a[IFLA_TUN_VNET_HDR]);
	l->queues = a[IFLA_TUN_NUM_QUEUES] ? nla_get_u32(a[IFLA_TUN_NUM_QUEUES]) : 1;
	if (a[IFLA_TUN_NUM_DISABLED_QUEUES]) // QEMU detaches those that its guest does not use
		l->queues += nla_get_u32(a[IFLA_TUN_NUM_DISABLED_QUEUES]);
}

static void take_bridge(struct link *l, struct nlattr *data)
{
	struct nlattr *a[IFLA_BR_MAX + 1];

	if (!nla_parse_nested(a, IFLA_BR_MAX, data, NULL))
		l->filters = a[IFLA_BR_VLAN_FILTERING] && nla_get_u8(a[IFLA_BR_VLAN_FILTERING]);
}

static void take_port_of_bridge(struct link *l, struct nlattr *data)
{
	struct nlattr *a[IFLA_BRPORT_MAX + 1];

	if (!nla_parse_nested(a, IFLA_BRPORT_MAX, data, NULL))
		l->isolated = a[IFLA_BRPORT_ISOLATED] && nla_get_u8(a[IFLA_BRPORT_ISOLATED]);
}

static void take_info(struct link *l, struct nlattr *info)
{
	struct nlattr *a[IFLA_INFO_MAX + 1];

	if (nla_parse_nested(a, IFLA_INFO_MAX, info, NULL))
		return;
	if (a[IFLA_INFO_SLAVE_KIND] && a[IFLA_INFO_SLAVE_DATA] && !strcmp(nla_get_string(a[IFLA_INFO_SLAVE_KIND]), "bridge"))
		take_port_of_bridge(l, a[IFLA_INFO_SLAVE_DATA]);
	if (!a[IFLA_INFO_KIND])
		return;
	nla_strlcpy(l->kind, a[IFLA_INFO_KIND], sizeof l->kind);
	if (a[IFLA_INFO_DATA] && !strcmp(l->kind, "tun"))
		take_tun(l, a[IFLA_INFO_DATA]);
	else if (a[IFLA_INFO_DATA] && !strcmp(l->kind, "bridge"))
		take_bridge(l, a[IFLA_INFO_DATA]);
}

static int take_link(struct nl_msg *m, void *ctx)
{
	const struct ifinfomsg *i = nlmsg_data(nlmsg_hdr(m));
	struct nlattr *a[IFLA_MAX + 1];
	struct link *l = ctx;

	if (nlmsg_parse(nlmsg_hdr(m), sizeof *i, a, IFLA_MAX, NULL) || !a[IFLA_IFNAME])
		return NL_SKIP;
	*l = (struct link){ .index = i->ifi_index, .flags = i->ifi_flags };
	nla_strlcpy(l->name, a[IFLA_IFNAME], sizeof l->name);
	l->mtu = a[IFLA_MTU] ? nla_get_u32(a[IFLA_MTU]) : 0;
	l->master = a[IFLA_MASTER] ? (int)nla_get_u32(a[IFLA_MASTER]) : 0;
	if (a[IFLA_LINKINFO])
		take_info(l, a[IFLA_LINKINFO]);
	return NL_OK;
}

int link_get(struct nl_sock *s, const char *name, int index, struct link *l)
{
	struct nl_msg *m = request(RTM_GETLINK, 0, &(struct ifinfomsg){ .ifi_index = name ? 0 : index });
	int r;

	*l = (struct link){ 0 };
	if (m && name && nla_put_string(m, IFLA_IFNAME, name)) {
		nlmsg_free(m);
		return -ENOMEM;
	}
	r = ask(s, m, take_link, l);
	return r ?: l->index ? 0 : -EIO;
}

int link_set_up(struct nl_sock *s, const char *name, bool up)
{
	struct ifinfomsg i = { .ifi_flags = up ? IFF_UP : 0, .ifi_change = IFF_UP };
	struct nl_msg *m = request(RTM_NEWLINK, NLM_F_ACK, &i);

	if (m && nla_put_string(m, IFLA_IFNAME, name)) {
		nlmsg_free(m);
		return -ENOMEM;
	}
	return ask(s, m, NULL, NULL);
}

static int set_u32(struct nl_sock *s, int index, int attr, uint32_t value)
{
	struct nl_msg *m = request(RTM_NEWLINK, NLM_F_ACK, &(struct ifinfomsg){ .ifi_index = index });

	if (m && nla_put_u32(m, attr, value)) {
		nlmsg_free(m);
		return -ENOMEM;
	}
	return ask(s, m, NULL, NULL);
}

int link_set_mtu(struct nl_sock *s, int index, unsigned mtu)
{
	return set_u32(s, index, IFLA_MTU, mtu);
}

int link_set_address(struct nl_sock *s, int index, const uint8_t address[6])
{
	struct nl_msg *m = request(RTM_NEWLINK, NLM_F_ACK, &(struct ifinfomsg){ .ifi_index = index });

	if (m && nla_put(m, IFLA_ADDRESS, 6, address)) {
		nlmsg_free(m);
		return -ENOMEM;
	}
	return ask(s, m, NULL, NULL);
}

int link_set_master(struct nl_sock *s, int index, int master)
{
	return set_u32(s, index, IFLA_MASTER, (uint32_t)master);
}

// ---- VLANs of a port

struct vlans {
	int index;
	struct link_vlan *v;
	size_t nr;
	uint16_t begin; // of a range whose end has not come, or 0
};

static void take_vlan(struct vlans *all, const struct bridge_vlan_info *info)
{
	uint16_t from = all->begin ? all->begin : info->vid;

	all->begin = 0;
	if (info->flags & BRIDGE_VLAN_INFO_RANGE_BEGIN) {
		all->begin = info->vid;
		return;
	}
	for (unsigned vid = from; vid <= info->vid && all->nr < TAP_VLANS_MAX; vid++)
		all->v[all->nr++] = (struct link_vlan){ .vid = (uint16_t)vid, .flags = info->flags };
}

static int take_port(struct nl_msg *m, void *ctx)
{
	const struct ifinfomsg *i = nlmsg_data(nlmsg_hdr(m));
	struct nlattr *a[IFLA_MAX + 1], *e;
	struct vlans *all = ctx;
	int rest;

	if (i->ifi_index != all->index || nlmsg_parse(nlmsg_hdr(m), sizeof *i, a, IFLA_MAX, NULL) || !a[IFLA_AF_SPEC])
		return NL_SKIP;
	nla_for_each_nested(e, a[IFLA_AF_SPEC], rest)
		if (nla_type(e) == IFLA_BRIDGE_VLAN_INFO && nla_len(e) >= (int)sizeof(struct bridge_vlan_info))
			take_vlan(all, nla_data(e));
	return NL_OK;
}

int link_vlans(struct nl_sock *s, int index, struct link_vlan *v, size_t *nr)
{
	struct nl_msg *m = request(RTM_GETLINK, NLM_F_DUMP, &(struct ifinfomsg){ .ifi_family = AF_BRIDGE });
	struct vlans all = { .index = index, .v = v };
	int r;

	if (m && nla_put_u32(m, IFLA_EXT_MASK, RTEXT_FILTER_BRVLAN_COMPRESSED)) {
		nlmsg_free(m);
		return -ENOMEM;
	}
	r = ask(s, m, take_port, &all);
	*nr = all.nr;
	return r;
}

static int change_vlans(struct nl_sock *s, int type, int index, const struct link_vlan *v, size_t nr)
{
	struct nl_msg *m = request(type, NLM_F_ACK, &(struct ifinfomsg){ .ifi_family = AF_BRIDGE, .ifi_index = index });
	struct nlattr *spec = m ? nla_nest_start(m, IFLA_AF_SPEC) : NULL;
	bool failed = !spec;

	for (size_t i = 0; i < nr && !failed; i++)
		failed = nla_put(m, IFLA_BRIDGE_VLAN_INFO, sizeof(struct bridge_vlan_info),
				 &(struct bridge_vlan_info){ .flags = v[i].flags, .vid = v[i].vid });
	if (failed) {
		nlmsg_free(m);
		return -ENOMEM;
	}
	nla_nest_end(m, spec);
	return ask(s, m, NULL, NULL);
}

int link_set_vlans(struct nl_sock *s, int index, const struct link_vlan *v, size_t nr)
{
	static const struct link_vlan all[] = { { 1, BRIDGE_VLAN_INFO_RANGE_BEGIN }, { TAP_VLANS_MAX, BRIDGE_VLAN_INFO_RANGE_END } };
	int r = change_vlans(s, RTM_DELLINK, index, all, ARRAY_SIZE(all));

	return r || !nr ? r : change_vlans(s, RTM_SETLINK, index, v, nr);
}
