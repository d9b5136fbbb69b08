// SPDX-License-Identifier: GPL-2.0-only
#include <errno.h>
#include <jansson.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <time.h>
#include <unistd.h>

#include "criu-vm/cmd.h"
#include "criu-vm/leaving.h"
#include "criu-vm/leftovers.h"
#include "criu-vm/stat_interval.h"
#include "criu-vm/stat_missing.h"
#include "criu-vm/stat_prometheus.h"
#include "criu-vm/stat_screen.h"
#include "criu-vm/stat_vm.h"
#include "util/cleanup.h"
#include "util/clock.h"
#include "util/log.h"

static const struct cmd_option options[] = {
	{ 'w', "watch", NULL, "again each second, until Ctrl-C; rates and latencies are of that second" },
	{ 0, "missing", NULL, "which pages of NAME only another host has" },
	{ 0, "prometheus", NULL, "print metrics, for node exporter's textfile collector" },
	{ 0, "rounds", "N", NULL }, // of --watch
	{ 0 },
};

struct stat_args {
	const char *name; // NULL: all VMs
	bool watch, missing, prometheus;
	unsigned long rounds;
	struct cmd_common common;
};

static bool on_option(void *ctx, const char *name, const char *value)
{
	struct stat_args *a = ctx;
	char *end;

	if (strcmp(name, "rounds") != 0) {
		*(!strcmp(name, "watch") ? &a->watch : !strcmp(name, "missing") ? &a->missing : &a->prometheus) = true;
		return true;
	}
	a->rounds = strtoul(value, &end, 10);
	if (*value && !*end)
		return true;
	cmd_usage_error(&cmd_stat, "--rounds %s is no number", value);
	return false;
}

static const json_t *find(const json_t *vms, const json_t *vm)
{
	size_t i;
	json_t *other;

	json_array_foreach(vms, i, other)
		if (json_equal(json_object_get(vm, "name"), json_object_get(other, "name")))
			return other;
	return NULL;
}

// Those that have left, and have pages here yet: all, or the one that is asked for.
static void add_leaving(const struct stat_args *a, json_t *vms)
{
	json_t *left, *vm;
	size_t i;

	if (leaving_list(&left))
		return;
	json_array_foreach(left, i, vm)
		if (!a->name || !strcmp(a->name, json_string_value(json_object_get(vm, "name"))))
			json_array_append(vms, vm);
	json_decref(left);
}

static int ask_for(const struct stat_args *a, json_t **vms)
{
	json_t *vm = NULL;
	int r = a->name ? stat_ask(a->common.run_dir, a->name, &vm) : stat_ask_all(a->common.run_dir, vms);

	if (a->name && (!r || r == -ENOENT))
		*vms = vm ? json_pack("[o]", vm) : json_array();
	else if (r)
		return r;
	if (!*vms)
		return -ENOMEM;
	if (!a->name || r)
		add_leaving(a, *vms);
	if (!r || json_array_size(*vms))
		return 0;
	json_decref(*vms);
	*vms = NULL;
	return r;
}

// An array: the VM, or all. before: what it was a moment ago, or NULL. -ENOENT is not logged.
static int ask(const struct stat_args *a, const json_t *before, json_t **vms)
{
	json_t *vm;
	size_t i;
	int r = ask_for(a, vms);

	if (r)
		return r;
	json_array_foreach(*vms, i, vm)
		if (stat_is_paged(vm))
			stat_add_interval(vm, find(before, vm));
	return 0;
}

static void print(FILE *f, const struct stat_args *a, const json_t *vms, const json_t *history)
{
	const json_t *vm = a->name ? json_array_get(vms, 0) : NULL;
	struct stat_pen pen = stat_pen(f, isatty(STDOUT_FILENO));

	if (a->common.json) {
		json_dumpf(vm ? vm : vms, f, a->watch ? JSON_COMPACT : JSON_INDENT(1));
		fputc('\n', f);
	} else if (a->prometheus) {
		stat_print_prometheus(f, vms);
	} else if (vm) {
		stat_print_vm(&pen, vm, history);
	} else {
		stat_print_table(&pen, vms, a->common.run_dir);
	}
}

static int unknown(const struct stat_args *a)
{
	log_err("there is no VM '%s' in %s; 'criu-vm stat' lists those that there are", a->name, a->common.run_dir);
	return CMD_FAILED;
}

static int once(const struct stat_args *a)
{
	json_t *now = NULL;
	int r = ask(a, NULL, &now);

	if (!r)
		print(stdout, a, now, NULL);
	json_decref(now);
	return !r ? CMD_OK : r == -ENOENT ? unknown(a) : CMD_FAILED;
}

static int show_missing(const struct stat_args *a)
{
	json_t *missing = NULL;
	int r = stat_missing(a->common.run_dir, a->name, &missing);

	if (r)
		return r == -ENOENT ? unknown(a) : CMD_FAILED;
	if (a->common.json) {
		json_dumpf(missing, stdout, JSON_INDENT(1));
		putchar('\n');
	} else {
		stat_print_missing(stdout, missing);
	}
	json_decref(missing);
	return CMD_OK;
}

