// SPDX-License-Identifier: GPL-2.0-only
#include "criu-vm/cmd.h"
#include "criu-vm/dump.h"

#include <errno.h>
#include <libgen.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "criu-vm/dump_int.h"
#include "criu-vm/find_vm.h"
#include "criu-vm/process.h"
#include "criu-vm/stages.h"
#include "criu-vm/uffd_dev.h"
#include "mm/track.h"
#include "qemu/cmdline.h"
#include "qemu/disks.h"
#include "qemu/now.h"
#include "qemu/refuse.h"
#include "util/cleanup.h"
#include "util/clock.h"
#include "util/log.h"
#include "util/size.h"

// A balloon, free page reporting, or virtio-mem: memory that the guest gives back.
static bool can_discard(struct dump *d)
{
	_cleanup_free_ char *text = NULL;
	json_t *devices = NULL;
	bool can = !qmp_try(d->vm->qmp, "query-balloon", NULL, NULL);

	if (!can && !qmp_try(d->vm->qmp, "query-memory-devices", NULL, &devices)) {
		text = json_dumps(devices, 0);
		can = text && strstr(text, "\"virtio-mem\"");
		json_decref(devices);
	}
	return can;
}

// What we have put into the VM, now or at an earlier dump.
static int find_ours(struct dump *d, struct qemu_ours *ours)
{
	struct vm_state s;
	struct run_dir rd;
	int r;

	d->is_tracked = !tracked_load(d->o->run_root, d->vm->pid, &d->tracked);
	*ours = (struct qemu_ours){ .uffd = d->is_tracked ? d->tracked.uffd : -1 };
	d->is_ours = find_vm_name(d->o->run_root, d->vm->pid, d->name);
	if (!d->is_ours)
		return 0;
	r = run_dir_open(d->o->run_root, d->name, &rd);
	if (r)
		return r;
	r = vm_state_load(&rd, &s);
	if (!r && s.paging)
		*ours = (struct qemu_ours){ .uffd = s.target_uffd, .paged = true };
	vm_state_fini(&s);
	run_dir_close(&rd);
	return r;
}

static int open_ram(struct dump *d)
{
	struct ram_opts o = { .vm = d->vm, .blocks = d->blocks, .nr_blocks = d->nr_guest, .run_root = d->o->run_root,
			      .name = d->is_ours ? d->name : NULL };

	return ram_open(&o, &d->ram);
}

static int attach(void *ctx)
{
	struct dump *d = ctx;
	struct qemu_ours ours;
	int r = qemu_vm_open(d->o->vm, &d->vm);

	if (r)
		return r;
	d->was_running = !strcmp(d->vm->run_state, "running");
	d->result->pid = d->vm->pid;
	r = find_ours(d, &ours);
	if (r || (r = qemu_ramblocks(d->vm, &d->blocks, &d->nr_blocks)) || (r = qemu_refuse(d->vm, d->blocks, d->nr_blocks, &ours)))
		return r;
	while (d->nr_guest < d->nr_blocks && d->blocks[d->nr_guest].guest_ram)
		d->result->ram += d->blocks[d->nr_guest++].len;
	if (!d->nr_guest) {
		log_err("QEMU %d has no guest RAM", d->vm->pid);
		return -EOPNOTSUPP;
	}
	if ((r = qemu_now_mark(d->vm, &d->mark)) || (r = qemu_now_cmdline(d->vm, &d->argv, &d->argc)))
		return r;
	d->discards = can_discard(d);
	return open_ram(d);
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

static int open_parent(void *ctx)
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
	if (d->is_tracked && d->tracked.known && d->tracked.images_id == img_dir_id(d->parent) &&
	    (ram_is_paged(d->ram) || mm_track_is_there(d->vm->pid, d->tracked.uffd)))
		return 0;
	log_err("what QEMU %d has changed since %s is not known: %s; make a whole one, without --prev-images-dir", d->vm->pid, path,
		!d->is_tracked	     ? "it is not tracked (a pre-dump, or a dump with -R --track-mem, begins that)" :
		!d->tracked.known    ? "the dump after it was interrupted or failed" :
		d->tracked.images_id != img_dir_id(d->parent) ? "another checkpoint was made after it" : "its tracker has gone");
	return -ESTALE;
}

static int open_images(void *ctx)
{
	struct dump *d = ctx;
	struct img_writer_opts o = { .dir = d->o->dir, .parent = d->parent, .zstd_level = d->o->zstd_level, .ram_only = d->o->pre,
				     .stream_fd = d->o->stream_fd, .interrupted = cmd_interrupted };
	_cleanup_free_ uint64_t *lens = calloc(d->nr_guest, sizeof *lens);
	int r = lens ? img_writer_open(&o, &d->writer) : -ENOMEM;

	if (r)
		return r;
	for (size_t i = 0; i < d->nr_guest; i++)
		lens[i] = d->blocks[i].len;
	return img_writer_blocks(d->writer, lens, (uint32_t)d->nr_guest);
}

