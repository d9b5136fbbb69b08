// SPDX-License-Identifier: GPL-2.0-only
// The taps of a command line, as descriptors of a new QEMU, and as names again. With a real QEMU, in a network of its own, if root.
#include "qemu/netdevs.h"

#include <check.h>
#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include "criu-vm/tap.h"
#include "qemu/cmdline.h"
#include "qemu/now.h"
#include "qemu/vm.h"
#include "util/cleanup.h"
#include "util/log.h"
#include "util/size.h"

struct words {
	char *text;
	char *v[64];
	int nr;
};

static void words_init(struct words *w, const char *text)
{
	*w = (struct words){ .text = strdup(text) };
	for (char *s = strtok(w->text, " "); s; s = strtok(NULL, " ")) {
		ck_assert_int_lt(w->nr, 63);
		w->v[w->nr++] = s;
	}
}

// ---- which there are

static const struct {
	const char *argv;
	int err;
	const char *list; // "ID IFNAME QUEUES[v] "...
} listed[] = {
	{ "qemu -m 64 -netdev user,id=u -nic none -netdev hubport,id=h,hubid=0", 0, "" },
	{ "qemu -netdev tap,id=n0", 0, "n0 - 1 " },
	{ "qemu -netdev id=n0,type=tap,ifname=t0,script=no,queues=4,vhost=on", 0, "n0 t0 4v " },
	{ "qemu -netdev bridge,id=b,br=br1 -netdev tap,id=c,br=br2,helper=/x", 0, "b - 1 c - 1 " },
	{ "qemu -netdev {\"type\":\"tap\",\"id\":\"j\",\"ifname\":\"t1\",\"queues\":2,\"vhost\":true}", 0, "j t1 2v " },
	{ "qemu -nic user -nic tap,ifname=t0,model=e1000 -nic bridge,id=x", 0, "#nic1 t0 1 x - 1 " },
	{ "qemu -netdev tap,id=a,ifname=t0 -nic tap -netdev tap,id=b", 0, "a t0 1 #nic0 - 1 b - 1 " },
	{ "qemu -net nic -net tap,ifname=t0", -EOPNOTSUPP, NULL },
	{ "qemu -netdev tap,id=a -net bridge", -EOPNOTSUPP, NULL },
	{ "qemu -netdev tap,id=a,queues=0", -EINVAL, NULL },
	{ "qemu -netdev tap,id=a,queues=257", -EINVAL, NULL },
	{ "qemu -netdev tap,id=a,queues=4294967297", -EINVAL, NULL },
	{ "qemu -netdev tap,id=a,queues=-1", -EINVAL, NULL },
	{ "qemu -netdev tap,id=a,queues=", -EINVAL, NULL },
	{ "qemu -netdev tap", -EINVAL, NULL },
	{ "qemu -netdev tap,id=#nic0", -EINVAL, NULL },
	{ "qemu -netdev", 0, "" },
};

START_TEST(list)
{
	char text[256] = "";
	struct qemu_netdev *l;
	struct words w;
	size_t nr;

	words_init(&w, listed[_i].argv);
	ck_assert_int_eq(qemu_netdevs_list(w.v, w.nr, &l, &nr), listed[_i].err);
	for (size_t i = 0; i < nr; i++)
		snprintf(text + strlen(text), sizeof text - strlen(text), "%s %s %u%s ", l[i].id, l[i].ifname ?: "-", l[i].queues,
			 l[i].vhost ? "v" : "");
	ck_assert_str_eq(text, listed[_i].list ?: "");
	qemu_netdevs_free(l, nr);
	free(w.text);
}
END_TEST

// ---- what becomes of them

static const struct qemu_cmdline_net given_a[] = { { "a", (const int[]){ 5 }, 1 } };
static const struct qemu_cmdline_net given_nic[] = { { "#nic1", (const int[]){ 5, 6, 7 }, 3 } };
static const struct qemu_cmdline_net given_two[] = { { "b", (const int[]){ 8, 9 }, 2 }, { "a", (const int[]){ 5 }, 1 } };

