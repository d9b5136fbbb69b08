// SPDX-License-Identifier: GPL-2.0-only
// For a person: the server of a destination, or of a checkpoint; another pager for a VM. For criu-vm itself: what a restored VM's
// supervisor and pagers are.
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/prctl.h>
#include <unistd.h>

#include "criu-vm/cmd.h"
#include "criu-vm/leftovers.h"
#include "criu-vm/migration_record.h"
#include "criu-vm/receive.h"
#include "criu-vm/replace.h"
#include "criu-vm/server.h"
#include "criu-vm/supervisor.h"
#include "criu-vm/vm_pager.h"
#include "util/log.h"
#include "wire/conn.h"

static const struct cmd_option options[] = {
	{ 0, "address", "ADDR", "where the server listens (default: localhost only)" },
	{ 0, "port", "PORT", "and at which TCP port (default 9723; 0: one that is free)" },
	{ 0, "total-ram", "SIZE", "memory for all VMs together (default: what the host has available)" },
	{ 0, "vm-ram", "SIZE|PCT%", "memory for each VM, or the share that it gets of its RAM, unless migrate --ram asks for more or less" },
	{ 0, "swap", "PATH", "folder for swap images; with --name: where the VM's swap image is now" },
	{ 0, "swap-sparse", NULL, "do not reserve the swap images' space" },
	{ 0, "paging", "KEY=VALUE[,...]", "how VMs are paged, or that of --name: method, access, queue-bits, spin, folios" },
	{ 0, "map", "FILE", "what disks, bridges and interfaces of other hosts are called here" },
	{ 0, "tls-creds", "DIR", "only TLS, with these credentials, named as QEMU's" },
	{ 0, "insecure", NULL, "in the clear, to whoever can reach the address" },
	{ 0, "user", "USER", "as whom QEMU runs (default: as whom it ran)" },
	{ 0, "qemu", "FILE", "another QEMU, as new or newer (default: the one that it had)" },
	{ 0, "once", NULL, "one VM, then end" },
	{ 0, "images", "DIR", "take no VMs; serve this checkpoint to 'restore --lazy-pages --page-server'" },
	{ 0, "name", "NAME", "no server: the VM to take over, as its pager died, or is to be replaced by this criu-vm" },
	{ 'D', "images-dir", "DIR", "where the checkpoint is now that the pages of --name come from" },
	{ 0, "page-server", "HOST[:PORT]", "where the server is now that the pages of --name come from (--tls-creds, --insecure: as of restore)" },
	{ 0, "supervise", NULL, NULL },
	{ 0, "serve", NULL, NULL },
	{ 0, "bury", "STATUS", NULL },
	{ 0, "qemu-pid", "PID", NULL },  // supervise: its child
	{ 0, "launch-fd", "FD", NULL },  // supervise, serve: the line to the restore
	{ 0, "lock-fd", "FD", NULL },    // the run directory, locked
	{ 0 },
};

struct lazy_pages_opts {
	struct replace_opts replace;
	struct server_opts server;
	const char *server_only; // an option that --name does not go with
	const char *takes_vms;   // and one that --images does not go with, either
	const char *secures;     // one of a connection
	bool supervise, serve;
	const char *bury;
	int qemu_pid, launch_fd, lock_fd;
};

// With what a server's option does not go.
static void note_use(struct lazy_pages_opts *o, const char *name, const char *value)
{
	if (!strcmp(name, "tls-creds") || !strcmp(name, "insecure")) {
		o->secures = name;
		return;
	}
	if (!strcmp(name, "paging")) {
		o->takes_vms = name;
		o->replace.paging = value;
		return;
	}
	o->server_only = name;
	if (strcmp(name, "address") != 0 && strcmp(name, "port") != 0 && strcmp(name, "images") != 0)
		o->takes_vms = name;
}

static bool on_option(void *ctx, const char *name, const char *value)
{
	struct lazy_pages_opts *o = ctx;
	char what[256];

	if (!strcmp(name, "name"))
		o->replace.name = value;
	else if (!strcmp(name, "swap"))
		o->replace.swap = o->server.swap = value;
	else if (!strcmp(name, "images-dir"))
		o->replace.images = value;
	else if (!strcmp(name, "page-server"))
		o->replace.server = value;
	else if (!strcmp(name, "supervise"))
		o->supervise = true;
	else if (!strcmp(name, "serve"))
		o->serve = true;
	else if (!strcmp(name, "bury"))
		o->bury = value;
	else if (!strcmp(name, "qemu-pid"))
		o->qemu_pid = atoi(value);
	else if (!strcmp(name, "launch-fd"))
		o->launch_fd = atoi(value);
	else if (!strcmp(name, "lock-fd"))
		o->lock_fd = atoi(value);
	else {
		note_use(o, name, value);
		if (!server_option(&o->server, name, value, what))
			return true;
		cmd_usage_error(&cmd_lazy_pages, "%s", what);
		return false;
	}
	return true;
}

