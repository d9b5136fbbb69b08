// SPDX-License-Identifier: GPL-2.0-only
// Disks of real QEMUs: found, compared, snapshots over them and away again, and the same disks restored below new files while the
// first VM runs on. Guests do not run; what they would write is written by QEMU's own qemu-io.
#include <check.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <linux/loop.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "qemu/cmdline.h"
#include "qemu/disks.h"
#include "qemu/qmp.h"
#include "qemu/vm.h"
#include "tests/unit/skip.h"
#include "util/cleanup.h"
#include "util/log.h"
#include "util/size.h"

#define SIZE 1048576 // of each image
#define MAX_ARGS 64

static char dir[32], said[64];
static pid_t pids[8];
static size_t nr_pids;

static const char *in_dir(const char *name)
{
	static char path[8][512];
	static unsigned next;
	char *p = path[next++ % 8];

	snprintf(p, sizeof path[0], "%s/%s", dir, name);
	return p;
}

// ---- files

static void sh(const char *fmt, const char *a)
{
	char line[2048];

	snprintf(line, sizeof line, fmt, dir, a);
	ck_assert_msg(!system(line), "%s", line);
}

// raw: a.raw b.raw cd.raw; qcow2: q.qcow2, and top.qcow2 - mid.qcow2 - base.raw
static void make_files(void)
{
	snprintf(dir, sizeof dir, "%s", "/tmp/criu-vm-disks-XXXXXX");
	ck_assert_ptr_nonnull(mkdtemp(dir));
	ck_assert_int_eq(chdir(dir), 0);
	snprintf(said, sizeof said, "%s/said", dir);
	log_init(open(said, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600), LOG_WARN, NULL, false);
	sh("cd %s && for f in a b cd base; do truncate -s 1M $f.raw || exit 1; done", NULL);
	sh("cd %s && qemu-img create -q -f qcow2 q.qcow2 1M && qemu-img create -q -f qcow2 -b base.raw -F raw mid.qcow2 && "
	   "qemu-img create -q -f qcow2 -b mid.qcow2 -F qcow2 top.qcow2", NULL);
}

static void end_qemus(void)
{
	for (size_t i = 0; i < nr_pids; i++) {
		kill(pids[i], SIGKILL);
		waitpid(pids[i], NULL, 0);
	}
	nr_pids = 0;
}

static void remove_files(void)
{
	end_qemus();
	ck_assert_int_eq(chdir("/"), 0);
	sh("rm -rf %s", NULL);
}

static unsigned nr_files(void)
{
	DIR *d = opendir(dir);
	unsigned n = 0;

	for (struct dirent *e = readdir(d); e; e = readdir(d))
		n += *e->d_name != '.' && strcmp(e->d_name, "said") && !strstr(e->d_name, ".qmp");
	closedir(d);
	return n;
}

static bool was_said(const char *what)
{
	char text[16384];
	FILE *f = fopen(said, "re");
	size_t n = f ? fread(text, 1, sizeof text - 1, f) : 0;

	text[n] = 0;
	if (f)
		fclose(f);
	return strstr(text, what);
}

// What a raw file, or one of QEMU's, begins with.
static int first_byte(const char *path)
{
	char line[2048], text[64] = "";
	FILE *f;

	snprintf(line, sizeof line, "qemu-img dd -U -f %s -O raw bs=1 count=1 if=%s of=%s/byte && cat %s/byte; rm -f %s/byte",
		 strstr(path, ".qcow2") ? "qcow2" : "raw", path, dir, dir, dir);
	f = popen(line, "re");
	ck_assert_uint_ge(fread(text, 1, sizeof text, f), 1);
	pclose(f);
	return (unsigned char)text[0];
}

// ---- what lies between us and QEMU

static const char *spoilt_command; // its answer becomes one that is no QMP
static bool spoiling;
static uint64_t hurry, hurry_from; // time goes so many times as fast

ssize_t sendmsg(int fd, const struct msghdr *m, int flags)
{
	if (spoilt_command && memmem(m->msg_iov->iov_base, m->msg_iov->iov_len, spoilt_command, strlen(spoilt_command)))
		spoiling = true;
	return syscall(SYS_sendmsg, fd, m, flags);
}

ssize_t recv(int fd, void *buf, size_t len, int flags)
{
	ssize_t n = syscall(SYS_recvfrom, fd, buf, len, flags, NULL, NULL);

	if (spoiling && n > 0)
		memset(buf, '?', (size_t)n - 1);
	return n;
}

int clock_gettime(clockid_t id, struct timespec *t)
{
	int ret = (int)syscall(SYS_clock_gettime, id, t);
	uint64_t ns = (uint64_t)t->tv_sec * 1000000000 + (uint64_t)t->tv_nsec;

	if (ret || id != CLOCK_MONOTONIC || !hurry)
		return ret;
	hurry_from = hurry_from ?: ns;
	ns = hurry_from + (ns - hurry_from) * hurry;
	*t = (struct timespec){ (time_t)(ns / 1000000000), (long)(ns % 1000000000) };
	return 0;
}

// ---- QEMU

struct words {
	char *text;
	char *v[MAX_ARGS];
	int nr;
};

// Words; each @ in them is the folder.
static void words_init(struct words *w, const char *text)
{
	FILE *f;
	size_t len;

	*w = (struct words){ 0 };
	f = open_memstream(&w->text, &len);
	for (; *text; text++)
		if (*text == '@')
			fputs(dir, f);
		else
			fputc(*text, f);
	fclose(f);
	for (char *s = strtok(w->text, " "); s; s = strtok(NULL, " ")) {
		ck_assert_int_lt(w->nr, MAX_ARGS - 1);
		w->v[w->nr++] = s;
	}
}

static struct qemu_vm *start_argv(char *const *argv)
{
	const char *sock = in_dir(nr_pids ? "2.qmp" : "1.qmp");
	struct qemu_vm *vm = NULL;
	pid_t parent = getpid(), pid;
	int r = -ENOENT;

	pid = fork();
	if (!pid) {
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		if (getppid() != parent)
			_exit(1);
		if (!getenv("VERBOSE"))
			dup2(open("/dev/null", O_WRONLY), 1);
		execvp(argv[0], argv);
		_exit(127);
	}
	pids[nr_pids++] = pid;
	for (unsigned i = 0; i < 300 && r; i++) {
		if (access(sock, F_OK) || (r = qemu_vm_open(sock, &vm)))
			usleep(20000);
		ck_assert_int_eq(waitpid(pid, NULL, WNOHANG), 0);
	}
	ck_assert_int_eq(r, 0);
	return vm;
}

