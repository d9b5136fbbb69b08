// SPDX-License-Identifier: GPL-2.0-only
// What `dump` and `pre-dump` have in common as commands.
#pragma once
#include <limits.h>

#include "criu-vm/cmd.h"
#include "criu-vm/dump.h"

struct dump_args {
	const char *pid;
	bool untrack;
	struct dump_opts o;
};

// For cmd_parse(); ctx: struct dump_args.
bool dump_args_on_option(void *ctx, const char *name, const char *value);
// Runs what the arguments say, and tells of it. words: what is left of the command line. The exit status.
int dump_args_run(const struct cmd *cmd, struct dump_args *a, const struct cmd_common *common, int nr_words, char **words);