static void close_images(void *ctx)
{
	struct dump *d = ctx;

	img_writer_free(d->writer);
	d->writer = NULL;
}

static void untrack(struct dump *d)
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
	return r;
}

// Anew, unless this is an increment itself.
static int track(void *ctx)
{
	struct dump *d = ctx;
	int r = 0;

	if (d->parent || (!d->o->pre && !d->o->track))
		return 0;
	untrack(d);
	d->tracked = (struct tracked){ .pid = d->vm->pid, .start = process_start(d->vm->pid), .uffd = -1 };
	if (!ram_is_paged(d->ram))
		r = begin_tracker(d);
	if (r)
		return r;
	d->is_tracked = true;
	r = tracked_save(d->o->run_root, &d->tracked);
	if (r)
		untrack(d);
	return r;
}

// Of an increment it stays: nothing is known for certain of it any more, as its record says since `take`.
static void track_undo(void *ctx)
{
	struct dump *d = ctx;

	if (!d->parent)
		untrack(d);
}

// The tracker has the memory that is to be protected: the next dump is a whole one.
static int protect(void *ctx)
{
	untrack(ctx);
	return dump_protect(ctx);
}

// Before the kernel's knowledge is taken, nobody may believe any more that it is there.
static int take(void *ctx)
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

static void save_disks_undo(void *ctx)
{
	struct dump *d = ctx;

	if (d->disks_moved && qemu_disks_snapshot_undo(d->vm, d->disks, d->nr_disks))
		d->stuck = true;
	d->disks_moved = false;
}

static void name_snapshot(char *suffix, size_t size)
{
	struct timespec now;

	clock_gettime(CLOCK_REALTIME, &now);
	snprintf(suffix, size, "criu-vm-%lld%03ld", (long long)now.tv_sec, now.tv_nsec / 1000000);
}

// What can be done before the standstill is.
static int prepare_disks(void *ctx)
{
	struct dump *d = ctx;

	name_snapshot(d->suffix, sizeof d->suffix);
	return d->o->disk_snapshot ? qemu_disks_prepare(d->vm, d->suffix, &d->prepared) : 0;
}

static void prepare_disks_undo(void *ctx)
{
	struct dump *d = ctx;

	qemu_prepared_free(steal_ptr(&d->prepared));
}

static int save_disks(void *ctx)
{
	struct dump *d = ctx;
	bool writable = false;
	int r = qemu_now_same(d->vm, d->mark);

	if (!r)
		r = qemu_disks(d->vm, &d->disks, &d->nr_disks);
	for (size_t i = 0; i < d->nr_disks; i++)
		writable |= d->disks[i]->writable;
	if (r)
		return r;
	if (d->o->disk_snapshot) {
		r = qemu_disks_snapshot_prepared(d->vm, d->suffix, d->prepared, d->disks, d->nr_disks);
		d->disks_moved = !r;
		if (!r && (r = qemu_disks_overlay_check(d->disks, d->nr_disks, d->vm->cwd, d->argv, d->argc)))
			save_disks_undo(d);
	} else if (writable && d->o->then == DUMP_LEAVE_RUNNING) {
		log_warn("the VM runs on and writes to its disks: this checkpoint cannot be restored beside what they become; with --disk-snapshot it "
			 "can");
	}
	return r;
}

static int go_on(void *ctx)
{
	struct dump *d = ctx;

	return d->o->then == DUMP_LEAVE_RUNNING ? dump_go_on(d) : 0;
}

// Of a stream; a directory's vm.img can wait until the VM runs on.
static int write_first(void *ctx)
{
	return dump_write_first(ctx);
}

// What the next dump of this VM can be an increment of.
static void remember(struct dump *d)
{
	if (!d->is_tracked)
		return;
	if (!d->o->pre && !d->o->track) {
		untrack(d);
		return;
	}
	d->tracked.known = true;
	d->tracked.images_id = d->id;
	if (tracked_save(d->o->run_root, &d->tracked))
		log_warn("the next dump of QEMU %d cannot be an increment of this one", d->vm->pid);
}

