// SPDX-License-Identifier: GPL-2.0-only
//
// DOC: a dump
//
//   attach    who it is, where its RAM lies, whether it can be dumped at all        nothing is touched yet
//   images    a directory beside the one to be
//   stop      QMP: vCPUs stand, block I/O is drained and flushed                    undone by cont
//   state     QMP: device state
//   freeze    every thread of the process                                          undone by thaw
//   copy      guest RAM; the small blocks with the device state
//   commit    sync, rename: from here on there is a checkpoint
//   kill      the source ends without running another instruction
//
// Until the commit every failure leaves the VM as it was: running if it ran.
#pragma once
#include <stdint.h>

struct dump_opts {
	const char *vm;  // pid, QMP socket
	const char *dir; // images
};

struct dump_result {
	uint64_t ram, stored; // bytes
	uint64_t stopped_ns;  // how long the guest stood still
	int pid;
};

// 0 or -errno, logged. -ESTALE: the VM needs attention: it could not be made to run on, or
// the checkpoint is there but it could not be ended.
int dump_run(const struct dump_opts *o, struct dump_result *result);
