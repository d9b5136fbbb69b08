// SPDX-License-Identifier: GPL-2.0-only
#include "criu-vm/tap.h"

#include <ctype.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/if_bridge.h>
#include <linux/if_tun.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/random.h>
#include <unistd.h>

#include "criu-vm/tap_int.h"
#include "util/cleanup.h"
#include "util/io.h"
#include "util/log.h"
#include "util/size.h"

#define TUN "/dev/net/tun"
#define OURS "vmtap%d" // the kernel puts a free number in

bool tap_is_name(const char *name)
{
	static const char *const not_one[] = { ".", "..", "all", "default" }; // the latter are all interfaces, in /proc/sys/net
	size_t len = strlen(name);

	for (const char *s = name; *s; s++)
		if (!isgraph((unsigned char)*s) || strchr("/:%", *s))
			return false;
	for (size_t i = 0; i < ARRAY_SIZE(not_one); i++)
		if (!strcmp(name, not_one[i]))
			return false;
	return len && len < IFNAMSIZ;
}

// ---- what there is

static int describe_vlans(struct nl_sock *s, const struct link *tap, struct tap_desc *d)
{
	struct link_vlan v[TAP_VLANS_MAX];
	size_t nr;
	int r = link_vlans(s, tap->index, v, &nr);

	if (r) {
		log_err("network interface %s: cannot tell its VLANs: %s", tap->name, strerror(-r));
		return r;
	}
	d->filters = true;
	for (size_t i = 0; i < nr; i++) {
		bool pvid = v[i].flags & BRIDGE_VLAN_INFO_PVID, untagged = v[i].flags & BRIDGE_VLAN_INFO_UNTAGGED;

		if (pvid != untagged) {
			log_err("network interface %s: VLAN %u is %s at the bridge %s; only a port's own VLAN that is both, and tagged ones, can be "
				"described to another host", tap->name, v[i].vid, pvid ? "its own, but sent tagged" : "sent untagged, but not its own",
				d->bridge);
			return -EOPNOTSUPP;
		}
		d->pvid |= pvid;
		if (pvid && i) // to the front
			memmove(d->vlans + 1, d->vlans, i * sizeof *d->vlans);
		d->vlans[pvid ? 0 : i] = v[i].vid;
	}
	d->nr_vlans = nr;
	return 0;
}

static int describe_bridge(struct nl_sock *s, const struct link *tap, struct tap_desc *d)
{
	struct link bridge;
	int r = link_get(s, NULL, tap->master, &bridge);

	if (r) {
		log_err("network interface %s: cannot tell what it is joined to: %s", tap->name, strerror(-r));
		return r;
	}
	if (strcmp(bridge.kind, "bridge")) {
		log_err("network interface %s: it is joined to %s (%s); only Linux bridges are understood", tap->name, bridge.name, bridge.kind);
		return -EOPNOTSUPP;
	}
	if (tap->isolated)
		log_warn("network interface %s: it is isolated from other isolated ports of the bridge %s; elsewhere it is not (bridge link set dev "
			 "... isolated on)", tap->name, bridge.name);
	strcpy(d->bridge, bridge.name);
	return bridge.filters ? describe_vlans(s, tap, d) : 0;
}

static int describe(struct nl_sock *s, const char *ifname, struct tap_desc *d)
{
	struct link tap;
	int r = link_get(s, ifname, 0, &tap);

	if (r) {
		log_err("network interface %s: %s%s", ifname, strerror(-r), r == -ENODEV ? "; is it in another network namespace than its VM?" : "");
		return r;
	}
	if (!tap.tap) {
		log_err("network interface %s: it is no tap%s%s", ifname, *tap.kind ? ", but of the kind " : "", tap.kind);
		return -EOPNOTSUPP;
	}
	d->mtu = tap.mtu;
	d->queues = tap.queues;
	d->vnet_hdr = tap.vnet_hdr;
	d->up = tap.flags & IFF_UP;
	return tap.master ? describe_bridge(s, &tap, d) : 0;
}

