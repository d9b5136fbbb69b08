// SPDX-License-Identifier: GPL-2.0-only
#include <errno.h>
#include <jansson.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "criu-vm/cmd.h"
#include "criu-vm/find_vm.h"
#include "criu-vm/leftovers.h"
#include "criu-vm/migrate.h"
#include "util/log.h"
#include "util/size.h"
#include "wire/preamble.h"

#define DOWNTIME_MS 300
#define CHANNELS_MAX 4 // of its own accord
#define ROUNDS 100
#define ROUNDS_MAX 100

static const struct cmd_option options[] = {
	{ 't', "tree", "PID", "the VM by its QEMU's pid" },
	{ 0, "name", "NAME", "of the VM there (default: the one it has)" },
	{ 0, "ram", "SIZE", "physical memory that its guest RAM may take there; the rest lives in a swap image (default: the server decides)" },
	{ 0, "swap", "PATH", "there: file or block device for the swap image, or a folder for it (default: the server decides)" },
	{ 0, "lazy", "[=auto]", "let it run there at once, its pages follow; auto: only if it writes faster than it can be moved" },
	{ 0, "max-rounds", "N", "rounds of memory that are sent while it runs here (100; with --lazy 0)" },
	{ 0, "downtime-limit", "MS", "stop the VM when it can be there within so many milliseconds (300)" },
	{ 0, "channels", "N", "connections that carry memory (one a CPU, at most 4)" },
	{ 0, "max-bandwidth", "RATE", "bytes a second, at most, as a SIZE: 100M" },
	{ 0, "compress", "zstd[:N]", "compress the pages, at level N (1)" },
	{ 0, "tls-creds", "DIR", "encrypt: the folder of ca-cert.pem, client-cert.pem and client-key.pem, or of keys.psk" },
	{ 0, "insecure", NULL, "to another host in the clear" },
	{ 0, "monitor-fd", "FD", NULL }, // resume: of the command that was killed
	{ 0, "token", "TOKEN", NULL },
	{ 0, "resume", NULL, "ask what became of a migration whose command was killed, and do what it says; serve pages that it needs yet" },
	{ 0 },
};

struct migrate_args {
	struct migrate_opts o;
	const char *pid;
	bool resume, rounds_said;
};

static bool parse_number(const char *name, const char *value, unsigned long min, unsigned long max, unsigned *number)
{
	char *end;
	unsigned long n = strtoul(value, &end, 10);

	if (*value >= '0' && *value <= '9' && !*end && n >= min && n <= max) {
		*number = (unsigned)n;
		return true;
	}
	cmd_usage_error(&cmd_migrate, "--%s %s is no number from %lu to %lu", name, value, min, max);
	return false;
}

static bool parse_size(const char *name, const char *value, uint64_t *bytes)
{
	if (!size_parse(value, bytes) && *bytes)
		return true;
	cmd_usage_error(&cmd_migrate, "--%s %s is no size; write for example 256M or 1.5G", name, value);
	return false;
}

static bool parse_lazy(const char *value, enum migrate_lazy *lazy)
{
	*lazy = value && !strcmp(value, "auto") ? MIGRATE_LAZY_AUTO : MIGRATE_LAZY;
	if (!value || !strcmp(value, "auto") || !strcmp(value, "yes"))
		return true;
	cmd_usage_error(&cmd_migrate, "--lazy=%s: say --lazy, or --lazy=auto", value);
	return false;
}

