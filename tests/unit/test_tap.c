// SPDX-License-Identifier: GPL-2.0-only
// Real interfaces, each test in a network namespace of its own; needs root. The VLANs of a bridge need a kernel that has them.
#include "criu-vm/tap.h"

#include <check.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/if_ether.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "util/cleanup.h"
#include "util/io.h"
#include "util/log.h"
#include "util/size.h"

#define VNET_HDR_LEN 10
#define FRAME_LEN 64

static const struct tap_desc plain = { .mtu = 1500 };

static void enter_empty_network(void)
{
	ck_assert_int_eq(unshare(CLONE_NEWNET), 0);
}

static bool can(const char *command)
{
	char text[512];

	snprintf(text, sizeof text, "%s >/dev/null 2>&1", command);
	return !system(text);
}

static void must(const char *command)
{
	ck_assert_msg(can(command), "%s", command);
}

static void close_all(int *fds, unsigned nr)
{
	for (unsigned i = 0; i < nr; i++)
		close(fds[i]);
}

// ---- frames

// Of a type that nobody else uses; false: the interface is down.
static bool send_frame(int fd, size_t hdr_len, uint8_t mark)
{
	uint8_t frame[VNET_HDR_LEN + FRAME_LEN] = { 0 };
	uint8_t *eth = frame + hdr_len;

	memset(eth, 0xff, ETH_ALEN);
	memset(eth + ETH_ALEN, 2, ETH_ALEN);
	eth[12] = 0x88;
	eth[13] = 0xb5;
	eth[14] = mark;
	return write(fd, frame, hdr_len + FRAME_LEN) == (ssize_t)hdr_len + FRAME_LEN;
}

// Whether such a frame comes; others are passed over.
static bool frame_comes(int fd, size_t hdr_len, uint8_t mark, int ms)
{
	struct pollfd p = { .fd = fd, .events = POLLIN };
	uint8_t frame[2048];

	while (poll(&p, 1, ms) > 0) {
		ssize_t n = read(fd, frame, sizeof frame);

		if (n >= (ssize_t)hdr_len + FRAME_LEN && frame[hdr_len + 12] == 0x88 && frame[hdr_len + 13] == 0xb5 && frame[hdr_len + 14] == mark)
			return true;
	}
	return false;
}

START_TEST(frames_pass_while_up)
{
	struct tap_desc d = { .mtu = 1400, .bridge = "br0", .vnet_hdr = true }, peer = { .mtu = 1400, .bridge = "br0" };
	char name[IFNAMSIZ], other[IFNAMSIZ];
	int fd, b;

	enter_empty_network();
	must("ip link add br0 type bridge stp_state 0 forward_delay 0 && ip link set br0 up");
	ck_assert_int_eq(tap_create(&d, NULL, name, &fd, 1), 0);
	ck_assert_int_eq(tap_create(&peer, "peer", other, &b, 1), 0);
	ck_assert_str_eq(other, "peer");
	ck_assert_int_eq(tap_set_up(0, other, true), 0);

	ck_assert(!send_frame(fd, VNET_HDR_LEN, 1));
	ck_assert(send_frame(b, 0, 2));
	ck_assert(!frame_comes(b, 0, 1, 50));

	ck_assert_int_eq(tap_set_up(0, name, true), 0);
	ck_assert(!frame_comes(fd, VNET_HDR_LEN, 2, 50)); // of before
	ck_assert(send_frame(fd, VNET_HDR_LEN, 3));
	ck_assert(frame_comes(b, 0, 3, 1000));
	ck_assert(send_frame(b, 0, 4));
	ck_assert(frame_comes(fd, VNET_HDR_LEN, 4, 1000));

	ck_assert_int_eq(tap_set_up(0, name, false), 0);
	ck_assert(!send_frame(fd, VNET_HDR_LEN, 5));
	ck_assert(send_frame(b, 0, 6));
	ck_assert(!frame_comes(fd, VNET_HDR_LEN, 6, 50));
	close(fd);
	close(b);
}
END_TEST

// A bridge takes the lowest address of its ports, and its peers would not find it any more.
START_TEST(bridge_keeps_its_address)
{
	struct tap_desc d = { .mtu = 1500, .bridge = "br0" };

	enter_empty_network();
	must("ip link add v0 address f6:ff:ff:ff:ff:ff type veth peer name v1 && ip link add br0 type bridge && ip link set v0 master br0");
	for (unsigned i = 0; i < 4; i++) {
		char name[IFNAMSIZ];
		int fd;

		ck_assert_int_eq(tap_create(&d, NULL, name, &fd, 1), 0);
		must("ip -o link show br0 | grep -q f6:ff:ff:ff:ff:ff");
		close(fd);
	}
}
END_TEST

