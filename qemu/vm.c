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
#include "qemu/cmdline.h"
#include "qemu/qmp.h"
#include "qemu/vm_int.h"
#include "util/cleanup.h"
#include "util/io.h"
#include "util/log.h"
#include "util/size.h"

#define GREETING_MS 3000
#define ANSWER_MS 10000
#define CMDLINE_MAX (4 * MiB)
#define UNIX_TABLE_MAX (64 * MiB)

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

int qemu_process_ids(pid_t pid, uid_t *uid, gid_t *gid)
{
	_cleanup_free_ char *text = NULL;
	const char *uids, *gids;
	char path[64];
	size_t len;
	int ret;

	snprintf(path, sizeof path, "/proc/%d/status", pid);
	ret = io_read_file(path, MiB, &text, &len);
	if (ret)
		return proc_errno(pid, -ret);
	uids = strstr(text, "\nUid:");
	gids = strstr(text, "\nGid:");
	if (!uids || !gids || sscanf(uids, " Uid: %*u %u", uid) != 1 || sscanf(gids, " Gid: %*u %u", gid) != 1)
		return proc_errno(pid, EPROTO);
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
		ret = qemu_process_ids(vm->pid, &vm->uid, &vm->gid);
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
static bool legacy_socket(const char *value, struct qmp_listener *l)
{
	if (!value || strncmp(value, "unix:", 5) || !qemu_opt_is(value + 5, "path", "server", "on"))
		return false;
	l->path = qemu_opt_get(value + 5, "path", "path");
	if (l->path)
		qemu_cmdline_show(l->path);
	return l->path;
}

static bool chardev_socket(char *const *argv, int argc, const char *id, struct qmp_listener *l)
{
	_cleanup_free_ char *fd = NULL;
	struct qemu_arg a;

	for (int i = 1; id && qemu_arg_next(argv, argc, &i, &a);) {
		if (strcmp(a.name, "chardev") || !qemu_opt_is(a.value, "backend", "id", id))
			continue;
		if (!qemu_opt_is(a.value, "backend", "backend", "socket") || !qemu_opt_is(a.value, "backend", "server", "on") ||
		    qemu_opt_is(a.value, "backend", "abstract", "on"))
			return false;
		l->path = qemu_opt_get(a.value, "backend", "path");
		if (l->path)
			qemu_cmdline_show(l->path);
		fd = qemu_opt_get(a.value, "backend", "fd");
		return l->path || (fd && sscanf(fd, "%d", &l->fd) == 1);
	}
	return false;
}

static bool listener_of(char *const *argv, int argc, const struct qemu_arg *a, struct qmp_listener *l)
{
	_cleanup_free_ char *id = NULL;

	*l = (struct qmp_listener){ .fd = -1 };
	if (!a->value)
		return false;
	if (!strcmp(a->name, "qmp") || !strcmp(a->name, "qmp-pretty"))
		return strncmp(a->value, "chardev:", 8) ? legacy_socket(a->value, l) : chardev_socket(argv, argc, a->value + 8, l);
	if (strcmp(a->name, "mon") || !qemu_opt_is(a->value, "chardev", "mode", "control"))
		return false;
	id = qemu_opt_get(a->value, "chardev", "chardev");
	return chardev_socket(argv, argc, id, l);
}

bool qemu_argv_qmp(char *const *argv, int argc, size_t nth, struct qmp_listener *l)
{
	struct qemu_arg a;

	for (int i = 1; qemu_arg_next(argv, argc, &i, &a);) {
		if (!listener_of(argv, argc, &a, l))
			continue;
		if (!nth--)
			return true;
		free(l->path);
	}
	return false;
}

char *qemu_unix_path(const char *table, unsigned long ino)
{
	for (const char *line = strchr(table, '\n'); line; line = strchr(line + 1, '\n')) {
		unsigned long this;
		int path = 0;

		if (sscanf(line, " %*[^:]: %*x %*x %*x %*x %*x %lu %n", &this, &path) == 1 && this == ino && path && line[path] == '/')
			return strndup(line + path, strcspn(line + path, "\n"));
	}
	return NULL;
}

char *qemu_fd_path(const struct qemu_vm *vm, int fd)
{
	_cleanup_free_ char *table = NULL;
	char link[64], name[64];
	unsigned long ino;
	size_t len;
	ssize_t n;

	snprintf(link, sizeof link, "/proc/%d/fd/%d", vm->pid, fd);
	n = readlink(link, name, sizeof name - 1);
	name[n > 0 ? n : 0] = 0;
	snprintf(link, sizeof link, "/proc/%d/net/unix", vm->pid);
	if (sscanf(name, "socket:[%lu]", &ino) != 1 || io_read_file(link, UNIX_TABLE_MAX, &table, &len))
		return NULL;
	return qemu_unix_path(table, ino);
}

// The path, from here, of its nth socket; false if there are not so many. Who gave QEMU a socket as a descriptor (criu-vm, a
// management program) holds the one connection to it, so that such a one counts only if there is no other.
static bool find_socket(const struct qemu_vm *vm, size_t nth, char *reach, size_t size)
{
	_cleanup_free_ char *given = NULL;
	struct qmp_listener l;
	bool other = false;

	for (size_t i = 0; qemu_argv_qmp(vm->argv, vm->argc, i, &l); i++) {
		_cleanup_free_ char *path = l.path;

		other |= path != NULL;
		if (path && !nth--)
			return !qemu_vm_path(vm, path, reach, size);
		if (!path && !given)
			given = qemu_fd_path(vm, l.fd);
	}
	return !other && given && !nth && !qemu_vm_path(vm, given, reach, size);
}

// Any of its sockets will do; only the last one's failure is told.
static int connect_of_process(struct qemu_vm *vm)
{
	char reach[PATH_MAX], next[PATH_MAX];
	bool last = !find_socket(vm, 0, next, sizeof next);
	int ret;

	if (last) {
		log_err("process %d: this QEMU has no QMP socket that can be found from its command line; start it with "
			"-qmp unix:PATH,server=on,wait=off, or name its socket instead", vm->pid);
		return -ENXIO;
	}
	for (size_t nth = 1; !last; nth++) {
		memcpy(reach, next, sizeof reach);
		last = !find_socket(vm, nth, next, sizeof next);
		ret = (last ? qmp_open : qmp_open_quiet)(reach, GREETING_MS, &vm->qmp);
		if (!ret && qmp_peer_pid(vm->qmp) != vm->pid) {
			if (last)
				log_err("process %d: its QMP socket %s is served by process %d now; name a socket of its own instead",
					vm->pid, reach, qmp_peer_pid(vm->qmp));
			qmp_close(vm->qmp);
			vm->qmp = NULL;
			ret = -ENXIO;
		}
		if (!ret) {
			vm->qmp_path = strdup(reach);
			return vm->qmp_path ? 0 : -ENOMEM;
		}
	}
	return ret;
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