int tap_describe(pid_t pid, const char *ifname, struct tap_desc *d)
{
	struct nl_sock *s;
	int r = links_open(pid, &s);

	if (r)
		return r;
	*d = (struct tap_desc){ 0 };
	r = describe(s, ifname, d);
	links_close(s);
	return r;
}

int tap_set_up(pid_t pid, const char *ifname, bool up)
{
	struct nl_sock *s;
	int r = links_open(pid, &s);

	if (r)
		return r;
	r = link_set_up(s, ifname, up);
	if (r)
		log_err("network interface %s: cannot set it %s: %s", ifname, up ? "up" : "down", strerror(-r));
	links_close(s);
	return r;
}

// ---- a new one

static int check_wanted(const struct tap_desc *d, const char *ifname, unsigned queues)
{
	const char *wrong = NULL;

	if (ifname && !tap_is_name(ifname))
		wrong = "its name";
	else if (*d->bridge && (!memchr(d->bridge, 0, sizeof d->bridge) || !tap_is_name(d->bridge)))
		wrong = "its bridge's name";
	else if (!queues || queues > TAP_QUEUES_MAX)
		wrong = "its number of queues";
	else if (d->nr_vlans > TAP_VLANS_MAX || (d->pvid && !d->nr_vlans) || (d->nr_vlans && !*d->bridge))
		wrong = "its list of VLANs";
	for (size_t i = 0; i < d->nr_vlans && !wrong; i++)
		if (!d->vlans[i] || d->vlans[i] > TAP_VLANS_MAX)
			wrong = "a VLAN's number";
	if (!wrong)
		return 0;
	log_err("network interface %s: %s makes no sense", ifname ?: "(new)", wrong);
	return -EINVAL;
}

// One queue; the first makes the interface, and name becomes what it is called.
static int open_queue(const struct tap_desc *d, bool first, bool multi, char name[IFNAMSIZ], int *fd)
{
	struct ifreq i = { .ifr_flags = (short)(IFF_TAP | IFF_NO_PI | (d->vnet_hdr ? IFF_VNET_HDR : 0) | (multi ? IFF_MULTI_QUEUE : 0) |
						(first ? IFF_TUN_EXCL : 0)) };
	_cleanup_close_ int f = open(TUN, O_RDWR | O_CLOEXEC | O_NONBLOCK);
	int r;

	if (f < 0) {
		r = -errno;
		log_err("cannot open " TUN ": %s%s", strerror(-r), r == -EACCES || r == -EPERM ? "; run as root" : "; load it: modprobe tun");
		return r;
	}
	strcpy(i.ifr_name, name);
	if (!ioctl(f, TUNSETIFF, &i)) {
		strcpy(name, i.ifr_name);
		*fd = steal_fd(&f);
		return 0;
	}
	r = errno == EBUSY && first ? -EEXIST : -errno;
	if (r == -EEXIST)
		log_err("there is a network interface %s here already; remove it, or map the VM's to another name: \"net %s NAME\" in --map FILE", name,
			name);
	else
		log_err("cannot make the network interface %s: %s%s", name, strerror(-r), r == -EPERM ? "; run as root (CAP_NET_ADMIN)" : "");
	return r;
}

// The host must not speak on it: it has no address there, and is to get none.
static int be_silent(const char *name)
{
	_cleanup_close_ int fd = -1;
	char path[64 + IFNAMSIZ];
	int r = 0;

	snprintf(path, sizeof path, "/proc/sys/net/ipv6/conf/%s/disable_ipv6", name);
	fd = open(path, O_WRONLY | O_CLOEXEC);
	if (fd >= 0)
		r = io_write_full(fd, "1", 1);
	else if (errno != ENOENT) // without IPv6, or with an MTU that is too small for it
		r = -errno;
	if (r)
		log_err("%s: %s", path, strerror(-r));
	return r;
}