static const struct {
	const char *recorded;
	const struct qemu_cmdline_net *nets;
	size_t nr_nets;
	int err;
	const char *options; // between -machine and what is added at the end
} rebuilt[] = {
	{ "-netdev tap,id=a,ifname=t0,script=/x,downscript=no,vhost=on,sndbuf=1M", given_a, 1, 0, "-netdev tap,id=a,vhost=on,sndbuf=1M,fd=5" },
	{ "-netdev bridge,id=a,br=br0,helper=/x", given_a, 1, 0, "-netdev tap,id=a,fd=5" },
	{ "-netdev id=a,type=tap,queues=2,vnet_hdr=off", given_a, 1, 0, "-netdev tap,id=a,fd=5" },
	{ "-netdev tap,id=a,fds=3:4,vhostfds=5:6,vhost=on", given_a, 1, 0, "-netdev tap,id=a,vhost=on,fd=5" },
	{ "-netdev {\"type\":\"bridge\",\"id\":\"a\",\"br\":\"x\"}", given_a, 1, 0, "-netdev {\"id\":\"a\",\"type\":\"tap\",\"fd\":\"5\"}" },
	{ "-netdev {\"id\":\"a\",\"type\":\"tap\",\"fd\":\"9\",\"vhost\":true}", given_a, 1, 0,
	  "-netdev {\"id\":\"a\",\"vhost\":true,\"type\":\"tap\",\"fd\":\"5\"}" },
	{ "-nic user -nic tap,model=e1000,mac=1:2:3:4:5:6,ifname=t0", given_nic, 1, 0,
	  "-nic user -nic tap,model=e1000,mac=1:2:3:4:5:6,fds=5:6:7" },
	{ "-netdev tap,id=a -device e1000,netdev=a -netdev tap,id=b,queues=2", given_two, 2, 0,
	  "-netdev tap,id=a,fd=5 -device e1000,netdev=a -netdev tap,id=b,fds=8:9" },
	{ "-netdev user,id=a", given_a, 1, -EINVAL, NULL }, // no place for it
	{ "-netdev tap,id=a", given_two, 2, -EINVAL, NULL },
	{ "-netdev tap,id=a -netdev tap,id=a", given_a, 1, -EINVAL, NULL },
	{ "-netdev tap,id=b", given_a, 1, -EOPNOTSUPP, NULL }, // one that is not given
	{ "-netdev tap,id=a -netdev bridge,id=b", given_a, 1, -EOPNOTSUPP, NULL },
	{ "-netdev tap,id=a -net tap,ifname=x", given_a, 1, -EOPNOTSUPP, NULL },
	{ "-netdev tap,id=a -nic tap", given_a, 1, -EOPNOTSUPP, NULL },
	{ "-netdev user,type=tap,id=b", NULL, 0, -EOPNOTSUPP, NULL },
	{ "-netdev tap,id=a,x,,y=z", given_a, 1, -EINVAL, NULL },
	{ "-netdev user,id=u,guestfwd=tcp:10.0.2.1:80-cmd:/bin/sh", NULL, 0, -EOPNOTSUPP, NULL },
	{ "-netdev {\"type\":\"user\",\"id\":\"u\",\"guestfwd\":[{\"str\":\"tcp:10.0.2.1:80-\\u0063md:/bin/sh\"}]}", NULL, 0, -EOPNOTSUPP, NULL },
	{ "-nic user,smb=/", NULL, 0, -EOPNOTSUPP, NULL },
	{ "-net user,smb=/", NULL, 0, -EOPNOTSUPP, NULL },
	{ "-netdev passt,id=u", NULL, 0, -EOPNOTSUPP, NULL },
	{ "-netdev user,id=u,hostfwd=tcp::2222-:22", NULL, 0, 0, "-netdev user,id=u,hostfwd=tcp::2222-:22" },
};

static int rebuild(const char *recorded, const struct qemu_cmdline_net *nets, size_t nr_nets, char **text)
{
	const struct qemu_cmdline_ram ram = { .len = 64 << 20, .fd = 4 };
	struct qemu_cmdline_opts o = { .qemu = "q", .machine = "pc-7.2", .qmp_fd = 20, .commands_fd = 21, .ram = &ram, .nr_ram = 1, .nets = nets,
				       .nr_nets = nr_nets, .from_peer = true };
	struct words w;
	char **argv;
	size_t len;
	FILE *f;
	int r;

	words_init(&w, recorded);
	o.recorded = w.v;
	o.nr_recorded = w.nr;
	r = qemu_cmdline_rebuild(&o, &argv);
	free(w.text);
	if (r)
		return r;
	f = open_memstream(text, &len);
	for (char **a = argv; *a; a++)
		fprintf(f, "%s%s", a == argv ? "" : " ", *a);
	fclose(f);
	qemu_cmdline_free(argv);
	return 0;
}

