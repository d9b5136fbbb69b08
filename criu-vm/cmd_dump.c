// SPDX-License-Identifier: GPL-2.0-only
#include "criu-vm/dump_args.h"

static const struct cmd_option options[] = {
	{ 't', "tree", "PID", "the VM by its QEMU's pid" },
	{ 'D', "images-dir", "DIR", "where the checkpoint shall be; must not exist, or be empty" },
	{ 0, "stream", NULL, "to standard output instead, as one stream" },
	{ 'R', "leave-running", NULL, "the VM runs on" },
	{ 's', "leave-stopped", NULL, "the VM stays, and stays stopped" },
	{ 0, "prev-images-dir", "DIR", "store only what has changed since this one, which the checkpoint then needs" },
	{ 0, "track-mem", NULL, "with -R: the next one can be an increment of this" },
	{ 0, "background", NULL, "with -R: the VM runs while its memory is copied, as it was at one instant" },
	{ 0, "disk-snapshot", NULL, "with -R: keep the disks as they are, too; the VM writes to new files over them" },
	{ 0, "compress", "zstd[:N]", "compress the pages, at level N (1)" },
	{ 0 },
};

static int run(int argc, char **argv)
{
	struct dump_args a = { .o.stream_fd = -1 };
	struct cmd_common common;
	int rest, r = cmd_parse(&cmd_dump, argc, argv, &common, dump_args_on_option, &a, &rest);

	return r == CMD_GO_ON ? dump_args_run(&cmd_dump, &a, &common, argc - rest, argv + rest) : r;
}

const struct cmd cmd_dump = { "dump", "VM -D DIR [OPTION...]", "save a running VM to a checkpoint, and end it or let it run on", options, run };
