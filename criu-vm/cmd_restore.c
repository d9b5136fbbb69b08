// SPDX-License-Identifier: GPL-2.0-only
#include <errno.h>
#include <jansson.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "criu-vm/cmd.h"
#include "criu-vm/leftovers.h"
#include "criu-vm/restore.h"
#include "util/clock.h"
#include "util/size.h"

static const struct cmd_option options[] = {
	{ 'D', "images-dir", "DIR", "the checkpoint" },
	{ 0, "stream", NULL, "from what dump --stream writes, on standard input" },
	{ 0, "name", "NAME", "of the VM on this host (default: the one it had, or DIR's)" },
	{ 0, "lazy-pages", NULL, "start at once; pages come from the images as they are touched" },
	{ 0, "page-server", "HOST[:PORT]", "with --lazy-pages, without -D: the checkpoint that 'lazy-pages --images' serves there" },
	{ 0, "tls-creds", "DIR", "with --page-server: encrypt, with these credentials, named as QEMU's" },
	{ 0, "insecure", NULL, "with --page-server: from another host in the clear" },
	{ 0, "user", "USER", "with --page-server: as whom QEMU runs (default: as whom it ran)" },
	{ 0, "fill", NULL, "with --lazy-pages: the rest comes in the background, until images or server are no longer needed" },
	{ 0, "ram", "SIZE", "physical memory that guest RAM may take; the rest lives in a swap image" },
	{ 0, "swap", "PATH", "file or block device for the swap image, or a folder for it (default /var/lib/criu-vm/swap)" },
	{ 0, "swap-sparse", NULL, "do not reserve the swap image's space" },
	{ 0, "paging", "KEY=VALUE[,...]", "with --ram or --lazy-pages: how it is paged: method, access, queue-bits, spin, folios" },
	{ 0, "qemu", "FILE", "another QEMU, as new or newer (default: the recorded one)" },
	{ 0, "force", NULL, "even if a disk has changed since the dump" },
	{ 0 },
};

struct restore_args {
	struct restore_opts o;
	bool stream, paging;
	char qemu[PATH_MAX];
};

static bool on_paging(struct restore_args *a, const char *value)
{
	char why[128];

	a->paging = true;
	if (pv_tuning_parse(value, &a->o.tuning, why))
		return true;
	cmd_usage_error(&cmd_restore, "--paging: %s", why);
	return false;
}

static bool on_option(void *ctx, const char *name, const char *value)
{
	struct restore_args *a = ctx;
	struct restore_opts *o = &a->o;

	if (!strcmp(name, "images-dir"))
		o->dir = value;
	else if (!strcmp(name, "stream"))
		a->stream = true;
	else if (!strcmp(name, "name"))
		o->name = value;
	else if (!strcmp(name, "lazy-pages"))
		o->lazy = true;
	else if (!strcmp(name, "page-server"))
		o->server = value;
	else if (!strcmp(name, "tls-creds"))
		o->tls_creds = value;
	else if (!strcmp(name, "insecure"))
		o->insecure = true;
	else if (!strcmp(name, "user"))
		o->user = value;
	else if (!strcmp(name, "fill"))
		o->fill = true;
	else if (!strcmp(name, "swap"))
		o->swap = value;
	else if (!strcmp(name, "swap-sparse"))
		o->swap_sparse = true;
	else if (!strcmp(name, "force"))
		o->force = true;
	else if (!strcmp(name, "qemu"))
		o->qemu = value;
	else if (!strcmp(name, "paging"))
		return on_paging(a, value);
	else if (!strcmp(name, "ram") && (size_parse(value, &o->ram) || !o->ram)) {
		cmd_usage_error(&cmd_restore, "--ram %s is no size; write for example 256M or 1.5G", value);
		return false;
	}
	return true;
}

static void tell(const struct restore *r, const struct cmd_common *common, double seconds)
{
	char ram[16], budget[16];

	if (common->json) {
		json_t *j = json_pack("{s:s s:i s:i s:i s:I s:I s:b s:f s:I s:I}", "name", r->name, "qemu_pid", (int)r->state.qemu,
				      "pager_pid", (int)r->launch.pager, "supervisor_pid", (int)r->launch.supervisor, "ram", (json_int_t)r->ram, "budget", (json_int_t)r->state.budget, "lazy", r->o->lazy,
				      "seconds", seconds, "pages_placed_in_ram", (json_int_t)r->nr_in_ram, "pages_placed_in_swap",
				      (json_int_t)r->nr_in_swap);

		json_dumpf(j, stdout, JSON_INDENT(1));
		putchar('\n');
		json_decref(j);
		return;
	}
	printf("%s: %s in %.2f s, QEMU is pid %d, %s of RAM", r->name, r->state.run ? "runs" : "restored, paused as it was,", seconds, r->state.qemu,
	       size_format(r->ram, ram));
	if (r->state.budget < r->ram)
		printf(" in %s of memory", size_format(r->state.budget, budget));
	printf("%s\n", r->o->fill ? "; pages come as they are touched, and in the background" : r->o->lazy ? "; pages come as they are touched" : "");
}

