// SPDX-License-Identifier: GPL-2.0-only
// Recorded command lines and what they become. In the tables an argument is a word.
#include "qemu/cmdline.h"

#include <check.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "util/log.h"
#include "util/size.h"

struct words {
	char *text;
	char *v[64];
	int nr;
};

static void words_init(struct words *w, const char *text)
{
	*w = (struct words){ .text = strdup(text ?: "") };
	for (char *s = strtok(w->text, " "); s; s = strtok(NULL, " ")) {
		ck_assert_int_lt(w->nr, 64);
		w->v[w->nr++] = s;
	}
}

static char *join(char **argv)
{
	char *text = calloc(1, 1);

	for (; *argv; argv++) {
		char *longer;

		ck_assert_int_ge(asprintf(&longer, "%s%s%s", text, *text ? " " : "", *argv), 0);
		free(text);
		text = longer;
	}
	return text;
}

static const struct qemu_cmdline_ram default_ram = { .backend_id = NULL, .len = 64 << 20, .fd = 7 };

static bool as_root; // what QEMU will be
static bool from_peer;

static int rebuild_with(const struct qemu_cmdline_ram *ram, size_t nr_ram, const char *recorded, const char *replace, char **result)
{
	struct words rec, rep;
	struct qemu_cmdline_opts o = { .qemu = "/bin/qemu", .machine = "pc-7.2", .qmp_fd = 9, .commands_fd = 10, .ram = ram, .nr_ram = nr_ram,
				       .as_root = as_root, .from_peer = from_peer };
	char **argv;
	int err;

	words_init(&rec, recorded);
	words_init(&rep, replace);
	o.recorded = rec.v;
	o.nr_recorded = rec.nr;
	o.replace = rep.v;
	o.nr_replace = rep.nr;
	err = qemu_cmdline_rebuild(&o, &argv);
	if (!err) {
		*result = join(argv);
		qemu_cmdline_free(argv);
	}
	free(rec.text);
	free(rep.text);
	return err;
}

static int check(const char *recorded)
{
	struct words rec;
	int err;

	words_init(&rec, recorded);
	err = qemu_cmdline_check(rec.v, rec.nr);
	free(rec.text);
	return err;
}

#define RAM "-object memory-backend-file,id=criu-vm-ram,size=67108864,mem-path=/proc/self/fd/7,share=on"
#define TAIL \
	"-chardev socket,id=criu-vm-qmp,fd=9,server=on,wait=off -mon chardev=criu-vm-qmp,mode=control " \
	"-chardev socket,id=criu-vm-commands,fd=10,server=on,wait=off -mon chardev=criu-vm-commands,mode=control -incoming defer -S"

// The whole line is as expected, and what comes out stays what it is, dumped and restored again.
static void expect(const struct qemu_cmdline_ram *ram, size_t nr_ram, const char *recorded, const char *replace, const char *machine,
		   const char *options)
{
	char *want, *got, *again;

	ck_assert_int_ge(asprintf(&want, "/bin/qemu -machine %s%s%s " TAIL, machine, *options ? " " : "", options), 0);
	ck_assert_int_eq(check(recorded), 0);
	ck_assert_int_eq(rebuild_with(ram, nr_ram, recorded, replace, &got), 0);
	ck_assert_str_eq(got, want);
	ck_assert_int_eq(check(got), 0);
	ck_assert_int_eq(rebuild_with(ram, nr_ram, got, replace, &again), 0);
	ck_assert_str_eq(again, want);
	free(want);
	free(got);
	free(again);
}

