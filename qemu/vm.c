// SPDX-License-Identifier: GPL-2.0-only
#include "qemu/vm.h"

#include <errno.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "qemu/args.h"
#include "qemu/qmp.h"
#include "qemu/vm_int.h"
#include "util/cleanup.h"
#include "util/io.h"
#include "util/log.h"
#include "util/size.h"

#define GREETING_MS 3000
#define ANSWER_MS 10000
#define CMDLINE_MAX (4 * MiB)

static int proc_errno(pid_t pid, int err)
{
	if (err == ENOENT || err == ESRCH) {
		log_err("process %d: there is none, or it has ended", pid);
		return -ESRCH;
	}
	if (err == EACCES || err == EPERM)
		log_err("process %d: no permission to look at it; run as root", pid);
	else
		log_err("process %d: cannot be read from /proc: %s", pid, strerror(err));
	return -err;
}

static int read_link(pid_t pid, const char *what, char **target)
{
	char path[64], buf[PATH_MAX];
	ssize_t n;

	snprintf(path, sizeof path, "/proc/%d/%s", pid, what);
	n = readlink(path, buf, sizeof buf - 1);
	if (n < 0)
		return proc_errno(pid, errno);
	buf[n] = 0;
	*target = strdup(buf);
	return *target ? 0 : -ENOMEM;
}

static int read_argv(struct qemu_vm *vm)
{
	char path[64];
	size_t len, n = 0;
	int ret;

	snprintf(path, sizeof path, "/proc/%d/cmdline", vm->pid);
	ret = io_read_file(path, CMDLINE_MAX, &vm->cmdline, &len);
	if (ret)
		return proc_errno(vm->pid, -ret);
	for (size_t i = 0; i < len; i++)
		n += !vm->cmdline[i];
	vm->argv = calloc(n + 2, sizeof *vm->argv);
	if (!vm->argv)
		return -ENOMEM;
	for (size_t i = 0; i < len; i += strlen(vm->cmdline + i) + 1)
		vm->argv[vm->argc++] = vm->cmdline + i;
	return 0;
}

static int read_ids(struct qemu_vm *vm)
{
	_cleanup_free_ char *text = NULL;
	const char *uid, *gid;
	char path[64];
	size_t len;
	int ret;

	snprintf(path, sizeof path, "/proc/%d/status", vm->pid);
	ret = io_read_file(path, MiB, &text, &len);
	if (ret)
		return proc_errno(vm->pid, -ret);
	uid = strstr(text, "\nUid:");
	gid = strstr(text, "\nGid:");
	if (!uid || !gid || sscanf(uid, " Uid: %*u %u", &vm->uid) != 1 || sscanf(gid, " Gid: %*u %u", &vm->gid) != 1)
		return proc_errno(vm->pid, EPROTO);
	return 0;
}

// What /proc tells of vm->pid. A pidfd taken first and alive afterwards proves that it was one and the same process.
static int read_process(struct qemu_vm *vm)
{
	static const char deleted[] = " (deleted)";
	char *end;
	int ret;

	vm->pidfd = (int)syscall(SYS_pidfd_open, vm->pid, 0);
	if (vm->pidfd < 0)
		return proc_errno(vm->pid, errno == EINVAL ? ESRCH : errno); // EINVAL: a thread's id
	ret = read_link(vm->pid, "exe", &vm->exe);
	if (!ret)
		ret = read_link(vm->pid, "cwd", &vm->cwd);
	if (!ret)
		ret = read_argv(vm);
	if (!ret)
		ret = read_ids(vm);
	if (ret)
		return ret;
	end = vm->exe + strlen(vm->exe) - strlen(deleted);
	if (end > vm->exe && !strcmp(end, deleted)) // upgraded on disk since it was started
		*end = 0;
	if (syscall(SYS_pidfd_send_signal, vm->pidfd, 0, NULL, 0) && errno == ESRCH)
		return proc_errno(vm->pid, ESRCH);
	if (!strstr(strrchr(vm->exe, '/') ? strrchr(vm->exe, '/') : vm->exe, "qemu")) {
		log_err("process %d runs %s: that is no QEMU", vm->pid, vm->exe);
		return -ENOTSUP;
	}
	return 0;
}