// The alternate screen, without cursor; lines longer than it is wide are cut.
#define SCREEN_ENTER "\033[?1049h\033[?25l\033[?7l"
#define SCREEN_LEAVE "\033[?7h\033[?25h\033[?1049l"

// Draws over what is there, so that nothing flickers.
static void redraw(const char *text)
{
	struct winsize w = { .ws_row = 0 };
	unsigned rows = ioctl(STDOUT_FILENO, TIOCGWINSZ, &w) || !w.ws_row ? UINT_MAX : w.ws_row;

	fputs("\033[H", stdout);
	for (unsigned row = 1; *text && row < rows; row++) {
		size_t len = strcspn(text, "\n");

		printf("%.*s\033[K\n", (int)len, text);
		text += len + (text[len] == '\n');
	}
	fputs("\033[J", stdout);
}

static int show_round(const struct stat_args *a, bool screen, bool first, const json_t *now, const json_t *history)
{
	_cleanup_free_ char *text = NULL;
	size_t len;
	time_t t = time(NULL);
	struct tm tm;
	char clock[32] = "";
	FILE *f;

	if (!screen) {
		if (!first && !a->common.json)
			putchar('\n');
		print(stdout, a, now, history);
		return fflush(stdout) ? -errno : 0;
	}
	f = open_memstream(&text, &len);
	if (!f)
		return -errno;
	localtime_r(&t, &tm);
	strftime(clock, sizeof clock, "%T", &tm);
	fprintf(f, "criu-vm stat   %s   Ctrl-C ends\n\n", clock);
	print(f, a, now, history);
	if (fclose(f))
		return -ENOMEM;
	redraw(text);
	return fflush(stdout) ? -errno : 0;
}

// Sleeps until the time at, or a signal.
static void sleep_until(uint64_t at)
{
	struct timespec ts = { .tv_sec = (time_t)(at / NSEC_PER_SEC), .tv_nsec = (long)(at % NSEC_PER_SEC) };

	if (!cmd_interrupted())
		clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &ts, NULL);
}

// Of one VM, what was in the last rounds.
static void remember(json_t *history, const json_t *vms)
{
	json_t *interval = json_object_get(json_array_get(vms, 0), "interval");

	if (interval)
		json_array_append(history, interval);
	if (json_array_size(history) > STAT_HISTORY)
		json_array_remove(history, 0);
}

// Rounds until a signal, the last one, or an error; *rounds were shown.
static int watch_rounds(const struct stat_args *a, bool screen, unsigned long *rounds)
{
	json_t *history = json_array(), *before = NULL;
	int r = 0;

	while (!r && !cmd_interrupted() && (!a->rounds || *rounds < a->rounds)) {
		uint64_t begun = clock_now_ns();
		json_t *now = NULL;

		r = ask(a, before, &now);
		if (r)
			break;
		if (before && a->name)
			remember(history, now);
		if (screen && !*rounds)
			fputs(SCREEN_ENTER, stdout);
		r = show_round(a, screen, !*rounds, now, history);
		json_decref(before);
		before = now;
		if (++*rounds != a->rounds && !r)
			sleep_until(begun + NSEC_PER_SEC);
	}
	json_decref(before);
	json_decref(history);
	return r;
}

static int watch(const struct stat_args *a)
{
	bool screen = !a->common.json && isatty(STDOUT_FILENO);
	unsigned long rounds = 0;
	int r;

	cmd_catch_signals();
	if (screen && !a->common.log_file)
		log_init(-1, LOG_ERROR, NULL, false); // nobody writes over the screen: what is wrong with a VM is told on it
	r = watch_rounds(a, screen, &rounds);
	if (screen && rounds) {
		fputs(SCREEN_LEAVE, stdout);
		fflush(stdout);
	}
	if (screen && !a->common.log_file)
		log_init(STDERR_FILENO, LOG_WARN, "criu-vm", false);
	if (r == -ENOENT && rounds) {
		if (!a->common.json)
			printf("%s has ended\n", a->name);
		return CMD_OK;
	}
	if (r == -ENOENT)
		return unknown(a);
	return !r || r == -EPIPE ? CMD_OK : CMD_FAILED;
}

static int run(int argc, char **argv)
{
	struct stat_args a = { 0 };
	int rest, r = cmd_parse(&cmd_stat, argc, argv, &a.common, on_option, &a, &rest);

	if (r != CMD_GO_ON)
		return r;
	if (argc - rest > 1)
		return cmd_usage_error(&cmd_stat, "one NAME, or none for all VMs; what is '%s'?", argv[rest + 1]);
	if (a.prometheus && (a.watch || a.common.json))
		return cmd_usage_error(&cmd_stat, "--prometheus prints once, and in a format of its own");
	if (rest < argc)
		a.name = argv[rest];
	if (a.missing && (!a.name || a.watch || a.prometheus))
		return cmd_usage_error(&cmd_stat, "--missing is of one NAME, and prints once");
	if (a.missing)
		return show_missing(&a);
	leftovers_remove();
	return a.watch ? watch(&a) : once(&a);
}

const struct cmd cmd_stat = { "stat", "[NAME] [OPTION...]", "what runs here: memory, faults, what waits and why", options, run };
