// SPDX-License-Identifier: GPL-2.0-only
// Which files a VM's disks are, as QEMU's block graph has them, and whether they are still what they were.
#include "qemu/disks.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <linux/fs.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <time.h>
#include <unistd.h>

#include "qemu/disks_int.h"
#include "qemu/qmp.h"
#include "qemu/vm.h"
#include "qemu/vm_int.h"
#include "util/cleanup.h"
#include "util/clock.h"
#include "util/log.h"
#include "util/size.h"

// ---- the graph

int disk_graph_read(struct qmp *q, struct disk_graph *g)
{
	int r = qmp_call(q, "query-block", NULL, &g->devices);

	if (!r)
		r = qmp_call(q, "query-named-block-nodes", json_pack("{s:b}", "flat", 1), &g->infos);
	if (!r)
		r = qmp_call(q, "x-debug-query-block-graph", NULL, &g->graph);
	return r;
}

void disk_graph_fini(struct disk_graph *g)
{
	json_decref(g->devices);
	json_decref(g->infos);
	json_decref(g->graph);
}

const char *disk_text(const json_t *o, const char *key)
{
	const char *s = json_string_value(json_object_get(o, key));

	return s ? s : "";
}

json_t *disk_graph_info(const struct disk_graph *g, const char *node)
{
	json_t *info;
	size_t i;

	json_array_foreach(g->infos, i, info)
		if (!strcmp(disk_text(info, "node-name"), node))
			return info;
	return NULL;
}

static json_int_t id_of(const struct disk_graph *g, const char *node)
{
	json_t *n;
	size_t i;

	json_array_foreach(json_object_get(g->graph, "nodes"), i, n)
		if (!strcmp(disk_text(n, "type"), "block-driver") && !strcmp(disk_text(n, "name"), node))
			return json_integer_value(json_object_get(n, "id"));
	return -1;
}

const char *disk_graph_name(const struct disk_graph *g, json_int_t id)
{
	json_t *n;
	size_t i;

	json_array_foreach(json_object_get(g->graph, "nodes"), i, n)
		if (json_integer_value(json_object_get(n, "id")) == id)
			return strcmp(disk_text(n, "type"), "block-driver") ? NULL : disk_text(n, "name");
	return NULL;
}

static json_int_t end_of(const json_t *edge, const char *end)
{
	return json_integer_value(json_object_get(edge, end));
}

const char *disk_graph_below(const struct disk_graph *g, const char *node, const char *name)
{
	json_int_t id = id_of(g, node);
	json_t *edge;
	size_t i;

	json_array_foreach(json_object_get(g->graph, "edges"), i, edge)
		if (end_of(edge, "parent") == id && !strcmp(disk_text(edge, "name"), name))
			return disk_graph_name(g, end_of(edge, "child"));
	return NULL;
}

const char *disk_graph_above(const struct disk_graph *g, const char *node)
{
	json_int_t id = id_of(g, node);
	json_t *edge;
	size_t i;

	json_array_foreach(json_object_get(g->graph, "edges"), i, edge)
		if (end_of(edge, "child") == id && disk_graph_name(g, end_of(edge, "parent")))
			return disk_graph_name(g, end_of(edge, "parent"));
	return NULL;
}

const char *disk_graph_root(const struct disk_graph *g, const char *node)
{
	const char *up = node;

	for (size_t i = 0; up && i <= json_array_size(g->infos); i++) {
		node = up;
		up = disk_graph_above(g, node);
	}
	return node;
}

// Does anybody write to it? Nobody may yet in a QEMU whose disks are not active.
static bool is_written(const struct disk_graph *g, const json_t *info)
{
	json_int_t id = id_of(g, disk_text(info, "node-name"));
	bool any = false;
	json_t *edge, *perm;
	size_t i, k;

	if (json_is_true(json_object_get(info, "ro")))
		return false;
	json_array_foreach(json_object_get(g->graph, "edges"), i, edge) {
		if (end_of(edge, "child") != id)
			continue;
		json_array_foreach(json_object_get(edge, "perm"), k, perm) {
			any = true;
			if (!strcmp(json_string_value(perm) ?: "", "write"))
				return true;
		}
	}
	return !any;
}

