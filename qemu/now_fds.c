// SPDX-License-Identifier: GPL-2.0-only
// What QEMU was given as descriptors, as management programs do: a file becomes its path, a tap its interface, a listening socket its
// name. A monitor on one is its giver's, and nothing of the guest.
#include <errno.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "qemu/args.h"
#include "qemu/cmdline.h"
#include "qemu/netdevs.h"
#include "qemu/now_int.h"
#include "qemu/vm_int.h"
#include "util/cleanup.h"
#include "util/io.h"
#include "util/log.h"
#include "util/size.h"

#define FDSET "/dev/fdset/"

// ---- files: -add-fd and QMP add-fd

// The name of a file that QEMU has open, if it still is that file's. A name that would not do in an option is none.
static bool path_of_file(struct now *n, int fd, char *path, size_t size)
{
	char link[64], reach[PATH_MAX];
	struct stat open, named;
	ssize_t len;

	snprintf(link, sizeof link, "/proc/%d/fd/%d", n->r.vm->pid, fd);
	len = readlink(link, path, size - 1);
	if (len <= 0)
		return false;
	path[len] = 0;
	return *path == '/' && !strpbrk(path, ",\"\\") && !qemu_vm_path(n->r.vm, path, reach, sizeof reach) && !stat(link, &open) &&
	       !stat(reach, &named) && open.st_dev == named.st_dev && open.st_ino == named.st_ino &&
	       (S_ISREG(open.st_mode) || S_ISBLK(open.st_mode) || S_ISCHR(open.st_mode));
}

// All descriptors of a set are one file, opened in different ways.
static int read_set(struct now *n, const json_t *set)
{
	char name[64], path[PATH_MAX], first[PATH_MAX] = "";
	const json_t *fd;
	size_t i;

	json_array_foreach(json_object_get(set, "fds"), i, fd) {
		if (!path_of_file(n, (int)json_integer_value(json_object_get(fd, "fd")), path, sizeof path) ||
		    (*first && strcmp(first, path)))
			return 0;
		strcpy(first, path);
	}
	snprintf(name, sizeof name, FDSET "%lld", (long long)json_integer_value(json_object_get(set, "fdset-id")));
	return *first && json_object_set_new(n->r.fdsets, name, json_string(first)) ? -ENOMEM : 0;
}

static int read_sets(struct now *n)
{
	json_t *list, *set;
	size_t i;
	int ret = qmp_call(n->r.vm->qmp, "query-fdsets", NULL, &list);

	if (ret)
		return ret;
	json_array_foreach(list, i, set)
		ret = ret ?: read_set(n, set);
	json_decref(list);
	return ret;
}

int qemu_fdset_path(struct qemu_vm *vm, const char *name, char **path)
{
	struct now n = { .r.vm = vm, .r.fdsets = json_object() };
	const char *found;
	int ret = n.r.fdsets ? read_sets(&n) : -ENOMEM;

	*path = NULL;
	found = ret ? NULL : json_string_value(json_object_get(n.r.fdsets, name));
	if (found && !(*path = strdup(found)))
		ret = -ENOMEM;
	json_decref(n.r.fdsets);
	return ret;
}

// "/dev/fdset/2" in the value becomes the file's path; of a set that is none, it stays.
static int put_paths(struct now *n, struct now_opt *o)
{
	char name[64], *at = o->value;

	while (at && (at = strstr(at, FDSET))) {
		size_t len = strlen(FDSET) + strspn(at + strlen(FDSET), "0123456789");
		const char *path;
		char *text;

		snprintf(name, sizeof name, "%.*s", (int)len, at);
		path = json_string_value(json_object_get(n->r.fdsets, name));
		if (!path) {
			at += len;
			continue;
		}
		if (asprintf(&text, "%.*s%s%s", (int)(at - o->value), o->value, path, at + len) < 0)
			return -ENOMEM;
		at = text + (at - o->value) + strlen(path);
		free(o->value);
		o->value = text;
	}
	return 0;
}

// A log into a pipe, as libvirt's, is read by nobody at the restore.
static int fix_log(struct now_opt *o)
{
	_cleanup_free_ char *log = now_is(o, "chardev") ? qemu_opt_get(o->value, "backend", "logfile") : NULL;

	if (!log || strncmp(log, FDSET, strlen(FDSET)))
		return 0;
	log_info("QEMU option -chardev %s: its log was a descriptor that cannot be given again, a restored VM has none", o->value);
	return now_set(o, "logfile", NULL) ?: now_set(o, "logappend", NULL);
}

// ---- taps

// fds: "27:28", all queues of one interface.
static bool tap_of_queues(const struct now *n, const char *fds, char name[64], int *queues)
{
	char other[64];
	int fd, len;

	for (*queues = 0; sscanf(fds, "%d%n", &fd, &len) == 1; fds += len + (fds[len] == ':')) {
		if (!qemu_fd_tap(n->r.vm->pid, fd, *queues ? other : name) || (*queues && strcmp(name, other)))
			return false;
		(*queues)++;
		if (!fds[len])
			return true;
	}
	return false;
}

