// SPDX-License-Identifier: GPL-2.0-only
// Files of mappings, and descriptions of VMs that they are applied to.
#include "criu-vm/map_file.h"

#include <check.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "util/cleanup.h"
#include "util/log.h"
#include "util/size.h"

static int load_bytes(const char *text, size_t len, struct map_file **m)
{
	char name[] = "/tmp/criu-vm-map.XXXXXX";
	int fd = mkstemp(name), r;

	ck_assert_int_ge(fd, 0);
	ck_assert_int_eq(write(fd, text, len), (ssize_t)len);
	close(fd);
	r = map_file_load(name, m);
	unlink(name);
	return r;
}

static struct map_file *load(const char *text)
{
	struct map_file *m;

	ck_assert_int_eq(load_bytes(text, strlen(text), &m), 0);
	return m;
}

// ---- the file

static const struct {
	const char *text, *says;
} wrong[] = {
	{ "disk /a\n", ":1: two names" },
	{ "\n# x\ndisk /a /b /c", ":3: two names" },
	{ "bridge", ":1: two names" },
	{ "file /a /b", ":1: no \"disk\", \"path\", \"bridge\" or \"net\", but \"file\"" },
	{ "\"\" /a /b", "but \"\"" },
	{ "disk a /b", "no absolute path: \"a\"" },
	{ "disk /a b", "no absolute path: \"b\"" },
	{ "path \"\" /b", "no absolute path: \"\"" },
	{ "path /a/ /b", "ends with a slash" },
	{ "path /a /b/.", "ends with a slash" },
	{ "disk \"/a b /c", "not closed" },
	{ "disk \"/a\"b /c", "no blank behind a quote" },
	{ "disk /a\"b /c", "a quote within a word" },
	{ "disk /a /b\npath /a /c\ndisk //a /d", ":3: mapped a second time: \"/a\"" },
	{ "net ../x tap0", "no name of a network interface: \"../x\"" },
	{ "bridge br0 sixteen-letters.", "no name of a network interface" },
};

START_TEST(wrong_lines)
{
	struct map_file *m = NULL;

	ck_assert_int_eq(load_bytes(wrong[_i].text, strlen(wrong[_i].text), &m), -EINVAL);
	ck_assert_ptr_null(m);
	ck_assert_msg(strstr(log_last_error(), wrong[_i].says), "%s", log_last_error());
}
END_TEST

START_TEST(no_such_text)
{
	static char large[MAP_FILE_MAX + 1];
	struct map_file *m = NULL;

	ck_assert_int_eq(map_file_load("/nonexistent/map", &m), -ENOENT);
	ck_assert_int_eq(load_bytes("net a b\0", 8, &m), -EINVAL);
	memset(large, '\n', sizeof large);
	ck_assert_int_eq(load_bytes(large, sizeof large, &m), -EFBIG);
	ck_assert_ptr_null(m);
}
END_TEST

static const char mappings[] =
	"# the old host's\n"
	"disk /img/vm.qcow2 /new/vm.raw\r\n"
	"disk /img/ \"/my images/\" # all others\n"
	"\tpath   /img/   /wrong/for/disks/\n"
	"path /home/a/ /home/b/\n"
	"path /home/a/deep/ /deep/\n"
	"disk \"/a \"\"b\"\"\" /quoted\n"
	"path /c,d /e,f\n"
	"disk /dev/vg0/lv /dev/vg1/lv\n"
	"bridge br0 br-lan\n"
	"net tap0 vm1";

