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
#include "qemu/disks.h"
#include "qemu/now.h"
#include "util/cleanup.h"
#include "util/clock.h"
#include "util/log.h"
#include "util/size.h"

static int attach(void *ctx)
{
	struct dump *d = ctx;
	int r = source_attach(&d->src);

	d->result->pid = d->src.vm ? d->src.vm->pid : 0;
	d->result->ram = d->src.ram_len;
	return r;
}

static int stop(void *ctx)
{
	return source_stop(&((struct dump *)ctx)->src);
}

static void stop_undo(void *ctx)
{
	source_go_on(&((struct dump *)ctx)->src);
}

static int save_state(void *ctx)
{
	return source_save_state(&((struct dump *)ctx)->src);
}

static int freeze(void *ctx)
{
	return source_freeze(&((struct dump *)ctx)->src);
}

static void thaw(void *ctx)
{
	source_thaw(&((struct dump *)ctx)->src);
}

static int read_small(void *ctx)
{
	return source_read_small(&((struct dump *)ctx)->src);
}

static int open_images(void *ctx)
{
	struct dump *d = ctx;
	struct img_writer_opts o = { .dir = d->o->dir, .parent = d->parent, .zstd_level = d->o->zstd_level, .ram_only = d->o->pre,
				     .stream_fd = d->o->stream_fd, .interrupted = cmd_interrupted };
	_cleanup_free_ uint64_t *lens = calloc(d->src.nr_guest, sizeof *lens);
	int r = lens ? img_writer_open(&o, &d->writer) : -ENOMEM;

	if (r)
		return r;
	for (size_t i = 0; i < d->src.nr_guest; i++)
		lens[i] = d->src.blocks[i].len;
	return img_writer_blocks(d->writer, lens, (uint32_t)d->src.nr_guest);
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
	source_untrack(&((struct dump *)ctx)->src);
	return dump_protect(ctx);
}

static void save_disks_undo(void *ctx)
{
	struct dump *d = ctx;

	if (d->disks_moved && qemu_disks_snapshot_undo(d->src.vm, d->src.disks, d->src.nr_disks))
		d->src.stuck = true;
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
	return d->o->disk_snapshot ? qemu_disks_prepare(d->src.vm, d->suffix, &d->prepared) : 0;
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
	int r = qemu_now_same(d->src.vm, d->src.mark);

	if (!r)
		r = qemu_disks(d->src.vm, &d->src.disks, &d->src.nr_disks);
	for (size_t i = 0; i < d->src.nr_disks; i++)
		writable |= d->src.disks[i]->writable;
	if (r)
		return r;
	if (d->o->disk_snapshot) {
		r = qemu_disks_snapshot(d->src.vm, d->suffix, d->prepared, d->src.disks, d->src.nr_disks);
		d->disks_moved = !r;
		d->src.stuck = r == -EINPROGRESS; // it may be on the new files, or not
		if (!r && (r = qemu_disks_overlay_check(d->src.disks, d->src.nr_disks, d->src.vm->cwd, d->src.argv, d->src.argc)))
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

	return d->o->then == DUMP_LEAVE_RUNNING ? source_go_on(&d->src) : 0;
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
	if (!r && !d->o->pre)
		r = img_writer_resident(d->writer, &d->resident);
	if (!r && d->o->dir)
		r = dump_write_vm(d);
	if (d->src.standing)
		d->src.stopped_ns = clock_now_ns() - d->src.stopped_at_ns;
	d->times.freezing_us = d->src.freezing_us;
	d->times.frozen_us = d->src.stopped_ns / 1000;
	d->result->stored = img_writer_pages(d->writer) * PAGE_SIZE;
	d->result->written = img_writer_bytes(d->writer);
	if (!r)
		r = img_writer_stats(d->writer, &d->times);
	// A stream's reader may begin as soon as it has seen the end: a VM that is not to run on must not be able to by then.
	if (!r && !d->o->dir && d->o->then != DUMP_LEAVE_RUNNING)
		source_dismiss_guardian(&d->src);
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
	{ "resident", dump_look_at_resident, NULL },
	{ "stop", stop, stop_undo },
	{ "state", save_state, NULL },
	{ "disks", save_disks, save_disks_undo },
	{ "freeze", freeze, thaw },
	{ "take", dump_take, NULL },
	{ "small", read_small, NULL },
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
	{ "resident", dump_look_at_resident, NULL },
	{ "stop", stop, stop_undo },
	{ "state", save_state, NULL },
	{ "disks", save_disks, save_disks_undo },
	{ "freeze", freeze, thaw },
	{ "instant", dump_instant, dump_unprotect }, // before anything of QEMU is waited for
	{ "small", read_small, NULL },
	{ "copy", dump_copy_background, NULL },
	{ "commit", commit, NULL },
};

// After the checkpoint is there.
static int finish(struct dump *d)
{
	int r;

	source_dismiss_guardian(&d->src);
	if (d->o->then != DUMP_KILL) {
		source_thaw(&d->src);
		dump_remember(d);
		return 0;
	}
	r = source_end(&d->src);
	if (!r)
		tracked_remove(d->o->run_root, d->src.vm->pid);
	return r;
}

static void dump_fini(struct dump *d)
{
	source_thaw(&d->src);
	mm_protect_end(d->protect);
	img_writer_free(d->writer);
	img_dir_close(d->parent);
	img_resident_fini(&d->resident);
	qemu_prepared_free(d->prepared);
	source_fini(&d->src);
}

// Renaming is what makes a checkpoint: from then on a VM that is to end may not run on by itself.
static bool is_complete(const struct dump_opts *o)
{
	char path[PATH_MAX];

	if (o->then == DUMP_LEAVE_RUNNING || !o->dir)
		return false;
	snprintf(path, sizeof path, "%s/inventory.img", o->dir);
	return !access(path, F_OK);
}

static void orphan(void *ctx, char word)
{
	const struct dump *d = ctx;

	(void)word;
	if (d->src.was_running && !is_complete(d->o))
		source_say_cont(qmp_fd(d->src.vm->qmp));
}

int dump_run(const struct dump_opts *o, struct dump_result *result)
{
	struct dump d = { .o = o, .result = result,
			  .src = { .spec = o->vm, .run_root = o->run_root, .taken = "dumped", .orphan = orphan, .ctx = &d,
				   .short_stop = o->then == DUMP_LEAVE_RUNNING, SOURCE_NONE } };
	int r;

	*result = (struct dump_result){ 0 };
	if (o->pre)
		r = stages_run(pre_dump_stages, ARRAY_SIZE(pre_dump_stages), &d);
	else if (o->background)
		r = stages_run(background_stages, ARRAY_SIZE(background_stages), &d);
	else
		r = stages_run(dump_stages, ARRAY_SIZE(dump_stages), &d);
	if (r && source_has_ended(&d.src))
		log_err("QEMU %d has ended meanwhile; nothing was dumped", d.src.vm->pid);
	if (r == -ESTALE) // of a parent, or of an instant that is gone: the VM is as it was
		r = -EINVAL;
	if (!r)
		r = finish(&d);
	result->stopped_ns = d.src.stopped_ns;
	if (d.src.stuck)
		r = -ESTALE;
	dump_fini(&d);
	return r;
}