static const struct {
	const char *recorded, *replace, *machine, *options;
} plain[] = {
	{ "qemu", NULL, "", "-display none" },
	// machine: all options become one, pinned
	{ "qemu -M pc", NULL, "", "-display none" },
	{ "qemu -machine type=q35,smm=off", NULL, ",smm=off", "-display none" },
	{ "qemu -M accel=kvm:tcg,type=pc -machine usb=on,usb=off", NULL, ",accel=kvm:tcg,usb=on,usb=off", "-display none" },
	{ "qemu --machine pc,vmport=off -M q35,type=isapc", NULL, ",vmport=off", "-display none" },
	// RAM
	{ "qemu -m 64,maxmem=1G,slots=2 -mem-path /dev/hugepages -mem-prealloc", NULL, "", "-m 64,maxmem=1G,slots=2 -display none" },
	{ "qemu -overcommit mem-lock=on", NULL, "", "-display none" },
	{ "qemu -overcommit cpu-pm=on,mem-lock=on", NULL, "", "-overcommit cpu-pm=on -display none" },
	{ "qemu -numa node,mem=64M", NULL, "", "-numa node,mem=64M -display none" },
	// lifecycle
	{ "qemu -S -daemonize -pidfile p -incoming tcp:0:4444 -loadvm x", NULL, "", "-display none" },
	{ "qemu -run-with exit-with-parent=on", NULL, "", "-display none" },
	// users: QEMU is started as the one that it was
	{ "qemu -runas u -run-with exit-with-parent=on,user=u", NULL, "", "-display none" },
	{ "qemu -chroot /d -run-with user=u,chroot=/d,async-teardown=on", NULL, "", "-run-with async-teardown=on -display none" },
	{ "qemu -runas u", "-runas v", "", "-runas v -display none" },
	{ "qemu", "-run-with user=v", "", "-run-with user=v -display none" },
	// accelerator by name
	{ "/usr/bin/kvm", NULL, "", "-accel kvm -accel tcg -display none" },
	{ "qemu-kvm -accel tcg,thread=single", NULL, "", "-accel tcg,thread=single -display none" },
	{ "qemu-kvm -M pc,accel=tcg", NULL, ",accel=tcg", "-display none" },
	{ "qemu-kvm -enable-kvm", NULL, "", "-enable-kvm -display none" },
	// disk images without an option
	{ "qemu disk.img", NULL, "", "-hda disk.img -display none" },
	// terminal and display
	{ "qemu -nographic", NULL, ",graphics=off", "-display none" },
	{ "qemu -serial mon:stdio -parallel stdio -debugcon stdio", NULL, "",
	  "-serial null -parallel null -debugcon null -display none" },
	{ "qemu -monitor stdio -qmp stdio -gdb stdio -monitor none", NULL, "", "-monitor none -display none" },
	{ "qemu -chardev stdio,id=a,mux=on,signal=off,logfile=x,,signal=y", NULL, "",
	  "-chardev null,id=a,mux=on,logfile=x,,signal=y,logappend=on -display none" },
	{ "qemu -chardev stdio,nosignal,id=a", NULL, "", "-chardev null,id=a -display none" },
	{ "qemu -chardev id=a,backend=stdio", NULL, "", "-chardev null,id=a -display none" },
	{ "qemu -serial vc -serial file:stdio -mon a,mode=control", NULL, "",
	  "-serial vc -chardev file,id=serial1,path=stdio,append=on -serial chardev:serial1 -mon a,mode=control -display none" },
	{ "qemu -display gtk,gl=on", NULL, "", "-display none" },
	{ "qemu -display {\"type\":\"sdl\"}", NULL, "", "-display none" },
	{ "qemu -full-screen -display vnc=:1", NULL, "", "-display vnc=:1" },
	{ "qemu -vnc :1", NULL, "", "-vnc :1 -display none" },
	// who listens does not wait
	{ "qemu -qmp unix:/a,server=on", NULL, "", "-qmp unix:/a,server=on,wait=off -display none" },
	{ "qemu -qmp-pretty unix:/a,server,nowait", NULL, "", "-qmp-pretty unix:/a,server,nowait -display none" },
	{ "qemu -serial mon:telnet::44,server,wait=on,nodelay", NULL, "",
	  "-serial mon:telnet::44,server,nodelay,wait=off -display none" },
	{ "qemu -chardev socket,id=a,server=yes,path=/a,,b", NULL, "",
	  "-chardev socket,id=a,server=yes,path=/a,,b,wait=off -display none" },
	{ "qemu -chardev socket,id=a,path=/a", NULL, "", "-chardev socket,id=a,path=/a -display none" },
	// what is written to files goes on
	{ "qemu -chardev file,id=a,path=/x,,y -chardev append=off,backend=file,id=b,path=z", NULL, "",
	  "-chardev file,id=a,path=/x,,y,append=on -chardev append=off,backend=file,id=b,path=z,append=on -display none" },
	{ "qemu -chardev file,id=a,path=x,append=off,input-path=y", NULL, "",
	  "-chardev file,id=a,path=x,input-path=y,append=on -display none" },
	{ "qemu -chardev pty,id=a,logfile=l,logappend=off -serial mon:unix:/a,server=on,wait=off,logfile=l", NULL, "",
	  "-chardev pty,id=a,logfile=l,logappend=on -serial mon:unix:/a,server=on,wait=off,logfile=l,logappend=on -display none" },
	{ "qemu -serial file:a,server=on -serial null -serial mon:file:b", NULL, "",
	  "-chardev file,id=serial0,path=a,,server=on,append=on -serial chardev:serial0 -serial null "
	  "-chardev file,id=serial2,path=b,append=on -serial chardev:serial2 -display none" },
	{ "qemu -parallel file:p -debugcon file:d -monitor stdio -monitor file:m", NULL, "",
	  "-chardev file,id=parallel0,path=p,append=on -parallel chardev:parallel0 "
	  "-chardev file,id=debugcon,path=d,append=on -debugcon chardev:debugcon "
	  "-chardev file,id=criu-vm-monitor1,path=m,append=on -monitor chardev:criu-vm-monitor1 -display none" },
	{ "qemu -D log -d int -D log.%d", NULL, "", "-d int -D log.%d -display none" },
	{ "qemu -D log", "-D other", "", "-D other -display none" },
	// a VM restored before, its file given anew: what that restore made of the old one goes
	{ "qemu -chardev file,id=serial0,path=a,append=on -serial chardev:serial0", "-serial file:serial0", "",
	  "-chardev file,id=serial0,path=serial0,append=on -serial chardev:serial0 -display none" },
	{ "qemu -chardev file,id=debugcon,path=a,append=on -debugcon chardev:debugcon", "-debugcon null", "",
	  "-debugcon null -display none" },
	{ "qemu -chardev file,id=serial0,path=a,append=on -serial chardev:serial0", "-chardev file,id=serial0,path=b", "",
	  "-chardev file,id=serial0,path=b,append=on -serial chardev:serial0 -display none" },
	{ "qemu -chardev file,id=serial1,path=a -device isa-serial,chardev=serial1 -chardev file,id=x1,path=b", NULL, "",
	  "-chardev file,id=serial1,path=a,append=on -device isa-serial,chardev=serial1 "
	  "-chardev file,id=x1,path=b,append=on -display none" },
	// kept as they are
	{ "qemu -device {\"driver\":\"e1000\"} -append fd=/dev/fd/3 -fw_cfg name=opt/x,string=fd=1", NULL, "",
	  "-device {\"driver\":\"e1000\"} -append fd=/dev/fd/3 -fw_cfg name=opt/x,string=fd=1 -display none" },
	{ "qemu -drive file=a,,b,snapshot=off --no-reboot", NULL, "", "-drive file=a,,b,snapshot=off -no-reboot -display none" },
	{ "qemu -object rng-random,id=r,filename=/dev/urandom -icount shift=7", NULL, "",
	  "-object rng-random,id=r,filename=/dev/urandom -icount shift=7 -display none" },
	// replacing: by id in its place, by name, added
	{ "qemu -device a,id=x -device b,id=y -device c,id=z", "-device new,id=y", "",
	  "-device a,id=x -device new,id=y -device c,id=z -display none" },
	{ "qemu -drive file=a -m 64 -drive file=b,id=i", "-drive file=c --drive file=d", "",
	  "-drive file=c -drive file=d -m 64 -display none" },
	{ "qemu -device a,id=x", "-device b,id=y", "", "-device a,id=x -device b,id=y -display none" },
	{ "qemu -blockdev {\"node-name\":\"n\"} -blockdev file,node-name=k", "-blockdev raw,node-name=n", "",
	  "-blockdev raw,node-name=n -blockdev file,node-name=k -display none" },
	{ "qemu disk.img", "-hda other", "", "-hda other -display none" },
	{ "qemu -M pc,usb=on", "-M smm=off,accel=kvm", ",smm=off,accel=kvm", "-display none" },
	{ "qemu -M pc,usb=on", "-M pc-7.2,smm=off", ",smm=off", "-display none" },
	{ "qemu -nographic -serial stdio", "-serial null -display vnc=:2", ",graphics=off", "-serial null -display vnc=:2" },
};