static struct qemu_vm *start(const char *args)
{
	struct qemu_vm *vm;
	struct words w;
	char *line;

	ck_assert_int_ge(asprintf(&line, "qemu-system-x86_64 -S -nodefaults -display none -accel tcg -m 16 -qmp unix:@/%s,server=on,wait=off %s",
				  nr_pids ? "2.qmp" : "1.qmp", args), 0);
	words_init(&w, line);
	vm = start_argv(w.v);
	free(w.text);
	free(line);
	return vm;
}

// As if the guest wrote or read a byte over the first 64 KiB of a disk. device: its -device id, or the name of a -drive's.
static bool io(struct qemu_vm *vm, const char *device, const char *what, int byte)
{
	char line[256], *text;
	bool good;

	snprintf(line, sizeof line, "qemu-io %s%s \"%s -P %d 0 64k\"", *device == '/' ? "-d " : "", device, what, byte);
	ck_assert_int_eq(qmp_hmp(vm->qmp, line, &text), 0);
	good = (strstr(text, "wrote 65536/65536") || strstr(text, "read 65536/65536") || !*text) && !strstr(text, "failed") &&
	       !strstr(text, "rror");
	if (!good && getenv("VERBOSE"))
		fprintf(stderr, "%s: %s\n", line, text);
	free(text);
	return good;
}

static const VmDiskEntry *find(VmDiskEntry **disks, size_t nr, const char *name)
{
	for (size_t i = 0; i < nr; i++)
		if (!strcmp(disks[i]->path, *name == '/' ? name : in_dir(name)))
			return disks[i];
	return NULL;
}

static void check_stat(const VmDiskEntry *e)
{
	struct stat st;

	ck_assert_int_eq(stat(e->path, &st), 0);
	ck_assert(e->has_size && e->has_inode && e->has_mtime_ns);
	ck_assert_uint_eq(e->size, st.st_size);
	ck_assert_uint_eq(e->inode, st.st_ino);
	ck_assert_uint_eq(e->mtime_ns, st.st_mtim.tv_sec * 1000000000ull + st.st_mtim.tv_nsec);
}

// ---- what disks there are

static const struct {
	const char *args;
	const char *writable[3], *readable[3]; // paths
	const char *device; // of the first writable one
} found[] = {
	{ "", { 0 }, { 0 }, NULL },
	{ "-hda a.raw", { "a.raw" }, { 0 }, NULL },
	{ "-drive file=@/a.raw,format=raw,if=virtio", { "a.raw" }, { 0 }, NULL },
	{ "-drive file=file:a.raw,format=raw,if=virtio", { "a.raw" }, { 0 }, NULL },
	{ "-drive file=top.qcow2,if=none,id=d,cache=none -device virtio-blk-pci,drive=d,id=v", { "top.qcow2" }, { "mid.qcow2", "base.raw" },
	  "/machine/peripheral/v/virtio-backend" },
	{ "-drive file=a.raw,format=raw,if=none,id=d -device nvme,drive=d,serial=1,id=n", { "a.raw" }, { 0 }, "n" },
	{ "-device nvme,id=n,serial=1 -blockdev raw,node-name=x,file.driver=file,file.filename=@/a.raw -device nvme-ns,drive=x,id=s",
	  { "a.raw" }, { 0 }, "s" },
	{ "-drive file=cd.raw,format=raw,media=cdrom,readonly=on -drive file=q.qcow2,if=virtio", { "q.qcow2" }, { "cd.raw" }, NULL },
	// opened for writing, by a drive that never writes
	{ "-blockdev raw,node-name=x,file.driver=file,file.filename=@/cd.raw -device ide-cd,drive=x", { 0 }, { "cd.raw" }, NULL },
	{ "-object iothread,id=t -blockdev {\"driver\":\"file\",\"filename\":\"@/q.qcow2\",\"node-name\":\"f\",\"cache\":{\"direct\":true},"
	  "\"aio\":\"native\"} -blockdev {\"driver\":\"qcow2\",\"node-name\":\"x\",\"file\":\"f\"} -device virtio-blk-pci,drive=x,iothread=t,id=v",
	  { "q.qcow2" }, { 0 }, "/machine/peripheral/v/virtio-backend" },
	{ "-object throttle-group,id=g -blockdev file,filename=@/a.raw,node-name=f -blockdev raw,file=f,node-name=r -blockdev "
	  "throttle,throttle-group=g,file=r,node-name=x -device virtio-blk-pci,drive=x,id=v", { "a.raw" }, { 0 },
	  "/machine/peripheral/v/virtio-backend" },
	{ "-blockdev file,filename=@/a.raw,node-name=x -device virtio-blk-pci,drive=x,id=v", { "a.raw" }, { 0 },
	  "/machine/peripheral/v/virtio-backend" },
	{ "-blockdev file,filename=@/b.raw,node-name=unused -hda a.raw", { "a.raw" }, { 0 }, NULL },
	{ "-drive file=a.raw,format=raw,if=virtio -drive file=b.raw,format=raw,if=pflash,unit=1,readonly=on -drive "
	  "file=cd.raw,format=raw,if=pflash,unit=0,readonly=on", { "a.raw" }, { "b.raw", "cd.raw" }, NULL },
};

START_TEST(files_are_found)
{
	typeof(found[0]) *c = &found[_i];
	struct qemu_vm *vm = start(c->args);
	VmDiskEntry **disks;
	size_t nr, expected = 0;

	ck_assert_int_eq(qemu_disks(vm, &disks, &nr), 0);
	for (unsigned w = 0; w < 2; w++)
		for (const char *const *name = w ? c->writable : c->readable; *name; name++) {
			const VmDiskEntry *e = find(disks, nr, *name);

			ck_assert_msg(e, "%s", *name);
			ck_assert_int_eq(e->writable, w);
			ck_assert_ptr_nonnull(e->device);
			check_stat(e);
			if (w && c->device)
				ck_assert_str_eq(e->device, c->device);
			expected++;
		}
	ck_assert_uint_eq(nr, expected);
	ck_assert_int_eq(qemu_disks_check(disks, nr), 0);
	qemu_disks_free(disks, nr);
	qemu_vm_close(vm);
}
END_TEST