START_TEST(rebuild_with_descriptors)
{
	_cleanup_free_ char *recorded = NULL, *got = NULL, *again = NULL, *want = NULL;
	const char *from;

	ck_assert_int_gt(asprintf(&recorded, "qemu %s", rebuilt[_i].recorded), 0);
	ck_assert_int_eq(rebuild(recorded, rebuilt[_i].nets, rebuilt[_i].nr_nets, &got), rebuilt[_i].err);
	if (rebuilt[_i].err)
		return;
	ck_assert_int_gt(asprintf(&want, ",share=on %s -display none ", rebuilt[_i].options), 0);
	from = strstr(got, ",share=on ");
	ck_assert_ptr_nonnull(from);
	ck_assert_msg(!strncmp(from, want, strlen(want)), "%s", got);
	ck_assert_int_eq(rebuild(got, rebuilt[_i].nets, rebuilt[_i].nr_nets, &again), 0);
	ck_assert_str_eq(again, got);
}
END_TEST

// ---- a real one

static pid_t qemu;
static char dir[] = "/tmp/criu-vm-netdevs.XXXXXX";

static char sock[64];

static void make_dir(void)
{
	ck_assert_ptr_nonnull(mkdtemp(dir));
	snprintf(sock, sizeof sock, "%s/qmp", dir);
}

static void remove_dir(void)
{
	unlink(sock);
	rmdir(dir);
}

static void enter_empty_network(void)
{
	ck_assert_int_eq(unshare(CLONE_NEWNET), 0);
	unlink(sock);
}

static void end_qemu(void)
{
	kill(qemu, SIGKILL);
	waitpid(qemu, NULL, 0);
}

static struct qemu_vm *start(const char *options, const int *fds, unsigned nr)
{
	pid_t parent = getpid();
	struct qemu_vm *vm = NULL;
	char line[1024];
	struct words w;
	int r = -ENOENT;

	snprintf(line, sizeof line, "qemu-system-x86_64 -S -nodefaults -display none -accel tcg -m 16 -qmp unix:%s,server=on,wait=off %s", sock, options);
	words_init(&w, line);
	qemu = fork();
	if (!qemu) {
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		for (unsigned i = 0; i < nr; i++)
			fcntl(fds[i], F_SETFD, 0);
		if (getppid() == parent)
			execvp("qemu-system-x86_64", w.v);
		_exit(127);
	}
	for (unsigned i = 0; i < 300 && r; i++) {
		if (access(sock, F_OK) || (r = qemu_vm_open(sock, &vm)))
			usleep(20000);
		ck_assert_int_eq(waitpid(qemu, NULL, WNOHANG), 0);
	}
	ck_assert_int_eq(r, 0);
	free(w.text);
	return vm;
}

static struct qemu_netdev *list_now(struct qemu_vm *vm, size_t *nr, char ***argv)
{
	struct qemu_netdev *l;
	int argc;

	ck_assert_int_eq(qemu_now_cmdline(vm, argv, &argc), 0);
	ck_assert_int_eq(qemu_netdevs_list(*argv, argc, &l, nr), 0);
	return l;
}

static char *option(char **argv, const char *name, unsigned nth)
{
	for (; *argv; argv++)
		if (!strcmp(*argv, name) && !nth--)
			return argv[1];
	return "";
}

// Descriptors of one interface with a queue, of one with two, of a -nic: what the VM has now can be dumped, and says the names.
START_TEST(given_and_named_again)
{
	static const char *const id[] = { "a", "b", "#nic0" };
	const struct tap_desc plain = { .mtu = 1500, .vnet_hdr = true };
	char line[512], name[3][IFNAMSIZ], **argv;
	struct qemu_netdev *l;
	struct tap_desc d;
	struct qemu_vm *vm;
	int fd[4];
	size_t nr;

	enter_empty_network();
	ck_assert_int_eq(tap_create(&plain, NULL, name[0], fd, 1), 0);
	ck_assert_int_eq(tap_create(&plain, "two", name[1], fd + 1, 2), 0);
	ck_assert_int_eq(tap_create(&plain, NULL, name[2], fd + 3, 1), 0);
	snprintf(line, sizeof line, "-netdev tap,id=a,fd=%d -device virtio-net-pci,netdev=a -netdev {\"type\":\"tap\",\"id\":\"b\",\"fds\":\"%d:%d\"} "
		 "-device virtio-net-pci,netdev=b,mq=on -nic tap,model=e1000,fd=%d", fd[0], fd[1], fd[2], fd[3]);
	vm = start(line, fd, 4);
	for (unsigned i = 0; i < 4; i++)
		close(fd[i]);
	l = list_now(vm, &nr, &argv);
	ck_assert_uint_eq(nr, 3);
	for (unsigned i = 0; i < 3; i++) {
		ck_assert_str_eq(l[i].id, id[i]);
		ck_assert_str_eq(l[i].ifname, name[i]);
		ck_assert_uint_eq(l[i].queues, i == 1 ? 2 : 1);
		ck_assert_int_eq(tap_describe(vm->pid, l[i].ifname, &d), 0);
		ck_assert_uint_eq(d.queues, l[i].queues);
		ck_assert(d.vnet_hdr);
	}
	ck_assert_str_eq(option(argv, "-netdev", 0), "tap,id=a,ifname=vmtap0,script=no,downscript=no");
	ck_assert_str_eq(option(argv, "-nic", 0), "tap,model=e1000,ifname=vmtap1,script=no,downscript=no");
	qemu_netdevs_free(l, nr);
	qemu_cmdline_free(argv);
	qemu_vm_close(vm);
	end_qemu();
	ck_assert_uint_eq(if_nametoindex("two"), 0); // it was QEMU's alone
}
END_TEST