static const struct {
	const char *path;
	bool disk;
	const char *new;
} paths[] = {
	{ "/img/vm.qcow2", true, "/new/vm.raw" },
	{ "/img/vm.qcow2", false, "/wrong/for/disks/vm.qcow2" },
	{ "/img/vm.qcow2.old", true, "/my images/vm.qcow2.old" },
	{ "/img//./sub/x", true, "/my images/sub/x" },
	{ "/img", true, "/my images" },
	{ "/img/", true, "/my images/" },
	{ "/image/x", true, NULL },
	{ "/im", true, NULL },
	{ "/home/a/x", true, "/home/b/x" },
	{ "/home/a/deep/x", false, "/deep/x" },
	{ "/home/a/deeper/x", false, "/home/b/deeper/x" },
	{ "/home/ab/x", false, NULL },
	{ "/home/a", false, "/home/b" },
	{ "/a \"b\"", true, "/quoted" },
	{ "/a \"b\"", false, NULL },
	{ "/dev/vg0/lv", true, "/dev/vg1/lv" },
	{ "/dev/vg0/lv2", true, NULL },
	{ "/x/img/vm.qcow2", true, NULL },
	{ "/", false, NULL },
	{ "", false, NULL },
};

START_TEST(mapped_paths)
{
	_cleanup_free_ char *new = NULL;
	struct map_file *m = load(mappings);

	ck_assert_int_eq(map_file_path(m, paths[_i].path, paths[_i].disk, &new), 0);
	ck_assert_pstr_eq(new, paths[_i].new);
	free(new);
	ck_assert_int_eq(map_file_path(NULL, paths[_i].path, paths[_i].disk, &new), 0);
	ck_assert_ptr_null(new);
	map_file_free(m);
}
END_TEST

START_TEST(mapped_names)
{
	struct map_file *m = load(mappings);

	ck_assert_str_eq(map_file_bridge(m, "br0"), "br-lan");
	ck_assert_str_eq(map_file_bridge(m, "br1"), "br1");
	ck_assert_str_eq(map_file_bridge(NULL, "br0"), "br0");
	ck_assert_str_eq(map_file_net(m, "tap0"), "vm1");
	ck_assert_ptr_null(map_file_net(m, "br0"));
	ck_assert_ptr_null(map_file_net(NULL, "tap0"));
	map_file_free(m);
}
END_TEST

// ---- a description