// What no file of this host is behind has a name, and nothing that could differ.
START_TEST(no_file)
{
	struct qemu_vm *vm = start("-drive driver=null-co,if=none,id=d,size=1M,read-zeroes=on -device virtio-blk-pci,drive=d");
	VmDiskEntry **disks;
	size_t nr;

	ck_assert_int_eq(qemu_disks(vm, &disks, &nr), 0);
	ck_assert_uint_eq(nr, 1);
	ck_assert(disks[0]->writable && !disks[0]->has_size && !disks[0]->has_mtime_ns && disks[0]->device && *disks[0]->path);
	ck_assert_int_eq(qemu_disks_check(disks, nr), 0);
	ck_assert_int_eq(qemu_disks_snapshot(vm, "s", NULL, disks, nr), -EOPNOTSUPP);
	ck_assert_ptr_null(disks[0]->snapshot);
	qemu_disks_free(disks, nr);
	qemu_vm_close(vm);
}
END_TEST

// A loop device over a.raw; -1: there is none to be had here.
static int loop_device(char *path, size_t size)
{
	_cleanup_close_ int control = open("/dev/loop-control", O_RDWR | O_CLOEXEC), file = open(in_dir("a.raw"), O_RDWR | O_CLOEXEC);
	int n = control < 0 ? -1 : ioctl(control, LOOP_CTL_GET_FREE), fd;

	snprintf(path, size, "/dev/loop%d", n);
	fd = n < 0 ? -1 : open(path, O_RDWR | O_CLOEXEC);
	if (fd >= 0 && ioctl(fd, LOOP_SET_FD, file)) {
		close(fd);
		fd = -1;
	}
	return fd;
}

START_TEST(block_device)
{
	char path[64], args[256];
	_cleanup_close_ int loop = loop_device(path, sizeof path);
	struct qemu_vm *vm;
	VmDiskEntry **disks;
	size_t nr;

	if (loop < 0)
		SKIP_CASE("no loop device can be made here");
	snprintf(args, sizeof args, "-drive file=%s,format=raw,if=virtio", path);
	vm = start(args);
	ck_assert_int_eq(qemu_disks(vm, &disks, &nr), 0);
	ck_assert_uint_eq(nr, 1);
	ck_assert_str_eq(disks[0]->path, path);
	ck_assert(disks[0]->writable && disks[0]->has_size && !disks[0]->has_mtime_ns);
	ck_assert_uint_eq(disks[0]->size, SIZE);
	ck_assert_int_eq(qemu_disks_snapshot(vm, "s", NULL, disks, nr), -EOPNOTSUPP);
	ck_assert(was_said("no regular file"));
	ck_assert_int_eq(qemu_disks_check(disks, nr), 0);
	qemu_vm_close(vm);
	end_qemus();
	ck_assert_int_eq(ftruncate(open(in_dir("a.raw"), O_RDWR | O_CLOEXEC), SIZE / 2), 0);
	ck_assert_int_eq(ioctl(loop, LOOP_SET_CAPACITY, 0), 0);
	ck_assert_int_eq(qemu_disks_check(disks, nr), -ESTALE);
	ioctl(loop, LOOP_CLR_FD, 0);
	qemu_disks_free(disks, nr);
}
END_TEST

START_TEST(file_that_is_gone_or_another)
{
	struct qemu_vm *vm = start("-hda a.raw");
	VmDiskEntry **disks;
	size_t nr;

	sh("cd %s && mv a.raw old", NULL);
	ck_assert_int_eq(qemu_disks(vm, &disks, &nr), -ENOENT);
	sh("cd %s && cp old a.raw", NULL);
	ck_assert_int_eq(qemu_disks(vm, &disks, &nr), -ESTALE);
	sh("cd %s && mv old a.raw", NULL);
	ck_assert_int_eq(qemu_disks(vm, &disks, &nr), 0);
	qemu_disks_free(disks, nr);
	qemu_vm_close(vm);
	vm = start("-snapshot -hda b.raw");
	ck_assert_int_eq(qemu_disks(vm, &disks, &nr), -ENOENT);
	ck_assert(was_said("-snapshot"));
	qemu_vm_close(vm);
}
END_TEST

// ---- were they changed?

static const struct {
	const char *args, *change;
	int result;
	const char *said;
} changes[] = {
	{ "-hda a.raw", "true", 0, "" },
	{ "-hda a.raw", "touch a.raw", -ESTALE, "a.raw has changed since the VM was dumped: it was written to last at 20" },
	{ "-hda a.raw", "printf x | dd of=a.raw conv=notrunc status=none", -ESTALE, "--force" },
	{ "-hda a.raw", "touch -r a.raw t; truncate -s 2M a.raw; touch -r t a.raw", -ESTALE, "1048576 bytes, it has 2097152" },
	{ "-hda a.raw", "mv a.raw b.raw", -ENOENT, "a.raw" },
	{ "-hda a.raw", "cp -p a.raw t && mv t a.raw", 0, "" },
	{ "-hda a.raw", "touch b.raw", 0, "" },
	{ "-hda top.qcow2", "touch mid.qcow2", -ESTALE, "mid.qcow2" },
	{ "-hda top.qcow2", "touch base.raw", -ESTALE, "base.raw" },
	{ "-hda top.qcow2 -drive file=cd.raw,format=raw,media=cdrom,readonly=on", "touch cd.raw", 0, "cd.raw has changed" },
};

START_TEST(changed_files)
{
	typeof(changes[0]) *c = &changes[_i];
	struct qemu_vm *vm = start(c->args);
	VmDiskEntry **disks;
	size_t nr;

	ck_assert_int_eq(qemu_disks(vm, &disks, &nr), 0);
	qemu_vm_close(vm);
	end_qemus();
	ck_assert_int_eq(qemu_disks_check(disks, nr), 0); // the end of QEMU by SIGKILL leaves them alone
	sh("cd %s && { %s; }", c->change);
	ck_assert_int_eq(qemu_disks_check(disks, nr), c->result);
	ck_assert_msg(was_said(c->said), "%s", c->said);
	qemu_disks_free(disks, nr);
}
END_TEST

