// SPDX-License-Identifier: GPL-2.0-only
#include <stdio.h>

#include "criu-vm/cmd.h"
#include "images/show.h"

static const struct cmd_option options[] = { { 0 } };

static bool on_option(void *ctx, const char *name, const char *value)
{
	(void)ctx;
	(void)name;
	(void)value;
	return false; // it has none of its own
}

static int run(int argc, char **argv)
{
	struct cmd_common common;
	int rest, r = cmd_parse(&cmd_show, argc, argv, &common, on_option, NULL, &rest);
	bool failed = false;

	if (r != CMD_GO_ON)
		return r;
	if (rest == argc)
		return cmd_usage_error(&cmd_show, "which file?");
	for (int i = rest; i < argc; i++) {
		if (!common.json && argc - rest > 1)
			printf("%s%s:\n", i > rest ? "\n" : "", argv[i]);
		failed |= img_show(argv[i], common.json, stdout) != 0;
	}
	return failed ? CMD_FAILED : CMD_OK;
}

const struct cmd cmd_show = { "show", "FILE...", "print image files as text or JSON", options, run };