// Options with one value each, in the folder /home/a.
static const struct {
	const char *option, *value, *want; // want NULL: it stays
} options[] = {
	{ "-hda", "/img/vm.qcow2", "/new/vm.raw" },
	{ NULL, "/img/vm.qcow2", "/new/vm.raw" },
	{ "-cdrom", "cd.iso", "/home/b/cd.iso" },
	{ "-hda", "nbd://img/vm.qcow2", NULL },
	{ "-hda", "file:/img/vm.qcow2", "/new/vm.raw" },
	{ "-drive", "file=/img/vm.qcow2,if=virtio", "file=/new/vm.raw,if=virtio" },
	{ "-drive", "if=none,file=./x,,y.img,format=raw", "if=none,file=/home/b/x,,y.img,format=raw" },
	{ "-drive", "file=/c,,d,id=x", "file=/e,,f,id=x" },
	{ "-drive", "file.driver=file,file.filename=/img/a,driver=raw", "file.driver=file,file.filename=/my images/a,driver=raw" },
	{ "-drive", "file=rbd:pool/img,if=none", NULL },
	{ "-drive", "file=json:{\"driver\":\"qcow2\",,\"file\":{\"driver\":\"file\",,\"filename\":\"/img/a\"}},id=d",
	  "file=json:{\"driver\":\"qcow2\",,\"file\":{\"driver\":\"file\",,\"filename\":\"/my images/a\"}},id=d" },
	{ "-drive", "file=json:{\"driver\":\"raw\",,\"file\":\"node\"}", NULL },
	{ "-drive", "file=/other/x,,y,if=none,serial=/img/a", NULL },
	{ "-blockdev", "driver=file,node-name=f,filename=/img/a", "driver=file,node-name=f,filename=/my images/a" },
	{ "-blockdev", "driver=raw,node-name=n,file=f", NULL }, // a node, not /home/a/f
	{ "-blockdev", "driver=qcow2,node-name=n,file.driver=file,file.filename=a", "driver=qcow2,node-name=n,file.driver=file,file.filename=/home/b/a" },
	{ "-blockdev", "{\"driver\":\"raw\",\"node-name\":\"n\",\"file\":\"f\"}", NULL },
	{ "-blockdev", "{\"driver\":\"raw\",\"file\":{\"driver\":\"file\",\"filename\":\"/img/vm.qcow2\"}}",
	  "{\"driver\":\"raw\",\"file\":{\"driver\":\"file\",\"filename\":\"/new/vm.raw\"}}" },
	{ "-blockdev", "{\"driver\":\"nbd\",\"server\":{\"type\":\"unix\",\"path\":\"/img/sock\"}}",
	  "{\"driver\":\"nbd\",\"server\":{\"type\":\"unix\",\"path\":\"/wrong/for/disks/sock\"}}" },
	{ "-blockdev", "{\"driver\":\"quorum\",\"children\":[{\"driver\":\"file\",\"filename\":\"/img/1\"},\"x\"]}",
	  "{\"driver\":\"quorum\",\"children\":[{\"driver\":\"file\",\"filename\":\"/my images/1\"},\"x\"]}" },
	{ "-kernel", "/home/a/deep/vmlinuz", "/deep/vmlinuz" },
	{ "-kernel", "bzImage", "/home/b/bzImage" },
	{ "-append", "file=/img/a", NULL },
	{ "-bios", "bios.bin", NULL },
	{ "-bios", "/home/a/bios.bin", "/home/b/bios.bin" },
	{ "-chardev", "socket,id=c,path=/home/a/s,server=on", "socket,id=c,path=/home/b/s,server=on" },
	{ "-chardev", "file,id=c,path=out.log,logfile=/home/a/l", "file,id=c,path=/home/b/out.log,logfile=/home/b/l" },
	{ "-serial", "file:/home/a/s.log", "file:/home/b/s.log" },
	{ "-serial", "file:/c,d", "file:/e,f" },
	{ "-serial", "mon:unix:s,server=on", "mon:unix:/home/b/s,server=on" },
	{ "-serial", "chardev:c", NULL },
	{ "-serial", "tcp::4444,server=on", NULL },
	{ "-monitor", "pipe:/home/a/p", "pipe:/home/b/p" },
	{ "-qmp", "unix:/home/a/q,server=on,wait=off", "unix:/home/b/q,server=on,wait=off" },
	{ "-vnc", "unix:/home/a/v,tls-creds=t", "unix:/home/b/v,tls-creds=t" },
	{ "-vnc", ":1", NULL },
	{ "-object", "secret,id=s,file=/home/a/key", "secret,id=s,file=/home/b/key" },
	{ "-object", "{\"qom-type\":\"tls-creds-x509\",\"id\":\"t\",\"dir\":\"/home/a/pki\"}",
	  "{\"qom-type\":\"tls-creds-x509\",\"id\":\"t\",\"dir\":\"/home/b/pki\"}" },
	{ "-device", "e1000,romfile=/home/a/rom", "e1000,romfile=/home/b/rom" },
	{ "-device", "e1000,romfile=efi.rom,addr=0x3", NULL },
	{ "-device", "{\"driver\":\"e1000\",\"romfile\":\"/home/a/rom\"}", "{\"driver\":\"e1000\",\"romfile\":\"/home/b/rom\"}" },
	{ "-machine", "pc,kernel=/home/a/k", "pc,kernel=/home/b/k" },
	{ "-fw_cfg", "name=opt/x,file=/home/a/f", "name=opt/x,file=/home/b/f" },
	{ "-fw_cfg", "name=opt/x,string=/home/a/f", NULL },
	{ "-fsdev", "local,id=f,path=/home/a", "local,id=f,path=/home/b" },
	{ "-virtfs", "local,path=/home/a/x,mount_tag=/home/a/x,security_model=none", "local,path=/home/b/x,mount_tag=/home/a/x,security_model=none" },
	{ "-netdev", "user,id=n,tftp=/home/a/t", "user,id=n,tftp=/home/b/t" },
	{ "-netdev", "tap,id=n,script=no,ifname=tap0", NULL },
	{ "-name", "guest=/home/a/x", NULL },
	{ "-set", "drive.d.file=/img/a", "drive.d.file=/my images/a" },
	{ "-D", "/home/a/log", "/home/b/log" },
	{ "-object", "{broken", NULL },
};