// Each way of writing is seen in the file's time.
START_TEST(writes_are_noticed)
{
	static const char *const args[] = {
		"-drive file=@/a.raw,format=raw,if=none,id=d,cache=none,aio=native -device virtio-blk-pci,drive=d",
		"-drive file=@/a.raw,format=raw,if=none,id=d,cache=none,aio=io_uring -device virtio-blk-pci,drive=d",
		"-drive file=@/a.raw,format=raw,if=none,id=d,cache=writeback,aio=threads -device virtio-blk-pci,drive=d",
		"-drive file=@/q.qcow2,if=none,id=d,cache=none,aio=native -device virtio-blk-pci,drive=d",
	};
	struct qemu_vm *vm = start(args[_i]);
	VmDiskEntry **before, **after;
	size_t nr;

	ck_assert(io(vm, "d", "write", 1));
	ck_assert_int_eq(qmp_call(vm->qmp, "stop", NULL, NULL), 0);
	ck_assert_int_eq(qemu_disks(vm, &before, &nr), 0);
	usleep(20000); // a tick of the kernel's clock
	ck_assert_int_eq(qemu_disks_check(before, nr), 0);
	ck_assert(io(vm, "d", "write", 2)); // in place, the size stays
	ck_assert_int_eq(qmp_call(vm->qmp, "stop", NULL, NULL), 0);
	ck_assert_int_eq(qemu_disks_check(before, nr), -ESTALE);
	ck_assert_int_eq(qemu_disks(vm, &after, &nr), 0);
	qemu_vm_close(vm);
	end_qemus();
	ck_assert_int_eq(qemu_disks_check(after, nr), 0);
	qemu_disks_free(before, nr);
	qemu_disks_free(after, nr);
}
END_TEST

// ---- snapshots

// device: for io(). The image begins with 1 when the snapshot is taken.
static const struct {
	const char *args, *image, *device, *overlay;
} styles[] = {
	{ "-drive file=@/a.raw,format=raw,if=none,id=d -device virtio-blk-pci,drive=d,id=v", "a.raw", "d", "a.raw.s1.qcow2" },
	{ "-drive file=a.raw,format=raw,if=none,id=d,cache=none,aio=native -device virtio-blk-pci,drive=d,id=v", "a.raw", "d", "a.raw.s1.qcow2" },
	{ "-drive if=none,id=d,file.driver=file,file.filename=q.qcow2,driver=qcow2,file.locking=on -device nvme,drive=d,serial=1", "q.qcow2", "d",
	  "q.s1.qcow2" },
	{ "-hda a.raw", "a.raw", "ide0-hd0", "a.raw.s1.qcow2" },
	{ "a.raw", "a.raw", "ide0-hd0", "a.raw.s1.qcow2" },
	{ "-drive file=top.qcow2,if=virtio", "top.qcow2", "virtio0", "top.s1.qcow2" },
	{ "-object iothread,id=t -blockdev {\"driver\":\"file\",\"filename\":\"@/q.qcow2\",\"node-name\":\"f\",\"cache\":{\"direct\":true},"
	  "\"aio\":\"native\",\"discard\":\"unmap\"} -blockdev {\"driver\":\"qcow2\",\"node-name\":\"x\",\"file\":\"f\",\"discard\":\"unmap\","
	  "\"cache\":{\"direct\":true}} -device virtio-blk-pci,drive=x,iothread=t,id=v", "q.qcow2", "/machine/peripheral/v/virtio-backend",
	  "q.s1.qcow2" },
	// libvirt's, with a backing chain
	{ "-blockdev {\"driver\":\"file\",\"filename\":\"@/mid.qcow2\",\"node-name\":\"l2s\",\"auto-read-only\":true,\"discard\":\"unmap\"} "
	  "-blockdev {\"node-name\":\"l2f\",\"read-only\":true,\"driver\":\"qcow2\",\"file\":\"l2s\"} "
	  "-blockdev {\"driver\":\"file\",\"filename\":\"@/chain.qcow2\",\"node-name\":\"l1s\",\"auto-read-only\":true,\"discard\":\"unmap\"} "
	  "-blockdev {\"node-name\":\"l1f\",\"read-only\":false,\"driver\":\"qcow2\",\"file\":\"l1s\",\"backing\":\"l2f\"} "
	  "-device virtio-blk-pci,drive=l1f,id=v", "chain.qcow2", "/machine/peripheral/v/virtio-backend", "chain.s1.qcow2" },
	{ "-blockdev raw,node-name=x,cache.direct=on,file.driver=file,file.filename=@/a.raw,file.aio=native -device virtio-blk-pci,drive=x,id=v",
	  "a.raw", "/machine/peripheral/v/virtio-backend", "a.raw.s1.qcow2" },
	{ "-blockdev qcow2,node-name=x,read-only=off,file.driver=file,file.filename=@/q.qcow2,file.read-only=off -device "
	  "virtio-blk-pci,drive=x,id=v", "q.qcow2", "/machine/peripheral/v/virtio-backend", "q.s1.qcow2" },
	{ "-blockdev file,filename=a.raw,node-name=f -blockdev driver=raw,node-name=x,file=f -device nvme,id=n,serial=1 -device "
	  "nvme-ns,drive=x,id=s", "a.raw", "/machine/peripheral/s", "a.raw.s1.qcow2" },
	{ "-blockdev file,filename=@/a.raw,node-name=x -device virtio-blk-pci,drive=x,id=v", "a.raw", "/machine/peripheral/v/virtio-backend",
	  "a.raw.s1.qcow2" },
	{ "-object throttle-group,id=g -blockdev file,filename=@/a.raw,node-name=f -blockdev raw,file=f,node-name=r -blockdev "
	  "throttle,throttle-group=g,file=r,node-name=x -device virtio-blk-pci,drive=x,id=v", "a.raw", "/machine/peripheral/v/virtio-backend",
	  "a.raw.s1.qcow2" },
	{ "-drive file=a,,b.raw,format=raw,if=none,id=d -device virtio-blk-pci,drive=d,id=v", "a,b.raw", "d", "a,b.raw.s1.qcow2" },
};

static void make_more_files(void)
{
	sh("cd %s && qemu-img create -q -f qcow2 -b %1$s/mid.qcow2 -F qcow2 chain.qcow2 && truncate -s 1M a,b.raw", NULL);
}