// The descriptor of the run directory that is locked, if it was handed down; else ours is locked now.
static void take_lock(struct run_dir *rd, int lock_fd)
{
	if (lock_fd >= 0) {
		close(rd->fd);
		rd->fd = lock_fd;
		fcntl(lock_fd, F_SETFD, FD_CLOEXEC);
		return;
	}
	while (flock(rd->fd, LOCK_EX) < 0 && errno == EINTR)
		;
}

// A process that ends with its VM: what a terminal or a service manager sends to the others must not end it.
static int be(const struct lazy_pages_opts *o, struct run_dir *rd)
{
	int r;

	prctl(PR_SET_NAME, "criu-vm"); // it may have been started as /proc/self/exe
	cmd_ignore_signals();
	log_init(STDERR_FILENO, log_max() > LOG_INFO ? log_max() : LOG_INFO, o->replace.name, true);
	if (o->launch_fd >= 0 && !o->supervise)
		fcntl(o->launch_fd, F_SETFD, FD_CLOEXEC);
	if (o->supervise) {
		r = supervisor_run(rd, o->qemu_pid, o->launch_fd, o->lock_fd);
	} else {
		take_lock(rd, o->lock_fd);
		r = o->bury ? supervisor_bury(rd, atoi(o->bury)) : vm_pager_run(rd, o->launch_fd);
		if (!o->bury && r == CMD_OK && !run_dir_is_held(rd, "supervisor")) // which would do it
			r = supervisor_bury(rd, -1);
	}
	run_dir_close(rd);
	return r;
}

static int serve(struct lazy_pages_opts *o, const struct cmd_common *common)
{
	if (o->replace.images)
		return cmd_usage_error(&cmd_lazy_pages, "-D goes with --name; a server takes no checkpoints, it may serve one (--images)");
	if (o->replace.server)
		return cmd_usage_error(&cmd_lazy_pages, "--page-server goes with --name");
	if (o->server.images && (o->takes_vms || o->server.swap))
		return cmd_usage_error(&cmd_lazy_pages, "--%s is for VMs that arrive, and does not go with --images",
				       o->takes_vms ? o->takes_vms : "swap");
	if (o->server.tls_creds && o->server.insecure)
		return cmd_usage_error(&cmd_lazy_pages, "--tls-creds or --insecure, not both");
	if (o->supervise || o->serve || o->bury)
		return cmd_usage_error(&cmd_lazy_pages, "--name is needed");
	o->server.run_dir = common->run_dir;
	o->server.log_file = common->log_file;
	o->server.json = common->json;
	leftovers_remove();
	migration_sweep();
	receive_tidy_all(common->run_dir);
	return server_run(&o->server);
}

static int take_over(const struct lazy_pages_opts *o, const struct cmd_common *common)
{
	struct run_dir rd;
	int r;

	if (o->server_only || (o->secures && !o->replace.server))
		return cmd_usage_error(&cmd_lazy_pages, "--%s is the server's, and does not go with --name",
				       o->server_only ? o->server_only : o->secures);
	if (o->server.tls_creds && o->server.insecure)
		return cmd_usage_error(&cmd_lazy_pages, "--tls-creds or --insecure, not both");
	if (!run_dir_name_ok(o->replace.name))
		return cmd_usage_error(&cmd_lazy_pages, "'%s' is no name of a VM", o->replace.name);
	if (!o->supervise && !o->serve && !o->bury)
		leftovers_remove();
	r = run_dir_open(common->run_dir, o->replace.name, &rd);
	if (r == -ENOENT)
		log_err("there is no VM '%s' here; criu-vm stat lists those that there are", o->replace.name);
	if (r)
		return CMD_FAILED;
	if (o->supervise || o->serve || o->bury)
		return be(o, &rd);
	r = replace_pager(&(struct replace_opts){ .name = o->replace.name, .swap = o->replace.swap, .images = o->replace.images,
						  .paging = o->replace.paging, .server = o->replace.server, .tls_creds = o->server.tls_creds, .insecure = o->server.insecure },
			  &rd);
	run_dir_close(&rd);
	return r;
}

static int run(int argc, char **argv)
{
	struct lazy_pages_opts o = { .launch_fd = -1, .lock_fd = -1, .server = { .port = WIRE_PORT, .tuning = PV_TUNING_DEFAULT } };
	struct cmd_common common;
	int rest, r = cmd_parse(&cmd_lazy_pages, argc, argv, &common, on_option, &o, &rest);

	if (r != CMD_GO_ON)
		return r;
	if (rest != argc)
		return cmd_usage_error(&cmd_lazy_pages, "what is '%s'?", argv[rest]);
	return o.replace.name ? take_over(&o, &common) : serve(&o, &common);
}

const struct cmd cmd_lazy_pages = { "lazy-pages", "[OPTION...]",
				    "take VMs from other hosts; serve a checkpoint to them; or give a VM another pager", options, run };