// QEMU is started in the folder that it was started in before.
static int find_qemu(struct restore_args *a)
{
	struct stat st;

	if (!a->o.qemu)
		return CMD_GO_ON;
	if (!realpath(a->o.qemu, a->qemu) || stat(a->qemu, &st) || access(a->qemu, X_OK))
		return cmd_usage_error(&cmd_restore, "--qemu %s cannot be run: %s", a->o.qemu, strerror(errno));
	if (!S_ISREG(st.st_mode))
		return cmd_usage_error(&cmd_restore, "--qemu %s cannot be run: it is no file", a->o.qemu);
	a->o.qemu = a->qemu;
	return CMD_GO_ON;
}

static const char *server_contradiction(const struct restore_args *a)
{
	if (!a->o.server)
		return a->o.tls_creds || a->o.insecure || a->o.user ? "--tls-creds, --insecure and --user go with --page-server" : NULL;
	if (a->o.dir || a->stream)
		return "--page-server says where the checkpoint is: without -D and --stream";
	if (!a->o.lazy)
		return "--page-server goes with --lazy-pages: the VM starts at once, its pages come from there as they are touched (with --fill, all of "
		       "them)";
	return a->o.tls_creds && a->o.insecure ? "--tls-creds or --insecure, not both" : NULL;
}

static const char *contradiction(const struct restore_args *a)
{
	const char *wrong = server_contradiction(a);

	if (wrong)
		return wrong;
	if (!a->o.dir && !a->stream && !a->o.server)
		return "-D DIR is needed, or --stream, or --page-server HOST";
	if (a->o.dir && a->stream)
		return "a --stream stands by itself, without -D";
	if (a->stream && a->o.lazy)
		return "a --stream cannot be read again: without --lazy-pages";
	if (a->stream && isatty(STDIN_FILENO))
		return "standard input is a terminal; let the stream come from a file or a program";
	if (a->o.name && !run_dir_name_ok(a->o.name))
		return "that is no --name: letters, digits, '.', '_' and '-', 64 at most, beginning with a letter or digit";
	if (a->o.fill && !a->o.lazy)
		return "--fill goes with --lazy-pages; without that, everything comes before the VM runs";
	if (a->paging && !a->o.lazy && !a->o.ram)
		return "--paging goes with --ram or --lazy-pages; without both, all of the VM is in plain memory";
	return NULL;
}

static int run(int argc, char **argv)
{
	struct restore_args a = { .o.tuning = PV_TUNING_DEFAULT };
	struct cmd_common common;
	struct restore restore;
	uint64_t begun = clock_now_ns();
	const char *wrong;
	int own = 1, rest, r;

	while (own < argc && strcmp(argv[own], "--")) // what stands behind it is QEMU's
		own++;
	r = cmd_parse(&cmd_restore, own, argv, &common, on_option, &a, &rest);
	if (r != CMD_GO_ON)
		return r;
	wrong = contradiction(&a);
	if (wrong)
		return cmd_usage_error(&cmd_restore, "%s", wrong);
	if (rest < own)
		return cmd_usage_error(&cmd_restore, "what is '%s'? QEMU's options go behind '--'", argv[rest]);
	r = find_qemu(&a);
	if (r != CMD_GO_ON)
		return r;
	a.o.run_dir = common.run_dir;
	a.o.log_file = common.log_file;
	a.o.replace = argv + own + (own < argc);
	a.o.nr_replace = argc - own - (own < argc);
	leftovers_remove();
	cmd_catch_signals();
	r = restore_run(&a.o, &restore);
	if (!r)
		tell(&restore, &common, (double)(clock_now_ns() - begun) / 1e9);
	restore_fini(&restore);
	return r ? CMD_FAILED : CMD_OK;
}

const struct cmd cmd_restore = { "restore", "-D DIR|--stream|--page-server HOST[:PORT] [OPTION...] [-- QEMU-OPTION...]",
				 "start a VM from a checkpoint", options, run };