START_TEST(plain_ram)
{
	typeof(plain[0]) *c = &plain[_i];
	char *machine, *options;

	ck_assert_int_ge(asprintf(&machine, "pc-7.2%s,memory-backend=criu-vm-ram", c->machine), 0);
	ck_assert_int_ge(asprintf(&options, RAM " %s", c->options), 0);
	expect(&default_ram, 1, c->recorded, c->replace, machine, options);
	free(machine);
	free(options);
}
END_TEST

// Root, who stays root, goes where it was confined to.
START_TEST(chroot_of_root)
{
	as_root = true;
	expect(&default_ram, 1, "qemu -chroot /d -run-with chroot=/e,user=u", NULL, "pc-7.2,memory-backend=criu-vm-ram",
	       RAM " -chroot /d -run-with chroot=/e -display none");
	as_root = false;
}
END_TEST

START_TEST(ram_backends)
{
	const struct qemu_cmdline_ram ram[] = { { "m0", 4096, 5 }, { "m1", 8192, 6 } };

	expect(ram, 2,
	       "qemu -object memory-backend-ram,id=m0,size=4k,prealloc=on,prealloc-threads=4,policy=bind,host-nodes.0=0,host-nodes.1=1 "
	       "-object {\"qom-type\":\"memory-backend-memfd\",\"id\":\"m1\",\"size\":8192,\"hugetlb\":true,"
	       "\"host-nodes\":[1],\"dump\":false} "
	       "-numa node,memdev=m0 -numa node,memdev=m1 -display none",
	       NULL, "pc-7.2",
	       "-object memory-backend-file,id=m0,size=4096,mem-path=/proc/self/fd/5,share=on,policy=bind,"
	       "host-nodes.0=0,host-nodes.1=1 "
	       "-object {\"qom-type\":\"memory-backend-file\",\"id\":\"m1\",\"size\":8192,\"mem-path\":\"/proc/self/fd/6\","
	       "\"share\":true,\"host-nodes\":[1],\"dump\":false} "
	       "-numa node,memdev=m0 -numa node,memdev=m1 -display none");
	expect(ram, 1,
	       "qemu -object qom-type=memory-backend-file,id=m0,mem-path=/x,align=2M,pmem=on,merge=off -M pc,memory-backend=m0,usb=on", NULL,
	       "pc-7.2,usb=on,memory-backend=m0",
	       "-object memory-backend-file,id=m0,size=4096,mem-path=/proc/self/fd/5,share=on,merge=off -display none");
	// a backend for a DIMM beside plain RAM, which goes by the id that QEMU gives it
	expect((const struct qemu_cmdline_ram[]){ { "pc.ram", 64 << 20, 7 }, { "m0", 4096, 5 } }, 2,
	       "qemu -object memory-backend-ram,id=m0,size=4k -device pc-dimm,memdev=m0", NULL, "pc-7.2,memory-backend=criu-vm-ram",
	       RAM " -object memory-backend-file,id=m0,size=4096,mem-path=/proc/self/fd/5,share=on "
		   "-device pc-dimm,memdev=m0 -display none");
	// VMs that were restored before, dumped again: their descriptors were ours
	expect((const struct qemu_cmdline_ram[]){ { "criu-vm-ram", 64 << 20, 7 } }, 1,
	       "qemu -M pc,memory-backend=criu-vm-ram -object memory-backend-file,id=criu-vm-ram,size=1,mem-path=/proc/self/fd/3 "
	       "-chardev socket,id=criu-vm-qmp,fd=4,server=on,wait=off -mon chardev=criu-vm-qmp,mode=control -incoming defer -S",
	       NULL, "pc-7.2,memory-backend=criu-vm-ram", RAM " -display none");
	expect(ram, 1, "qemu -object memory-backend-file,id=m0,size=1,mem-path=/proc/self/fd/3,share=on -M pc,memory-backend=m0", NULL,
	       "pc-7.2,memory-backend=m0", "-object memory-backend-file,id=m0,size=4096,mem-path=/proc/self/fd/5,share=on -display none");
}
END_TEST

