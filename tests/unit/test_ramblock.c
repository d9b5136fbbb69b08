// SPDX-License-Identifier: GPL-2.0-only
// What QEMU and the kernel print, and what stands on a command line.
#include <check.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/sysmacros.h>
#include <sys/wait.h>
#include <unistd.h>

#include "qemu/args.h"
#include "qemu/ramblock_int.h"
#include "qemu/vm.h"
#include "qemu/vm_int.h"
#include "util/log.h"
#include "util/size.h"

// As QEMU 7.2 prints it; a memory backend that nothing uses has no name.
static const char info_7[] =
	"              Block Name    PSize              Offset               Used              Total\r\n"
	"                  pc.ram    4 KiB  0x0000000000000000 0x0000000010000000 0x0000000010000000\r\n"
	"   0000:00:02.0/vga.vram    4 KiB  0x0000000010180000 0x0000000001000000 0x0000000001000000\r\n"
	"    /rom@etc/acpi/tables    4 KiB  0x0000000011240000 0x0000000000020000 0x0000000000200000\r\n"
	"0000:00:04.0/virtio-net-pci.rom    4 KiB  0x0000000011200000 0x0000000000040000 0x0000000000040000\r\n"
	"                           4 KiB  0x0000000012200000 0x0000000002000000 0x0000000002000000\r\n"
	"                      m0    2 MiB  0x0000000020000000 0x0000000010000000 0x0000000010000000\r\n";

static const char info_8[] =
	"              Block Name    PSize              Offset               Used              Total                HVA  RO\r\n"
	"                  pc.ram    4 KiB  0x0000000000000000 0x0000000400000000 0x0000000400000000 0x00007f12ebe00000  rw\r\n"
	"                 pc.bios    4 KiB  0x0000000400000000 0x0000000000040000 0x0000000000040000 0x00007f1700000000  ro\r\n";

START_TEST(ramblocks)
{
	struct qemu_ram_info *v;
	size_t nr;

	ck_assert_int_eq(qemu_parse_ramblocks(info_7, &v, &nr), 0);
	ck_assert_uint_eq(nr, 6);
	ck_assert_str_eq(v[0].name, "pc.ram");
	ck_assert(v[0].page_size == 4096 && !v[0].offset && v[0].used == 0x10000000 && v[0].max == 0x10000000 && !v[0].hva);
	ck_assert_str_eq(v[2].name, "/rom@etc/acpi/tables");
	ck_assert(v[2].offset == 0x11240000 && v[2].used == 0x20000 && v[2].max == 0x200000);
	ck_assert_str_eq(v[3].name, "0000:00:04.0/virtio-net-pci.rom");
	ck_assert_str_eq(v[4].name, "");
	ck_assert_uint_eq(v[4].max, 0x2000000);
	ck_assert_str_eq(v[5].name, "m0");
	ck_assert_uint_eq(v[5].page_size, 2 * MiB);
	free(v);
	ck_assert_int_eq(qemu_parse_ramblocks(info_8, &v, &nr), 0);
	ck_assert_uint_eq(nr, 2);
	ck_assert(v[0].hva == 0x7f12ebe00000 && v[1].hva == 0x7f1700000000 && v[0].used == 0x400000000);
	free(v);
}
END_TEST

static const char *const bad_info[] = {
	"unknown command: 'info ramblock'\r\n",
	"pc.ram    4 KiB\r\n",
	"pc.ram    4 KiB  0x0 0x1000\r\n",
	"pc.ram    4 KiB  0x0 0x2000 0x1000\r\n", // more used than there is
	"pc.ram    4 KiB  0x0 0x0 0x0\r\n",
	"pc.ram    0 KiB  0x0 0x1000 0x1000\r\n",
	"pc.ram    4 PiB  0x0 0x1000 0x1000\r\n",
	"pc.ram    999999999 TiB  0x0 0x1000 0x1000\r\n",
	"  0x0 0x1000 0x1000\r\n",
};

