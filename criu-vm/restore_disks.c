// SPDX-License-Identifier: GPL-2.0-only
#include <errno.h>

#include "criu-vm/restore.h"
#include "util/log.h"

// A guest whose disks are not those that its memory knows would damage them.
int restore_check_disks(const struct restore *r)
{
	int err = qemu_disks_check(r->vm->disks, r->vm->n_disks);

	if (!err || !r->o->force)
		return err;
	log_warn("restoring it all the same, as --force says");
	return 0;
}

// QEMU has them open: whoever wrote to one while memory was placed is found.
int restore_disks_again(void *ctx)
{
	return restore_check_disks(ctx);
}

static bool has_snapshots(const VmEntry *vm)
{
	for (size_t i = 0; i < vm->n_disks; i++)
		if (vm->disks[i]->snapshot)
			return true;
	return false;
}

int restore_disks(void *ctx)
{
	struct restore *r = ctx;
	struct qemu_overlay_opts o = { .disks = r->vm->disks, .nr = r->vm->n_disks, .argv = r->vm->argv, .argc = (int)r->vm->n_argv,
				       .cwd = r->vm->cwd, .name = r->name, .qemu = restore_binary(r), .uid = r->vm->uid, .gid = r->vm->gid };
	int err;

	r->argv = r->vm->argv;
	r->argc = (int)r->vm->n_argv;
	if (!has_snapshots(r->vm))
		return 0;
	err = qemu_disks_overlay(&o, &r->overlays);
	if (err)
		return err;
	r->argv = r->overlays.argv;
	r->argc = r->overlays.argc;
	for (size_t i = 0; i < r->overlays.nr_files; i++)
		log_info("the VM has a disk of its own: %s", r->overlays.files[i]);
	return 0;
}

void restore_disks_undo(void *ctx)
{
	struct restore *r = ctx;

	qemu_disks_overlay_undo(&r->overlays);
}