START_TEST(machine_type)
{
	char *got;

	ck_assert_int_eq(rebuild_with(&default_ram, 1, "qemu", "-machine accel=tcg", &got), 0);
	free(got);
	ck_assert_int_eq(rebuild_with(&default_ram, 1, "qemu", "-machine q35", &got), -EINVAL);
	ck_assert_int_eq(rebuild_with(&default_ram, 1, "qemu", "-machine accel=tcg,type=q35", &got), -EINVAL);
	ck_assert_int_eq(rebuild_with(&default_ram, 1, "qemu -M pc", "-M pc", &got), -EINVAL); // another one in another QEMU
	ck_assert_int_eq(rebuild_with(&default_ram, 1, "qemu", "-M pc-7.2,memory-backend=x", &got), -EINVAL);
	ck_assert_int_eq(rebuild_with(&default_ram, 1, "qemu", "-M memory-backend=criu-vm-ram", &got), -EINVAL);
}
END_TEST

START_TEST(machine_is_a_name)
{
	struct qemu_cmdline_opts o = { .qemu = "q", .machine = "pc,kernel=/x", .recorded = (char *[]){ "q" }, .nr_recorded = 1,
				       .ram = &default_ram, .nr_ram = 1 };
	char **argv;

	ck_assert_int_eq(qemu_cmdline_rebuild(&o, &argv), -EINVAL);
}
END_TEST

