// SPDX-License-Identifier: GPL-2.0-only
#pragma once
#include <stdbool.h>
#include <stdint.h>

#include "criu-vm/launch.h"
#include "criu-vm/restore_peer.h"
#include "criu-vm/run_dir.h"
#include "images/reader.h"
#include "images/stream.h"
#include "pvmem/engine.h"
#include "qemu/cmdline.h"
#include "qemu/disks.h"

struct restore_opts {
	const char *dir;      // images; NULL: a stream on standard input, or
	const char *server;   // of a checkpoint: HOST[:PORT]
	const char *tls_creds, *user; // with it, as struct restore_peer_opts
	bool insecure;
	const char *name;     // NULL: the recorded one, or one made of the directory's
	const char *run_dir;
	const char *log_file; // NULL: /var/log/criu-vm/NAME.log
	bool lazy;
	bool fill;            // lazy, and the rest in the background
	uint64_t ram;         // budget in bytes, 0: as much as the VM has
	const char *swap;     // path of the image, or a directory for it; NULL: the default directory
	bool swap_sparse;
	struct pv_tuning tuning;
	bool force;           // even if its disks have changed
	const char *qemu;     // binary, absolute; NULL: the recorded one
	char *const *replace; // QEMU options
	int nr_replace;
};

// Guest RAM from images, a stream, a served checkpoint, or, as it arrives (receive.h), from another host.
struct restore {
	const struct restore_opts *o;
	struct img_dir *images;       // or
	struct img_stream_in *stream; // or
	struct restore_peer *peer;    // the others are NULL, as all are of a VM that arrives
	const VmEntry *vm;
	char *const *argv;            // of QEMU, as recorded but for overlays; borrowed
	const struct qemu_cmdline_net *nets; // taps that QEMU inherits; borrowed
	size_t nr_nets;
	bool from_peer;               // another host says what it is
	const char *monitor;          // ours, in the run directory
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
	bool (*gives_up)(void *r); // besides an interruption: asked while QEMU is waited for; logs why. NULL: nothing else
	uint64_t nr_in_ram, nr_in_swap; // pages placed before the VM ran
};

// The QEMU that the VM will run in.
static inline const char *restore_binary(const struct restore *r)
{
	return r->o->qemu ? r->o->qemu : r->vm->qemu_path;
}

// What it begins with: nothing is there yet.
void restore_init(struct restore *r, const struct restore_opts *o);
// Once vm is known: blocks, budget and name; nothing is allocated from the host. Logs.
int restore_lay_out(struct restore *r);

// Restores and starts the VM, or leaves nothing behind. 0 or -errno, logged. *r stays valid for what is to be told of it,
// until restore_fini().
int restore_run(const struct restore_opts *o, struct restore *r);
void restore_fini(struct restore *r);

// Stages of whatever brings a VM here.
int restore_run_dir(void *ctx);
void restore_run_dir_undo(void *ctx);
int restore_cgroup(void *ctx);
void restore_cgroup_undo(void *ctx);

// restore_memory.c: the stages that bring guest RAM to its place.
int restore_memory(void *ctx);
void restore_memory_undo(void *ctx);
int restore_place(void *ctx);

// restore_hot.c: what was hot where the VM was before.
// *hotness: as for pv_placement_plan(), the caller's; NULL: nothing is known, or all will be in memory. Notes it, too. Logs; no error.
void restore_hotness(const struct restore *r, uint8_t **hotness);
// Notes it for the first pager of the VM, which is in private virtual memory. Logs.
int restore_note_hotness(const struct restore *r, const uint8_t *hotness);

// restore_stream.c: guest RAM from a stream: sets stream and vm; takes all of it to its place.
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
int restore_go(void *ctx);
// Supervisor and pager begin; they know the VM by its state.
int restore_hand_over(struct restore *r);
// Has QEMU ended? Then what it said last is told.
bool restore_qemu_ended(const struct restore *r);
// An interruption, or what else ends it while it waits for QEMU. Logs.
bool restore_gives_up(const struct restore *r);
// Waiting for QEMU has to end: it has ended, we give up (-EINTR), or the time `end` (clock_now_ns()). 0: not yet; logs.
int restore_waiting_failed(const struct restore *r, uint64_t end, const char *what);

// restore_load.c: the device state, with the small blocks.
int restore_load(void *ctx);
struct qemu_small_block;
// Whole blocks of what is stored of them; *small is freed with restore_free_small(). -ENOMEM.
int restore_expand_small(const DeviceStateEntry *ds, struct qemu_small_block **small, size_t *nr);
void restore_free_small(struct qemu_small_block *small, size_t nr);
// What is stored, over what is there: each block of ds has to be among them. Checked. Logs.
int restore_update_small(const DeviceStateEntry *ds, struct qemu_small_block *small, size_t nr);
// Loads it into QEMU, which waits for it, and waits until it is loaded. Logs.
int restore_load_state(struct restore *r, const uint8_t *state, size_t state_len, const struct qemu_small_block *small, size_t nr);
