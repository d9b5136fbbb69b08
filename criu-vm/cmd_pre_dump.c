// SPDX-License-Identifier: GPL-2.0-only
#include "criu-vm/dump_args.h"

static const struct cmd_option options[] = {
	{ 't', "tree", "PID", "the VM by its QEMU's pid" },
	{ 'D', "images-dir", "DIR", "where the pre-dump shall be; must not exist, or be empty" },
	{ 0, "prev-images-dir", "DIR", "store only what has changed since this one, which the pre-dump then needs" },
	{ 0, "compress", "zstd[:N]", "compress the pages, at level N (1)" },
	{ 0, "untrack", NULL, "no dump will follow: stop noting what the VM writes to" },
	{ 0 },
};

static int run(int argc, char **argv)
{
	struct dump_args a = { .o = { .stream_fd = -1, .pre = true, .then = DUMP_LEAVE_RUNNING } };
	struct cmd_common common;
	int rest, r = cmd_parse(&cmd_pre_dump, argc, argv, &common, dump_args_on_option, &a, &rest);

	return r == CMD_GO_ON ? dump_args_run(&cmd_pre_dump, &a, &common, argc - rest, argv + rest) : r;
}

const struct cmd cmd_pre_dump = { "pre-dump", "VM -D DIR [OPTION...]", "save the memory of a VM that runs on, for a dump to build upon", options, run };