// Already at dump.
static const struct {
	const char *recorded;
	int err;
} refused[] = {
	{ "qemu -snapshot", -EOPNOTSUPP },
	{ "qemu -drive file=a,snapshot=on", -EOPNOTSUPP },
	{ "qemu -readconfig f", -EOPNOTSUPP },
	{ "qemu -add-fd fd=3,set=1", -EOPNOTSUPP },
	{ "qemu -plugin x.so", -EOPNOTSUPP },
	{ "qemu -preconfig", -EOPNOTSUPP },
	{ "qemu -icount shift=1,rr=record,rrfile=x", -EOPNOTSUPP },
	{ "qemu -object memory-backend-epc,id=a,size=1M", -EOPNOTSUPP },
	{ "qemu -object memory-backend-file,id=a,size=1M,mem-path=x,readonly=on", -EOPNOTSUPP },
	{ "qemu -M ,,memory-backend=x,a=0", -EINVAL },
	{ "qemu -device e1000,,a=b,c=d", -EINVAL },
	{ "qemu -device e1000,a,,b", -EINVAL },
	{ "qemu -netdev tap,id=n,fd=3", -EOPNOTSUPP },
	{ "qemu -nic tap,vhostfds=3:4", -EOPNOTSUPP },
	{ "qemu -netdev {\"type\":\"tap\",\"id\":\"n\",\"fd\":\"3\"}", -EOPNOTSUPP },
	{ "qemu -netdev stream,id=n,addr.type=fd,addr.str=3", -EOPNOTSUPP },
	{ "qemu -blockdev {\"driver\":\"raw\",\"file\":{\"driver\":\"file\",\"filename\":\"/dev/fdset/1\"}}", -EOPNOTSUPP },
	{ "qemu -blockdev {\"driver\":\"nbd\",\"server\":{\"type\":\"fd\",\"str\":\"3\"}}", -EOPNOTSUPP },
	{ "qemu -drive file=/dev/fd/3", -EOPNOTSUPP },
	{ "qemu /proc/self/fd/3", -EOPNOTSUPP },
	{ "qemu -chardev socket,id=a,fd=3,server=on", -EOPNOTSUPP },
	{ "qemu -chardev socket,id=criu-vm-qmp2,fd=3,server=on", -EOPNOTSUPP },
	{ "qemu -serial file:/dev/fd/3", -EOPNOTSUPP },
	{ "qemu -drive file=/proc/self/fd/3", -EOPNOTSUPP },
	{ "qemu -device {'driver':'e1000'}", -EINVAL }, // QEMU's own dialect of JSON
	{ "qemu -nosuchoption", -EINVAL },
	{ "qemu -", -EINVAL },
	{ "qemu -m", -EINVAL },
	{ "qemu -object memory-backend-ram,size=1M", -EINVAL },
	{ "qemu -object memory-backend-ram,id=a,,b,size=1M", -EINVAL },
	{ "qemu -chardev {\"backend\":\"stdio\"}", -EINVAL },
	{ "", -EINVAL },
};