// ---- what is made is what is described

START_TEST(made_as_described)
{
	static const struct {
		struct tap_desc d;
		unsigned queues;
		const char *name;
	} row[] = {
		{ { .mtu = 1500 }, 1, NULL },
		{ { .mtu = 1400, .bridge = "br0" }, 1, "vm-a" },
		{ { .mtu = 9000, .bridge = "br0", .vnet_hdr = true }, 2, NULL },
		{ { .mtu = 500, .vnet_hdr = true }, 4, "x.y" }, // too small for IPv6
	};

	enter_empty_network();
	must("ip link add br0 type bridge");
	for (size_t i = 0; i < ARRAY_SIZE(row); i++) {
		struct tap_desc got;
		char name[IFNAMSIZ];
		int fds[4];

		ck_assert_int_eq(tap_create(&row[i].d, row[i].name, name, fds, row[i].queues), 0);
		ck_assert_str_eq(name, row[i].name ?: "vmtap0");
		for (unsigned k = 0; k < row[i].queues; k++)
			ck_assert(fcntl(fds[k], F_GETFD) & FD_CLOEXEC);
		ck_assert_int_eq(tap_describe(0, name, &got), 0);
		ck_assert_str_eq(got.bridge, row[i].d.bridge);
		ck_assert_uint_eq(got.mtu, row[i].d.mtu);
		ck_assert_uint_eq(got.queues, row[i].queues);
		ck_assert(got.vnet_hdr == row[i].d.vnet_hdr);
		ck_assert(!got.up && !got.filters && !got.nr_vlans);
		ck_assert_int_eq(tap_set_up(0, name, true), 0);
		ck_assert(!tap_describe(0, name, &got) && got.up);
		close_all(fds, row[i].queues);
		ck_assert_uint_eq(if_nametoindex(name), 0);
	}
}
END_TEST

START_TEST(host_is_silent)
{
	_cleanup_free_ char *text = NULL;
	char name[IFNAMSIZ];
	size_t len;
	int fd;

	enter_empty_network();
	ck_assert_int_eq(tap_create(&plain, "t0", name, &fd, 1), 0);
	ck_assert_int_eq(io_read_file("/proc/sys/net/ipv6/conf/t0/disable_ipv6", 16, &text, &len), 0);
	ck_assert_str_eq(text, "1\n");
	ck_assert_int_eq(tap_set_up(0, "t0", true), 0);
	ck_assert_int_eq(poll(&(struct pollfd){ .fd = fd, .events = POLLIN }, 1, 300), 0);
	close(fd);
}
END_TEST

// ---- VLANs

static const struct tap_desc vlans[] = {
	{ .mtu = 1500, .bridge = "br0", .filters = true, .pvid = true, .nr_vlans = 1, .vlans = { 7 } },
	{ .mtu = 1500, .bridge = "br0", .filters = true, .pvid = true, .nr_vlans = 5, .vlans = { 100, 20, 21, 22, 4094 } },
	{ .mtu = 1500, .bridge = "br0", .filters = true, .nr_vlans = 2, .vlans = { 1, 3 } },
	{ .mtu = 1500, .bridge = "br0", .filters = true },
};

START_TEST(vlans_made_as_described)
{
	char name[IFNAMSIZ];
	struct tap_desc got;
	int fd;

	enter_empty_network();
	if (!can("ip link add br0 type bridge vlan_filtering 1"))
		return; // this kernel's bridges know no VLANs
	ck_assert_int_eq(tap_create(&vlans[_i], "t0", name, &fd, 1), 0);
	ck_assert_int_eq(tap_describe(0, "t0", &got), 0);
	ck_assert(got.filters);
	ck_assert(got.pvid == vlans[_i].pvid);
	ck_assert_uint_eq(got.nr_vlans, vlans[_i].nr_vlans);
	ck_assert_mem_eq(got.vlans, vlans[_i].vlans, got.nr_vlans * sizeof *got.vlans);
	if (_i == 1) { // all there can be
		must("bridge vlan add dev t0 vid 1-4094");
		ck_assert_int_eq(tap_describe(0, "t0", &got), 0);
		ck_assert_uint_eq(got.nr_vlans, TAP_VLANS_MAX);
		close(fd);
		ck_assert_int_eq(tap_create(&got, "t0", name, &fd, 1), 0);
		ck_assert(can("bridge vlan show dev t0 | grep -q 4094"));
	}
	must("bridge vlan add dev t0 vid 9 untagged");
	ck_assert_int_eq(tap_describe(0, "t0", &got), -EOPNOTSUPP);
	ck_assert_ptr_nonnull(strstr(log_last_error(), "VLAN 9"));
	close(fd);
}
END_TEST