static int commit(void *ctx)
{
	struct dump *d = ctx;
	uint64_t begun = clock_now_ns();
	int r = img_writer_end_pages(d->writer);

	d->times.memwrite_us = d->times.memdump_us + (clock_now_ns() - begun) / 1000;
	if (!r && !d->o->pre)
		r = dump_write_device_state(d);
	if (!r && d->o->dir)
		r = dump_write_vm(d);
	if (d->standing)
		d->result->stopped_ns = clock_now_ns() - d->stopped_at_ns;
	d->times.frozen_us = d->result->stopped_ns / 1000;
	d->result->stored = img_writer_pages(d->writer) * PAGE_SIZE;
	d->result->written = img_writer_bytes(d->writer);
	if (!r)
		r = img_writer_stats(d->writer, &d->times);
	// A stream's reader may begin as soon as it has seen the end: a VM that is not to run on must not be able to by then.
	if (!r && !d->o->dir && d->o->then != DUMP_LEAVE_RUNNING)
		dump_dismiss_guardian(d);
	return r ? r : img_writer_commit(d->writer, &d->id);
}

static const struct stage pre_dump_stages[] = {
	{ "attach", attach, NULL },
	{ "parent", open_parent, NULL },
	{ "images", open_images, close_images },
	{ "track", track, track_undo },
	{ "take", take, NULL },
	{ "copy", dump_copy, NULL },
	{ "commit", commit, NULL },
};

static const struct stage dump_stages[] = {
	{ "attach", attach, NULL },
	{ "parent", open_parent, NULL },
	{ "images", open_images, close_images },
	{ "track", track, track_undo },
	{ "prepare-disks", prepare_disks, prepare_disks_undo },
	{ "stop", dump_stop, dump_go_on_undo },
	{ "state", dump_save_state, NULL },
	{ "disks", save_disks, save_disks_undo },
	{ "freeze", dump_freeze, dump_thaw },
	{ "take", take, NULL },
	{ "small", dump_small, NULL },
	{ "first", write_first, NULL },
	{ "copy", dump_copy, NULL },
	{ "go-on", go_on, NULL },
	{ "commit", commit, NULL },
};

static const struct stage background_stages[] = {
	{ "attach", attach, NULL },
	{ "parent", open_parent, NULL },
	{ "images", open_images, close_images },
	{ "protect", protect, dump_unprotect },
	{ "prepare-disks", prepare_disks, prepare_disks_undo },
	{ "stop", dump_stop, dump_go_on_undo },
	{ "state", dump_save_state, NULL },
	{ "disks", save_disks, save_disks_undo },
	{ "freeze", dump_freeze, dump_thaw },
	{ "instant", dump_instant, dump_unprotect }, // before anything of QEMU is waited for
	{ "small", dump_small, NULL },
	{ "copy", dump_copy_background, NULL },
	{ "commit", commit, NULL },
};

// After the checkpoint is there.
static int finish(struct dump *d)
{
	int r;

	dump_dismiss_guardian(d);
	if (d->o->then != DUMP_KILL) {
		dump_thaw(d);
		remember(d);
		return 0;
	}
	r = dump_end_source(d);
	if (!r)
		tracked_remove(d->o->run_root, d->vm->pid);
	return r;
}

static void dump_fini(struct dump *d)
{
	dump_thaw(d);
	mm_protect_end(d->protect);
	img_writer_free(d->writer);
	img_dir_close(d->parent);
	ram_close(d->ram);
	qemu_prepared_free(d->prepared);
	qemu_disks_free(d->disks, d->nr_disks);
	for (size_t i = 0; d->small && i < d->nr_blocks - d->nr_guest; i++)
		free(d->small[i]);
	free(d->small);
	free(d->state);
	free(d->blocks);
	qemu_cmdline_free(d->argv);
	qemu_vm_close(d->vm);
}

int dump_run(const struct dump_opts *o, struct dump_result *result)
{
	struct dump d = { .o = o, .result = result };
	int r;

	*result = (struct dump_result){ 0 };
	if (o->pre)
		r = stages_run(pre_dump_stages, ARRAY_SIZE(pre_dump_stages), &d);
	else if (o->background)
		r = stages_run(background_stages, ARRAY_SIZE(background_stages), &d);
	else
		r = stages_run(dump_stages, ARRAY_SIZE(dump_stages), &d);
	if (!r)
		r = finish(&d);
	if (d.stuck)
		r = -ESTALE;
	dump_fini(&d);
	return r;
}

int dump_untrack(const struct dump_opts *o)
{
	struct dump d = { .o = o };
	int r = qemu_vm_open(o->vm, &d.vm);

	if (r)
		return r;
	d.is_tracked = !tracked_load(o->run_root, d.vm->pid, &d.tracked);
	untrack(&d);
	qemu_vm_close(d.vm);
	return 0;
}
