// SPDX-License-Identifier: GPL-2.0-only
// The new files of a restored VM, over the disks that its checkpoint keeps as they are.
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "qemu/cmdline.h"
#include "qemu/disks_int.h"
#include "util/log.h"

#define MAX_FILES 10000 // of one VM name over one disk

// The first name that nobody has yet; an earlier VM of this name may have left its disk.
static int make_file(const struct qemu_overlay_opts *o, const VmDiskEntry *e, char **file)
{
	struct disk_user u = { .uid = o->uid, .gid = o->gid };
	char suffix[128];
	int r = -EEXIST;

	for (unsigned n = 1; r == -EEXIST && n <= MAX_FILES; n++) {
		snprintf(suffix, sizeof suffix, n > 1 ? "%s-restored-%u" : "%s-restored", o->name, n);
		r = disk_beside(e->path, suffix, file);
		if (!r)
			r = disk_file_make(&u, *file, 0600);
		if (r) {
			free(*file);
			*file = NULL;
		}
	}
	if (r)
		log_err("no new file can be made beside the disk %s: %s%s", e->path, strerror(-r),
			r == -EACCES ? "; the user of the VM must have the right to write into its folder" : "");
	else if ((r = disk_create(&u, o->qemu, e->path, e->format, 0, *file)) == -ENOENT)
		log_err("the disk %s needs a new file over it, but there is no qemu-img to make it: install it (Debian: qemu-utils)", e->path);
	return r;
}

int qemu_disks_overlay(const struct qemu_overlay_opts *opts, struct qemu_overlays *o)
{
	struct disk_rewrite w = { .cwd = opts->cwd };
	int r = disk_rewrite_init(&w, opts->argv, opts->argc);

	*o = (struct qemu_overlays){ .files = calloc(opts->nr + 1, sizeof *o->files), .uid = opts->uid, .gid = opts->gid };
	if (!o->files)
		r = -ENOMEM;
	for (size_t i = 0; i < opts->nr && !r; i++) {
		const VmDiskEntry *e = opts->disks[i];

		if (!e->snapshot)
			continue;
		r = disk_check_recorded(e) ?: make_file(opts, e, &o->files[o->nr_files]);
		if (!o->files[o->nr_files])
			break;
		w.path = e->path;
		w.overlay = o->files[o->nr_files++];
		r = r ?: disk_rewrite(&w);
		if (!r)
			log_info("the disk %s stays as it is; the restored VM writes to %s", e->path, w.overlay);
	}
	o->argv = w.v;
	o->argc = w.nr;
	if (r) {
		qemu_disks_overlay_undo(o);
		qemu_disks_overlay_fini(o);
	}
	return r;
}

void qemu_disks_overlay_undo(struct qemu_overlays *o)
{
	for (size_t i = 0; o->files && i < o->nr_files; i++)
		disk_file_delete(&(struct disk_user){ .uid = o->uid, .gid = o->gid }, o->files[i]);
}

void qemu_disks_overlay_fini(struct qemu_overlays *o)
{
	for (size_t i = 0; o->files && i < o->nr_files; i++)
		free(o->files[i]);
	free(o->files);
	qemu_cmdline_free(o->argv);
	*o = (struct qemu_overlays){ 0 };
}
