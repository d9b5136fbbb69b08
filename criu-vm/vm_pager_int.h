// SPDX-License-Identifier: GPL-2.0-only
// Shared by the files of a VM's pager only:
//
//   vm_pager.c     finds its VM, serves it, lets go of it
//   vm_monitor.c   QEMU's monitor: drains, cont, what QEMU tells
//   vm_commands.c  what clients ask for: stat, set, replace, harvest
//   vm_snapshot.c  a snapshot that a client asked for
//   vm_arrival.c   a VM that comes from another host: when pages are looked at, when it is this host's
//   vm_remote.c    pages that another host has
//   vm_hot.c       what was hot where the VM was before
#pragma once
#include <stdbool.h>

#include "criu-vm/vm_hot.h"
#include "criu-vm/vm_pager.h"
#include "criu-vm/vm_remote.h"
#include "images/reader.h"
#include "lazy-pages/pager.h"
#include "mm/plant.h"
#include "qemu/qmp.h"
#include "util/loop.h"

struct vm_pager {
	struct run_dir *rd;
	struct vm_state state;
	int qemu_pidfd, control_fd;
	int launch_fd; // the line to the restore; -1: the VM ran before us
	int io_fd;
	struct mm_plant plant;
	struct pv_block *blocks;
	struct pv_pages *pages;
	struct pv_swap swap;
	struct img_dir *images;
	struct vm_remote remote;
	struct vm_hot hot;
	struct lp_pager *lp;
	struct qmp *qmp; // NULL until it is open, and after QEMU closed it
	struct loop_op launch_op, qmp_op, opened_op;
	int opened[2];   // a byte when the monitor thread is done
	bool started;    // the VM is its own
	bool committed;  // it came from another host, is this one's by the record, and has not run here yet: that has to be, however long it takes
	bool given_up;   // whoever starts the VM was told that it will not run; so it must not, whatever else is asked
	bool guest_runs, draining;
	bool has_resumed; // since the monitor was opened
	struct vm_snapshot *snapshot; // NULL: there is none
	bool cont_due; // nobody knows whether the last pager has said it; or it has to be said again
	struct loop_timer cont_timer; // until it is
	uint64_t cont_pause;
	char cont_trouble[256];
	char waits_for[256];
};

// vm_pager.c
// The swap image that the state names, if it is not open.
int vm_pager_open_swap(struct vm_pager *v);
// Looks at the page table, and serves. May be tried again after an error.
int vm_pager_start_paging(struct vm_pager *v);
// The VM runs: what its page source has yet comes in the background, if that was asked for.
void vm_pager_fill(struct vm_pager *v);
// Nothing is left there. Not before the VM is this host's.
void vm_pager_source_done(struct vm_pager *v);

// vm_monitor.c
// Opens QEMU's monitor, without blocking; then page-out begins, and the VM, if it is not its own yet. again: it was open before.
int vm_monitor_start(struct vm_pager *v, bool again);
void vm_monitor_end(struct vm_pager *v);
// Knows of QEMU what the last pager knew, until the monitor answers.
void vm_monitor_recall(struct vm_pager *v);
// lp_opts.drain
void vm_monitor_drain(void *ctx);
// vm_arrival_decide() gets the answer. -EPIPE: there will be none.
int vm_monitor_ask_status(struct vm_pager *v);
// The VM cannot be started; the restore is told. Not of one that is committed.
void vm_monitor_cannot_start(struct vm_pager *v, const char *why);
// Page-out begins, and the VM, if it is to run. The monitor is open.
void vm_monitor_begin(struct vm_pager *v);

// vm_arrival.c
// It arrives, and is not this host's yet.
bool vm_arrival_is_pending(const struct vm_pager *v);
// For a pager that follows another, before it attaches: is the VM this host's? -ECANCELED, logged: it is not.
int vm_arrival_recall(struct vm_pager *v);
// All pages are in their places.
void vm_arrival_serve(struct vm_pager *v);
// The source has said so: QEMU is asked whether the VM stands.
void vm_arrival_commit(struct vm_pager *v);
// The answer to that, NULL: none: makes the record, if the VM stands and has not run, and then it runs. Blocks on the disk.
void vm_arrival_decide(struct vm_pager *v, const json_t *status);
// Its network interfaces begin to work. Logs.
void vm_arrival_taps_up(const struct vm_pager *v);

// vm_snapshot.c
// *shadow: our descriptor. -EBUSY: there is one; -ESRCH: no such process; or -errno. Silent.
int vm_snapshot_begin(struct vm_pager *v, pid_t asker, int *shadow);
// It was TAKEN, and all that was read of it by now is good. Harmless if there is none.
bool vm_snapshot_end(struct vm_pager *v);
// After the loop and the engine were freed.
void vm_snapshot_fini(struct vm_pager *v);
// Tells who reads a snapshot of the pager before us that it is over. Before any page is mapped.
void vm_snapshot_of_the_dead(const struct vm_pager *v);

// vm_commands.c
// lp_opts.describe and lp_opts.command
void vm_commands_describe(void *ctx, json_t *answer);
json_t *vm_commands_do(void *ctx, const char *name, const json_t *request);
