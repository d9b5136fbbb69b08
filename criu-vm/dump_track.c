// SPDX-License-Identifier: GPL-2.0-only
#include <errno.h>
#include <libgen.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "criu-vm/dump_int.h"
#include "util/cleanup.h"
#include "util/log.h"

// As CRIU has it, relative to the directory of the images; or to where we are. Only the very parent will do, so the wrong one
// of two is never taken.
static int prev_path(const struct dump_opts *o, char **path)
{
	_cleanup_free_ char *dir = strdup(o->dir), *probe = NULL, *beside = NULL;
	bool up = !strncmp(o->prev, "../", 3); // o->dir need not be there yet

	if (!dir || asprintf(&beside, "%s/%s", up ? dirname(dir) : dir, o->prev + 3 * up) < 0 || asprintf(&probe, "%s/inventory.img", beside) < 0)
		return -ENOMEM;
	*path = o->prev[0] == '/' || access(probe, F_OK) ? strdup(o->prev) : steal_ptr(&beside);
	return *path ? 0 : -ENOMEM;
}

// Memory that was plugged in or out since is in no parent.
static int check_blocks(const struct dump *d, const char *path)
{
	bool same = img_dir_nr_blocks(d->parent) == d->src.nr_guest;

	for (uint32_t i = 0; same && i < d->src.nr_guest; i++)
		same = img_dir_block_len(d->parent, i) == d->src.blocks[i].len;
	if (same)
		return 0;
	log_err("QEMU %d has other memory now than in %s: some was plugged in or out; make a whole one, without --prev-images-dir", d->src.vm->pid, path);
	return -EINVAL;
}

int dump_open_parent(void *ctx)
{
	struct dump *d = ctx;
	_cleanup_free_ char *path = NULL;
	int r;

	if (!d->o->prev)
		return 0;
	r = prev_path(d->o, &path);
	if (!r)
		r = img_dir_open(path, &d->parent);
	if (r)
		return r;
	if (d->src.is_tracked && d->src.tracked.known && d->src.tracked.images_id == img_dir_id(d->parent))
		return check_blocks(d, path);
	log_err("what QEMU %d has changed since %s is not known: %s; make a whole one, without --prev-images-dir", d->src.vm->pid, path,
		!d->src.is_tracked	  ? "it is not tracked (a pre-dump, or a dump with -R --track-mem, begins that)" :
		!d->src.tracked.known ? "the last dump was interrupted or failed, or its tracker has gone" :
				    "it is not the last one that was made of this VM");
	return -EINVAL;
}

// Anew, unless this is an increment itself.
int dump_track(void *ctx)
{
	struct dump *d = ctx;

	return d->parent || (!d->o->pre && !d->o->track) ? 0 : source_track(&d->src);
}

// Of an increment it stays: nothing is known for certain of it any more, as its record says since `take`.
void dump_track_undo(void *ctx)
{
	struct dump *d = ctx;

	if (!d->parent && (d->o->pre || d->o->track))
		source_untrack(&d->src);
}

// Before the kernel's knowledge is taken, nobody may believe any more that it is there.
int dump_take(void *ctx)
{
	struct dump *d = ctx;
	int r = 0;

	if (d->src.is_tracked && (d->parent || d->o->pre || d->o->track)) {
		d->src.tracked.known = false;
		d->src.tracked.discards |= d->src.discards;
		r = tracked_save(d->o->run_root, &d->src.tracked);
		if (!r)
			r = ram_take(d->src.ram, d->src.tracked.discards);
	}
	return !r && d->o->pre ? source_drain(&d->src) : r;
}

void dump_remember(struct dump *d)
{
	if (!d->src.is_tracked)
		return;
	if (!d->o->pre && !d->o->track) {
		source_untrack(&d->src);
		return;
	}
	d->src.tracked.known = true;
	d->src.tracked.images_id = d->id;
	if (tracked_save(d->o->run_root, &d->src.tracked))
		log_warn("the next dump of QEMU %d cannot be an increment of this one", d->src.vm->pid);
}

int dump_untrack(const struct dump_opts *o)
{
	struct source s = { .spec = o->vm, .run_root = o->run_root, SOURCE_NONE };
	int r = qemu_vm_open(o->vm, &s.vm);

	if (r)
		return r;
	r = tracked_lock(s.vm->pid, &s.lock_fd);
	if (!r) {
		source_find_tracker(&s);
		source_untrack(&s);
	}
	source_fini(&s);
	return r;
}