// ---- a file

char *disk_path(const char *cwd, const char *name)
{
	char *path;

	if (!strncmp(name, "file:", 5))
		name += 5;
	if (asprintf(&path, "%s%s%s", *name == '/' ? "" : cwd, *name == '/' ? "" : "/", name) < 0)
		return NULL;
	return path;
}

// ".criu-vm-1700000000000", ".NAME-restored", ".NAME-restored-2": what files over it were called by.
static bool is_suffix(const char *s, size_t len)
{
	static const char ours[] = "criu-vm-", restored[] = "-restored";
	const char *at = memmem(s, len, restored, strlen(restored));

	if (len > strlen(ours) && !memcmp(s, ours, strlen(ours)))
		return strspn(s + strlen(ours), "0123456789") >= len - strlen(ours);
	if (!at)
		return false;
	at += strlen(restored);
	return at == s + len || (*at == '-' && at + 1 < s + len && strspn(at + 1, "0123456789") >= (size_t)(s + len - at - 1));
}

// Else the names would grow with each snapshot of a snapshot.
static size_t without_suffixes(const char *path, size_t len)
{
	const char *name = memrchr(path, '/', len), *dot;

	name = name ? name + 1 : path;
	while ((dot = memrchr(name, '.', (size_t)(path + len - name))) && dot > name && is_suffix(dot + 1, (size_t)(path + len - dot - 1)))
		len = (size_t)(dot - path);
	return len;
}

int disk_beside(const char *path, const char *suffix, char **out)
{
	size_t len = strlen(path);
	const char *name;

	*out = NULL;
	if (len > 6 && !strcmp(path + len - 6, ".qcow2"))
		len -= 6;
	len = without_suffixes(path, len);
	if (asprintf(out, "%.*s.%s.qcow2", (int)len, path, suffix) < 0)
		return -ENOMEM;
	name = strrchr(*out, '/');
	if (strlen(name ? name + 1 : *out) <= NAME_MAX && strlen(*out) < PATH_MAX)
		return 0;
	free(*out);
	*out = NULL;
	return -ENAMETOOLONG;
}

bool disk_format_is_plain(const char *driver)
{
	static const char *const formats[] = { "raw", "qcow2", "qcow", "qed", "vmdk", "vdi", "vhdx", "vpc" };

	for (size_t i = 0; i < ARRAY_SIZE(formats); i++)
		if (!strcmp(driver, formats[i]))
			return true;
	return false;
}

static bool same_file(const struct stat *a, const struct stat *b)
{
	if (S_ISBLK(a->st_mode) || S_ISCHR(a->st_mode))
		return (a->st_mode & S_IFMT) == (b->st_mode & S_IFMT) && a->st_rdev == b->st_rdev;
	return a->st_dev == b->st_dev && a->st_ino == b->st_ino;
}

bool disk_is_open(int pid, const struct stat *file)
{
	struct dirent *d;
	bool found = false;
	char path[64];
	struct stat st;
	DIR *dir;

	snprintf(path, sizeof path, "/proc/%d/fd", pid);
	dir = opendir(path);
	while (dir && !found && (d = readdir(dir)))
		found = !fstatat(dirfd(dir), d->d_name, &st, 0) && same_file(&st, file);
	if (dir)
		closedir(dir);
	return found;
}

// 0: it cannot be told (a drive without a medium).
static uint64_t device_size(const char *path)
{
	_cleanup_close_ int fd = open(path, O_RDONLY | O_NONBLOCK | O_CLOEXEC);
	uint64_t size;

	return fd >= 0 && !ioctl(fd, BLKGETSIZE64, &size) ? size : 0;
}

static uint64_t mtime_ns(const struct stat *st)
{
	return (uint64_t)st->st_mtim.tv_sec * NSEC_PER_SEC + (uint64_t)st->st_mtim.tv_nsec;
}

static bool size_of(const char *path, const struct stat *st, uint64_t *size)
{
	*size = S_ISBLK(st->st_mode) ? device_size(path) : (uint64_t)st->st_size;
	return S_ISREG(st->st_mode) || *size;
}

