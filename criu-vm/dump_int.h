// SPDX-License-Identifier: GPL-2.0-only
// Shared by the files of a dump only:
//
//   dump.c          the stages; who it is, parent and images, what comes after
//   dump_track.c    what the VM writes to: trackers, and the parent of an increment
//   dump_stop.c     the VM's standstill: stop, device state, freeze, and back
//   dump_memory.c   guest RAM: whole, or an increment
//   dump_background.c  guest RAM while the VM runs
//   dump_record.c   vm.img and device-state.img
#pragma once
#include "criu-vm/dump.h"
#include "criu-vm/progress.h"
#include "criu-vm/ram.h"
#include "criu-vm/run_dir.h"
#include "criu-vm/tracked.h"
#include "images/reader.h"
#include "images/writer.h"
#include "mm/protect.h"
#include "qemu/freeze.h"
#include "qemu/qmp.h"
#include "qemu/refuse.h"
#include "qemu/vm.h"

#define CHUNK_SIZE (1 * MiB)
#define CHUNK_PAGES (CHUNK_SIZE / PAGE_SIZE)

struct dump {
	const struct dump_opts *o;
	struct qemu_vm *vm;
	struct qemu_ramblock *blocks;
	size_t nr_blocks, nr_guest; // guest RAM first
	char **argv;		    // of the VM as it is now
	int argc;
	uint64_t mark;		    // qemu_now_mark() of that
	bool is_ours;		    // criu-vm runs it, as:
	char name[RUN_DIR_NAME_MAX + 1];
	struct ram *ram;
	struct img_dir *parent;
	struct img_writer *writer;
	int lock_fd;		    // nobody else dumps it
	struct tracked tracked;
	bool is_tracked, discards;  // discards: it has a device that gives memory back
	uint64_t id;		    // of the checkpoint
	struct mm_protect *protect;
	struct qemu_prepared *prepared;
	char suffix[40];
	VmDiskEntry **disks;
	size_t nr_disks;
	bool disks_moved;	    // the VM writes to the snapshots' files

	uint8_t *state;
	size_t state_len;
	uint8_t **small;	    // contents of the blocks behind guest RAM
	struct qemu_freezer *freezer;
	bool was_running, standing, stuck; // stuck: it ran, and could not be made to run again
	int nice;
	pid_t guardian;
	int guardian_fd;
	uint64_t stopped_at_ns;
	struct img_times times;
	struct progress progress;
	struct dump_result *result;
};

// dump_track.c
// What we have put into the VM, now or at an earlier dump. From here on nobody else dumps it.
int dump_find_ours(struct dump *d, struct qemu_ours *ours);
// Stages.
int dump_open_parent(void *ctx);
int dump_track(void *ctx);
void dump_track_undo(void *ctx);
int dump_take(void *ctx);
// The VM is tracked no longer. Harmless if it is not.
void dump_untrack_vm(struct dump *d);
// After the commit: what the next dump of this VM can be an increment of.
void dump_remember(struct dump *d);

// dump_stop.c: stages.
int dump_stop(void *ctx);
void dump_go_on_undo(void *ctx);
int dump_save_state(void *ctx);
int dump_freeze(void *ctx);
void dump_thaw(void *ctx);
int dump_go_on(void *ctx);
// All block I/O of a running VM that has begun by now is complete.
int dump_drain(struct dump *d);
bool dump_qemu_ended(const struct dump *d);
// The guardian lets nothing run any more.
void dump_dismiss_guardian(struct dump *d);
int dump_end_source(struct dump *d);

// dump_memory.c: stages.
int dump_small(void *ctx);
int dump_copy(void *ctx);
int dump_check_interrupted(void); // -EINTR, logged

// dump_background.c: stages.
int dump_protect(void *ctx);
int dump_instant(void *ctx);
int dump_copy_background(void *ctx); // lets the VM go on
void dump_unprotect(void *ctx);

// dump_record.c
int dump_write_device_state(struct dump *d);
int dump_write_vm(struct dump *d);
// What a stream begins with.
int dump_write_first(struct dump *d);