static int set_vlans(struct nl_sock *s, const struct link *tap, const struct link *bridge, const struct tap_desc *d)
{
	struct link_vlan v[TAP_VLANS_MAX];
	int r;

	if (!bridge->filters)
		log_warn("network interface %s: where the VM comes from its bridge keeps VLANs apart, the bridge %s here does not (ip link set %s type "
			 "bridge vlan_filtering 1)", tap->name, bridge->name, bridge->name);
	for (size_t i = 0; i < d->nr_vlans; i++)
		v[i] = (struct link_vlan){ .vid = d->vlans[i],
					   .flags = d->pvid && !i ? BRIDGE_VLAN_INFO_PVID | BRIDGE_VLAN_INFO_UNTAGGED : 0 };
	r = link_set_vlans(s, tap->index, v, d->nr_vlans);
	if (r)
		log_err("network interface %s: cannot set its VLANs at the bridge %s: %s%s", tap->name, bridge->name, strerror(-r),
			r == -EOPNOTSUPP ? "; this kernel's bridges know no VLANs" : "");
	return r;
}

static int join(struct nl_sock *s, const struct link *tap, const struct tap_desc *d)
{
	struct link bridge;
	int r = link_get(s, d->bridge, 0, &bridge);

	if (r == -ENODEV)
		log_err("there is no bridge %s here, which the VM is to be joined to; make it (ip link add %s type bridge), or map it to another: "
			"\"bridge %s NAME\" in --map FILE", d->bridge, d->bridge, d->bridge);
	else if (r)
		log_err("bridge %s: %s", d->bridge, strerror(-r));
	if (r)
		return r;
	if (strcmp(bridge.kind, "bridge")) {
		log_err("%s is no Linux bridge%s%s; map it to one: \"bridge %s NAME\" in --map FILE", d->bridge, *bridge.kind ? ", but of the kind " : "",
			bridge.kind, d->bridge);
		return -EOPNOTSUPP;
	}
	r = link_set_master(s, tap->index, bridge.index);
	if (r)
		log_err("network interface %s: cannot join it to the bridge %s: %s", tap->name, d->bridge, strerror(-r));
	return r || !d->filters ? r : set_vlans(s, tap, &bridge, d);
}

// A bridge without an address of its own takes the lowest of its ports', and another one when that port goes: whoever has sent to it
// by the old one is not heard any more. So a tap's is high, as libvirt's are.
static int set_high_address(struct nl_sock *s, const struct link *tap)
{
	uint8_t address[6];
	int r = getrandom(address, sizeof address, 0) == sizeof address ? 0 : -EIO;

	address[0] = 0xfe;
	if (!r)
		r = link_set_address(s, tap->index, address);
	if (r)
		log_err("network interface %s: cannot set its address: %s", tap->name, strerror(-r));
	return r;
}

// The MTU first, or a bridge without one of its own would change with each new port.
static int equip(const char *name, const struct tap_desc *d)
{
	struct nl_sock *s;
	struct link tap;
	int r = links_open(0, &s);

	if (r)
		return r;
	r = link_get(s, name, 0, &tap);
	if (!r && d->mtu && d->mtu != tap.mtu)
		r = link_set_mtu(s, tap.index, d->mtu);
	if (r)
		log_err("network interface %s: cannot set its MTU to %u: %s", name, d->mtu, strerror(-r));
	r = r ?: be_silent(name);
	r = r ?: set_high_address(s, &tap);
	if (!r && *d->bridge)
		r = join(s, &tap, d);
	links_close(s);
	return r;
}

int tap_create(const struct tap_desc *wanted, const char *ifname, char name[IFNAMSIZ], int *fds, unsigned queues)
{
	unsigned n = 0;
	int r = check_wanted(wanted, ifname, queues);

	if (r)
		return r;
	strcpy(name, ifname ?: OURS);
	while (n < queues && !r) {
		r = open_queue(wanted, !n, queues > 1, name, &fds[n]);
		n += !r;
	}
	r = r ?: equip(name, wanted);
	while (r && n)
		close(fds[--n]);
	return r;
}
