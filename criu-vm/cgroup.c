// SPDX-License-Identifier: GPL-2.0-only
#include "criu-vm/cgroup.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <mntent.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <systemd/sd-daemon.h>
#include <unistd.h>

#include "criu-vm/scope.h"
#include "util/cleanup.h"
#include "util/io.h"
#include "util/log.h"

#define FOLDER "criu-vm" // of all groups made by hand; it stays when the last of them goes
#define NAMES_MAX 1000   // NAME, NAME-2 ... that are tried
#define GO_WAITS 100
#define GO_WAIT_US 10000

static const struct hierarchy {
	const char *type, *controller; // as mounted
	const char *swap, *usage;      // files of a group: 0 in the first keeps its memory out of swap
} hierarchies[CGROUP_NR] = {
	[CGROUP_V2] = { "cgroup2", NULL, "memory.swap.max", "memory.current" },
	[CGROUP_V1_MEMORY] = { "cgroup", "memory", "memory.swappiness", "memory.usage_in_bytes" },
};

// Where its root is. False: not mounted.
static bool find_root(const struct hierarchy *h, char root[PATH_MAX])
{
	char line[2 * PATH_MAX];
	struct mntent m;
	bool found = false;
	FILE *f = setmntent("/proc/self/mounts", "r");

	while (f && !found && getmntent_r(f, &m, line, sizeof line)) {
		found = !strcmp(m.mnt_type, h->type) && (!h->controller || hasmntopt(&m, h->controller));
		if (found)
			snprintf(root, PATH_MAX, "%s", m.mnt_dir);
	}
	if (f)
		endmntent(f);
	return found;
}

int cgroup_memory_hierarchy(void)
{
	_cleanup_free_ char *controllers = NULL;
	char root[PATH_MAX], path[PATH_MAX + 32];
	size_t len;

	if (find_root(&hierarchies[CGROUP_V2], root)) {
		snprintf(path, sizeof path, "%s/cgroup.controllers", root);
		if (!io_read_file(path, PATH_MAX, &controllers, &len) && strstr(controllers, "memory"))
			return CGROUP_V2;
	}
	return find_root(&hierarchies[CGROUP_V1_MEMORY], root) ? CGROUP_V1_MEMORY : CGROUP_NR;
}

static int write_file(const char *group, const char *file, const char *text)
{
	_cleanup_close_ int dir = open(group, O_PATH | O_CLOEXEC), fd = dir < 0 ? -1 : openat(dir, file, O_WRONLY | O_CLOEXEC);

	return fd < 0 || write(fd, text, strlen(text)) < 0 ? -errno : 0;
}

static int move(const char *group, pid_t pid)
{
	char text[12];

	snprintf(text, sizeof text, "%d", pid);
	return write_file(group, "cgroup.procs", text);
}

// NAME, NAME-2, NAME-3 ...
static const char *numbered(const char *name, unsigned n, char buf[NAME_MAX])
{
	snprintf(buf, NAME_MAX, n == 1 ? "%s" : "%s-%u", name, n);
	return buf;
}

// A new group in a folder. One that is there already is another's, even when it is empty: it may just have been made, or be removed next.
static int make_group(const char *folder, const char *name, char **path)
{
	char buf[NAME_MAX];

	for (unsigned n = 1; n <= NAMES_MAX; n++) {
		_cleanup_free_ char *p = NULL;

		if (asprintf(&p, "%s/%s", folder, numbered(name, n, buf)) < 0)
			return -ENOMEM;
		if (!mkdir(p, 0755)) {
			*path = steal_ptr(&p);
			return 0;
		}
		if (errno != EEXIST)
			return -errno;
	}
	return -EEXIST;
}

// In one hierarchy. *guarded: memory that is charged to the group stays out of swap.
static int create_by_hand(const struct hierarchy *h, const char *name, pid_t first, char **path, bool *guarded)
{
	_cleanup_free_ char *folder = NULL;
	char root[PATH_MAX];
	int r;

	if (!find_root(h, root))
		return -ENOENT;
	if (asprintf(&folder, "%s/" FOLDER, root) < 0)
		return -ENOMEM;
	// v2 gives the controller only to groups whose parents pass it on.
	write_file(root, "cgroup.subtree_control", "+memory");
	if (mkdir(folder, 0755) < 0 && errno != EEXIST)
		return -errno;
	write_file(folder, "cgroup.subtree_control", "+memory");
	r = make_group(folder, name, path);
	if (r)
		return r;
	*guarded |= !write_file(*path, h->swap, "0");
	r = move(*path, first);
	if (r) {
		rmdir(*path);
		free(*path);
		*path = NULL;
	}
	return r;
}

static int create_scope(const char *name, pid_t first, struct cgroup *cg, bool *guarded)
{
	_cleanup_free_ char *group = NULL;
	char root[PATH_MAX], buf[NAME_MAX];
	int r = -EEXIST;

	for (unsigned n = 1; n <= NAMES_MAX && r == -EEXIST; n++)
		r = scope_start(numbered(name, n, buf), first, &cg->scope, &group);
	for (unsigned i = 0; !r && i < CGROUP_NR; i++) {
		if (!find_root(&hierarchies[i], root))
			continue;
		if (asprintf(&cg->path[i], "%s%s", root, group) < 0)
			cg->path[i] = NULL;
		else // said to systemd already, whose word it is on v2; on v1 it knows no such setting
			*guarded |= !write_file(cg->path[i], hierarchies[i].swap, "0");
	}
	return r;
}