static bool on_option(void *ctx, const char *name, const char *value)
{
	struct migrate_args *a = ctx;
	struct migrate_opts *o = &a->o;

	if (!strcmp(name, "tree"))
		a->pid = value;
	else if (!strcmp(name, "name"))
		o->name = value;
	else if (!strcmp(name, "swap"))
		o->swap = value;
	else if (!strcmp(name, "tls-creds"))
		o->tls_creds = value;
	else if (!strcmp(name, "insecure"))
		o->insecure = true;
	else if (!strcmp(name, "monitor-fd"))
		o->monitor_fd = atoi(value);
	else if (!strcmp(name, "token"))
		o->token = value;
	else if (!strcmp(name, "resume"))
		a->resume = true;
	else if (!strcmp(name, "ram"))
		return parse_size(name, value, &o->ram);
	else if (!strcmp(name, "max-bandwidth"))
		return parse_size(name, value, &o->max_bandwidth);
	else if (!strcmp(name, "downtime-limit"))
		return parse_number(name, value, 1, 3600000, &o->downtime_ms);
	else if (!strcmp(name, "channels"))
		return parse_number(name, value, 1, WIRE_MAX_CHANNELS, &o->channels);
	else if (!strcmp(name, "lazy"))
		return parse_lazy(value, &o->lazy);
	else if (!strcmp(name, "max-rounds"))
		return (a->rounds_said = parse_number(name, value, 0, ROUNDS_MAX, &o->max_rounds));
	else
		return cmd_parse_compress(value, &o->zstd_level);
	return true;
}

static void tell_lazy(const struct migrate_result *m)
{
	char later[16], bytes[16];

	printf("  it ran there after %.2f s, without %s, of which it was given %s in %lu pages and %lu zero pages\n", (double)m->switch_ns / 1e9,
	       size_format(m->later_pages * PAGE_SIZE, later), size_format(m->served_bytes, bytes), m->served_pages, m->served_zero_pages);
}

static json_t *to_json(const char *host, const struct migrate_result *m)
{
	json_t *j = json_pack("{s:s s:s s:i s:b s:I s:I s:I s:f s:f s:f s:i s:I s:I s:I s:I s:I s:I s:I}", "name", m->name, "host", host, "pid", m->pid,
			      "running", m->running, "ram", (json_int_t)m->ram, "budget", (json_int_t)m->budget, "swap", (json_int_t)m->swap,
			      "seconds", (double)m->ns / 1e9, "downtime_ms", (double)m->stood_us / 1e3, "downtime_ms_destination",
			      (double)m->stood_there_us / 1e3, "rounds", (int)m->rounds, "bytes", (json_int_t)m->bytes, "pages",
			      (json_int_t)m->pages, "zero_pages", (json_int_t)m->zero_pages, "ram_pages", (json_int_t)m->ram_pages, "swap_pages",
			      (json_int_t)m->swap_pages, "page_ins", (json_int_t)m->page_ins, "page_outs", (json_int_t)m->page_outs);
	json_t *lazy = json_pack("{s:b s:b s:f s:I s:I s:I s:I}", "lazy", m->lazy, "ended", m->served == WIRE_LINE_ENDED, "switch_seconds",
				 (double)m->switch_ns / 1e9, "later_pages", (json_int_t)m->later_pages, "served_pages",
				 (json_int_t)m->served_pages, "served_zero_pages", (json_int_t)m->served_zero_pages, "served_bytes",
				 (json_int_t)m->served_bytes);

	json_object_update(j, lazy);
	json_decref(lazy);
	return j;
}

static void tell(const struct migrate_opts *o, const struct migrate_result *m, bool json)
{
	char ram[16], bytes[16], budget[16], in_ram[16], in_swap[16];

	if (json) {
		json_t *j = to_json(o->host, m);

		json_dumpf(j, stdout, JSON_INDENT(1));
		putchar('\n');
		json_decref(j);
		return;
	}
	printf("VM '%s' %s %s: %s of RAM, of which %s may be in memory there\n", m->name,
	       m->served == WIRE_LINE_ENDED ? "has ended on" : "is now on", o->host, size_format(m->ram, ram),
	       size_format(m->budget, budget));
	printf("  %.2f s, %u rounds, %s sent in %lu pages and %lu zero pages\n", (double)m->ns / 1e9, m->rounds, size_format(m->bytes, bytes), m->pages,
	       m->zero_pages);
	printf("  %s went into RAM, %s into the swap image; %lu pages were paged in, %lu out before it ran\n",
	       size_format(m->ram_pages * PAGE_SIZE, in_ram), size_format(m->swap_pages * PAGE_SIZE, in_swap), m->page_ins, m->page_outs);
	printf("  it stood still for %.1f ms, seen from there %.1f ms\n", (double)m->stood_us / 1e3, (double)m->stood_there_us / 1e3);
	if (m->lazy)
		tell_lazy(m);
}

