// SPDX-License-Identifier: GPL-2.0-only
// Snapshots: a new qcow2 file comes over the image of each writable disk, and goes again.
//
//	device                    device
//	  |  (filters stay)         |
//	format   "base"           qcow2    "criu-vm-N"  - file: PATH.SUFFIX.qcow2
//	  |                         | backing
//	file     PATH             format   "base", read-only now  - file: PATH
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "qemu/disks_int.h"
#include "qemu/qmp.h"
#include "qemu/vm.h"
#include "qemu/vm_int.h"
#include "util/cleanup.h"
#include "util/log.h"
#include "util/size.h"

// A file that is there before the VM stands still.
struct prepared_file {
	char *base, *format, *file; // file NULL: a snapshot has taken it
	uint64_t size; // virtual, bytes
};

struct qemu_prepared {
	const struct qemu_vm *vm;
	struct prepared_file *files;
	size_t nr;
};

struct snapshot {
	struct qemu_vm *vm;
	struct disk_user user; // the VM's
	const char *suffix;
	struct qemu_prepared *prepared;
	bool preparing; // the files only
	struct disk_graph graph;
	VmDiskEntry **disks;
	size_t nr;
	json_t *actions;
	unsigned nr_names; // node names tried so far
};

static int refuse(const struct snapshot *s, const char *path, const char *why)
{
	log_err("QEMU %d: no snapshot can be put over its disk %s: %s", s->vm->pid, path, why);
	return -EOPNOTSUPP;
}

// ---- which

// From the node on which a device is to its file: *image is the node right over that, or the file itself. NULL if there is none.
static const char *find_file(const struct disk_graph *g, const char *top, const char **image)
{
	const char *node = top, *down;

	*image = top;
	for (size_t i = 0; i <= json_array_size(g->infos); i++) {
		down = disk_graph_below(g, node, "file");
		if (!down)
			return node;
		*image = node;
		node = down;
	}
	return NULL;
}

static VmDiskEntry *entry_of(const struct snapshot *s, const char *node)
{
	for (size_t i = 0; i < s->nr; i++)
		if (!strcmp(s->disks[i]->node, node))
			return s->disks[i];
	return NULL;
}

// QEMU would write over a file that is there.
static int make_empty(const struct snapshot *s, const char *base, const char *path)
{
	char reach[PATH_MAX];
	struct stat st;
	int r;

	if (qemu_vm_path(s->vm, base, reach, sizeof reach) || stat(reach, &st))
		return refuse(s, base, strerror(errno));
	if (!S_ISREG(st.st_mode))
		return refuse(s, base, "it is no regular file, so there is no place beside it for a new one; take a snapshot of it by "
				       "other means while the VM is stopped, and dump without --disk-snapshot");
	r = disk_file_make(&s->user, path, st.st_mode & 0660);
	if (r)
		log_err("QEMU %d: %s cannot be made to take what its disk %s gets from now on: %s%s", s->vm->pid, path, base, strerror(-r),
			r == -EEXIST ? "; move it away if it is from an earlier attempt" :
			r == -EACCES ? "; the user of the VM must have the right to write into this folder" : "");
	return r;
}

// A prepared file for this disk becomes the snapshot's; NULL if there is none. One for what the disk was before goes.
static char *take_prepared(struct snapshot *s, const VmDiskEntry *e, uint64_t size)
{
	for (size_t i = 0; s->prepared && i < s->prepared->nr; i++) {
		struct prepared_file *p = &s->prepared->files[i];

		if (!p->file || strcmp(p->base, e->path))
			continue;
		if (!strcmp(p->format, e->format) && p->size == size)
			return steal_ptr(&p->file);
		disk_overlay_delete(s->vm, p->file);
		free(steal_ptr(&p->file));
	}
	return NULL;
}

static int make_file(struct snapshot *s, const VmDiskEntry *e, char **file)
{
	int r = disk_beside(e->path, s->suffix, file);

	if (r == -ENAMETOOLONG)
		return refuse(s, e->path, "its name gets too long; merge its snapshots first");
	if (!r)
		r = make_empty(s, e->path, *file);
	if (r) {
		free(*file);
		*file = NULL;
	}
	return r;
}

