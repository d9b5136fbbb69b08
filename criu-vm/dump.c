// SPDX-License-Identifier: GPL-2.0-only
#include "criu-vm/cmd.h"
#include "criu-vm/dump.h"

#include <errno.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "criu-vm/dump_int.h"
#include "criu-vm/stages.h"
#include "qemu/cmdline.h"
#include "qemu/disks.h"
#include "qemu/now.h"
#include "qemu/refuse.h"
#include "util/cleanup.h"
#include "util/clock.h"
#include "util/log.h"
#include "util/size.h"

static int open_ram(struct dump *d)
{
	struct ram_opts o = { .vm = d->vm, .blocks = d->blocks, .nr_blocks = d->nr_guest, .run_root = d->o->run_root,
			      .name = d->is_ours ? d->name : NULL };

	return ram_open(&o, &d->ram);
}

// Can it be dumped, and as what is it to be restored? All that speaks against it is told.
static int look(struct dump *d, const struct qemu_ours *ours)
{
	int refused = qemu_refuse(d->vm, d->blocks, d->nr_blocks, ours), r;

	if (refused && refused != -EOPNOTSUPP)
		return refused;
	r = qemu_now_mark(d->vm, &d->mark);
	if (!r)
		r = qemu_now_cmdline(d->vm, &d->argv, &d->argc);
	return refused ? refused : r;
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
	r = dump_find_ours(d, &ours);
	if (r || (r = qemu_ramblocks(d->vm, &d->blocks, &d->nr_blocks)) || (r = look(d, &ours)))
		return r;
	while (d->nr_guest < d->nr_blocks && d->blocks[d->nr_guest].guest_ram)
		d->result->ram += d->blocks[d->nr_guest++].len;
	if (!d->nr_guest) {
		log_err("QEMU %d has no guest RAM", d->vm->pid);
		return -EOPNOTSUPP;
	}
	return open_ram(d);
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

// The tracker has the memory that is to be protected: the next dump is a whole one.
static int protect(void *ctx)
{
	dump_untrack_vm(ctx);
	return dump_protect(ctx);
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
		r = qemu_disks_snapshot(d->vm, d->suffix, d->prepared, d->disks, d->nr_disks);
		d->disks_moved = !r;
		d->stuck = r == -EINPROGRESS; // it may be on the new files, or not
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
	{ "parent", dump_open_parent, NULL },
	{ "images", open_images, close_images },
	{ "track", dump_track, dump_track_undo },
	{ "take", dump_take, NULL },
	{ "copy", dump_copy, NULL },
	{ "commit", commit, NULL },
};

static const struct stage dump_stages[] = {
	{ "attach", attach, NULL },
	{ "parent", dump_open_parent, NULL },
	{ "images", open_images, close_images },
	{ "track", dump_track, dump_track_undo },
	{ "prepare-disks", prepare_disks, prepare_disks_undo },
	{ "stop", dump_stop, dump_go_on_undo },
	{ "state", dump_save_state, NULL },
	{ "disks", save_disks, save_disks_undo },
	{ "freeze", dump_freeze, dump_thaw },
	{ "take", dump_take, NULL },
	{ "small", dump_small, NULL },
	{ "first", write_first, NULL },
	{ "copy", dump_copy, NULL },
	{ "go-on", go_on, NULL },
	{ "commit", commit, NULL },
};

static const struct stage background_stages[] = {
	{ "attach", attach, NULL },
	{ "parent", dump_open_parent, NULL },
	{ "images", open_images, close_images },
	{ "prepare-disks", prepare_disks, prepare_disks_undo },
	{ "protect", protect, dump_unprotect },
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
		dump_remember(d);
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
	if (dump_qemu_ended(d))
		tracked_remove(d->o->run_root, d->vm->pid);
	if (d->vm)
		tracked_unlock(d->vm->pid, d->lock_fd);
	qemu_vm_close(d->vm);
}

int dump_run(const struct dump_opts *o, struct dump_result *result)
{
	struct dump d = { .o = o, .lock_fd = -1, .result = result };
	int r;

	*result = (struct dump_result){ 0 };
	if (o->pre)
		r = stages_run(pre_dump_stages, ARRAY_SIZE(pre_dump_stages), &d);
	else if (o->background)
		r = stages_run(background_stages, ARRAY_SIZE(background_stages), &d);
	else
		r = stages_run(dump_stages, ARRAY_SIZE(dump_stages), &d);
	if (r && dump_qemu_ended(&d))
		log_err("QEMU %d has ended meanwhile; nothing was dumped", d.vm->pid);
	if (r == -ESTALE) // of a parent, or of an instant that is gone: the VM is as it was
		r = -EINVAL;
	if (!r)
		r = finish(&d);
	if (d.stuck)
		r = -ESTALE;
	dump_fini(&d);
	return r;
}
