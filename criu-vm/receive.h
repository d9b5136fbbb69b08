// SPDX-License-Identifier: GPL-2.0-only
//
// DOC: a VM arrives
//
// The destination's half of a migration (docs/wire-protocol.md), in a process of its own: the stages of a restore, but that pages come from
// the line while the VM still runs elsewhere, and that nothing slow is left for when it stands:
//
//   offer       what VM it is; can it be had here; memory is promised
//   run-dir, cgroup, memory    as of a restore
//   taps        its network interfaces, down
//   start       QEMU
//   plant, attach                     the pager is there and has everything open, but looks at no page yet
//   admit       the source is told; its data channels come
//   pages       round after round, each page to its place
//   serve       the pager takes over guest memory
//   load        device state
//   ready       the source hands its disks over
//   commit      decided by the pager (migration_record.h); from here on the VM is its own, whatever becomes of us
//   running, done    the source is told, and has ended its QEMU
//
// Each is called receive-... (stages.h). Up to the commit a failure, or the loss of the line, undoes all of it.
#pragma once
#include <stdint.h>

#include "criu-vm/server.h"

struct receive_opts {
	const struct server_opts *server;
	const struct map_file *map;  // NULL: nothing is mapped
	const struct wire_tls *tls;  // NULL: in the clear
	uint8_t token[WIRE_TOKEN_LEN];
	int line;                    // to the server
};

// fd: the control connection, its preamble read; taken over. An exit status (cmd.h). All errors are told to the source, and logged.
int receive_run(const struct receive_opts *o, int fd);
// After a receiver that was killed: what it had made, if nobody else sees to that. Blocks while a swap image is deleted.
void receive_tidy(const char *run_dir, const uint8_t token[WIRE_TOKEN_LEN], const char *name);
// The same for all VMs that arrived when receiver and server were killed, and that have no QEMU.
void receive_tidy_all(const char *run_dir);
// Answers a source that asks what became of its VM: undecided becomes aborted. fd is taken over.
int receive_answer(const struct receive_opts *o, int fd);
// A page line from the source of a VM that is here, but whose pages are not all: its pager gets it; or the source is told that they are not
// needed any more. fd is taken over.
int receive_line(const struct receive_opts *o, unsigned line, int fd);
