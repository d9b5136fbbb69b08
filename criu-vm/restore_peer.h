// SPDX-License-Identifier: GPL-2.0-only
//
// DOC: a restore from a served checkpoint
//
// The server (image_server.h) says what VM it is: its description, its device state, and which pages there are. All of that is looked at as
// what a stranger says. The pages stay there; they come over page lines of the VM's pager (lazy-pages/remote.h) when they are needed.
#pragma once
#include "criu-vm/run_dir.h"
#include "images/vm.pb-c.h"

struct restore_peer;

struct restore_peer_opts {
	const char *server;    // HOST[:PORT]
	const char *tls_creds; // NULL: in the clear
	bool insecure;         // in the clear to another host, or to whoever listens on this one
	const char *qemu, *user; // as struct peer_vm_opts
};

// Asks, and takes all of it. Blocks, interruptible (-EINTR). Logs.
int restore_peer_open(const struct restore_peer_opts *o, struct restore_peer **p);
void restore_peer_free(struct restore_peer *p); // accepts NULL

const VmEntry *restore_peer_vm(const struct restore_peer *p);
const DeviceStateEntry *restore_peer_device_state(const struct restore_peer *p);
// Which pages of a chunk of all guest RAM it has; the others are zero.
void restore_peer_pages(const struct restore_peer *p, uint64_t chunk, uint64_t pages[4]);
// Where the pager of the VM finds its pages. -ENOMEM.
int restore_peer_note(const struct restore_peer *p, struct vm_state *s);

// For a VM whose server has another address now: does the one at `server` serve the checkpoint of this line id (vm_state.remote_id)?
// *server, *tls: as the state has them, the caller's. Blocks. Logs; -ESTALE: it serves another one.
int restore_peer_find(const struct restore_peer_opts *o, const char *line_id, char **server, char **tls);
