// SPDX-License-Identifier: GPL-2.0-only
#include <jansson.h>
#include <stdio.h>
#include <unistd.h>

#include "criu-vm/cmd.h"
#include "criu-vm/verify.h"
#include "util/log.h"
#include "util/size.h"

static const struct cmd_option options[] = {
	{ 0, "stream", NULL, "what dump --stream writes, on standard input" },
	{ 0 },
};

static bool on_option(void *ctx, const char *name, const char *value)
{
	(void)name;
	(void)value;
	return *(bool *)ctx = true; // there is but one
}

// Paths and messages may be no UTF-8.
static json_t *text(const char *s)
{
	json_t *j = json_string(s);

	return j ? j : json_string("?");
}

static json_t *layer(const struct verify_layer *l)
{
	char id[17];

	snprintf(id, sizeof id, "%016lx", img_dir_id(l->dir));
	return json_pack("{s:o s:s s:b s:I s:I s:I s:I}", "images", text(img_dir_path(l->dir)), "id", id, "ram_only",
			 img_dir_ram_only(l->dir), "chunks", (json_int_t)l->chunks, "compressed_chunks", (json_int_t)l->compressed, "pages", (json_int_t)l->pages,
			 "bytes", (json_int_t)l->bytes);
}

static void print_json(const char *dir, const struct verify *v)
{
	json_t *layers = json_array(), *problems = json_array(), *all;

	for (unsigned i = 0; i < v->nr_layers; i++)
		json_array_append_new(layers, layer(&v->layers[i]));
	for (unsigned i = 0; i < v->nr_problems; i++)
		json_array_append_new(problems, text(v->problems[i]));
	all = json_pack("{s:o s:b s:b s:I s:I s:o s:o}", "images", text(dir), "whole", v->whole, "restorable", v->restorable, "pages",
			(json_int_t)v->pages, "bytes", (json_int_t)v->bytes, "layers", layers, "problems", problems);
	json_dumpf(all, stdout, JSON_INDENT(1));
	putchar('\n');
	json_decref(all);
}

static void print(const char *dir, const struct verify *v, bool ram_only)
{
	char stored[16];

	printf("%s: whole, %s: %lu pages in %s", dir, ram_only ? "a pre-dump" : "can be restored", v->pages, size_format(v->bytes, stored));
	if (v->nr_layers > 1)
		printf(", in %u directories", v->nr_layers);
	putchar('\n');
}

static int run(int argc, char **argv)
{
	bool stream = false, good, ram_only;
	struct cmd_common common;
	struct verify v;
	int rest, r = cmd_parse(&cmd_verify, argc, argv, &common, on_option, &stream, &rest);
	const char *name;

	if (r != CMD_GO_ON)
		return r;
	if (argc - rest != !stream)
		return cmd_usage_error(&cmd_verify, stream ? "a --stream stands by itself" : "name one directory");
	if (stream && isatty(STDIN_FILENO))
		return cmd_usage_error(&cmd_verify, "standard input is a terminal; let the stream come from a file or a program");
	cmd_catch_signals();
	name = stream ? "the stream" : argv[rest];
	r = verify_run(stream ? NULL : name, &v);
	ram_only = v.images && img_dir_ram_only(v.images);
	good = !r && v.whole && (v.restorable || ram_only);
	if (!r && common.json)
		print_json(name, &v);
	else if (good)
		print(name, &v, ram_only);
	if (!r && v.nr_problems >= VERIFY_PROBLEMS_MAX)
		log_err("%s: %u problems; not all of it was looked at", name, v.nr_problems);
	else if (!r && v.whole && !good)
		log_err("%s: it is whole, but cannot be restored as things are: see above", name);
	verify_fini(&v);
	return good ? CMD_OK : CMD_FAILED;
}

const struct cmd cmd_verify = { "verify", "DIR|--stream", "check a checkpoint, and those that it is an increment of", options, run };
