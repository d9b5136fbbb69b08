// SPDX-License-Identifier: GPL-2.0-only
// The pager of a VM, as restore starts it.
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <unistd.h>

#include "criu-vm/cmd.h"
#include "criu-vm/vm_pager.h"
#include "util/log.h"

static const struct cmd_option options[] = {
	{ 0, "name", "NAME", "the VM to serve" },
	{ 0, "launch-fd", "FD", NULL }, // the line to the restore
	{ 0, "lock-fd", "FD", NULL },   // the run directory, locked
	{ 0 },
};

struct lazy_pages_opts {
	const char *name;
	int launch_fd, lock_fd;
};

static bool on_option(void *ctx, const char *name, const char *value)
{
	struct lazy_pages_opts *o = ctx;

	if (!strcmp(name, "name"))
		o->name = value;
	else
		*(!strcmp(name, "launch-fd") ? &o->launch_fd : &o->lock_fd) = atoi(value);
	return true;
}

static int run(int argc, char **argv)
{
	struct lazy_pages_opts o = { .launch_fd = -1, .lock_fd = -1 };
	struct cmd_common common;
	struct run_dir rd;
	int rest, r = cmd_parse(&cmd_lazy_pages, argc, argv, &common, on_option, &o, &rest);

	if (r != CMD_GO_ON)
		return r;
	if (!o.name || rest != argc)
		return cmd_usage_error(&cmd_lazy_pages, o.name ? "what is '%s'?" : "--name is needed%s", o.name ? argv[rest] : "");
	if (!run_dir_name_ok(o.name))
		return cmd_usage_error(&cmd_lazy_pages, "'%s' is no name of a VM", o.name);
	r = run_dir_open(common.run_dir, o.name, &rd);
	if (r == -ENOENT)
		log_err("there is no VM '%s' here; criu-vm stat lists those that there are", o.name);
	if (r)
		return CMD_FAILED;
	if (o.launch_fd < 0 || o.lock_fd < 0) {
		if (run_dir_is_locked(&rd))
			log_err("VM '%s' has a pager, which serves it", o.name);
		else
			log_err("VM '%s' has lost its pager; this version cannot give it another one: the I/O of the dead one might still land", o.name);
		run_dir_close(&rd);
		return CMD_FAILED;
	}
	close(rd.fd);
	rd.fd = o.lock_fd;
	fcntl(o.lock_fd, F_SETFD, FD_CLOEXEC);
	fcntl(o.launch_fd, F_SETFD, FD_CLOEXEC);
	prctl(PR_SET_NAME, "criu-vm"); // it was started as /proc/self/exe
	// It ends with its VM: what a terminal or a service manager sends to the others must not end it.
	cmd_ignore_signals();
	log_init(STDERR_FILENO, log_max() > LOG_INFO ? log_max() : LOG_INFO, o.name, true);
	return vm_pager_run(&rd, o.launch_fd);
}

const struct cmd cmd_lazy_pages = { "lazy-pages", "--name NAME", "serve the pages of a VM; 'restore' starts one for each VM", options, run };