int cgroup_create(const char *name, pid_t first, struct cgroup *cg)
{
	bool guarded = false, made = false;
	int r = -ENOENT;

	*cg = CGROUP_NONE;
	if (!first)
		first = getpid();
	if (sd_booted() > 0)
		made = !create_scope(name, first, cg, &guarded);
	for (unsigned i = 0; !cg->scope && i < CGROUP_NR; i++) {
		int err = create_by_hand(&hierarchies[i], name, first, &cg->path[i], &guarded);

		made |= !err;
		if (err != -ENOENT)
			r = err;
	}
	if (!made && r == -ESRCH)
		return r;
	if (!made)
		log_warn("no control group for %s (%s): it stays in that of its starter and may be stopped with it; the host may swap its QEMU out",
			name, r == -ENOENT ? "no hierarchy is mounted" : strerror(-r));
	else if (!guarded)
		log_warn("the memory controller is missing in the control group of %s: the host may swap its QEMU out", name);
	return 0;
}

// In a container without a namespace of its own for them, paths do not begin at the root that it sees, which is then as good as any.
static void set_own(char **own, const char *root, const char *path)
{
	if (asprintf(own, "%s%s", root, path) < 0)
		*own = NULL;
	else if (access(*own, F_OK) < 0)
		(*own)[strlen(root)] = 0;
}

void cgroup_own(struct cgroup *cg)
{
	_cleanup_fclose_ FILE *f = fopen("/proc/self/cgroup", "re");
	_cleanup_free_ char *line = NULL;
	char root[PATH_MAX];
	size_t room = 0;

	*cg = CGROUP_NONE;
	while (f && getline(&line, &room, f) > 0) { // NUMBER:CONTROLLER,...:PATH; no controllers in v2's
		char *path = line;
		struct mntent m;

		strsep(&path, ":");
		m.mnt_opts = strsep(&path, ":");
		if (!path)
			continue;
		path[strcspn(path, "\n")] = 0;
		for (unsigned i = 0; i < CGROUP_NR; i++) {
			const struct hierarchy *h = &hierarchies[i];

			if ((h->controller ? hasmntopt(&m, h->controller) != NULL : !*m.mnt_opts) && find_root(h, root))
				set_own(&cg->path[i], root, path);
		}
	}
}

int cgroup_enter(const struct cgroup *cg, pid_t pid)
{
	int r = 0;

	for (unsigned i = 0; i < CGROUP_NR; i++) {
		int err = cg->path[i] ? move(cg->path[i], pid) : 0;

		if (err)
			log_err("cannot move process %d to control group %s: %s", pid ? pid : getpid(), cg->path[i], strerror(-err));
		r = r ? r : err;
	}
	return r;
}

int cgroup_memory_current(const struct cgroup *cg, uint64_t *bytes)
{
	for (unsigned i = 0; i < CGROUP_NR; i++) {
		_cleanup_free_ char *path = NULL, *text = NULL;
		size_t len;

		if (!cg->path[i] || asprintf(&path, "%s/%s", cg->path[i], hierarchies[i].usage) < 0 || io_read_file(path, 64, &text, &len))
			continue;
		*bytes = strtoull(text, NULL, 10);
		return 0;
	}
	return -ENOENT;
}

static FILE *open_members(const char *group)
{
	_cleanup_free_ char *path = NULL;

	return asprintf(&path, "%s/cgroup.procs", group) < 0 ? NULL : fopen(path, "re");
}

static bool is_member(const char *group, pid_t pid)
{
	_cleanup_fclose_ FILE *f = open_members(group);
	int member;

	while (f && fscanf(f, "%d", &member) == 1)
		if (member == pid)
			return true;
	return false;
}

// "12 (qemu-system-x86), 13 (criu-vm)", as many as fit.
static void describe_members(const char *group, char *text, size_t size)
{
	_cleanup_fclose_ FILE *f = open_members(group);
	char comm[32], path[32];
	size_t len = 0;
	int pid;

	snprintf(text, size, "no process");
	while (f && len < size && fscanf(f, "%d", &pid) == 1) {
		_cleanup_fclose_ FILE *c = NULL;

		snprintf(path, sizeof path, "/proc/%d/comm", pid);
		c = fopen(path, "re");
		if (!c || fscanf(c, "%31[^\n]", comm) != 1)
			snprintf(comm, sizeof comm, "?");
		len += (size_t)snprintf(text + len, size - len, "%s%d (%s)", len ? ", " : "", pid, comm);
	}
}

static void remove_group(const char *group)
{
	_cleanup_free_ char *root = NULL;
	char members[200];
	int r;

	if (is_member(group, getpid()) && asprintf(&root, "%s/../..", group) > 0 && (r = move(root, 0)))
		log_warn("cannot leave control group %s: %s", group, strerror(-r));
	for (unsigned i = 0; rmdir(group) < 0 && errno != ENOENT; i++) {
		if (errno == EBUSY && i < GO_WAITS) {
			usleep(GO_WAIT_US);
			continue;
		}
		r = -errno;
		describe_members(group, members, sizeof members);
		log_warn("cannot remove control group %s: %s; in it: %s; once it is empty: rmdir %s", group, strerror(-r), members, group);
		return;
	}
}

void cgroup_destroy(struct cgroup *cg)
{
	for (unsigned i = 0; !cg->scope && i < CGROUP_NR; i++)
		if (cg->path[i])
			remove_group(cg->path[i]);
	cgroup_fini(cg);
}

void cgroup_fini(struct cgroup *cg)
{
	for (unsigned i = 0; i < CGROUP_NR; i++)
		free(cg->path[i]);
	free(cg->scope);
	*cg = CGROUP_NONE;
}