START_TEST(bad_ramblocks)
{
	struct qemu_ram_info *v;
	size_t nr;

	ck_assert_int_eq(qemu_parse_ramblocks(bad_info[_i], &v, &nr), -EBADMSG);
}
END_TEST

START_TEST(long_name)
{
	char text[512];
	struct qemu_ram_info *v;
	size_t nr;

	memset(text, 'x', 256);
	strcpy(text + 256, "    4 KiB  0x0 0x1000 0x1000\r\n");
	ck_assert_int_eq(qemu_parse_ramblocks(text, &v, &nr), -EBADMSG);
	ck_assert_int_eq(qemu_parse_ramblocks(text + 1, &v, &nr), 0);
	ck_assert_uint_eq(strlen(v->name), 255);
	free(v);
}
END_TEST

// Under KVM QEMU marks what the kernel has. System management mode has a view of its own, which gpa2hva does not know.
static const char mtree[] =
	"FlatView #0\r\n"
	" AS \"I/O\", root: io\r\n"
	" Root memory region: io\r\n"
	"  0000000000000000-0000000000000007 (prio 0, i/o): dma-chan\r\n"
	"\r\n"
	"FlatView #1\r\n"
	" AS \"memory\", root: system\r\n"
	" AS \"cpu-memory-0\", root: system\r\n"
	" Root memory region: system\r\n"
	"  0000000000000000-000000000009ffff (prio 0, ram): pc.ram KVM\r\n"
	"  00000000000a0000-00000000000bffff (prio 1, i/o): vga-lowmem\r\n"
	"  00000000000c0000-0000000003ffffff (prio 0, ram): pc.ram @00000000000c0000 KVM\r\n"
	"  00000000fd000000-00000000fdffffff (prio 1, ram): vga.vram\r\n"
	"  00000000fe000000-00000000fe00ffff (prio 1, ramd): 0000:00:05.0 BAR 0 mmaps[0]\r\n"
	"  00000000fff00000-00000000ffffffff (prio 0, romd): system.flash0\r\n"
	"\r\n"
	"FlatView #2\r\n"
	" AS \"cpu-smm-0\", root: memory\r\n"
	" Root memory region: memory\r\n"
	"  00000000000a0000-00000000000bffff (prio 0, ram): smm.ram\r\n";

START_TEST(flat_ranges)
{
	struct qemu_flat_range *v;
	size_t nr;

	ck_assert_int_eq(qemu_parse_mtree(mtree, &v, &nr), 0);
	ck_assert_uint_eq(nr, 4);
	ck_assert(!v[0].gpa && !v[0].offset && !strcmp(v[0].region, "pc.ram"));
	ck_assert(v[1].gpa == 0xc0000 && v[1].offset == 0xc0000 && !strcmp(v[1].region, "pc.ram"));
	ck_assert(v[2].gpa == 0xfd000000 && !v[2].offset && !strcmp(v[2].region, "vga.vram"));
	ck_assert(v[3].gpa == 0xfff00000 && !strcmp(v[3].region, "system.flash0"));
	free(v);
}
END_TEST

START_TEST(gpa2hva)
{
	char region[256];
	uint64_t hva;

	ck_assert_int_eq(qemu_parse_gpa2hva("Host virtual address for 0xc8000 (pc.ram) is 0x7fae33ec8000\r\n", region, &hva), 0);
	ck_assert_str_eq(region, "pc.ram");
	ck_assert_uint_eq(hva, 0x7fae33ec8000);
	ck_assert_int_eq(qemu_parse_gpa2hva("No memory is mapped at address 0xe0000000\r\n", region, &hva), -EBADMSG);
	ck_assert_int_eq(qemu_parse_gpa2hva("", region, &hva), -EBADMSG);
}
END_TEST