static int set_number(struct now_opt *o, const char *key, int number)
{
	json_t *v = json_integer(number);
	int ret = v ? now_set(o, key, v) : -ENOMEM;

	json_decref(v);
	return ret;
}

static int fix_tap(struct now *n, struct now_opt *o)
{
	static const char *const given[] = { "fd", "fds", "vhostfd", "vhostfds" };
	_cleanup_free_ char *fd = NULL, *fds = NULL;
	char name[64];
	int queues, ret = 0;

	if ((!now_is(o, "netdev") && !now_is(o, "nic")) || !qemu_opt_is(o->value, "type", "type", "tap"))
		return 0;
	fd = qemu_opt_get(o->value, "type", "fd");
	fds = qemu_opt_get(o->value, "type", "fds");
	if ((!fd && !fds) || !tap_of_queues(n, fds ?: fd, name, &queues))
		return 0; // refused where all that is understood is checked
	log_info("QEMU option -%s %s: its tap was a descriptor; a restored VM opens the interface %s by name, without a script "
		 "(another network: restore ... -- -%s ...,id=...)", o->name, o->value, name, o->name);
	for (size_t i = 0; i < ARRAY_SIZE(given) && !ret; i++)
		ret = now_set(o, given[i], NULL);
	ret = ret ?: now_set_string(o, "ifname", name) ?: now_set_string(o, "script", "no") ?: now_set_string(o, "downscript", "no");
	return ret || queues == 1 ? ret : set_number(o, "queues", queues);
}

// ---- sockets

static bool is_monitor_of(const struct now_opt *o, const char *chardev)
{
	bool qmp = now_is(o, "qmp") || now_is(o, "qmp-pretty") || now_is(o, "monitor");

	if (qmp)
		return !strncmp(o->value, "chardev:", 8) && !strcmp(o->value + 8, chardev);
	return now_is(o, "mon") && qemu_opt_is(o->value, "chardev", "chardev", chardev);
}

// Whether anything but a monitor and the option itself names it.
static bool is_named(const struct now *n, const struct now_opt *self, const char *id)
{
	size_t len = strlen(id);

	if (!len)
		return true;
	for (const struct now_opt *o = n->opt; o < n->opt + n->nr; o++) {
		if (o == self || !o->name || !o->value || is_monitor_of(o, id))
			continue;
		for (const char *s = o->value; (s = strstr(s, id)); s++)
			if ((s == o->value || strchr(":=,\"/", s[-1])) && (!s[len] || strchr(",\":", s[len])))
				return true;
	}
	return false;
}

static bool drop_monitors(struct now *n, const char *chardev)
{
	bool any = false;

	for (struct now_opt *o = n->opt; o < n->opt + n->nr; o++)
		if (o->name && o->value && is_monitor_of(o, chardev)) {
			now_drop(o);
			any = true;
		}
	return any;
}

static int fix_socket(struct now *n, struct now_opt *o)
{
	_cleanup_free_ char *fd = now_is(o, "chardev") ? qemu_opt_get(o->value, "backend", "fd") : NULL, *path = NULL;
	_cleanup_free_ char *id = fd ? qemu_opt_get(o->value, "backend", "id") : NULL;

	if (!id || !strcmp(id, QEMU_CMDLINE_QMP_ID) || !strcmp(id, QEMU_CMDLINE_COMMANDS_ID))
		return 0;
	if (!is_named(n, o, id) && drop_monitors(n, id)) {
		log_info("QEMU option -chardev %s: a monitor for the program that started it; a restored VM has it not", o->value);
		now_drop(o);
		return 0;
	}
	if (qemu_opt_is(o->value, "backend", "server", "on"))
		path = qemu_fd_path(n->r.vm, atoi(fd));
	return path ? now_set(o, "fd", NULL) ?: now_set_string(o, "path", path) : 0;
}

// ---- objects that nothing uses

// libvirt gives each VM a secret of its own, in a file that it deletes when the VM ends; most have no use for it. Memory that no device
// has is no guest RAM, so there is none of it in a checkpoint.
int now_unused(struct now *n)
{
	for (struct now_opt *o = n->opt; o < n->opt + n->nr; o++) {
		_cleanup_free_ char *id = NULL, *type = now_is(o, "object") ? qemu_opt_get(o->value, "qom-type", "qom-type") : NULL;

		if (!type || (strcmp(type, "secret") && strncmp(type, "memory-backend-", strlen("memory-backend-"))))
			continue;
		id = qemu_opt_get(o->value, "qom-type", "id");
		if (id && !is_named(n, o, id))
			now_drop(o);
	}
	return 0;
}

int now_fds(struct now *n)
{
	int ret;

	n->r.fdsets = json_object();
	ret = n->r.fdsets ? read_sets(n) : -ENOMEM;
	for (struct now_opt *o = n->opt; o < n->opt + n->nr && !ret; o++) {
		if (now_is(o, "add-fd"))
			now_drop(o);
		else
			ret = put_paths(n, o) ?: fix_log(o) ?: fix_tap(n, o) ?: fix_socket(n, o);
	}
	return ret;
}