static VmDiskEntry *writable_one(VmDiskEntry **disks, size_t nr)
{
	for (size_t i = 0; i < nr; i++)
		if (disks[i]->writable)
			return disks[i];
	return NULL;
}

// Each with files that were prepared and without.
START_TEST(snapshot_and_undo)
{
	typeof(styles[0]) *c = &styles[_i / 2];
	struct qemu_prepared *prepared = NULL;
	unsigned files;
	struct qemu_vm *vm;
	VmDiskEntry **disks, *e;
	struct stat st, image;
	size_t nr;

	make_more_files();
	files = nr_files();
	vm = start(c->args);
	ck_assert(io(vm, c->device, "write", 1));
	if (_i % 2) {
		ck_assert_int_eq(qemu_disks_prepare(vm, "s1", &prepared), 0);
		ck_assert_uint_eq(nr_files(), files + 1);
	}
	ck_assert_int_eq(qmp_call(vm->qmp, "stop", NULL, NULL), 0);
	ck_assert_int_eq(qemu_disks(vm, &disks, &nr), 0);
	ck_assert_int_eq(qemu_disks_snapshot(vm, "s1", prepared, disks, nr), 0);
	qemu_prepared_free(prepared);
	e = writable_one(disks, nr);
	ck_assert_str_eq(e->snapshot, in_dir(c->overlay));
	ck_assert_int_eq(stat(e->snapshot, &st), 0);
	ck_assert_int_eq(stat(in_dir(c->image), &image), 0);
	ck_assert_int_eq(st.st_mode & 0777, image.st_mode & 0660);
	ck_assert_uint_eq(nr_files(), files + 1);
	check_stat(e);
	// what is written goes into the new file only
	ck_assert(io(vm, c->device, "write", 2));
	ck_assert_int_eq(qmp_call(vm->qmp, "stop", NULL, NULL), 0);
	ck_assert(io(vm, c->device, "read", 2));
	ck_assert_int_eq(qemu_disks_check(disks, nr), 0);
	ck_assert_int_eq(first_byte(in_dir(c->image)), 1);
	ck_assert_int_eq(first_byte(e->snapshot), 2);
	// and comes back from there
	ck_assert_int_eq(qemu_disks_snapshot_undo(vm, disks, nr), 0);
	ck_assert_ptr_null(e->snapshot);
	ck_assert_uint_eq(nr_files(), files);
	ck_assert_int_eq(first_byte(in_dir(c->image)), 2);
	ck_assert(io(vm, c->device, "write", 3));
	ck_assert_int_eq(first_byte(in_dir(c->image)), 3);
	qemu_disks_free(disks, nr);
	qemu_vm_close(vm);
}
END_TEST

// Between preparing and the snapshot one disk gets larger, another comes; and one is never used.
START_TEST(prepared_for_what_was)
{
	struct qemu_vm *vm = start("-drive file=a.raw,format=raw,if=none,id=d -device virtio-blk-pci,drive=d -drive file=q.qcow2,if=virtio,id=x "
				   "-drive file=b.raw,format=raw,if=none,id=n");
	struct qemu_prepared *prepared;
	unsigned files = nr_files();
	VmDiskEntry **disks;
	size_t nr;
	char *text;

	ck_assert_int_eq(qmp_hmp(vm->qmp, "drive_del n", &text), 0);
	free(text);
	ck_assert_int_eq(qemu_disks_prepare(vm, "s1", &prepared), 0);
	ck_assert_uint_eq(nr_files(), files + 2);
	qemu_prepared_free(prepared);
	ck_assert_uint_eq(nr_files(), files);
	ck_assert_int_eq(qemu_disks_prepare(vm, "s1", &prepared), 0);
	ck_assert_int_eq(qmp_call(vm->qmp, "block_resize", json_pack("{s:s, s:i}", "device", "d", "size", 2 * SIZE), NULL), 0);
	ck_assert_int_eq(qmp_hmp(vm->qmp, "drive_add 0 if=none,id=n,format=raw,file=b.raw", &text), 0);
	free(text);
	ck_assert_int_eq(qmp_call(vm->qmp, "device_add", json_pack("{s:s, s:s, s:s}", "driver", "virtio-blk-pci", "drive", "n", "id", "nn"), NULL),
			 0);
	ck_assert_int_eq(qemu_disks(vm, &disks, &nr), 0);
	ck_assert_int_eq(qemu_disks_snapshot(vm, "s1", prepared, disks, nr), 0);
	qemu_prepared_free(prepared);
	ck_assert_uint_eq(nr_files(), files + 3);
	ck_assert(find(disks, nr, "a.raw")->snapshot && find(disks, nr, "b.raw")->snapshot && find(disks, nr, "q.qcow2")->snapshot);
	sh("cd %s && qemu-img info -U a.raw.s1.qcow2 | grep -q '(2097152 bytes)'", NULL);
	ck_assert_int_eq(qemu_disks_snapshot_undo(vm, disks, nr), 0);
	ck_assert_uint_eq(nr_files(), files);
	qemu_disks_free(disks, nr);
	qemu_vm_close(vm);
}
END_TEST

// Each of several, all at once, and again over the first ones.
START_TEST(several_disks)
{
	struct qemu_vm *vm = start("-drive file=a.raw,format=raw,if=virtio -drive file=top.qcow2,if=virtio -drive "
				   "file=cd.raw,format=raw,media=cdrom,readonly=on");
	VmDiskEntry **disks, **again;
	size_t nr, nr_again;

	ck_assert_int_eq(qemu_disks(vm, &disks, &nr), 0);
	ck_assert_uint_eq(nr, 5);
	ck_assert_int_eq(qemu_disks_snapshot(vm, "s1", NULL, disks, nr), 0);
	ck_assert_str_eq(find(disks, nr, "a.raw")->snapshot, in_dir("a.raw.s1.qcow2"));
	ck_assert_str_eq(find(disks, nr, "a.raw")->format, "raw");
	ck_assert_str_eq(find(disks, nr, "top.qcow2")->snapshot, in_dir("top.s1.qcow2"));
	ck_assert_str_eq(find(disks, nr, "top.qcow2")->format, "qcow2");
	ck_assert_ptr_null(find(disks, nr, "cd.raw")->snapshot);
	ck_assert_ptr_null(find(disks, nr, "mid.qcow2")->snapshot);
	ck_assert_int_eq(qemu_disks(vm, &again, &nr_again), 0);
	ck_assert_uint_eq(nr_again, 7);
	ck_assert(!find(again, nr_again, "a.raw")->writable && find(again, nr_again, "a.raw.s1.qcow2")->writable);
	ck_assert_int_eq(qemu_disks_snapshot(vm, "s2", NULL, again, nr_again), 0);
	ck_assert_str_eq(find(again, nr_again, "a.raw.s1.qcow2")->snapshot, in_dir("a.raw.s1.s2.qcow2"));
	ck_assert_int_eq(qemu_disks_snapshot_undo(vm, again, nr_again), 0);
	ck_assert_int_eq(qemu_disks_snapshot_undo(vm, disks, nr), 0);
	ck_assert_uint_eq(nr_files(), 7);
	qemu_disks_free(disks, nr);
	qemu_disks_free(again, nr_again);
	qemu_vm_close(vm);
}
END_TEST

