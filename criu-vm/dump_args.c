// SPDX-License-Identifier: GPL-2.0-only
#include "criu-vm/dump_args.h"

#include <errno.h>
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "criu-vm/find_vm.h"
#include "util/clock.h"
#include "util/log.h"
#include "util/size.h"

bool dump_args_on_option(void *ctx, const char *name, const char *value)
{
	struct dump_args *a = ctx;

	if (!strcmp(name, "tree"))
		a->pid = value;
	else if (!strcmp(name, "images-dir"))
		a->o.dir = value;
	else if (!strcmp(name, "prev-images-dir"))
		a->o.prev = value;
	else if (!strcmp(name, "leave-running"))
		a->o.then = DUMP_LEAVE_RUNNING;
	else if (!strcmp(name, "leave-stopped"))
		a->o.then = DUMP_LEAVE_STOPPED;
	else if (!strcmp(name, "track-mem"))
		a->o.track = true;
	else if (!strcmp(name, "background"))
		a->o.background = true;
	else if (!strcmp(name, "disk-snapshot"))
		a->o.disk_snapshot = true;
	else if (!strcmp(name, "stream"))
		a->o.stream_fd = STDOUT_FILENO;
	else if (!strcmp(name, "untrack"))
		a->untrack = true;
	else
		return cmd_parse_compress(value, &a->o.zstd_level);
	return true;
}

static void tell(const struct dump_opts *o, const struct dump_result *d, const struct cmd_common *common, double seconds)
{
	static const char *const ends[] = { [DUMP_KILL] = "has ended", [DUMP_LEAVE_STOPPED] = "is stopped", [DUMP_LEAVE_RUNNING] = "runs on" };
	FILE *out = o->dir ? stdout : stderr; // standard output is the stream
	char ram[16], stored[16], written[16], still[48] = "";

	if (common->json) {
		json_t *j = json_pack("{s:i s:s? s:I s:I s:I s:f s:f}", "pid", d->pid, "images", o->dir, "ram", (json_int_t)d->ram, "stored",
				      (json_int_t)d->stored, "written", (json_int_t)d->written, "seconds", seconds, "stopped_seconds",
				      (double)d->stopped_ns / 1e9);

		json_dumpf(j, out, JSON_INDENT(1));
		fputc('\n', out);
		json_decref(j);
		return;
	}
	if (o->then == DUMP_LEAVE_RUNNING && d->stopped_ns)
		snprintf(still, sizeof still, " after it stood still for %.1f ms", (double)d->stopped_ns / 1e6);
	fprintf(out, "%s: %s of %s of RAM stored", o->dir ? o->dir : "the stream", size_format(d->stored, stored), size_format(d->ram, ram));
	if (d->written != d->stored)
		fprintf(out, " as %s", size_format(d->written, written));
	fprintf(out, " in %.2f s; QEMU %d %s%s\n", seconds, d->pid, ends[o->then], still);
}

static bool is_file(int fd)
{
	struct stat st;

	return !fstat(fd, &st) && S_ISREG(st.st_mode);
}

static const char *contradiction(const struct dump_args *a)
{
	const struct dump_opts *o = &a->o;

	if (a->untrack)
		return o->dir || o->prev || o->zstd_level ? "--untrack stands alone" : NULL;
	if (o->stream_fd < 0 && !o->dir)
		return o->pre ? "-D DIR is needed" : "-D DIR is needed, or --stream";
	if (o->stream_fd >= 0 && (o->dir || o->prev))
		return "a --stream stands by itself, without -D and --prev-images-dir";
	if (o->stream_fd >= 0 && isatty(o->stream_fd))
		return "standard output is a terminal; send the stream to a file or a program";
	if (o->stream_fd >= 0 && o->then == DUMP_KILL && !is_file(o->stream_fd))
		return "nobody knows whether the other end of a pipe has got all of the stream: add -R (the VM runs on) or -s (it stays, stopped)";
	if (o->stream_fd >= 0 && o->track)
		return "an increment needs a directory to build upon: --track-mem goes with -D";
	if (o->background && o->then != DUMP_LEAVE_RUNNING)
		return "--background is for a VM that runs on: add -R";
	if (o->background && (o->prev || o->track))
		return "--background makes whole checkpoints, without --prev-images-dir and --track-mem";
	if (o->track && o->then == DUMP_KILL)
		return "--track-mem is for a VM that runs on: add -R";
	if (o->disk_snapshot && o->then != DUMP_LEAVE_RUNNING)
		return "--disk-snapshot is for a VM that runs on: add -R";
	return NULL;
}

int dump_args_run(const struct cmd *cmd, struct dump_args *a, const struct cmd_common *common, int nr_words, char **words)
{
	uint64_t begun = clock_now_ns();
	const char *wrong = contradiction(a);
	struct dump_result result;
	char spec[PATH_MAX];
	int r;

	if (wrong || nr_words + !!a->pid != 1)
		return cmd_usage_error(cmd, "%s", wrong ? wrong : "name one VM: a NAME, a pid, or a QMP socket");
	cmd_catch_signals();
	r = find_vm(common->run_dir, a->pid ? a->pid : words[0], spec, sizeof spec);
	if (r)
		return CMD_FAILED;
	a->o.vm = spec;
	a->o.run_root = common->run_dir;
	if (a->untrack)
		return dump_untrack(&a->o) ? CMD_FAILED : CMD_OK;
	r = dump_run(&a->o, &result);
	if (!r)
		tell(&a->o, &result, common, (double)(clock_now_ns() - begun) / 1e9);
	return !r ? CMD_OK : r == -ESTALE ? CMD_ATTENTION : CMD_FAILED;
}
