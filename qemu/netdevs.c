// SPDX-License-Identifier: GPL-2.0-only
#include "qemu/netdevs.h"

#include <dirent.h>
#include <errno.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "qemu/args.h"
#include "qemu/qmp.h"
#include "qemu/vm.h"
#include "util/cleanup.h"
#include "util/io.h"
#include "util/log.h"
#include "util/size.h"

#define QUEUES_MAX 256
#define TAPS_MAX 256
#define NAME_LEN 64

// ---- what a command line says

void qemu_netdevs_free(struct qemu_netdev *list, size_t nr)
{
	for (size_t i = 0; i < nr; i++) {
		free(list[i].id);
		free(list[i].ifname);
	}
	free(list);
}

static bool is_tap(const char *value)
{
	return qemu_opt_is(value, "type", "type", "tap") || qemu_opt_is(value, "type", "type", "bridge");
}

static int read_queues(const char *value, unsigned *queues)
{
	_cleanup_free_ char *number = qemu_opt_get(value, "type", "queues");
	unsigned long n = 1;
	char *end;

	if (number)
		n = strtoul(number, &end, 10);
	*queues = (unsigned)n;
	return number && (*number < '0' || *number > '9' || *end || !n || n > QUEUES_MAX) ? -EINVAL : 0;
}

// One of -netdev or -nic; nth of all -nic.
static int add(const struct qemu_arg *a, unsigned nth, struct qemu_netdev **list, size_t *nr)
{
	struct qemu_netdev *all = reallocarray(*list, *nr + 1, sizeof *all), *d;

	if (!all)
		return -ENOMEM;
	*list = all;
	d = &all[(*nr)++];
	*d = (struct qemu_netdev){
		.id = qemu_opt_get(a->value, "type", "id"),
		.ifname = qemu_opt_get(a->value, "type", "ifname"),
		.vhost = qemu_opt_is(a->value, "type", "vhost", "on"),
	};
	if (read_queues(a->value, &d->queues)) {
		log_err("QEMU option -%s %s: the number of its queues makes no sense (1 to %d)", a->name, a->value, QUEUES_MAX);
		return -EINVAL;
	}
	if (!d->id && !strcmp(a->name, "nic"))
		return asprintf(&d->id, "#nic%u", nth) < 0 ? (d->id = NULL, -ENOMEM) : 0;
	if (d->id && *d->id && *d->id != '#')
		return 0;
	log_err("QEMU option -%s %s: it has no good id", a->name, a->value);
	return -EINVAL;
}

int qemu_netdevs_list(char *const *argv, int argc, struct qemu_netdev **list, size_t *nr)
{
	struct qemu_arg a;
	unsigned nics = 0;
	int r = 0;

	*list = NULL;
	*nr = 0;
	for (int i = 1; !r && qemu_arg_next(argv, argc, &i, &a);) {
		bool nic = !strcmp(a.name, "nic");

		if (a.value && is_tap(a.value) && !strcmp(a.name, "net")) {
			log_err("QEMU option -net %s: of this old form the network cannot be made elsewhere; use -netdev or -nic", a.value);
			r = -EOPNOTSUPP;
		} else if (a.value && is_tap(a.value) && (nic || !strcmp(a.name, "netdev"))) {
			r = add(&a, nics, list, nr);
		}
		nics += nic;
	}
	if (r) {
		qemu_netdevs_free(*list, *nr);
		*list = NULL;
		*nr = 0;
	}
	return r;
}

// ---- what a VM has

bool qemu_fd_tap(pid_t pid, int fd, char name[64])
{
	_cleanup_free_ char *text = NULL;
	const char *iff;
	char path[64];
	size_t len;

	snprintf(path, sizeof path, "/proc/%d/fdinfo/%d", pid, fd);
	if (io_read_file(path, 64 * KiB, &text, &len))
		return false;
	iff = strstr(text, "\niff:");
	return iff && sscanf(iff, "\niff: %63s", name) == 1;
}

struct taps {
	char name[TAPS_MAX][NAME_LEN];
	size_t nr;
};

