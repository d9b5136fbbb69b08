// SPDX-License-Identifier: GPL-2.0-only
#include <errno.h>
#include <jansson.h>
#include <limits.h>
#include <stdio.h>
#include <string.h>

#include "criu-vm/cmd.h"
#include "criu-vm/dump.h"
#include "criu-vm/find_vm.h"
#include "util/clock.h"
#include "util/log.h"
#include "util/size.h"

static const struct cmd_option options[] = {
	{ 't', "tree", "PID", "the VM by its QEMU's pid" },
	{ 'D', "images-dir", "DIR", "where the checkpoint shall be; must not exist, or be empty" },
	{ 0 },
};

struct dump_args {
	const char *pid, *dir;
};

static bool on_option(void *ctx, const char *name, const char *value)
{
	struct dump_args *a = ctx;

	*(!strcmp(name, "tree") ? &a->pid : &a->dir) = value;
	return true;
}

static void tell(const struct dump_opts *o, const struct dump_result *d, const struct cmd_common *common, double seconds)
{
	char ram[16], stored[16];

	if (common->json) {
		json_t *j = json_pack("{s:i s:s s:I s:I s:f s:f}", "pid", d->pid, "images", o->dir, "ram", (json_int_t)d->ram, "stored",
				      (json_int_t)d->stored, "seconds", seconds, "stopped_seconds", (double)d->stopped_ns / 1e9);

		json_dumpf(j, stdout, JSON_INDENT(1));
		putchar('\n');
		json_decref(j);
		return;
	}
	printf("%s: %s of %s of RAM stored in %.2f s; QEMU %d has ended\n", o->dir, size_format(d->stored, stored), size_format(d->ram, ram), seconds,
	       d->pid);
}

static int run(int argc, char **argv)
{
	struct dump_args a = { 0 };
	struct dump_opts o;
	struct dump_result result;
	struct cmd_common common;
	uint64_t begun = clock_now_ns();
	char spec[PATH_MAX];
	int rest, r = cmd_parse(&cmd_dump, argc, argv, &common, on_option, &a, &rest);

	if (r != CMD_GO_ON)
		return r;
	if (!a.dir || (argc - rest) + !!a.pid != 1)
		return cmd_usage_error(&cmd_dump, !a.dir ? "-D DIR is needed" : "name one VM: a NAME, a pid, or a QMP socket");
	cmd_catch_signals();
	r = find_vm(common.run_dir, a.pid ? a.pid : argv[rest], spec, sizeof spec);
	if (r)
		return CMD_FAILED;
	o = (struct dump_opts){ .vm = spec, .dir = a.dir };
	r = dump_run(&o, &result);
	if (!r)
		tell(&o, &result, &common, (double)(clock_now_ns() - begun) / 1e9);
	return !r ? CMD_OK : r == -ESTALE ? CMD_ATTENTION : CMD_FAILED;
}

const struct cmd cmd_dump = { "dump", "VM -D DIR [OPTION...]", "save a running VM to a checkpoint, and end it", options, run };