// A description with VLANs, where the bridge has none: nothing is left.
START_TEST(vlans_where_there_are_none)
{
	char name[IFNAMSIZ];
	int fd;

	enter_empty_network();
	must("ip link add br0 type bridge");
	if (can("ip link add br1 type bridge vlan_filtering 1"))
		return;
	ck_assert_int_eq(tap_create(&vlans[0], "t0", name, &fd, 1), -EOPNOTSUPP);
	ck_assert_ptr_nonnull(strstr(log_last_error(), "know no VLANs"));
	ck_assert_uint_eq(if_nametoindex("t0"), 0);
}
END_TEST

// ---- what cannot be had

static const struct {
	struct tap_desc d;
	const char *name;
	unsigned queues;
	int err;
	const char *says;
} wrong[] = {
	{ { .bridge = "nobr" }, "t0", 1, -ENODEV, "\"bridge nobr NAME\" in --map" },
	{ { .bridge = "lo" }, "t0", 1, -EOPNOTSUPP, "lo is no Linux bridge" },
	{ { .bridge = "veth0" }, "t0", 1, -EOPNOTSUPP, "but of the kind veth" },
	{ { .mtu = 20 }, "t0", 1, -EINVAL, "MTU to 20" },
	{ { .mtu = 4000000000 }, "t0", 1, -EINVAL, "MTU to 4000000000" },
	{ { .mtu = 1500 }, "veth0", 1, -EEXIST, "\"net veth0 NAME\" in --map" },
	{ { .mtu = 1500 }, "../lo", 1, -EINVAL, "makes no sense" },
	{ { .mtu = 1500 }, "a%d", 1, -EINVAL, "makes no sense" },
	{ { .mtu = 1500 }, "all", 1, -EINVAL, "makes no sense" }, // whose settings are those of all interfaces
	{ { .mtu = 1500 }, "default", 1, -EINVAL, "makes no sense" },
	{ { .mtu = 1500 }, "", 1, -EINVAL, "makes no sense" },
	{ { .mtu = 1500 }, "sixteen-letters.", 1, -EINVAL, "makes no sense" },
	{ { .mtu = 1500 }, "t0", 0, -EINVAL, "queues" },
	{ { .mtu = 1500 }, "t0", 257, -EINVAL, "queues" },
	{ { .bridge = "a b" }, "t0", 1, -EINVAL, "bridge's name" },
	{ { .bridge = "br0", .filters = true, .nr_vlans = 1, .vlans = { 4095 } }, "t0", 1, -EINVAL, "VLAN" },
	{ { .bridge = "br0", .filters = true, .nr_vlans = 1, .vlans = { 0 } }, "t0", 1, -EINVAL, "VLAN" },
	{ { .bridge = "br0", .filters = true, .pvid = true }, "t0", 1, -EINVAL, "VLANs" },
	{ { .bridge = "br0", .filters = true, .nr_vlans = TAP_VLANS_MAX + 1 }, "t0", 1, -EINVAL, "VLANs" },
};

START_TEST(refused_and_nothing_left)
{
	char name[IFNAMSIZ];
	int fds[TAP_QUEUES_MAX];

	enter_empty_network();
	must("ip link add br0 type bridge && ip link add veth0 type veth peer name veth1");
	ck_assert_int_eq(tap_create(&wrong[_i].d, wrong[_i].name, name, fds, wrong[_i].queues), wrong[_i].err);
	ck_assert_msg(strstr(log_last_error(), wrong[_i].says), "%s", log_last_error());
	ck_assert_uint_eq(if_nametoindex("t0"), 0);
	ck_assert_uint_ne(if_nametoindex("veth0"), 0);
}
END_TEST

