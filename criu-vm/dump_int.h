// SPDX-License-Identifier: GPL-2.0-only
// Shared by the files of a dump only:
//
//   dump.c          the stages; who it is, parent and images, what comes after
//   dump_track.c    tracking, and the parent of an increment
//   dump_memory.c   guest RAM: whole, or an increment
//   dump_background.c  guest RAM while the VM runs
//   dump_record.c   vm.img, device-state.img and resident.img
#pragma once
#include "criu-vm/dump.h"
#include "criu-vm/progress.h"
#include "criu-vm/source.h"
#include "images/reader.h"
#include "images/resident.h"
#include "images/writer.h"
#include "mm/protect.h"

#define CHUNK_SIZE (1 * MiB)
#define CHUNK_PAGES (CHUNK_SIZE / PAGE_SIZE)

struct dump {
	const struct dump_opts *o;
	struct source src;
	struct img_dir *parent;
	struct img_writer *writer;
	uint64_t id; // of the checkpoint
	struct mm_protect *protect;
	struct qemu_prepared *prepared;
	char suffix[40];
	bool disks_moved; // the VM writes to the snapshots' files
	struct img_resident resident; // what was in memory before the VM stood
	struct img_times times;
	struct progress progress;
	struct dump_result *result;
};

// dump_track.c: stages.
int dump_open_parent(void *ctx);
int dump_track(void *ctx);
void dump_track_undo(void *ctx);
int dump_take(void *ctx);
// After the commit: what the next dump of this VM can be an increment of.
void dump_remember(struct dump *d);

// dump_memory.c: a stage.
int dump_copy(void *ctx);
int dump_check_interrupted(void); // -EINTR, logged

// dump_background.c: stages.
int dump_protect(void *ctx);
int dump_instant(void *ctx);
int dump_copy_background(void *ctx); // lets the VM go on
void dump_unprotect(void *ctx);

// dump_record.c
// A stage: notes what is in memory, and how hot it is. What cannot be had is left out.
int dump_look_at_resident(void *ctx);
int dump_write_device_state(struct dump *d);
int dump_write_vm(struct dump *d);
// What a stream begins with.
int dump_write_first(struct dump *d);