static const char smaps[] =
	"55d0c1a00000-55d0c1b00000 rw-p 00000000 00:00 0                          [heap]\n"
	"Size:               1024 kB\n"
	"VmFlags: rd wr mr mw me ac \n"
	"7fae31c00000-7fae31c01000 rw-p 00000000 00:00 0 \n"
	"Size:                  4 kB\n"
	"Rss:                   4 kB\n"
	"VmFlags: rd wr mr mw me dc ac hg mg \n"
	"7fae31c01000-7fae31c02000 ---p 00000000 00:00 0 \n"
	"VmFlags: mr mw me \n"
	"7fef57fff000-7fef5bfff000 rw-s 00003000 00:01 128                        /memfd:memory-backend-memfd (deleted)\n"
	"VmFlags: rd wr sh mr mw me ms dc\n";

START_TEST(mappings)
{
	struct qemu_mapping *v;
	size_t nr;

	ck_assert_int_eq(qemu_parse_smaps(smaps, &v, &nr), 0);
	ck_assert_uint_eq(nr, 4);
	ck_assert_str_eq(v[0].path, "[heap]");
	ck_assert(!v[0].dontfork && v[0].writable && v[0].readable && !v[0].shared);
	ck_assert(v[1].start == 0x7fae31c00000 && v[1].end == 0x7fae31c01000 && v[1].dontfork);
	ck_assert_str_eq(v[1].path, "");
	ck_assert(!v[2].readable && !v[2].writable && !v[2].dontfork);
	ck_assert(v[3].shared && v[3].dontfork && v[3].file_off == 0x3000 && v[3].dev == makedev(0, 1) && v[3].ino == 128);
	ck_assert_str_eq(v[3].path, "/memfd:memory-backend-memfd (deleted)");
	free(v);
	ck_assert_int_eq(qemu_parse_smaps("2000-1000 rw-p 0 00:00 0 \n", &v, &nr), -EBADMSG);
}
END_TEST

// Input that ends anywhere is an error or less of the same; never more, never a crash.
START_TEST(truncated)
{
	for (size_t i = 0; i < sizeof info_8; i++) {
		char *text = strndup(i < sizeof smaps ? smaps : "", i), *tree = strndup(mtree, i), *info = strndup(info_8, i);
		struct qemu_flat_range *r = NULL;
		struct qemu_mapping *m = NULL;
		struct qemu_ram_info *b = NULL;
		size_t nr;

		if (!qemu_parse_smaps(text, &m, &nr))
			ck_assert_uint_le(nr, 4);
		if (!qemu_parse_mtree(tree, &r, &nr))
			ck_assert_uint_le(nr, 4);
		if (!qemu_parse_ramblocks(info, &b, &nr))
			ck_assert_uint_le(nr, 2);
		free(m);
		free(r);
		free(b);
		free(text);
		free(tree);
		free(info);
	}
}
END_TEST

// ---- the command line

START_TEST(args)
{
	char *argv[] = { "qemu", "-S", "-m", "64", "--snapshot", "disk.img", "-append", "-qmp", "-nographic", "-device" };
	static const struct qemu_arg want[] = {
		{ "S", NULL },
		{ "m", "64" },
		{ "snapshot", NULL },
		{ "", "disk.img" },
		{ "append", "-qmp" },
		{ "nographic", NULL },
		{ "device", NULL },
	};
	struct qemu_arg a;
	int i = 1;

	for (size_t k = 0; k < ARRAY_SIZE(want); k++) {
		ck_assert(qemu_arg_next(argv, ARRAY_SIZE(argv), &i, &a));
		ck_assert_str_eq(a.name, want[k].name);
		ck_assert_pstr_eq(a.value, want[k].value);
	}
	ck_assert(!qemu_arg_next(argv, ARRAY_SIZE(argv), &i, &a));
}
END_TEST

