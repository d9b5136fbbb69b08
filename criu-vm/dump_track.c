// SPDX-License-Identifier: GPL-2.0-only
#include <errno.h>
#include <libgen.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "criu-vm/dump_int.h"
#include "criu-vm/find_vm.h"
#include "criu-vm/process.h"
#include "criu-vm/uffd_dev.h"
#include "mm/track.h"
#include "util/cleanup.h"
#include "util/log.h"

// The tracker that is in the process, whatever its record says: a dump may have been killed between the two, or have had another run
// directory. What the record knows, it knows of its own tracker.
static void find_tracker(struct dump *d)
{
	pid_t pid = d->vm->pid;
	int uffd = mm_track_find(pid);

	d->is_tracked = !tracked_load(d->o->run_root, pid, &d->tracked);
	if (d->is_tracked && mm_track_id(pid, uffd) != d->tracked.uffd_id)
		d->tracked.known = false;
	if (!d->is_tracked && uffd >= 0)
		d->tracked = (struct tracked){ .pid = pid, .start = process_start(pid) };
	d->is_tracked |= uffd >= 0;
	d->tracked.uffd = uffd;
}

// Of a VM that criu-vm runs: has it a pager, and which userfaultfd is that one's?
static int ask_state(struct dump *d, struct qemu_ours *ours)
{
	struct vm_state s;
	struct run_dir rd;
	int r = run_dir_open(d->o->run_root, d->name, &rd);

	if (r) {
		log_err("VM '%s' is ending: %s", d->name, strerror(-r));
		return r;
	}
	r = vm_state_load(&rd, &s);
	if (!r && s.paging)
		*ours = (struct qemu_ours){ .uffd = s.target_uffd, .paged = true };
	vm_state_fini(&s);
	run_dir_close(&rd);
	return r;
}

int dump_find_ours(struct dump *d, struct qemu_ours *ours)
{
	int r = tracked_lock(d->vm->pid, &d->lock_fd);

	if (r)
		return r;
	*ours = (struct qemu_ours){ .uffd = -1 };
	d->discards = !qmp_try(d->vm->qmp, "query-balloon", NULL, NULL); // the other one, virtio-mem, is refused
	d->is_ours = find_vm_name(d->o->run_root, d->vm->pid, d->name);
	if (d->is_ours && (r = ask_state(d, ours)))
		return r;
	if (ours->paged) {
		d->is_tracked = !tracked_load(d->o->run_root, d->vm->pid, &d->tracked);
		return 0;
	}
	find_tracker(d);
	ours->uffd = d->is_tracked ? d->tracked.uffd : -1;
	return 0;
}

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
	bool same = img_dir_nr_blocks(d->parent) == d->nr_guest;

	for (uint32_t i = 0; same && i < d->nr_guest; i++)
		same = img_dir_block_len(d->parent, i) == d->blocks[i].len;
	if (same)
		return 0;
	log_err("QEMU %d has other memory now than in %s: some was plugged in or out; make a whole one, without --prev-images-dir", d->vm->pid, path);
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
	if (d->is_tracked && d->tracked.known && d->tracked.images_id == img_dir_id(d->parent))
		return check_blocks(d, path);
	log_err("what QEMU %d has changed since %s is not known: %s; make a whole one, without --prev-images-dir", d->vm->pid, path,
		!d->is_tracked	  ? "it is not tracked (a pre-dump, or a dump with -R --track-mem, begins that)" :
		!d->tracked.known ? "the last dump was interrupted or failed, or its tracker has gone" :
				    "it is not the last one that was made of this VM");
	return -EINVAL;
}

void dump_untrack_vm(struct dump *d)
{
	if (!d->is_tracked)
		return;
	if (d->tracked.uffd >= 0)
		mm_track_end(d->vm->pid, d->tracked.uffd, d->ram ? ram_ranges(d->ram) : NULL, d->ram ? d->nr_guest : 0);
	tracked_remove(d->o->run_root, d->vm->pid);
	d->is_tracked = false;
}

static int begin_tracker(struct dump *d)
{
	int dev, r = uffd_dev_give(d->vm->qmp, d->vm->pid, &dev);

	if (r)
		return r;
	r = mm_track_begin(d->vm->pid, dev, ram_ranges(d->ram), d->nr_guest, &d->tracked.uffd);
	uffd_dev_take_back(d->vm->qmp, dev);
	if (!r)
		d->tracked.uffd_id = mm_track_id(d->vm->pid, d->tracked.uffd);
	return r;
}

// Anew, unless this is an increment itself.
int dump_track(void *ctx)
{
	struct dump *d = ctx;
	int r = 0;

	if (d->parent || (!d->o->pre && !d->o->track))
		return 0;
	dump_untrack_vm(d);
	d->tracked = (struct tracked){ .pid = d->vm->pid, .start = process_start(d->vm->pid), .uffd = -1 };
	if (!ram_is_paged(d->ram))
		r = begin_tracker(d);
	if (r)
		return r;
	d->is_tracked = true;
	r = tracked_save(d->o->run_root, &d->tracked);
	if (r)
		dump_untrack_vm(d);
	return r;
}

// Of an increment it stays: nothing is known for certain of it any more, as its record says since `take`.
void dump_track_undo(void *ctx)
{
	struct dump *d = ctx;

	if (!d->parent && (d->o->pre || d->o->track))
		dump_untrack_vm(d);
}

// Before the kernel's knowledge is taken, nobody may believe any more that it is there.
int dump_take(void *ctx)
{
	struct dump *d = ctx;
	int r = 0;

	if (d->is_tracked && (d->parent || d->o->pre || d->o->track)) {
		d->tracked.known = false;
		d->tracked.discards |= d->discards;
		r = tracked_save(d->o->run_root, &d->tracked);
		if (!r)
			r = ram_take(d->ram, d->tracked.discards);
	}
	return !r && d->o->pre ? dump_drain(d) : r;
}

void dump_remember(struct dump *d)
{
	if (!d->is_tracked)
		return;
	if (!d->o->pre && !d->o->track) {
		dump_untrack_vm(d);
		return;
	}
	d->tracked.known = true;
	d->tracked.images_id = d->id;
	if (tracked_save(d->o->run_root, &d->tracked))
		log_warn("the next dump of QEMU %d cannot be an increment of this one", d->vm->pid);
}

int dump_untrack(const struct dump_opts *o)
{
	struct dump d = { .o = o, .lock_fd = -1 };
	int r = qemu_vm_open(o->vm, &d.vm);

	if (r)
		return r;
	r = tracked_lock(d.vm->pid, &d.lock_fd);
	if (!r) {
		find_tracker(&d);
		dump_untrack_vm(&d);
		tracked_unlock(d.vm->pid, d.lock_fd);
	}
	qemu_vm_close(d.vm);
	return r;
}