START_TEST(refused_at_dump_and_restore)
{
	char *got;

	ck_assert_int_eq(check(refused[_i].recorded), refused[_i].err);
	ck_assert_int_eq(rebuild_with(&default_ram, 1, refused[_i].recorded, NULL, &got), refused[_i].err);
}
END_TEST

START_TEST(every_reason_is_told)
{
	int out[2];
	char text[4096] = "";

	ck_assert_int_eq(pipe(out), 0);
	log_init(out[1], LOG_ERROR, NULL, false);
	ck_assert_int_eq(check("qemu -snapshot -m 64 -readconfig f -netdev tap,fd=3"), -EOPNOTSUPP);
	ck_assert_int_gt(read(out[0], text, sizeof text - 1), 0);
	ck_assert_ptr_nonnull(strstr(text, "-snapshot"));
	ck_assert_ptr_nonnull(strstr(text, "-readconfig f"));
	ck_assert_ptr_nonnull(strstr(text, "-netdev tap,fd=3"));
}
END_TEST

START_TEST(ram_must_match)
{
	const struct qemu_cmdline_ram two[] = { { "a", 4096, 5 }, { "b", 4096, 6 } };
	const struct qemu_cmdline_ram same[] = { { "a", 4096, 5 }, { "a", 4096, 6 } };
	char *got;

	ck_assert_int_eq(rebuild_with(two, 2, "qemu", NULL, &got), -EINVAL); // only one can be the RAM of -m
	ck_assert_int_eq(rebuild_with(two, 1, "qemu -object memory-backend-ram,id=x,size=4k", NULL, &got), -EINVAL);
	ck_assert_int_eq(rebuild_with(same, 2, "qemu -object memory-backend-ram,id=a,size=4k", NULL, &got), -EINVAL);
	ck_assert_int_eq(rebuild_with(two, 1, "qemu -M pc,memory-backend=z", NULL, &got), -EINVAL);
	ck_assert_int_eq(rebuild_with(two, 2, "qemu -M pc,memory-backend=b -object memory-backend-ram,id=b,size=4k", NULL, &got),
			 -EINVAL);
}
END_TEST