START_TEST(not_described)
{
	struct tap_desc d;

	enter_empty_network();
	must("ip link add veth0 type veth peer name veth1 && ip tuntap add tun0 mode tun && ip tuntap add t0 mode tap");
	ck_assert_int_eq(tap_describe(0, "none0", &d), -ENODEV);
	ck_assert_int_eq(tap_describe(0, "veth0", &d), -EOPNOTSUPP);
	ck_assert_ptr_nonnull(strstr(log_last_error(), "no tap, but of the kind veth"));
	ck_assert_int_eq(tap_describe(0, "tun0", &d), -EOPNOTSUPP);
	ck_assert_int_eq(tap_describe(0, "lo", &d), -EOPNOTSUPP);
	ck_assert_int_eq(tap_set_up(0, "none0", true), -ENODEV);
}
END_TEST

// It is told, not refused.
START_TEST(isolated_port)
{
	const struct tap_desc d = { .mtu = 1500, .bridge = "br0" };
	char name[IFNAMSIZ], text[512] = "";
	struct tap_desc got;
	int fd, out[2];

	enter_empty_network();
	must("ip link add br0 type bridge");
	ck_assert_int_eq(pipe2(out, O_CLOEXEC | O_NONBLOCK), 0);
	log_init(out[1], LOG_WARN, NULL, false);
	ck_assert_int_eq(tap_create(&d, "t0", name, &fd, 1), 0);
	ck_assert_int_eq(tap_describe(0, "t0", &got), 0);
	ck_assert_int_lt(read(out[0], text, sizeof text - 1), 0);
	must("bridge link set dev t0 isolated on");
	ck_assert_int_eq(tap_describe(0, "t0", &got), 0);
	ck_assert_int_gt(read(out[0], text, sizeof text - 1), 0);
	ck_assert_ptr_nonnull(strstr(text, "isolated"));
	close(fd);
}
END_TEST

// A process that has gone, and one in another network.
START_TEST(another_namespace)
{
	struct tap_desc d, want = { .mtu = 1300, .bridge = "br0" };
	char name[IFNAMSIZ], done;
	int to_us[2], fd, status;
	pid_t pid;

	enter_empty_network();
	ck_assert_int_eq(pipe2(to_us, O_CLOEXEC), 0);
	pid = fork();
	ck_assert_int_ge(pid, 0);
	if (!pid) {
		bool made = !unshare(CLONE_NEWNET) && can("ip link add br0 type bridge") && !tap_create(&want, "t0", name, &fd, 1);

		if (write(to_us[1], &made, 1) == 1)
			pause();
		_exit(1);
	}
	ck_assert_int_eq(read(to_us[0], &done, 1), 1);
	ck_assert(done);
	ck_assert_int_eq(tap_describe(0, "t0", &d), -ENODEV);
	ck_assert_int_eq(tap_describe(pid, "t0", &d), 0);
	ck_assert_uint_eq(d.mtu, 1300);
	ck_assert_str_eq(d.bridge, "br0");
	ck_assert_int_eq(tap_set_up(pid, "t0", true), 0);
	ck_assert(!tap_describe(pid, "t0", &d) && d.up);
	ck_assert_uint_eq(if_nametoindex("t0"), 0); // we are where we were
	kill(pid, SIGKILL);
	waitpid(pid, &status, 0);
	ck_assert_int_eq(tap_describe(pid, "t0", &d), -ENOENT);
}
END_TEST

int main(void)
{
	Suite *s = suite_create("tap");
	TCase *t = tcase_create("tap");
	SRunner *r;
	int failed;

	if (geteuid())
		return 77;
	log_init(-1, LOG_ERROR, NULL, false);
	tcase_add_test(t, frames_pass_while_up);
	tcase_add_test(t, bridge_keeps_its_address);
	tcase_add_test(t, made_as_described);
	tcase_add_test(t, host_is_silent);
	tcase_add_loop_test(t, vlans_made_as_described, 0, ARRAY_SIZE(vlans));
	tcase_add_test(t, vlans_where_there_are_none);
	tcase_add_loop_test(t, refused_and_nothing_left, 0, ARRAY_SIZE(wrong));
	tcase_add_test(t, not_described);
	tcase_add_test(t, isolated_port);
	tcase_add_test(t, another_namespace);
	suite_add_tcase(s, t);
	r = srunner_create(s);
	srunner_run_all(r, CK_ENV);
	failed = srunner_ntests_failed(r);
	srunner_free(r);
	return failed != 0;
}