int qemu_vm_path(const struct qemu_vm *vm, const char *path, char *out, size_t size)
{
	char ns[64], root[64];
	struct stat theirs, ours;
	int n;

	snprintf(ns, sizeof ns, "/proc/%d/ns/mnt", vm->pid);
	snprintf(root, sizeof root, "/proc/%d/root", vm->pid);
	if (*path != '/')
		n = snprintf(out, size, "/proc/%d/cwd/%s", vm->pid, path);
	else if (!stat(ns, &theirs) && !stat("/proc/self/ns/mnt", &ours) && theirs.st_ino == ours.st_ino)
		n = snprintf(out, size, "%s", path); // a -chroot came after its files were opened
	else
		n = snprintf(out, size, "%s%s", root, path);
	return n < (int)size ? 0 : -ENAMETOOLONG;
}

// ---- the QMP socket of a process

// "unix:PATH,server=on,..." as -qmp has it.
static char *legacy_socket(const char *value)
{
	_cleanup_free_ char *server = NULL;

	if (!value || strncmp(value, "unix:", 5))
		return NULL;
	server = qemu_opt_get(value + 5, "path", "server");
	return server && !strcmp(server, "on") ? qemu_opt_get(value + 5, "path", "path") : NULL;
}

static char *chardev_socket(char *const *argv, int argc, const char *id)
{
	struct qemu_arg a;

	for (int i = 1; id && qemu_arg_next(argv, argc, &i, &a);)
		if (!strcmp(a.name, "chardev") && qemu_opt_is(a.value, "backend", "id", id) &&
			qemu_opt_is(a.value, "backend", "backend", "socket") && qemu_opt_is(a.value, "backend", "server", "on") &&
			!qemu_opt_is(a.value, "backend", "abstract", "on"))
			return qemu_opt_get(a.value, "backend", "path");
	return NULL;
}

static char *socket_of(char *const *argv, int argc, const struct qemu_arg *a)
{
	_cleanup_free_ char *id = NULL;

	if (!a->value)
		return NULL;
	if (!strcmp(a->name, "qmp") || !strcmp(a->name, "qmp-pretty"))
		return strncmp(a->value, "chardev:", 8) ? legacy_socket(a->value) : chardev_socket(argv, argc, a->value + 8);
	if (strcmp(a->name, "mon") || !qemu_opt_is(a->value, "chardev", "mode", "control"))
		return NULL;
	id = qemu_opt_get(a->value, "chardev", "chardev");
	return chardev_socket(argv, argc, id);
}

char *qemu_argv_qmp_path(char *const *argv, int argc, size_t nth)
{
	struct qemu_arg a;

	for (int i = 1; qemu_arg_next(argv, argc, &i, &a);) {
		char *path = socket_of(argv, argc, &a);

		if (path && !nth--)
			return path;
		free(path);
	}
	return NULL;
}

// Any of its sockets will do; only the last one's failure is told.
static int connect_of_process(struct qemu_vm *vm)
{
	_cleanup_free_ char *path = qemu_argv_qmp_path(vm->argv, vm->argc, 0);
	char reach[PATH_MAX];

	if (!path) {
		log_err("process %d: this QEMU has no QMP socket that can be found from its command line; start it with "
			"-qmp unix:PATH,server=on,wait=off, or name its socket instead", vm->pid);
		return -ENXIO;
	}
	for (size_t nth = 1;; nth++) {
		char *next = qemu_argv_qmp_path(vm->argv, vm->argc, nth);
		int ret = qemu_vm_path(vm, path, reach, sizeof reach);

		if (!ret)
			ret = (next ? qmp_open_quiet : qmp_open)(reach, GREETING_MS, &vm->qmp);
		if (!ret && qmp_peer_pid(vm->qmp) != vm->pid) {
			if (!next)
				log_err("process %d: its QMP socket %s is served by process %d now; name a socket of its own instead",
					vm->pid, reach, qmp_peer_pid(vm->qmp));
			qmp_close(vm->qmp);
			vm->qmp = NULL;
			ret = -ESTALE;
		}
		if (!ret) {
			free(next);
			vm->qmp_path = strdup(reach);
			return vm->qmp_path ? 0 : -ENOMEM;
		}
		if (!next)
			return ret;
		free(path);
		path = next;
	}
}