static const struct {
	const char *args, *before, *said;
	int result;
} refused[] = {
	{ "-drive file=a.raw,format=raw,offset=4096,if=virtio", "", "opened with options", -EOPNOTSUPP },
	{ "-blockdev raw,node-name=b,file.driver=file,file.filename=@/b.raw,read-only=on -drive file=q.qcow2,if=virtio,backing=b", "",
	  "opened with options", -EOPNOTSUPP },
	{ "-add-fd fd=40,set=7 -add-fd fd=41,set=7 -drive file=/dev/fdset/7,format=raw,if=virtio", "", "add-fd", -EOPNOTSUPP },
	{ "-drive file=sub/c.raw,format=raw,if=virtio", "mkdir sub; truncate -s 1M sub/c.raw", "relative path", -EOPNOTSUPP },
	{ "-drive file=b.raw,format=raw,if=virtio -drive file=a.raw,format=raw,if=virtio", "touch a.raw.s1.qcow2", "attempt", -EEXIST },
	{ "-drive file=$LONG,format=raw,if=virtio", "", "too long", -EOPNOTSUPP },
	{ "-blockdev blkdebug,node-name=x,image.driver=file,image.filename=@/a.raw -blockdev raw,node-name=y,file=x -device "
	  "virtio-blk-pci,drive=y", "", "no snapshot", -EOPNOTSUPP },
};

// All or none, and not a file is left.
START_TEST(refused_snapshots)
{
	typeof(refused[0]) *c = &refused[_i];
	char args[1024], name[300];
	const char *at = strstr(c->args, "$LONG");
	struct qemu_prepared *prepared;
	unsigned files;
	struct qemu_vm *vm;
	VmDiskEntry **disks;
	size_t nr;

	snprintf(name, sizeof name, "%0250d", 0);
	sh("cd %s && truncate -s 1M %s", name);
	if (*c->before)
		sh("cd %s && { %s; }", c->before);
	snprintf(args, sizeof args, "%.*s%s%s", at ? (int)(at - c->args) : (int)strlen(c->args), c->args, at ? name : "", at ? at + 5 : "");
	files = nr_files();
	ck_assert_int_eq(dup2(open(in_dir("a.raw"), O_RDWR | O_CLOEXEC), 40), 40); // QEMU inherits them
	ck_assert_int_eq(dup2(open(in_dir("a.raw"), O_RDONLY | O_CLOEXEC), 41), 41);
	vm = start(args);
	ck_assert_int_eq(qemu_disks_prepare(vm, "s1", &prepared), c->result);
	ck_assert_ptr_null(prepared);
	ck_assert_int_eq(qemu_disks(vm, &disks, &nr), 0);
	ck_assert_int_eq(qemu_disks_snapshot(vm, "s1", NULL, disks, nr), c->result);
	ck_assert_msg(was_said(c->said), "%s", c->said);
	ck_assert_uint_eq(nr_files(), files);
	for (size_t i = 0; i < nr; i++)
		ck_assert(!disks[i]->snapshot && !disks[i]->format);
	qemu_disks_free(disks, nr);
	qemu_vm_close(vm);
}
END_TEST

START_TEST(block_job_is_in_the_way)
{
	struct qemu_vm *vm = start("-drive file=a.raw,format=raw,if=none,id=d -device virtio-blk-pci,drive=d");
	VmDiskEntry **disks;
	size_t nr;

	ck_assert_int_eq(qmp_call(vm->qmp, "drive-mirror", json_pack("{s:s, s:s, s:s, s:s}", "device", "d", "target", in_dir("m.raw"), "sync",
								     "full", "format", "raw"), NULL), 0);
	ck_assert_int_eq(qemu_disks(vm, &disks, &nr), 0);
	ck_assert_int_eq(qemu_disks_snapshot(vm, "s1", NULL, disks, nr), -EOPNOTSUPP);
	ck_assert(was_said("block job"));
	qemu_disks_free(disks, nr);
	qemu_vm_close(vm);
}
END_TEST

// QEMU itself fails: the new files are deleted again.
START_TEST(qemu_fails)
{
	struct qemu_vm *vm = start("-drive file=b.raw,format=raw,if=virtio -drive file=a.raw,format=raw,if=virtio");
	unsigned files = nr_files();
	struct rlimit few, was;
	VmDiskEntry **disks;
	size_t nr;

	ck_assert_int_eq(qemu_disks(vm, &disks, &nr), 0);
	ck_assert_int_eq(prlimit(vm->pid, RLIMIT_NOFILE, NULL, &was), 0);
	few = (struct rlimit){ .rlim_cur = 3, .rlim_max = was.rlim_max };
	ck_assert_int_eq(prlimit(vm->pid, RLIMIT_NOFILE, &few, NULL), 0);
	ck_assert_int_eq(qemu_disks_snapshot(vm, "s1", NULL, disks, nr), -EREMOTEIO);
	ck_assert_uint_eq(nr_files(), files);
	ck_assert(!disks[0]->snapshot && !disks[1]->snapshot);
	ck_assert_int_eq(prlimit(vm->pid, RLIMIT_NOFILE, &was, NULL), 0);
	// a node has the name that ours would get
	ck_assert_int_eq(qmp_call(vm->qmp, "blockdev-add", json_pack("{s:s, s:s}", "driver", "null-co", "node-name", "criu-vm-0"), NULL), 0);
	ck_assert_int_eq(qemu_disks_snapshot(vm, "s1", NULL, disks, nr), 0);
	ck_assert_uint_eq(nr_files(), files + 2);
	// it cannot go back
	kill(pids[0], SIGKILL);
	ck_assert_int_lt(qemu_disks_snapshot_undo(vm, disks, nr), 0);
	ck_assert(was_said("belongs to it now"));
	ck_assert_uint_eq(nr_files(), files + 2);
	qemu_disks_free(disks, nr);
	qemu_vm_close(vm);
}
END_TEST

