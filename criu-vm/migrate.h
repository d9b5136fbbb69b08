// SPDX-License-Identifier: GPL-2.0-only
//
// DOC: a migration, from the host where the VM runs (docs/wire-protocol.md)
//
//   attach      who it is, where its RAM lies, whether it can be moved at all           nothing is touched yet
//   connect     the destination speaks our protocol                                     undone by ABORT, and closing the line
//   track       what is written from here on is noted                                  undone by its end
//   offer       what VM it is; the destination has room for it, QEMU and pager wait there, the data channels are open
//   hotness     which chunks were written of late, or were used: the destination decides by that what lives in RAM
//   record      what must not be forgotten, should this command be killed               undone by its removal
//   pre-copy    rounds, until what is left can be sent while the VM stands
//   later       it goes lazily: the destination is told which pages it gets when the VM runs there
//   lines       the page lines are open, over which it asks for them                  undone by closing them
//   stop        vCPUs stand, block I/O is drained and flushed                           undone by cont
//   disks       device state; with it QEMU gives its disks up                           undone by cont
//   freeze      every thread of the process                                            undone by thaw
//   last        what is left of memory, and the device state
//   ready       the destination has all, and has loaded it
//   commit      the destination decides; if the line is lost, it is asked until it answers
//   end         the VM runs there; its pages are served (migrate_serve.h); here its QEMU ends without running another instruction
//
// Until COMMIT is sent every failure leaves the VM as it was. From then on QEMU is stopped (SIGSTOP) until it is known what was
// decided; the guardian goes on asking if this command is killed.
#pragma once
#include <stdbool.h>
#include <stdint.h>

#include "criu-vm/run_dir.h"
#include "wire/pages.h"

enum migrate_lazy {
	MIGRATE_WHOLE,	   // all pages are there when the VM runs
	MIGRATE_LAZY_AUTO, // unless they would never be
	MIGRATE_LAZY,
};

struct migrate_opts {
	const char *vm;		// pid, QMP socket
	const char *run_root;
	const char *host;	// HOST[:PORT]; resume: NULL: where it was going
	const char *name;	// at the destination; NULL: as here
	uint64_t ram;		// budget there in bytes; 0: the destination decides
	const char *swap;	// NULL: the destination decides
	enum migrate_lazy lazy;
	unsigned max_rounds;	// of memory that is sent before the VM stops
	unsigned downtime_ms;	// at most, as foreseen
	unsigned channels;
	uint64_t max_bandwidth; // bytes a second, 0: no limit
	int zstd_level;		// 0: raw
	const char *tls_creds;	// NULL: in the clear, which only reaches this host itself, unless:
	bool insecure;
	const char *token;	// resume: this migration; NULL: the one that there is
	int monitor_fd;		// resume: a connection to the VM's monitor, which is the caller's; -1: none
};

struct migrate_result {
	char name[RUN_DIR_NAME_MAX + 1]; // there
	int pid;
	uint64_t ram, budget, swap;	 // bytes
	unsigned rounds;
	uint64_t pages, zero_pages;	 // sent
	uint64_t bytes;			 // on the data channels
	uint64_t ram_pages, swap_pages, page_ins, page_outs; // there, until it ran
	uint64_t stood_us, stood_there_us;
	uint64_t ns, switch_ns;		 // until this host holds nothing of it; until it ran there
	bool running;
	bool lazy;			 // it went lazily:
	uint64_t later_pages;		 // missing when it ran
	uint64_t served_pages, served_zero_pages, served_bytes;
	enum wire_line_state served;	 // how that came to an end
};

struct migrate_resumed {
	bool committed;	     // it is there; else it goes on here
	bool lazy;	     // its pages were served:
	enum wire_line_state served;
	char name[RUN_DIR_NAME_MAX + 1], host[256];
	bool others;	     // no: another process serves them
	int server;	     // its pid; 0: not known
	uint64_t pages_left; // as that has said last
};

// 0, or -errno, logged: the VM is as it was. -ESTALE: the VM needs attention: what to do is said.
int migrate_run(const struct migrate_opts *o, struct migrate_result *result);
// Of a migration whose command was killed, or that nobody knows the end of: asks the destination, and does what it says. Of one whose pages
// are here yet: serves them, or tells who does that, and where to. With o->token: waits for its turn to.
// -ENOENT: there is no such migration; -ESTALE, -EINTR: nobody answers, or it was interrupted.
int migrate_resume(const struct migrate_opts *o, struct migrate_resumed *is);