static const struct {
	const char *opts, *implied, *key, *value;
} opt[] = {
	{ "socket,id=a,path=/x", "backend", "backend", "socket" },
	{ "socket,id=a,path=/x", "backend", "path", "/x" },
	{ "socket,id=a,path=/x", "backend", "pat", NULL },
	{ "socket,id=a", NULL, "backend", NULL },
	{ "file=a,,b,,,format=raw", NULL, "file", "a,b," },
	{ "file=a,,b,,,format=raw", NULL, "format", "raw" },
	{ "server,nowait", NULL, "server", "on" },
	{ "server,nowait", NULL, "wait", "off" },
	{ "a=1,a=2", NULL, "a", "2" },
	{ "id=x,driver=e1000", "driver", "driver", "e1000" },
	{ "file=x=y", NULL, "file", "x=y" },
	{ "", "driver", "driver", NULL },
	{ "a=", NULL, "a", "" },
	{ "{\"driver\":\"raw\",\"n\":3,\"b\":true}", "driver", "driver", "raw" },
	{ "{\"driver\":\"raw\",\"n\":3,\"b\":true}", "driver", "n", "3" },
	{ "{\"driver\":\"raw\",\"n\":3,\"b\":true}", "driver", "b", "on" },
	{ "{\"driver\":", "driver", "driver", NULL },
};

START_TEST(opts)
{
	char *value = qemu_opt_get(opt[_i].opts, opt[_i].implied, opt[_i].key);

	ck_assert_pstr_eq(value, opt[_i].value);
	free(value);
}
END_TEST

#define QMP(want, ...) \
	do { \
		char *argv_[] = { "qemu", __VA_ARGS__ }; \
		struct qmp_listener l_; \
		bool found_ = qemu_argv_qmp(argv_, ARRAY_SIZE(argv_), 0, &l_); \
		ck_assert(!found_ || l_.path); \
		ck_assert_pstr_eq(found_ ? l_.path : NULL, want); \
		if (found_) \
			free(l_.path); \
	} while (0)

START_TEST(qmp_socket)
{
	char *two[] = { "qemu", "-qmp", "unix:a,server", "-m", "64", "--qmp-pretty", "unix:b,,c,server=on,wait=off" };
	char *given[] = { "qemu", "-chardev", "socket,id=mon,fd=31,server=on", "-mon", "chardev=mon,mode=control" };
	struct qmp_listener l;

	ck_assert(qemu_argv_qmp(two, ARRAY_SIZE(two), 1, &l));
	ck_assert_pstr_eq(l.path, "b,c");
	free(l.path);
	ck_assert(!qemu_argv_qmp(two, ARRAY_SIZE(two), 2, &l));
	ck_assert(qemu_argv_qmp(given, ARRAY_SIZE(given), 0, &l));
	ck_assert_ptr_null(l.path);
	ck_assert_int_eq(l.fd, 31);
	QMP("/run/q", "-chardev", "socket,id=mon,path=/run/q,server=on,wait=off", "-mon", "chardev=mon,mode=control");
	QMP("/run/q", "-mon", "mon,mode=control,pretty=on", "-chardev", "id=mon,backend=socket,path=/run/q,server");
	QMP("/run/q", "-chardev", "socket,id=c,path=/run/q,server=on", "-qmp", "chardev:c");
	QMP(NULL, "-chardev", "socket,id=mon,path=/run/q,server=on", "-mon", "chardev=mon,mode=readline");
	QMP(NULL, "-chardev", "socket,id=mon,fd=a-name,server=on", "-mon", "chardev=mon,mode=control");
	QMP(NULL, "-chardev", "socket,id=mon,path=x,server=on,abstract=on", "-mon", "chardev=mon,mode=control");
	QMP(NULL, "-chardev", "socket,id=other,path=/run/q,server=on", "-mon", "chardev=mon,mode=control");
	QMP(NULL, "-qmp", "unix:/run/q"); // there it is QEMU that connects
	QMP(NULL, "-qmp", "unix:/run/q,server=off");
	QMP(NULL, "-qmp", "tcp::4444,server=on");
	QMP(NULL, "-qmp", "stdio");
	QMP(NULL, "-monitor", "unix:/run/q,server=on");
	QMP(NULL, "-append", "-qmp", "unix:/run/q,server=on");
	QMP(NULL, "-qmp");
}
END_TEST

