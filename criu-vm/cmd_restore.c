// SPDX-License-Identifier: GPL-2.0-only
#include <errno.h>
#include <jansson.h>
#include <stdio.h>
#include <string.h>

#include "criu-vm/cmd.h"
#include "criu-vm/leftovers.h"
#include "criu-vm/restore.h"
#include "util/clock.h"
#include "util/size.h"

static const struct cmd_option options[] = {
	{ 'D', "images-dir", "DIR", "the checkpoint" },
	{ 0, "name", "NAME", "of the VM on this host (default: the one it had, or DIR's)" },
	{ 0, "lazy-pages", NULL, "start at once; pages come from the images as they are touched" },
	{ 0, "fill", NULL, "with --lazy-pages: the rest comes in the background, until the images are no longer needed" },
	{ 0, "ram", "SIZE", "physical memory that guest RAM may take; the rest lives in a swap image" },
	{ 0, "swap", "PATH", "file or block device for the swap image, or a folder for it (default /var/lib/criu-vm/swap)" },
	{ 0, "swap-sparse", NULL, "do not reserve the swap image's space" },
	{ 0 },
};

static bool on_option(void *ctx, const char *name, const char *value)
{
	struct restore_opts *o = ctx;

	if (!strcmp(name, "images-dir"))
		o->dir = value;
	else if (!strcmp(name, "name"))
		o->name = value;
	else if (!strcmp(name, "lazy-pages"))
		o->lazy = true;
	else if (!strcmp(name, "fill"))
		o->fill = true;
	else if (!strcmp(name, "swap"))
		o->swap = value;
	else if (!strcmp(name, "swap-sparse"))
		o->swap_sparse = true;
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

static int run(int argc, char **argv)
{
	struct restore_opts o = { 0 };
	struct cmd_common common;
	struct restore restore;
	uint64_t begun = clock_now_ns();
	int own = 1, rest, r;

	while (own < argc && strcmp(argv[own], "--")) // what stands behind it is QEMU's
		own++;
	r = cmd_parse(&cmd_restore, own, argv, &common, on_option, &o, &rest);
	if (r != CMD_GO_ON)
		return r;
	if (!o.dir)
		return cmd_usage_error(&cmd_restore, "-D DIR is needed");
	if (o.name && !run_dir_name_ok(o.name))
		return cmd_usage_error(&cmd_restore, "'%s' is no name: letters, digits, '.', '_' and '-', 64 at most, beginning with a letter or digit", o.name);
	if (o.fill && !o.lazy)
		return cmd_usage_error(&cmd_restore, "--fill goes with --lazy-pages; without that, everything comes before the VM runs");
	if (rest < own)
		return cmd_usage_error(&cmd_restore, "what is '%s'? QEMU's options go behind '--'", argv[rest]);
	o.run_dir = common.run_dir;
	o.log_file = common.log_file;
	o.replace = argv + own + (own < argc);
	o.nr_replace = argc - own - (own < argc);
	leftovers_remove();
	cmd_catch_signals();
	r = restore_run(&o, &restore);
	if (!r)
		tell(&restore, &common, (double)(clock_now_ns() - begun) / 1e9);
	restore_fini(&restore);
	return r ? CMD_FAILED : CMD_OK;
}

const struct cmd cmd_restore = { "restore", "-D DIR [OPTION...] [-- QEMU-OPTION...]", "start a VM from a checkpoint", options, run };