int disk_stat(const struct qemu_vm *vm, VmDiskEntry *e)
{
	char reach[PATH_MAX];
	struct stat st;

	if (qemu_vm_path(vm, e->path, reach, sizeof reach) || stat(reach, &st)) {
		log_err("QEMU %d: its disk image %s is not there any more; put it back, or if it is the temporary file of a -snapshot "
			"disk, start QEMU without that", vm->pid, e->path);
		return -ENOENT;
	}
	if (!disk_is_open(vm->pid, &st)) {
		log_err("QEMU %d: its disk image %s is not the file that it has open: it was replaced; put the old one back", vm->pid, e->path);
		return -ESTALE;
	}
	e->has_size = size_of(reach, &st, &e->size);
	e->has_inode = e->has_mtime_ns = S_ISREG(st.st_mode);
	if (e->has_mtime_ns) {
		e->inode = st.st_ino;
		e->mtime_ns = mtime_ns(&st);
	}
	return 0;
}

// ---- all of them

// The names of the devices of all nodes that one has, by index in graph.nodes: a node has the device of the node above it.
static const char **owners(const struct disk_graph *g)
{
	const json_t *nodes = json_object_get(g->graph, "nodes"), *edges = json_object_get(g->graph, "edges");
	const char **owner = calloc(json_array_size(nodes) + 1, sizeof *owner);
	bool more = owner;
	json_t *dev, *edge, *n;
	size_t i, k;

	json_array_foreach(g->devices, i, dev) {
		const char *top = disk_text(json_object_get(dev, "inserted"), "node-name");

		json_array_foreach(nodes, k, n)
			if (owner && !strcmp(disk_text(n, "type"), "block-driver") && !strcmp(disk_text(n, "name"), top))
				owner[k] = *disk_text(dev, "qdev") ? disk_text(dev, "qdev") : disk_text(dev, "device");
	}
	while (more) {
		more = false;
		json_array_foreach(edges, i, edge) {
			const char *from = NULL;

			json_array_foreach(nodes, k, n)
				if (end_of(n, "id") == end_of(edge, "parent"))
					from = owner[k];
			json_array_foreach(nodes, k, n)
				if (from && !owner[k] && end_of(n, "id") == end_of(edge, "child")) {
					owner[k] = from;
					more = true;
				}
		}
	}
	return owner;
}

// A file at an end of the graph that something is above, a device or another node.
static bool is_file_in_use(const struct disk_graph *g, json_int_t id)
{
	bool used = false;
	json_t *edge;
	size_t i;

	json_array_foreach(json_object_get(g->graph, "edges"), i, edge) {
		if (end_of(edge, "parent") == id)
			return false;
		used |= end_of(edge, "child") == id;
	}
	return used;
}

static bool is_local(const json_t *info)
{
	static const char *const local[] = { "file", "host_device", "host_cdrom" };

	for (size_t i = 0; i < ARRAY_SIZE(local); i++)
		if (!strcmp(disk_text(info, "drv"), local[i]))
			return true;
	return false;
}

// What is known by a descriptor that QEMU was given has the name of its file.
static int set_path(struct qemu_vm *vm, const json_t *info, VmDiskEntry *e)
{
	const char *file = disk_text(info, "file");

	if (!strncmp(file, "/dev/fdset/", 11)) {
		int ret = qemu_fdset_path(vm, file, &e->path);

		if (ret || e->path)
			return ret;
	}
	e->path = is_local(info) ? disk_path(vm->cwd, file) : strdup(file);
	return e->path ? 0 : -ENOMEM;
}

static int new_entry(struct qemu_vm *vm, const struct disk_graph *g, const char *node, const char *device, VmDiskEntry **out)
{
	const json_t *info = disk_graph_info(g, node);
	VmDiskEntry *e = malloc(sizeof *e);
	int ret;

	if (!e)
		return -ENOMEM;
	*out = e;
	vm_disk_entry__init(e);
	e->node = strdup(node);
	e->device = device ? strdup(device) : NULL;
	ret = set_path(vm, info, e);
	if (ret || !e->node || (device && !e->device))
		return ret ?: -ENOMEM;
	e->writable = is_written(g, info);
	return is_local(info) ? disk_stat(vm, e) : 0;
}

