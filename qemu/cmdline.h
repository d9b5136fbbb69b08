// SPDX-License-Identifier: GPL-2.0-only
// A VM's recorded command line becomes one that runs on the restoring side.
//
// Every option is known by name (cmdline_rules.c) and kept, changed, dropped or refused; an unknown one is refused. The devices stay
// what they were, since the device state has to fit them. What changes is the host's side:
//
//	guest RAM    each memory backend becomes a memory-backend-file on an inherited memfd, same id; the RAM of a plain -m gets
//	             one. Host nodes and policy stay; preallocation, locking, huge pages and the like go, which would populate it
//	-machine     all of them become one, with the full type; their other properties stay
//	terminal     the restored VM has none: a character device on stdio becomes null, the guest's device stays; a monitor goes
//	display      a local window or curses becomes "none"; VNC, spice and D-Bus stay
//	-nographic   becomes -machine graphics=off, which the guest's firmware sees, and -display none. The default serial and parallel
//	             port are there as before, on QEMU's default back-end: an invisible console
//	sockets      a listening character device no longer waits for its client before the VM starts
//	files        what the guest writes to a file goes on at its end: append=on, logappend=on. -serial file:PATH and the like become a
//	             -chardev of QEMU's own name for it ("serial0") and -serial chardev:serial0. -D goes, since QEMU would
//	             overwrite that file; its messages come with its other output
//	lifecycle    -S, -incoming, -loadvm, -daemonize, -pidfile go; ours are added: -incoming defer -S and two QMP monitors
//	users        -runas and -run-with user= go: whoever starts QEMU has become the user that it was, before QEMU's binary, which may be
//	             that user's own, runs. -chroot goes too, unless QEMU is root: only root can
//	another host's   (from_peer) what would start a program is refused, monitors wait until the VM is this host's: cmdline_peer.c
//	taps         as recorded, or as descriptors (struct qemu_cmdline_net): ifname, bridge, script, helper and vnet_hdr go, which their
//	             maker has seen to; vhost=on, sndbuf and the like stay
//
// Files, sockets and taps are opened again as recorded, relative to the directory that QEMU is started in.
#pragma once
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

#define QEMU_CMDLINE_RAM_ID "criu-vm-ram" // memory backend that takes the place of plain -m
#define QEMU_CMDLINE_QMP_ID "criu-vm-qmp" // character device of our own monitor
#define QEMU_CMDLINE_COMMANDS_ID "criu-vm-commands" // and of another one

#define QEMU_CMDLINE_HIDDEN "~criu-vm" // ends the name of a monitor's socket for as long as nobody may have it

// Guest RAM that the new QEMU inherits.
struct qemu_cmdline_ram {
	const char *backend_id; // recorded memory backend; NULL, or an id that no recorded -object has: the RAM that -m makes
	uint64_t len;
	int fd; // number of the memfd in the new QEMU
};

// A tap that the new QEMU inherits, instead of one that it would open, or have made by a script or helper, itself.
struct qemu_cmdline_net {
	const char *id; // as qemu_netdevs_list() has it
	const int *fds; // one a queue: numbers in the new QEMU
	unsigned nr_fds;
};

// Nothing of it is kept.
struct qemu_cmdline_opts {
	const char *qemu; // binary
	char *const *recorded; // argv of the VM, [0] included
	int nr_recorded;
	char *const *replace; // options that a person gave to the restore
	int nr_replace;
	const char *machine; // full machine type: "pc-i440fx-7.2"
	int qmp_fd, commands_fd; // listening unix sockets that the new QEMU inherits: our own monitors
	const struct qemu_cmdline_ram *ram;
	size_t nr_ram;
	const struct qemu_cmdline_net *nets;
	size_t nr_nets;
	bool from_peer; // recorded by another host: taps and bridges that are not among nets are refused, which would start scripts and
			// helpers, and so is what else of a network starts a program; a sandbox sees to the rest. Monitors on listening unix
			// sockets have other names at first (qemu_cmdline_hidden()); all others, and gdb's, are left out
	bool as_root; // it is started by root and stays root
};

// The new command line: *argv ends with NULL and is freed by qemu_cmdline_free(). Each option in replace takes the place of the
// recorded ones of its name, of that with the same id (node-name of a -blockdev) if it has one, or else is added. What is
// replaced may be something that could not be restored; the machine's type and guest RAM cannot be replaced. Rebuilding a
// rebuilt one with the same options gives the same.
// Logs; -EINVAL (not understood, or not matching the RAM or what may be replaced), -EOPNOTSUPP (cannot be restored), -ENOMEM.
int qemu_cmdline_rebuild(const struct qemu_cmdline_opts *o, char ***argv);
void qemu_cmdline_free(char **argv);

// Writes the path of each socket with such a name, a line each; -ENOMEM. Whoever takes QEMU_CMDLINE_HIDDEN off its end makes it what
// the VM's owner knows. What is rebuilt later has the names without it.
int qemu_cmdline_hidden(char *const *argv, FILE *f);
// Takes it off the path, if it is there.
bool qemu_cmdline_show(char *path);

// At dump: will this command line be one that can be rebuilt? Logs every reason why not; errors as above.
int qemu_cmdline_check(char *const *argv, int argc);