// The answer to the transaction is none: by then QEMU writes to the new file, which is not deleted.
START_TEST(answer_is_none)
{
	struct qemu_vm *vm = start("-drive file=a.raw,format=raw,if=virtio");
	unsigned files = nr_files();
	VmDiskEntry **disks;
	size_t nr;

	ck_assert_int_eq(qemu_disks(vm, &disks, &nr), 0);
	spoilt_command = "\"transaction\"";
	ck_assert_int_eq(qemu_disks_snapshot(vm, "s1", NULL, disks, nr), -EINPROGRESS);
	ck_assert(was_said("delete none that it uses"));
	ck_assert_uint_eq(nr_files(), files + 1);
	qemu_disks_free(disks, nr);
	qemu_vm_close(vm);
}
END_TEST

// Somebody else's client, which holds up the first job that there is.
static pid_t start_pausing(const char *sock)
{
	pid_t parent = getpid(), pid = fork();
	struct qmp *q;
	json_t *jobs;

	if (pid)
		return pid;
	prctl(PR_SET_PDEATHSIG, SIGKILL);
	if (getppid() != parent || qmp_open(sock, 10000, &q))
		_exit(1);
	while (!qmp_call(q, "query-jobs", NULL, &jobs)) {
		const char *id = json_string_value(json_object_get(json_array_get(jobs, 0), "id"));

		if (id)
			_exit(qmp_call(q, "job-pause", json_pack("{s:s}", "id", id), NULL) != 0);
		json_decref(jobs);
	}
	_exit(1);
}

// It takes too long: the job is not left behind, where it would be in the way of all later ones.
START_TEST(undo_takes_too_long)
{
	struct qemu_vm *vm;
	VmDiskEntry **disks;
	json_t *jobs;
	int status;
	size_t nr;
	char *text;
	pid_t pid;

	sh("truncate -s 256M %s/large.raw", NULL);
	vm = start("-qmp unix:@/other.qmp,server=on,wait=off -drive file=large.raw,format=raw,if=none,id=d -device virtio-blk-pci,drive=d");
	ck_assert_int_eq(qemu_disks(vm, &disks, &nr), 0);
	ck_assert_int_eq(qemu_disks_snapshot(vm, "s1", NULL, disks, nr), 0);
	ck_assert_int_eq(qmp_hmp(vm->qmp, "qemu-io d \"write -P 2 0 200M\"", &text), 0);
	free(text);
	pid = start_pausing(in_dir("other.qmp"));
	qmp_set_timeout(vm->qmp, 600000);
	hurry = 20;
	ck_assert_int_eq(qemu_disks_snapshot_undo(vm, disks, nr), -ETIMEDOUT);
	hurry = 0;
	ck_assert_int_eq(waitpid(pid, &status, 0), pid);
	ck_assert_int_eq(status, 0);
	ck_assert(was_said("belongs to it now"));
	ck_assert_int_eq(qmp_call(vm->qmp, "query-jobs", NULL, &jobs), 0);
	ck_assert_uint_eq(json_array_size(jobs), 0);
	json_decref(jobs);
	ck_assert(io(vm, "d", "read", 2));
	ck_assert_int_eq(qemu_disks_snapshot_undo(vm, disks, nr), 0);
	ck_assert_int_eq(first_byte(in_dir("large.raw")), 2);
	qemu_disks_free(disks, nr);
	qemu_vm_close(vm);
}
END_TEST

// ---- restored

static char **second_argv(char **argv)
{
	for (char **a = argv; *a; a++) {
		char *at = strstr(*a, "1.qmp");

		if (at)
			*at = '2';
	}
	return argv;
}

// The first VM runs on; two others begin where it was, one after the other, and nobody sees what another writes.
START_TEST(restored_over_the_same_disk)
{
	typeof(styles[0]) *c = &styles[_i];
	struct qemu_vm *vm, *other;
	struct qemu_overlay_opts o;
	VmDiskEntry **disks;
	size_t nr;

	make_more_files();
	vm = start(c->args);
	ck_assert(io(vm, c->device, "write", 1));
	ck_assert_int_eq(qmp_call(vm->qmp, "stop", NULL, NULL), 0);
	ck_assert_int_eq(qemu_disks(vm, &disks, &nr), 0);
	ck_assert_int_eq(qemu_disks_snapshot(vm, "s1", NULL, disks, nr), 0);
	ck_assert_int_eq(qemu_disks_overlay_check(disks, nr, vm->cwd, vm->argv, vm->argc), 0);
	ck_assert(io(vm, c->device, "write", 2));
	o = (struct qemu_overlay_opts){ .disks = disks, .nr = nr, .argv = vm->argv, .argc = vm->argc, .cwd = vm->cwd, .name = "vm",
					.qemu = vm->exe };
	for (unsigned n = 0; n < 2; n++) {
		unsigned files = nr_files();
		struct qemu_overlays over;

		ck_assert_int_eq(qemu_disks_overlay(&o, &over), 0);
		ck_assert_uint_eq(over.nr_files, 1);
		ck_assert_uint_eq(nr_files(), files + 1);
		ck_assert_ptr_nonnull(strstr(over.files[0], n ? "vm-restored-2.qcow2" : "vm-restored.qcow2"));
		ck_assert_int_eq(qemu_cmdline_check(over.argv, over.argc), 0);
		other = start_argv(second_argv(over.argv));
		ck_assert(io(other, c->device, "read", 1));
		ck_assert(io(other, c->device, "write", 3));
		ck_assert(io(other, c->device, "read", 3));
		ck_assert(io(vm, c->device, "read", 2));
		ck_assert_int_eq(first_byte(in_dir(c->image)), 1);
		ck_assert_int_eq(qemu_disks_check(disks, nr), 0);
		qemu_vm_close(other);
		kill(pids[--nr_pids], SIGKILL);
		waitpid(pids[nr_pids], NULL, 0);
		unlink(in_dir("2.qmp"));
		qemu_disks_overlay_fini(&over);
	}
	qemu_disks_free(disks, nr);
	qemu_vm_close(vm);
}
END_TEST