int qemu_disks(struct qemu_vm *vm, VmDiskEntry ***disks, size_t *nr)
{
	_cleanup_free_ const char **owner = NULL;
	struct disk_graph g = { 0 };
	VmDiskEntry **list = NULL;
	size_t n = 0, i;
	int r = disk_graph_read(vm->qmp, &g);
	json_t *nodes = json_object_get(g.graph, "nodes"), *node;

	if (!r) {
		owner = owners(&g);
		list = calloc(json_array_size(nodes) + 1, sizeof(VmDiskEntry *));
		r = owner && list ? 0 : -ENOMEM;
	}
	json_array_foreach(nodes, i, node)
		if (!r && disk_graph_info(&g, disk_text(node, "name")) && !strcmp(disk_text(node, "type"), "block-driver") &&
		    is_file_in_use(&g, end_of(node, "id"))) {
			r = new_entry(vm, &g, disk_text(node, "name"), owner[i], &list[n]);
			n += list[n] != NULL;
		}
	disk_graph_fini(&g);
	if (r) {
		qemu_disks_free(list, n);
		return r;
	}
	*disks = list;
	*nr = n;
	return 0;
}

void qemu_disks_free(VmDiskEntry **disks, size_t nr)
{
	for (size_t i = 0; i < nr; i++)
		vm_disk_entry__free_unpacked(disks[i], NULL);
	free(disks);
}

// ---- at restore

static const char *time_text(uint64_t ns, char *text, size_t size)
{
	time_t t = (time_t)(ns / NSEC_PER_SEC);
	struct tm tm;
	size_t len = localtime_r(&t, &tm) ? strftime(text, size, "%Y-%m-%d %H:%M:%S", &tm) : 0;

	snprintf(text + len, size - len, ".%09llu", (unsigned long long)(ns % NSEC_PER_SEC));
	return text;
}

#define WAY_OUT "go back to the file as it was, or use --force if the VM may find it changed; a dump with --disk-snapshot keeps such files as they are"

// Whether the guest's own data is in it: the file of a writable disk, or one below that. The medium of a read-only drive is not.
static bool is_guests(const VmDiskEntry *e, VmDiskEntry *const *disks, size_t nr)
{
	bool guests = e->writable;

	for (size_t i = 0; i < nr && e->device && !guests; i++)
		guests = disks[i]->writable && disks[i]->device && !strcmp(disks[i]->device, e->device);
	return guests;
}

static int check_file(const VmDiskEntry *e, bool guests)
{
	enum log_level level = guests ? LOG_ERROR : LOG_WARN;
	char then[64], now[64];
	struct stat st;
	uint64_t size;

	if (stat(e->path, &st)) {
		log_err("disk image %s of the VM: %s; put it back as it was when the VM was dumped, or say --force and name another one behind '--'", e->path, strerror(errno));
		return -errno;
	}
	if (!size_of(e->path, &st, &size) || size != e->size) {
		log_at(level, "disk image %s has changed since the VM was dumped: it had %llu bytes, it has %llu now; " WAY_OUT, e->path,
		       (unsigned long long)e->size, (unsigned long long)size);
		return guests ? -ESTALE : 0;
	}
	if (e->has_mtime_ns && e->mtime_ns != mtime_ns(&st)) {
		log_at(level, "disk image %s has changed since the VM was dumped: it was written to last at %s, now at %s; " WAY_OUT, e->path,
		       time_text(e->mtime_ns, then, sizeof then), time_text(mtime_ns(&st), now, sizeof now));
		return guests ? -ESTALE : 0;
	}
	if (e->has_inode && e->inode != st.st_ino)
		log_info("disk image %s is another file than when the VM was dumped, with the same size and time: taken for a copy", e->path);
	return 0;
}

int qemu_disks_check(VmDiskEntry *const *disks, size_t nr)
{
	int first = 0;

	for (size_t i = 0; i < nr; i++) {
		int r = disks[i]->has_size ? check_file(disks[i], is_guests(disks[i], disks, nr)) : 0;

		first = first ?: r;
	}
	return first;
}