static void tell_resumed(const struct migrate_resumed *m)
{
	char left[16];

	if (m->others)
		printf("VM '%s' is on %s; process %d serves its pages, %s are left\n", m->name, m->host, m->server,
		       size_format(m->pages_left * PAGE_SIZE, left));
	else if (m->lazy)
		printf("VM '%s' %s %s; here it was ended\n", m->name,
		       m->served == WIRE_LINE_ENDED ? "has ended, before all its pages had come, on" : "has all its pages on", m->host);
	else
		printf("%s\n", m->committed ? "the VM is there; here it was ended" : "the VM was not taken over; it goes on here");
}

static int resume(const struct migrate_opts *o, bool json)
{
	struct migrate_resumed m;
	int r = migrate_resume(o, &m);

	if (r)
		return r == -ESTALE || r == -EINTR ? CMD_ATTENTION : CMD_FAILED;
	if (json)
		printf("{\"committed\": %s, \"lazy\": %s, \"ended\": %s, \"server_pid\": %d, \"pages_left\": %lu}\n",
		       m.committed ? "true" : "false", m.lazy ? "true" : "false", m.served == WIRE_LINE_ENDED ? "true" : "false", m.server,
		       m.pages_left);
	else
		tell_resumed(&m);
	return CMD_OK;
}

static int move(const struct migrate_opts *o, bool json)
{
	struct migrate_result result;
	int r = migrate_run(o, &result);

	if (!r)
		tell(o, &result, json);
	return r == -ESTALE ? CMD_ATTENTION : r ? CMD_FAILED : CMD_OK;
}

static int run(int argc, char **argv)
{
	struct migrate_args a = { .o = { .downtime_ms = DOWNTIME_MS, .monitor_fd = -1 } };
	long cpus = sysconf(_SC_NPROCESSORS_ONLN);
	struct cmd_common common;
	char spec[PATH_MAX];
	int rest, nr, r = cmd_parse(&cmd_migrate, argc, argv, &common, on_option, &a, &rest);

	if (r != CMD_GO_ON)
		return r;
	nr = argc - rest + (a.pid != NULL);
	if (nr != 2 && !(nr == 1 && a.resume))
		return cmd_usage_error(&cmd_migrate, nr < 2 ? "VM and HOST are needed" : "what is '%s'?", argv[argc - 1]);
	if (a.o.name && !run_dir_name_ok(a.o.name))
		return cmd_usage_error(&cmd_migrate, "'%s' is no name of a VM", a.o.name);
	if (!a.rounds_said)
		a.o.max_rounds = a.o.lazy == MIGRATE_LAZY ? 0 : ROUNDS;
	if (!a.o.channels)
		a.o.channels = cpus < 1 ? 1 : cpus > CHANNELS_MAX ? CHANNELS_MAX : (unsigned)cpus;
	a.o.vm = a.pid ? a.pid : argv[rest];
	a.o.host = nr == 2 ? argv[argc - 1] : NULL;
	a.o.run_root = common.run_dir;
	leftovers_remove();
	cmd_catch_signals();
	if (a.resume)
		return resume(&a.o, common.json);
	if (find_vm(common.run_dir, a.o.vm, spec, sizeof spec))
		return CMD_FAILED;
	a.o.vm = spec;
	return move(&a.o, common.json);
}

const struct cmd cmd_migrate = { "migrate", "VM HOST[:PORT] [OPTION...]", "move a running VM to another host, where criu-vm lazy-pages waits for it",
				 options, run };
