// SPDX-License-Identifier: GPL-2.0-only
#pragma once
#include <stdbool.h>
#include <stdint.h>

#include "criu-vm/launch.h"
#include "criu-vm/run_dir.h"
#include "images/reader.h"
#include "images/stream.h"
#include "pvmem/engine.h"
#include "qemu/disks.h"

struct restore_opts {
	const char *dir;      // images; NULL: a stream on standard input
	const char *name;     // NULL: the recorded one, or one made of the directory's
	const char *run_dir;
	const char *log_file; // NULL: /var/log/criu-vm/NAME.log
	bool lazy;
	bool fill;            // lazy, and the rest in the background
	uint64_t ram;         // budget in bytes, 0: as much as the VM has
	const char *swap;     // path of the image, or a directory for it; NULL: the default directory
	bool swap_sparse;
	bool force;           // even if its disks have changed
	const char *qemu;     // binary, absolute; NULL: the recorded one
	char *const *replace; // QEMU options
	int nr_replace;
};

struct restore {
	const struct restore_opts *o;
	struct img_dir *images;       // or
	struct img_stream_in *stream; // the other one is NULL
	const VmEntry *vm;
	char *const *argv;            // of QEMU, as recorded but for overlays; borrowed
	int argc;
	struct qemu_overlays overlays;
	char name[RUN_DIR_NAME_MAX + 1];
	char *log;
	bool paging;
	uint64_t ram, nr_chunks; // of the VM
	struct pv_block *blocks;
	size_t nr_blocks;
	struct pv_pages *pages;
	struct pv_swap swap;
	struct run_dir rd;
	struct cgroup own; // where this command was started
	struct vm_state state;
	int io_fd;         // the ring of the pager's reads and writes
	struct launch launch;
	struct qmp *qmp;
	uint64_t nr_in_ram, nr_in_swap; // pages placed before the VM ran
};

// The QEMU that the VM will run in.
static inline const char *restore_binary(const struct restore *r)
{
	return r->o->qemu ? r->o->qemu : r->vm->qemu_path;
}

// Restores and starts the VM, or leaves nothing behind. 0 or -errno, logged. *r stays valid for what is to be told of it,
// until restore_fini().
int restore_run(const struct restore_opts *o, struct restore *r);
void restore_fini(struct restore *r);

// restore_memory.c: the stages that bring guest RAM to its place.
int restore_memory(void *ctx);
void restore_memory_undo(void *ctx);
int restore_place(void *ctx);

// restore_stream.c: the same from a stream: sets stream and vm; takes all of it to its place.
int restore_stream_open(struct restore *r);
int restore_stream_place(struct restore *r);

// restore_disks.c: are the disks what they were; a stage that gives the VM files of its own over those that a snapshot keeps.
int restore_check_disks(const struct restore *r);
int restore_disks(void *ctx);
int restore_disks_again(void *ctx);
void restore_disks_undo(void *ctx);

// restore_qemu.c: the stages that start QEMU, plant, and load the device state.
int restore_start(void *ctx);
void restore_start_undo(void *ctx);
int restore_plant(void *ctx);
int restore_serve(void *ctx);
int restore_load(void *ctx);
int restore_go(void *ctx);