// The file now, for later. Without qemu-img QEMU will have to make it.
static int prepare_file(struct snapshot *s, VmDiskEntry *e, uint64_t size)
{
	struct prepared_file *p = &s->prepared->files[s->prepared->nr];
	int r = make_file(s, e, &p->file);

	if (r)
		return r;
	s->prepared->nr++;
	p->size = size;
	p->base = strdup(e->path);
	p->format = strdup(e->format);
	if (!p->base || !p->format)
		return -ENOMEM;
	return disk_create(&s->user, s->vm->exe, e->path, e->format, size, p->file);
}

static int add_action(struct snapshot *s, VmDiskEntry *e, const char *image)
{
	uint64_t size = (uint64_t)json_integer_value(json_object_get(json_object_get(disk_graph_info(&s->graph, image), "image"), "virtual-size"));
	char name[32];
	bool there;
	int r;

	if (s->preparing)
		return prepare_file(s, e, size);
	e->snapshot = take_prepared(s, e, size);
	there = e->snapshot != NULL;
	r = there ? 0 : make_file(s, e, &e->snapshot);
	if (r)
		return r;
	do {
		snprintf(name, sizeof name, "criu-vm-%u", s->nr_names++);
	} while (disk_graph_info(&s->graph, name));
	return json_array_append_new(s->actions, json_pack("{s:s, s:{s:s, s:s, s:s, s:s, s:s}}", "type", "blockdev-snapshot-sync", "data",
							   "node-name", image, "snapshot-node-name", name, "snapshot-file", e->snapshot,
							   "format", "qcow2", "mode", there ? "existing" : "absolute-paths")) ? -ENOMEM : 0;
}

// Whether QEMU will find the disk's image again by the name that it writes into the new file, and reads it then as it does now.
static int check_image(const struct snapshot *s, const VmDiskEntry *e, const char *file, const char *image)
{
	const json_t *info = disk_graph_info(&s->graph, image);
	const char *name = disk_text(info, "file");

	if (!e->has_size)
		return refuse(s, e->path, "it is no file of this host; stop the VM for the dump, or take a snapshot where the disk is");
	if (strcmp(image, file) && !disk_format_is_plain(disk_text(info, "drv")))
		return refuse(s, e->path, "its format is none that can be the base of a qcow2 file without options");
	if (strcmp(name, disk_text(disk_graph_info(&s->graph, file), "file")))
		return refuse(s, e->path, "it is opened with options (offset, encryption, another backing file than its own) that are "
					  "not found in a file's name");
	if (!strncmp(name, "/dev/fdset/", 11))
		return refuse(s, e->path, "QEMU has it by a descriptor that it was given (add-fd), and would write that into the new file "
					  "instead of a name; start QEMU with the file's name");
	if (*name != '/' && strchr(name, '/'))
		return refuse(s, e->path, "QEMU knows it by a relative path with a folder in it, and would write a wrong one into the "
					  "new file; start QEMU with absolute paths");
	return 0;
}

static int add_device(struct snapshot *s, const json_t *device)
{
	const json_t *inserted = json_object_get(device, "inserted");
	const char *image, *file = inserted ? find_file(&s->graph, disk_text(inserted, "node-name"), &image) : NULL;
	VmDiskEntry *e = file ? entry_of(s, file) : NULL;
	int r;

	if (!inserted || json_is_true(json_object_get(inserted, "ro")) || (e && (!e->writable || e->format)))
		return 0;
	if (!e)
		return refuse(s, disk_text(inserted, "file"), "its file is not found among the disks");
	r = check_image(s, e, file, image);
	if (r)
		return r;
	e->format = strdup(strcmp(image, file) ? disk_text(disk_graph_info(&s->graph, image), "drv") : "raw");
	return e->format ? add_action(s, e, image) : -ENOMEM;
}

// Nothing has happened in QEMU: only the empty files are there.
static void forget_all(struct snapshot *s)
{
	for (size_t i = 0; i < s->nr; i++) {
		if (s->disks[i]->snapshot)
			disk_overlay_delete(s->vm, s->disks[i]->snapshot);
		disk_overlay_forget(s->disks[i]);
	}
}

