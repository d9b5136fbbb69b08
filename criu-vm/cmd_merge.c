// SPDX-License-Identifier: GPL-2.0-only
#include <jansson.h>
#include <stdio.h>

#include "criu-vm/cmd.h"
#include "criu-vm/merge.h"
#include "util/clock.h"
#include "util/size.h"

static const struct cmd_option options[] = {
	{ 'o', "output", "DIR", "where the new checkpoint shall be; must not exist, or be empty" },
	{ 0 },
};

static bool on_option(void *ctx, const char *name, const char *value)
{
	(void)name;
	*(const char **)ctx = value;
	return true;
}

static void tell(const char *to, const struct merge_result *m, bool as_json, double seconds)
{
	char stored[16];
	json_t *j;

	if (!as_json) {
		printf("%s: %u director%s merged, %lu pages in %s, in %.2f s\n", to, m->layers, m->layers > 1 ? "ies" : "y", m->pages,
		       size_format(m->bytes, stored), seconds);
		return;
	}
	j = json_pack("{s:s? s:i s:I s:I s:f}", "images", to, "layers", (int)m->layers, "pages", (json_int_t)m->pages, "bytes",
		      (json_int_t)m->bytes, "seconds", seconds);
	json_dumpf(j, stdout, JSON_INDENT(1));
	putchar('\n');
	json_decref(j);
}

static int run(int argc, char **argv)
{
	struct cmd_common common;
	struct merge_result m;
	const char *to = NULL;
	uint64_t begun = clock_now_ns();
	int rest, r = cmd_parse(&cmd_merge, argc, argv, &common, on_option, &to, &rest);

	if (r != CMD_GO_ON)
		return r;
	if (argc - rest != 1 || !to)
		return cmd_usage_error(&cmd_merge, to ? "name one directory" : "-o DIR is needed");
	cmd_catch_signals();
	r = merge_run(argv[rest], to, &m);
	if (!r)
		tell(to, &m, common.json, (double)(clock_now_ns() - begun) / 1e9);
	return r ? CMD_FAILED : CMD_OK;
}

const struct cmd cmd_merge = { "merge", "DIR -o DIR", "make one checkpoint of a chain of them", options, run };