// What it was made by is what it is given: rebuilt, run, rebuilt again.
START_TEST(rebuilt_one_runs)
{
	const struct tap_desc plain = { .mtu = 1400 };
	_cleanup_free_ char *got = NULL;
	char name[IFNAMSIZ], **argv, *value;
	struct qemu_netdev *l;
	struct qemu_vm *vm;
	size_t nr;
	int fds[2];

	enter_empty_network();
	ck_assert_int_eq(tap_create(&plain, NULL, name, fds, 2), 0);
	ck_assert_int_eq(rebuild("qemu -netdev tap,id=a,queues=2,ifname=t0,script=/bin/false,sndbuf=1M",
				 &(struct qemu_cmdline_net){ "a", fds, 2 }, 1, &got), 0);
	value = strstr(got, "-netdev ");
	value[strcspn(value + 8, " ") + 8] = 0;
	vm = start(value, fds, 2);
	l = list_now(vm, &nr, &argv);
	ck_assert_uint_eq(nr, 1);
	ck_assert_str_eq(l->ifname, name);
	ck_assert_uint_eq(l->queues, 2);
	ck_assert_str_eq(option(argv, "-netdev", 0), "tap,id=a,sndbuf=1M,ifname=vmtap0,script=no,downscript=no,queues=2");
	qemu_netdevs_free(l, nr);
	qemu_cmdline_free(argv);
	qemu_vm_close(vm);
	end_qemu();
	close(fds[0]);
	close(fds[1]);
}
END_TEST

// Names that the command line does not say: the kernel's choice, one that is told by QEMU, and one too many.
START_TEST(names_found)
{
	struct qemu_netdev *l;
	struct qemu_vm *vm;
	char **argv;
	size_t nr;

	enter_empty_network();
	vm = start("-netdev tap,id=a,script=no,downscript=no -device e1000,netdev=a -netdev tap,id=b,script=no,downscript=no,ifname=named "
		   "-nic tap,script=no,downscript=no,model=e1000", NULL, 0);
	l = list_now(vm, &nr, &argv);
	ck_assert_uint_eq(nr, 3);
	ck_assert_ptr_null(l[0].ifname);
	ck_assert_str_eq(l[1].ifname, "named");
	ck_assert_int_eq(qemu_netdevs_find(vm, l, nr), 0);
	ck_assert_str_eq(l[0].ifname, "tap0");
	ck_assert_str_eq(l[1].ifname, "named");
	ck_assert_str_eq(l[2].ifname, "tap1");
	free(l[1].ifname); // as if two were not told
	l[1].ifname = NULL;
	free(l[2].ifname);
	l[2].ifname = NULL;
	l[1].id[0] = 'x';
	ck_assert_int_eq(qemu_netdevs_find(vm, l, nr), -EOPNOTSUPP);
	qemu_netdevs_free(l, nr);
	qemu_cmdline_free(argv);
	qemu_vm_close(vm);
	end_qemu();
}
END_TEST

int main(void)
{
	Suite *s = suite_create("netdevs");
	TCase *t = tcase_create("options"), *real = tcase_create("real");
	SRunner *r;
	int failed;

	log_init(getenv("VERBOSE") ? 2 : -1, LOG_ERROR, NULL, false);
	tcase_add_loop_test(t, list, 0, ARRAY_SIZE(listed));
	tcase_add_loop_test(t, rebuild_with_descriptors, 0, ARRAY_SIZE(rebuilt));
	suite_add_tcase(s, t);
	if (!geteuid()) {
		tcase_add_unchecked_fixture(real, make_dir, remove_dir);
		tcase_set_timeout(real, 60);
		tcase_add_test(real, given_and_named_again);
		tcase_add_test(real, rebuilt_one_runs);
		tcase_add_test(real, names_found);
		suite_add_tcase(s, real);
	}
	r = srunner_create(s);
	srunner_run_all(r, CK_ENV);
	failed = srunner_ntests_failed(r);
	srunner_free(r);
	return failed != 0;
}