// A VM that was restored like this is dumped and restored like this itself.
START_TEST(restored_again)
{
	typeof(styles[0]) *c = &styles[_i];
	struct qemu_vm *vm;
	struct qemu_overlays over = { 0 };
	VmDiskEntry **disks;
	char suffix[16];
	size_t nr;

	make_more_files();
	vm = start(c->args);
	for (int n = 1; n < 4; n++) {
		struct qemu_overlay_opts o;

		ck_assert(n == 1 || io(vm, c->device, "read", n - 1));
		ck_assert(io(vm, c->device, "write", n));
		ck_assert_int_eq(qmp_call(vm->qmp, "stop", NULL, NULL), 0);
		ck_assert_int_eq(qemu_disks(vm, &disks, &nr), 0);
		snprintf(suffix, sizeof suffix, "s%d", n);
		ck_assert_int_eq(qemu_disks_snapshot(vm, suffix, NULL, disks, nr), 0);
		ck_assert(io(vm, c->device, "write", 99));
		o = (struct qemu_overlay_opts){ .disks = disks, .nr = nr, .argv = vm->argv, .argc = vm->argc, .cwd = vm->cwd, .name = "vm",
						.qemu = vm->exe };
		ck_assert_int_eq(qemu_disks_overlay(&o, &over), 0);
		qemu_vm_close(vm);
		end_qemus();
		unlink(in_dir("1.qmp"));
		vm = start_argv(over.argv);
		qemu_disks_overlay_fini(&over);
		qemu_disks_free(disks, nr);
	}
	ck_assert(io(vm, c->device, "read", 3));
	qemu_vm_close(vm);
}
END_TEST

static const struct {
	const char *argv, *path, *format;
	int result;
} bad_overlays[] = {
	{ "q -hda a.raw", "a.raw", "raw", 0 },
	{ "q -hda b.raw", "a.raw", "raw", -EOPNOTSUPP },
	{ "q -hda a.raw", "a.raw", "luks", -EINVAL },
	{ "q -hda a.raw", "a.raw", NULL, -EINVAL },
	{ "q -drive file=a.raw,backing.driver=raw", "a.raw", "raw", -EOPNOTSUPP },
	{ "q -drive file=json:{\"file\":\"a.raw\"}", "a.raw", "raw", -EOPNOTSUPP },
	{ "q -blockdev {\"driver\":\"raw\",\"file\":{\"driver\":\"file\",\"filename\":\"a.raw\"}}", "a.raw", "raw", -EOPNOTSUPP },
	{ "q -blockdev {\"driver\":\"raw\",\"file", "a.raw", "raw", -EOPNOTSUPP },
	{ "q -blockdev throttle,node-name=t,file.driver=raw,file.file.driver=file,file.file.filename=a.raw", "a.raw", "raw", -EOPNOTSUPP },
	{ "q -hda gone.raw", "gone.raw", "raw", -EIO },
};

START_TEST(no_overlay)
{
	typeof(bad_overlays[0]) *c = &bad_overlays[_i];
	VmDiskEntry e = VM_DISK_ENTRY__INIT, *disks[] = { &e };
	struct qemu_overlay_opts o = { .disks = disks, .nr = 1, .cwd = dir, .name = "vm", .qemu = "q" };
	struct qemu_overlays over;
	unsigned files = nr_files();
	struct words w;

	e.node = (char *)"n";
	e.writable = true;
	e.path = (char *)in_dir(c->path);
	e.snapshot = (char *)"/nowhere";
	e.format = (char *)c->format;
	words_init(&w, c->argv);
	o.argv = w.v;
	o.argc = w.nr;
	ck_assert_int_eq(qemu_disks_overlay(&o, &over), c->result);
	ck_assert_uint_eq(nr_files(), files + !c->result);
	if (!c->result) {
		qemu_disks_overlay_undo(&over);
		ck_assert_uint_eq(nr_files(), files);
		qemu_disks_overlay_fini(&over);
	}
	ck_assert_int_eq(qemu_disks_overlay_check(disks, 1, dir, w.v, w.nr), c->result == -EIO ? 0 : c->result);
	free(w.text);
}
END_TEST

int main(void)
{
	Suite *s = suite_create("disks");
	TCase *tc = tcase_create("disks"), *trouble = tcase_create("trouble");
	SRunner *sr;
	int failed;

	tcase_set_timeout(tc, 60);
	tcase_add_checked_fixture(tc, make_files, remove_files);
	tcase_add_loop_test(tc, files_are_found, 0, ARRAY_SIZE(found));
	tcase_add_test(tc, no_file);
	tcase_add_test(tc, block_device);
	tcase_add_test(tc, file_that_is_gone_or_another);
	tcase_add_loop_test(tc, changed_files, 0, ARRAY_SIZE(changes));
	tcase_add_loop_test(tc, writes_are_noticed, 0, 4);
	tcase_add_loop_test(tc, snapshot_and_undo, 0, 2 * ARRAY_SIZE(styles));
	tcase_add_test(tc, prepared_for_what_was);
	tcase_add_test(tc, several_disks);
	tcase_add_loop_test(tc, refused_snapshots, 0, ARRAY_SIZE(refused));
	tcase_add_test(tc, block_job_is_in_the_way);
	tcase_add_test(tc, qemu_fails);
	tcase_add_loop_test(tc, restored_over_the_same_disk, 0, ARRAY_SIZE(styles));
	tcase_add_loop_test(tc, restored_again, 0, ARRAY_SIZE(styles));
	tcase_add_loop_test(tc, no_overlay, 0, ARRAY_SIZE(bad_overlays));
	suite_add_tcase(s, tc);
	tcase_set_timeout(trouble, 60);
	tcase_add_checked_fixture(trouble, make_files, remove_files);
	tcase_add_test(trouble, answer_is_none);
	tcase_add_test(trouble, undo_takes_too_long);
	suite_add_tcase(s, trouble);
	sr = srunner_create(s);
	srunner_run_all(sr, CK_ENV);
	failed = srunner_ntests_failed(sr);
	srunner_free(sr);
	return failed ? 1 : 0;
}