START_TEST(replacing_what_is_ours)
{
	const struct qemu_cmdline_ram ram = { "m0", 4096, 5 };
	char *got;

	ck_assert_int_eq(rebuild_with(&default_ram, 1, "qemu", "-incoming tcp:0:4444", &got), -EINVAL);
	ck_assert_int_eq(rebuild_with(&default_ram, 1, "qemu", "-S", &got), -EINVAL);
	ck_assert_int_eq(rebuild_with(&ram, 1, "qemu -object memory-backend-ram,id=m0,size=4k",
				      "-object memory-backend-ram,id=m0,size=8k", &got), -EINVAL);
	ck_assert_int_eq(rebuild_with(&default_ram, 1, "qemu", "-snapshot", &got), -EOPNOTSUPP);
	ck_assert_int_eq(rebuild_with(&default_ram, 1, "qemu", "-chardev null,id=criu-vm-qmp", &got), -EINVAL);
	ck_assert_int_eq(rebuild_with(&default_ram, 1, "qemu", "-mon criu-vm-qmp", &got), -EINVAL);
	ck_assert_int_eq(rebuild_with(&default_ram, 1, "qemu", "-chardev null,id=criu-vm-commands", &got), -EINVAL);
	ck_assert_int_eq(rebuild_with(&default_ram, 1, "qemu", "-mon criu-vm-commands", &got), -EINVAL);
	// what cannot be given again can be replaced
	ck_assert_int_eq(rebuild_with(&default_ram, 1, "qemu -netdev tap,id=n,fd=3", "-netdev user,id=n", &got), 0);
	ck_assert_ptr_null(strstr(got, "fd=3"));
	free(got);
}
END_TEST

// ---- of another host

#define SANDBOX "-sandbox on,obsolete=deny,elevateprivileges=deny,spawn=deny "
#define LONG "/0123456789012345678901234567890123456789012345678901234567890123456789012345678901234567890123456789"

static const struct {
	const char *recorded, *options; // what becomes of them here
	const char *again;              // and once more, when this host is trusted
	const char *hidden;             // a line each
} theirs[] = {
	{ "-qmp unix:/q,server=on,wait=off", "-qmp unix:/q~criu-vm,server=on,wait=off", "-qmp unix:/q,server=on,wait=off", "/q~criu-vm\n" },
	{ "-monitor unix:path=/a,,b,server,nowait", "-monitor unix:/a,,b~criu-vm,server,nowait", "-monitor unix:/a,,b,server,nowait",
	  "/a,b~criu-vm\n" },
	{ "-chardev socket,path=/m,id=m,server=on,wait=off -mon m,mode=control", "-chardev socket,path=/m~criu-vm,id=m,server=on,wait=off -mon m,mode=control",
	  "-chardev socket,path=/m,id=m,server=on,wait=off -mon m,mode=control", "/m~criu-vm\n" },
	{ "-monitor chardev:m -chardev socket,id=m,server=on,wait=off,path=/m", "-monitor chardev:m -chardev socket,path=/m~criu-vm,id=m,server=on,wait=off",
	  "-monitor chardev:m -chardev socket,path=/m,id=m,server=on,wait=off", "/m~criu-vm\n" },
	{ "-gdb unix:/g,server=on,wait=off", "-gdb unix:/g~criu-vm,server=on,wait=off", "-gdb unix:/g,server=on,wait=off", "/g~criu-vm\n" },
	{ "-chardev socket,id=s,path=/s,server=on,wait=off -serial chardev:s", "-chardev socket,id=s,path=/s,server=on,wait=off -serial chardev:s",
	  "-chardev socket,id=s,path=/s,server=on,wait=off -serial chardev:s", "" },
	// left out
	{ "-qmp tcp:0:4444,server=on,wait=off -monitor pty -monitor vc -gdb tcp::1 -s", NULL, NULL, "" },
	{ "-qmp unix:/client -monitor unix:/a,abstract=on,server=on -qmp-pretty unix:" LONG ",server=on", NULL, NULL, "" },
	{ "-mon none -monitor chardev:nobody", NULL, NULL, "" },
	{ "-chardev socket,id=m,host=h,port=1,server=on,wait=off -mon m", "-chardev socket,id=m,host=h,port=1,server=on,wait=off",
	  "-chardev socket,id=m,host=h,port=1,server=on,wait=off", "" },
	{ "-monitor none -serial mon:pty", "-monitor none -serial pty", "-monitor none -serial pty", "" },
	{ "-set device.d.x=1 -sandbox off -sandbox on", "-set device.d.x=1", "-set device.d.x=1", "" },
};

