// SPDX-License-Identifier: GPL-2.0-only
// A snapshot of a VM in private virtual memory (pvmem/snapshot.h), asked for by a command: RUN_DIR/NAME/snapshot is what pager and
// command share.
//
//	command                                            pager
//	snapshot-begin {"pid": own}               ------>  makes the file; {"shadow": descriptor of the pager's}
//	vm_snapshot_open(); waits for READY, stops
//	the VM, drains its block I/O
//	snapshot-instant                          ------>  {}
//	waits for TAKEN, lets the VM go on, reads
//	with pv_reader; a command to QEMU
//	snapshot-end, or its end                  ------>  {"taken": what was read is good}; removes the file
//
// QEMU gives memory back in two steps, of which the pager learns with the second one. The command to QEMU, which any will do, is
// answered after that.
//
// A pager that takes over ends the snapshot of the one before it: FAILED.
#pragma once
#include "criu-vm/run_dir.h"
#include "pvmem/snapshot.h"

// The command's side, after snapshot-begin was answered. shadow: of that answer; pager: "pager_pid" of stat's, or of this one.
// -errno is logged. To be closed also after snapshot-end.
int vm_snapshot_open(const struct run_dir *rd, uint64_t nr_chunks, pid_t pager, int shadow, struct pv_snapshot **s, int *shadow_fd);
void vm_snapshot_close(uint64_t nr_chunks, struct pv_snapshot *s, int shadow_fd);
// Waits for the phase: 0; -ECANCELED: it has failed, or ended (the pager's log says why); -ETIMEDOUT. Silent.
int vm_snapshot_wait(const struct pv_snapshot *s, enum pv_snapshot_phase phase, unsigned timeout_ms);
