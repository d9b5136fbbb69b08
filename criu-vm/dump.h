// SPDX-License-Identifier: GPL-2.0-only
//
// DOC: a dump
//
//   attach      who it is, where its RAM lies, whether it can be dumped at all        nothing is touched yet
//   parent      the checkpoint that this is to be an increment of, and whether its VM was tracked since
//   images      a directory beside the one to be, or the stream
//   track       --track-mem, pre-dump: what is written from here on is noted            undone by its end
//   protect     --background: what is written to is told before                         undone by its end
//   resident    of a VM in private virtual memory: what is in memory, for a restore to begin with
//   stop        QMP: vCPUs stand, block I/O is drained and flushed                      undone by cont
//   state       QMP: device state
//   disks       --disk-snapshot: from here on the VM writes to new files                undone by block-commit
//   freeze      every thread of the process                                            undone by thaw
//   take        an increment: what was written since its parent; --background: the instant
//   small       the small blocks, which travel with the device state
//   copy        guest RAM
//   go on       -R: thaw, cont
//   commit      sync, rename: from here on there is a checkpoint
//   end         without -R or -s: the source ends without running another instruction
//
// With --background, `copy` begins with `go on`. A pre-dump has no stages from stop to small but `take`, which drains.
// Until the commit every failure leaves the VM as it was: running if it ran.
#pragma once
#include <stdbool.h>
#include <stdint.h>

enum dump_then { DUMP_KILL, DUMP_LEAVE_STOPPED, DUMP_LEAVE_RUNNING };

struct dump_opts {
	const char *vm;	      // pid, QMP socket
	const char *run_root;
	const char *dir;      // images; NULL: the stream
	const char *prev;     // directory of the parent, or NULL
	int stream_fd;	      // -1: none
	int zstd_level;	      // 0: raw
	bool pre;	      // a pre-dump
	enum dump_then then;
	bool track;	      // the next one can be an increment of this
	bool background, disk_snapshot;
};

struct dump_result {
	uint64_t ram, stored; // bytes; stored: pages, before compression
	uint64_t written;     // bytes of pages in the images
	uint64_t stopped_ns;  // how long the guest stood still
	int pid;
};

// 0 or -errno, logged. -ESTALE: the VM needs attention: it could not be made to run on, or
// the checkpoint is there but it could not be ended.
int dump_run(const struct dump_opts *o, struct dump_result *result);

// Takes the tracker out of a VM that no dump will follow for. Harmless if there is none. Logs.
int dump_untrack(const struct dump_opts *o);