static char *hidden(const char *line)
{
	struct words w;
	char *text;
	size_t len;
	FILE *f = open_memstream(&text, &len);

	words_init(&w, line);
	ck_assert_int_eq(qemu_cmdline_hidden(w.v, f), 0);
	fclose(f);
	free(w.text);
	return text;
}

START_TEST(of_another_host)
{
	const char *is = theirs[_i].options, *again = theirs[_i].again;
	char *recorded, *want, *got, *twice, *back, *paths;

	ck_assert_int_ge(asprintf(&recorded, "qemu %s", theirs[_i].recorded), 0);
	ck_assert_int_ge(asprintf(&want, "/bin/qemu -machine pc-7.2,memory-backend=criu-vm-ram " RAM "%s%s -display none " SANDBOX TAIL, is ? " " : "", is ?: ""), 0);
	from_peer = true;
	ck_assert_int_eq(rebuild_with(&default_ram, 1, recorded, NULL, &got), 0);
	ck_assert_str_eq(got, want);
	paths = hidden(got);
	ck_assert_str_eq(paths, theirs[_i].hidden);
	ck_assert_int_eq(rebuild_with(&default_ram, 1, got, NULL, &twice), 0);
	ck_assert_str_eq(twice, want);
	from_peer = false;
	free(want);
	ck_assert_int_ge(asprintf(&want, "/bin/qemu -machine pc-7.2,memory-backend=criu-vm-ram " RAM "%s%s -display none " SANDBOX TAIL, again ? " " : "",
				  again ?: ""), 0);
	ck_assert_int_eq(rebuild_with(&default_ram, 1, got, NULL, &back), 0);
	ck_assert_str_eq(back, want);
	free(recorded);
	free(want);
	free(got);
	free(twice);
	free(back);
	free(paths);
}
END_TEST

START_TEST(sandbox_of_another_host)
{
	char *got;

	from_peer = true;
	ck_assert_int_eq(rebuild_with(&default_ram, 1, "qemu -sandbox on,spawn=deny,resourcecontrol=deny", NULL, &got), 0);
	ck_assert(strstr(got, "-sandbox on,spawn=deny,resourcecontrol=deny ") && !strstr(got, SANDBOX));
	free(got);
	ck_assert_int_eq(rebuild_with(&default_ram, 1, "qemu -set netdev.n.smb=/", NULL, &got), -EOPNOTSUPP);
	from_peer = false;
}
END_TEST

int main(void)
{
	Suite *s = suite_create("cmdline");
	TCase *tc = tcase_create("cmdline");
	SRunner *sr;
	int failed;

	log_init(getenv("VERBOSE") ? 2 : open("/dev/null", O_WRONLY | O_CLOEXEC), LOG_WARN, NULL, false);
	tcase_add_loop_test(tc, plain_ram, 0, ARRAY_SIZE(plain));
	tcase_add_test(tc, chroot_of_root);
	tcase_add_test(tc, ram_backends);
	tcase_add_test(tc, machine_type);
	tcase_add_test(tc, machine_is_a_name);
	tcase_add_loop_test(tc, refused_at_dump_and_restore, 0, ARRAY_SIZE(refused));
	tcase_add_test(tc, every_reason_is_told);
	tcase_add_test(tc, ram_must_match);
	tcase_add_test(tc, replacing_what_is_ours);
	tcase_add_loop_test(tc, of_another_host, 0, ARRAY_SIZE(theirs));
	tcase_add_test(tc, sandbox_of_another_host);
	suite_add_tcase(s, tc);
	sr = srunner_create(s);
	srunner_run_all(sr, CK_ENV);
	failed = srunner_ntests_failed(sr);
	srunner_free(sr);
	return failed ? 1 : 0;
}
