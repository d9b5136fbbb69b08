// SPDX-License-Identifier: GPL-2.0-only
//
// DOC: a running VM that is taken away from, by a dump or by a migration
//
//   attach      who it is, where its RAM lies, whether it can be taken at all         nothing is touched yet
//   stop        QMP: vCPUs stand, block I/O is drained and flushed                      undone by go_on
//   state       QMP: device state
//   freeze      every thread of the process                                            undone by thaw
//   small       the small blocks, which travel with the device state
//
// While it stands a guardian process outlives us, also when we are killed: then it does what is right for the VM.
//
//   source.c        attaches, lets go; its description
//   source_track.c  what the VM writes to: the tracker planted in it
//   source_stop.c   its standstill: stop, freeze, the guardian, and back
//   source_state.c  device state and small blocks
#pragma once
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#include "criu-vm/ram.h"
#include "criu-vm/run_dir.h"
#include "criu-vm/tracked.h"
#include "images/vm.pb-c.h"
#include "qemu/qmp.h"
#include "qemu/vm.h"

struct qemu_freezer;

struct source {
	// The caller's.
	const char *spec, *run_root; // the VM: pid, QMP socket
	const char *taken;	     // "dumped", "migrated": for messages
	// In the guardian, when the line to it was cut: does what is right for the VM. word: the last that it was told, 0: none.
	void (*orphan)(void *ctx, char word);
	void *ctx;
	bool short_stop; // the standstill is short and has precedence over what else runs

	struct qemu_vm *vm;
	struct qemu_ramblock *blocks;
	size_t nr_blocks, nr_guest; // guest RAM first
	uint64_t ram_len;
	char **argv; // of the VM as it is now
	int argc;
	uint64_t mark; // qemu_now_mark() of that
	bool is_ours;  // criu-vm runs it, as:
	char name[RUN_DIR_NAME_MAX + 1];
	struct ram *ram;
	int lock_fd; // nobody else takes from it; -1
	struct tracked tracked;
	bool is_tracked, discards; // discards: it has a device that gives memory back
	VmDiskEntry **disks;
	size_t nr_disks;

	uint8_t *state;
	size_t state_len;
	uint8_t **small; // contents of the blocks behind guest RAM
	struct qemu_freezer *freezer;
	bool was_running, standing, stuck; // stuck: it ran, and could not be made to run again
	int nice;
	pid_t guardian;
	int guardian_fd;
	uint64_t stopped_at_ns, stopped_ns; // stopped_ns: how long the guest stood still
	uint64_t freezing_us;
};

#define SOURCE_NONE .lock_fd = -1

// ---- source.c: 0 or -errno, logged, as all of this
int source_attach(struct source *s);
// Thaws; does not let the VM go on. Accepts one that was never attached.
void source_fini(struct source *s);
bool source_has_ended(const struct source *s); // its QEMU; while that is ending, waits for it, a little
// The VM as it is to be restored, to be freed with source_free_description(); it borrows from s.
VmEntry *source_describe(const struct source *s);
void source_free_description(VmEntry *vm);

// ---- source_track.c
struct qemu_ours;
// What we have put into the VM, now or at an earlier dump. From here on nobody else takes from it. Part of source_attach().
int source_find_ours(struct source *s, struct qemu_ours *ours);
// For a VM that is open but not attached: finds its tracker.
void source_find_tracker(struct source *s);
// What is written from here on is noted, anew. The record of it (tracked.h) knows of no checkpoint.
int source_track(struct source *s);
// The VM is tracked no longer. Harmless if it is not.
void source_untrack(struct source *s);

// ---- source_stop.c
int source_stop(struct source *s);
// Lets it go on, if it ran. Harmless if it does not stand.
int source_go_on(struct source *s);
// `cont` by a monitor alone, for who comes after a command that was killed. Waits until QEMU has answered, for two minutes. -EREMOTEIO:
// it does not run, as QEMU says; else -errno. Silent.
int source_say_cont(int monitor_fd);
int source_freeze(struct source *s);
void source_thaw(struct source *s);
// All block I/O of a running VM that has begun by now is complete.
int source_drain(struct source *s);
// A byte that the guardian is told, for orphan(). Not 0.
void source_tell_guardian(struct source *s, char word);
// The guardian lets nothing run any more.
void source_dismiss_guardian(struct source *s);
// Ends its QEMU without another instruction. -ESTALE: it could not be ended.
int source_end(struct source *s);

// ---- source_state.c
int source_save_state(struct source *s);
int source_read_small(struct source *s);
// Its device state: ds borrows from s. Of the small blocks those pages that are not zero; or, where former says what they were, those
// that differ. source_free_device_state() frees what was allocated for it.
int source_device_state(const struct source *s, const uint8_t *const *former, DeviceStateEntry *ds);
void source_free_device_state(DeviceStateEntry *ds);
