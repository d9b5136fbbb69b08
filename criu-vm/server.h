// SPDX-License-Identifier: GPL-2.0-only
//
// DOC: the server of a destination
//
//	criu-vm lazy-pages --port N        listens, reads preambles (wire/preamble.h), speaks with nobody itself
//	    |-- receiver (receive.h)       one process a VM that arrives: has the control connection; gets its data connections
//	    |     +-- supervisor, QEMU, pager: as of a restored VM; they outlive receiver and server
//	    |-- tidier                     in the place of a receiver that was killed, until nothing of its VM is left
//	    |-- passer                     one a page line of a VM that runs, but whose pages are not all here: its pager gets it
//	    +-- answerer                   one a question what became of a migration
//
// With --images it takes no VMs, and serves a checkpoint instead (image_server.h).
//
// Memory is promised in one place: what is arriving and what runs here (the budgets in the run directories) is at most --total-ram.
#pragma once
#include <limits.h>
#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

#include "pvmem/tuning.h"
#include "wire/preamble.h"

struct map_file;
struct wire_tls;

struct server_opts {
	const char *address; // NULL: loopback
	uint16_t port;
	uint64_t total_ram;  // bytes, 0: what the host has available
	uint64_t vm_ram;     // bytes a VM gets, 0: as much as it has, unless:
	unsigned vm_percent; // of what it has, 0: see vm_ram
	const char *swap;    // as of a restore; NULL: the default folder
	bool swap_sparse;
	struct pv_tuning tuning; // of VMs that arrive
	const char *map;     // --map FILE, or NULL
	const char *images;  // the checkpoint that is served, or NULL
	const char *tls_creds;
	bool insecure;       // in the clear to all the world
	const char *user;    // as whom QEMU runs; NULL: as whom it ran
	const char *qemu;    // binary, absolute; NULL: of the description
	char qemu_path[PATH_MAX]; // where qemu points to
	bool once;           // one VM, then the end; but not before all of its pages have come, and a source that cannot know what became
			     // of it has asked
	bool json;           // what is said on standard output
	const char *run_dir;
	const char *log_file;
};

// Until a signal, or until a migration has ended, well or not (once). An exit status (cmd.h). Says on standard output where it listens,
// and what became of each migration. SIGHUP: the map and the credentials are read again. At the end, VMs that have arrived live on; those
// that are arriving are aborted.
int server_run(const struct server_opts *o);

// One of the options that only the server has, by its name. 0; -EINVAL: the value is no good, what (256 bytes) says why.
int server_option(struct server_opts *o, const char *name, const char *value, char what[256]);

// False: who is at the other end of this TCP connection is on this very host, and neither root nor the user that we are; or has closed
// already.
bool server_peer_is_trusted(int fd);
// The same, and false if that is on another host: who answers us in the clear.
bool server_peer_is_ours(int fd);

// ---- the line between a receiver and the server: SOCK_SEQPACKET. Both wait, no longer than until cmd_interrupted(): -EINTR

// Promises bytes of memory to a VM of that name until the receiver ends (then its run directory says it). -ENOMEM: reason (512 bytes) says
// with figures why not; -EEXIST: a VM of that name runs or arrives here, -EINVAL: no bytes (reason, too); -EPIPE: the server has ended.
int server_line_reserve(int line, const char *name, uint64_t bytes, char reason[512]);
// From now on the source may have to ask what became of its VM. -EPIPE.
int server_line_undecided(int line);
// Who has connected to a reader of a checkpoint is one that it may be read by, and whom others do not displace. -EPIPE.
int server_line_introduced(int line);
// The next data connection for this migration: *channel and the descriptor, the caller's. -ETIMEDOUT, -EPIPE.
int server_line_channel(int line, unsigned timeout_ms, unsigned *channel, int *fd);