static bool has_tap(const struct taps *t, const char *name)
{
	for (size_t i = 0; i < t->nr; i++)
		if (!strcmp(t->name[i], name))
			return true;
	return false;
}

static bool is_listed(const struct qemu_netdev *list, size_t nr, const char *name)
{
	for (size_t i = 0; i < nr; i++)
		if (list[i].ifname && !strcmp(list[i].ifname, name))
			return true;
	return false;
}

// The interfaces that it has open and that are in no list, into an empty t.
static int open_taps(pid_t pid, const struct qemu_netdev *list, size_t nr, struct taps *t)
{
	char path[64], link[PATH_MAX], name[NAME_LEN];
	struct dirent *e;
	DIR *d;

	snprintf(path, sizeof path, "/proc/%d/fd", pid);
	d = opendir(path);
	if (!d) {
		int r = -errno;

		log_err("process %d: cannot see its open files: %s; run as root", pid, strerror(-r));
		return r;
	}
	while ((e = readdir(d)) && t->nr < TAPS_MAX) {
		ssize_t len = readlinkat(dirfd(d), e->d_name, link, sizeof link - 1);

		link[len > 0 ? len : 0] = 0;
		if (!strcmp(link, "/dev/net/tun") && qemu_fd_tap(pid, atoi(e->d_name), name) && !is_listed(list, nr, name) && !has_tap(t, name))
			strcpy(t->name[t->nr++], name);
	}
	closedir(d);
	return 0;
}

// A line of `info network`: "[...]ID: index=0,type=tap,ifname=tap0,script=...", of a helper's without ifname.
static int take_line(const char *line, struct qemu_netdev *d)
{
	_cleanup_free_ char *found = NULL;
	const char *index = strstr(line, ": index=");
	size_t len = strlen(d->id), at;

	if (!index)
		return 0;
	at = (size_t)(index - line);
	if (at < len || strncmp(index - len, d->id, len) || (at > len && index[-(ssize_t)len - 1] != ' ') || !strstr(index, ",type=tap,"))
		return 0;
	found = qemu_opt_get(index + 2, NULL, "ifname");
	if (!found)
		return 0;
	found[strcspn(found, "\r\n")] = 0;
	d->ifname = steal_ptr(&found);
	return 0;
}

static int ask(struct qemu_vm *vm, struct qemu_netdev *list, size_t nr)
{
	_cleanup_free_ char *text = NULL;
	char *rest, *line;
	int r = qmp_hmp(vm->qmp, "info network", &text);

	for (rest = text; !r && (line = strsep(&rest, "\n"));)
		for (size_t i = 0; i < nr && !r; i++)
			if (!list[i].ifname)
				r = take_line(line, &list[i]);
	return r;
}

static struct qemu_netdev *first_unknown(struct qemu_netdev *list, size_t nr, size_t *unknown)
{
	struct qemu_netdev *first = NULL;

	*unknown = 0;
	for (size_t i = nr; i-- > 0;)
		if (!list[i].ifname) {
			first = &list[i];
			*unknown += 1;
		}
	return first;
}

int qemu_netdevs_find(struct qemu_vm *vm, struct qemu_netdev *list, size_t nr)
{
	_cleanup_free_ struct taps *t = NULL;
	struct qemu_netdev *d;
	size_t unknown;
	int r;

	if (!first_unknown(list, nr, &unknown))
		return 0;
	r = ask(vm, list, nr);
	d = r ? NULL : first_unknown(list, nr, &unknown);
	if (!d)
		return r;
	t = calloc(1, sizeof *t);
	r = t ? open_taps(vm->pid, list, nr, t) : -ENOMEM;
	if (r)
		return r;
	if (unknown == 1 && t->nr == 1) {
		d->ifname = strdup(t->name[0]);
		return d->ifname ? 0 : -ENOMEM;
	}
	log_err("process %d: which of its %zu other network interfaces is that of '%s' cannot be told; name it: -netdev tap,ifname=...", vm->pid, t->nr,
		d->id);
	return -EOPNOTSUPP;
}