static int connect_by_path(struct qemu_vm *vm, const char *path)
{
	int ret = qmp_open(path, GREETING_MS, &vm->qmp);

	if (ret)
		return ret;
	vm->qmp_path = strdup(path);
	vm->pid = qmp_peer_pid(vm->qmp);
	if (vm->pid)
		return vm->qmp_path ? 0 : -ENOMEM;
	log_err("%s: the QEMU behind it runs in a pid namespace that cannot be seen from here", path);
	return -ESRCH;
}

// ---- what it says about itself

static int ask_string(struct qmp *q, const char *cmd, json_t *args, const char *key, char **value)
{
	json_t *reply;
	const char *s;
	int ret = qmp_call(q, cmd, args, &reply);

	if (ret)
		return ret;
	s = json_string_value(key ? json_object_get(reply, key) : reply);
	*value = s ? strdup(s) : NULL;
	json_decref(reply);
	return s && !*value ? -ENOMEM : 0;
}

static int ask(struct qemu_vm *vm)
{
	static const char suffix[] = "-machine";
	json_t *reply;
	size_t len;
	int ret;

	qmp_set_timeout(vm->qmp, ANSWER_MS);
	ret = ask_string(vm->qmp, "qom-get", json_pack("{s:s, s:s}", "path", "/machine", "property", "type"), NULL, &vm->machine);
	if (!ret)
		ret = ask_string(vm->qmp, "query-status", NULL, "status", &vm->run_state);
	if (!ret)
		ret = ask_string(vm->qmp, "query-name", NULL, "name", &vm->name);
	if (!ret)
		ret = qmp_call(vm->qmp, "query-kvm", NULL, &reply);
	if (ret)
		return ret;
	vm->kvm = json_is_true(json_object_get(reply, "enabled"));
	json_decref(reply);
	len = vm->machine ? strlen(vm->machine) : 0;
	if (len <= strlen(suffix) || strcmp(vm->machine + len - strlen(suffix), suffix) || !vm->run_state) {
		log_err("%s: the QEMU behind it does not say which machine it runs", vm->qmp_path);
		return -ENOTSUP;
	}
	vm->machine[len - strlen(suffix)] = 0;
	return 0;
}

static bool is_number(const char *s)
{
	return *s && strspn(s, "0123456789") == strlen(s);
}

int qemu_vm_open(const char *spec, struct qemu_vm **out)
{
	struct qemu_vm *vm = calloc(1, sizeof *vm);
	int ret;

	if (!vm)
		return -ENOMEM;
	vm->pidfd = -1;
	if (is_number(spec)) {
		long pid = strlen(spec) < 10 ? atol(spec) : 0;

		vm->pid = (pid_t)pid;
		ret = pid ? read_process(vm) : proc_errno(vm->pid, ESRCH);
		if (!ret)
			ret = connect_of_process(vm);
	} else {
		ret = connect_by_path(vm, spec);
		if (!ret)
			ret = read_process(vm);
	}
	if (!ret)
		ret = ask(vm);
	if (ret)
		qemu_vm_close(vm);
	else
		*out = vm;
	return ret;
}

void qemu_vm_close(struct qemu_vm *vm)
{
	if (!vm)
		return;
	qmp_close(vm->qmp);
	if (vm->pidfd >= 0)
		close(vm->pidfd);
	free(vm->qmp_path);
	free(vm->exe);
	free(vm->argv);
	free(vm->cmdline);
	free(vm->cwd);
	free(vm->machine);
	free(vm->run_state);
	free(vm->name);
	free(vm);
}