START_TEST(path_of_a_socket)
{
	static const char table[] = "Num       RefCount Protocol Flags    Type St Inode Path\n"
				    "00000000618a3850: 00000003 00000000 00000000 0001 03 524638 /run/it\n"
				    "000000009336b257: 00000002 00000000 00010000 0001 01 52463 /run/a name: 7\n"
				    "000000009336b258: 00000002 00000000 00010000 0001 01 7\n"
				    "000000009336b259: 00000002 00000000 00010000 0001 01 8 @abstract\n"
				    "000000009336b260: 00000002 00000000 00010000 0001 01 9 /last";
	char *path = qemu_unix_path(table, 52463);

	ck_assert_pstr_eq(path, "/run/a name: 7");
	free(path);
	path = qemu_unix_path(table, 9);
	ck_assert_pstr_eq(path, "/last");
	free(path);
	ck_assert_ptr_null(qemu_unix_path(table, 7)); // without a name, though the next line follows
	ck_assert_ptr_null(qemu_unix_path(table, 8));
	ck_assert_ptr_null(qemu_unix_path(table, 5));
	ck_assert_ptr_null(qemu_unix_path("", 5));
}
END_TEST

// A process that drops its privileges, as -runas does, is owned by root in /proc.
START_TEST(ids_of_a_process)
{
	int ready[2];
	uid_t uid;
	gid_t gid;
	pid_t child;
	char c;

	ck_assert_int_eq(qemu_process_ids(getpid(), &uid, &gid), 0);
	ck_assert_uint_eq(uid, geteuid());
	ck_assert_uint_eq(gid, getegid());
	if (geteuid())
		return;
	ck_assert_int_eq(pipe(ready), 0);
	child = fork();
	if (!child) {
		close(ready[0]);
		if (setegid(4242) || seteuid(4343) || write(ready[1], "", 1) != 1)
			_exit(1);
		pause();
	}
	close(ready[1]);
	ck_assert_int_eq(read(ready[0], &c, 1), 1);
	ck_assert_int_eq(qemu_process_ids(child, &uid, &gid), 0);
	ck_assert_uint_eq(uid, 4343);
	ck_assert_uint_eq(gid, 4242);
	kill(child, SIGKILL);
	waitpid(child, NULL, 0);
	ck_assert_int_eq(qemu_process_ids(child, &uid, &gid), -ESRCH);
}
END_TEST

int main(void)
{
	Suite *s = suite_create("ramblock");
	TCase *t = tcase_create("ramblock");
	SRunner *sr;
	int failed;

	log_init(getenv("VERBOSE") ? 2 : open("/dev/null", O_WRONLY | O_CLOEXEC), LOG_WARN, NULL, false);
	tcase_add_test(t, ramblocks);
	tcase_add_loop_test(t, bad_ramblocks, 0, ARRAY_SIZE(bad_info));
	tcase_add_test(t, long_name);
	tcase_add_test(t, flat_ranges);
	tcase_add_test(t, gpa2hva);
	tcase_add_test(t, mappings);
	tcase_add_test(t, truncated);
	tcase_add_test(t, args);
	tcase_add_loop_test(t, opts, 0, ARRAY_SIZE(opt));
	tcase_add_test(t, qmp_socket);
	tcase_add_test(t, path_of_a_socket);
	tcase_add_test(t, ids_of_a_process);
	suite_add_tcase(s, t);
	sr = srunner_create(s);
	srunner_run_all(sr, CK_ENV);
	failed = srunner_ntests_failed(sr);
	srunner_free(sr);
	return failed ? 1 : 0;
}