static char *copy(const char *s)
{
	char *text = strdup(s);

	ck_assert_ptr_nonnull(text);
	return text;
}

static VmDiskEntry *disk(const char *path, const char *snapshot)
{
	VmDiskEntry *d = malloc(sizeof *d);

	ck_assert_ptr_nonnull(d);
	vm_disk_entry__init(d);
	d->path = copy(path);
	d->snapshot = snapshot ? copy(snapshot) : NULL;
	return d;
}

static VmEntry *description(const char *option, const char *value)
{
	VmEntry *vm = malloc(sizeof *vm);

	vm_entry__init(vm);
	vm->argv = calloc(4, sizeof *vm->argv);
	vm->argv[vm->n_argv++] = copy("/home/a/qemu");
	vm->argv[vm->n_argv++] = copy("-S");
	if (option)
		vm->argv[vm->n_argv++] = copy(option);
	vm->argv[vm->n_argv++] = copy(value);
	vm->cwd = copy("/home/a");
	vm->qemu_path = copy("/usr/bin/qemu");
	vm->disks = calloc(2, sizeof *vm->disks);
	vm->disks[vm->n_disks++] = disk("/other", NULL);
	vm->disks[vm->n_disks++] = disk("/img/vm.qcow2", "/img/vm.snap");
	return vm;
}

START_TEST(mapped_description)
{
	VmEntry *vm = description(options[_i].option, options[_i].value);
	struct map_file *m = load(mappings);

	ck_assert_int_eq(map_file_apply(m, vm), 0);
	ck_assert_str_eq(vm->argv[vm->n_argv - 1], options[_i].want ?: options[_i].value);
	ck_assert_str_eq(vm->argv[0], "/home/a/qemu");
	ck_assert_str_eq(vm->argv[1], "-S");
	ck_assert_str_eq(vm->cwd, "/home/b");
	ck_assert_str_eq(vm->qemu_path, "/usr/bin/qemu");
	ck_assert_str_eq(vm->disks[0]->path, "/other");
	ck_assert_str_eq(vm->disks[1]->path, "/new/vm.raw");
	ck_assert_str_eq(vm->disks[1]->snapshot, "/my images/vm.snap");
	map_file_free(m);
	vm_entry__free_unpacked(vm, NULL);
}
END_TEST

START_TEST(nothing_to_map)
{
	VmEntry *vm = description(options[_i].option, options[_i].value);

	ck_assert_int_eq(map_file_apply(NULL, vm), 0);
	ck_assert_str_eq(vm->argv[vm->n_argv - 1], options[_i].value);
	ck_assert_str_eq(vm->cwd, "/home/a");
	vm_entry__free_unpacked(vm, NULL);
}
END_TEST

int main(void)
{
	Suite *s = suite_create("map_file");
	TCase *t = tcase_create("map_file");
	SRunner *r;
	int failed;

	log_init(-1, LOG_ERROR, NULL, false);
	tcase_add_loop_test(t, wrong_lines, 0, ARRAY_SIZE(wrong));
	tcase_add_test(t, no_such_text);
	tcase_add_loop_test(t, mapped_paths, 0, ARRAY_SIZE(paths));
	tcase_add_test(t, mapped_names);
	tcase_add_loop_test(t, mapped_description, 0, ARRAY_SIZE(options));
	tcase_add_loop_test(t, nothing_to_map, 0, ARRAY_SIZE(options));
	suite_add_tcase(s, t);
	r = srunner_create(s);
	srunner_run_all(r, CK_ENV);
	failed = srunner_ntests_failed(r);
	srunner_free(r);
	return failed != 0;
}