static int refuse_jobs(struct qemu_vm *vm)
{
	json_t *jobs;
	int r = qmp_call(vm->qmp, "query-block-jobs", NULL, &jobs);

	if (r)
		return r;
	if (json_array_size(jobs)) {
		log_err("QEMU %d: the block job '%s' works on its disks, so no snapshot can be taken; wait for its end, or cancel it",
			vm->pid, disk_text(json_array_get(jobs, 0), "device"));
		r = -EOPNOTSUPP;
	}
	json_decref(jobs);
	return r;
}

// ---- there

static int plan(struct snapshot *s)
{
	json_t *device;
	size_t i;
	int r = refuse_jobs(s->vm);

	for (i = 0; i < s->nr; i++)
		disk_overlay_forget(s->disks[i]);
	if (!r)
		r = disk_graph_read(s->vm->qmp, &s->graph);
	json_array_foreach(s->graph.devices, i, device)
		if (!r)
			r = add_device(s, device);
	disk_graph_fini(&s->graph);
	return r;
}

int qemu_disks_prepare(struct qemu_vm *vm, const char *suffix, struct qemu_prepared **out)
{
	struct qemu_prepared *p = calloc(1, sizeof *p);
	struct snapshot s = { .vm = vm, .user = disk_user_of(vm), .suffix = suffix, .prepared = p, .preparing = true };
	int r = p ? qemu_disks(vm, &s.disks, &s.nr) : -ENOMEM;

	*out = NULL;
	if (!r) {
		p->vm = vm;
		p->files = calloc(s.nr + 1, sizeof *p->files);
		r = p->files ? plan(&s) : -ENOMEM;
		qemu_disks_free(s.disks, s.nr);
		if (!r)
			*out = steal_ptr(&p);
		else if (r == -ENOENT) // no qemu-img
			r = 0;
	}
	qemu_prepared_free(p);
	return r;
}

void qemu_prepared_free(struct qemu_prepared *p)
{
	for (size_t i = 0; p && p->files && i < p->nr; i++) {
		if (p->files[i].file)
			disk_overlay_delete(p->vm, p->files[i].file);
		free(p->files[i].base);
		free(p->files[i].format);
		free(p->files[i].file);
	}
	if (p)
		free(p->files);
	free(p);
}

// With all files in their places: those below do not change any more.
static int stat_again(struct qemu_vm *vm, VmDiskEntry **disks, size_t nr)
{
	int r = 0;

	for (size_t i = 0; i < nr && !r; i++) {
		r = disks[i]->has_size ? disk_stat(vm, disks[i]) : 0;
		if (!r && disks[i]->snapshot && !disk_overlay_is_open(vm, disks[i]->snapshot)) {
			log_err("QEMU %d: %s is not what it writes to now; was it started with -chroot?", vm->pid, disks[i]->snapshot);
			r = -ESTALE;
		}
	}
	return r;
}

// Only QEMU's refusal says that nothing has happened: otherwise it may write to the new files by now, whatever became of its answer.
static int transact(struct snapshot *s)
{
	int r = qmp_call(s->vm->qmp, "transaction", json_pack("{s:O}", "actions", s->actions), NULL);

	if (!r || r == -EREMOTEIO)
		return r;
	log_err("QEMU %d may use new files (named .%s.qcow2) over its disks or not: see what 'query-block' says to its monitor, and "
		"delete none that it uses", s->vm->pid, s->suffix);
	return -EINPROGRESS;
}

int qemu_disks_snapshot(struct qemu_vm *vm, const char *suffix, struct qemu_prepared *prepared, VmDiskEntry **disks, size_t nr)
{
	struct snapshot s = { .vm = vm, .user = disk_user_of(vm), .suffix = suffix, .prepared = prepared, .disks = disks, .nr = nr,
			      .actions = json_array() };
	int r = s.actions ? plan(&s) : -ENOMEM;

	if (!r && json_array_size(s.actions))
		r = transact(&s);
	json_decref(s.actions);
	if (r && r != -EINPROGRESS)
		forget_all(&s);
	else if (!r && (r = stat_again(vm, disks, nr)) && qemu_disks_snapshot_undo(vm, disks, nr))
		r = -EINPROGRESS;
	return r;
}
