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
#include "criu-vm/stat_screen.h"
#include "criu-vm/stat_vm.h"
#include "util/cleanup.h"
#include "util/clock.h"
#include "util/log.h"

static const struct cmd_option options[] = {
	{ 'w', "watch", NULL, "again each second, with rates, until Ctrl-C" },
	{ 0, "rounds", "N", NULL }, // of --watch
	{ 0 },
};

struct stat_args {
	const char *name; // NULL: all VMs
	bool watch;
	unsigned long rounds;
	struct cmd_common common;
};

static bool on_option(void *ctx, const char *name, const char *value)
{
	struct stat_args *a = ctx;
	char *end;

	if (!strcmp(name, "watch")) {
		a->watch = true;
		return true;
	}
	a->rounds = strtoul(value, &end, 10);
	if (*value && !*end)
		return true;
	cmd_usage_error(&cmd_stat, "--rounds %s is no number", value);
	return false;
}

// The VM, or the array of all. -ENOENT is not logged.
static int ask(const struct stat_args *a, json_t **what)
{
	return a->name ? stat_ask(a->common.run_dir, a->name, what) : stat_ask_all(a->common.run_dir, what);
}

static void print(FILE *f, const struct stat_args *a, const json_t *now, const json_t *before)
{
	if (a->common.json) {
		json_dumpf(now, f, a->watch ? JSON_COMPACT : JSON_INDENT(1));
		fputc('\n', f);
	} else if (a->name) {
		stat_print_vm(f, now, before);
	} else {
		stat_print_table(f, now, before, a->common.run_dir);
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
	int r = ask(a, &now);

	if (!r)
		print(stdout, a, now, NULL);
	json_decref(now);
	return !r ? CMD_OK : r == -ENOENT ? unknown(a) : CMD_FAILED;
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

static int show_round(const struct stat_args *a, bool screen, bool first, const json_t *now, const json_t *before)
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
		print(stdout, a, now, before);
		return fflush(stdout) ? -errno : 0;
	}
	f = open_memstream(&text, &len);
	if (!f)
		return -errno;
	localtime_r(&t, &tm);
	strftime(clock, sizeof clock, "%T", &tm);
	fprintf(f, "criu-vm stat   %s   Ctrl-C ends\n\n", clock);
	print(f, a, now, before);
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

static int watch(const struct stat_args *a)
{
	bool screen = !a->common.json && isatty(STDOUT_FILENO);
	json_t *before = NULL, *now = NULL;
	int r = 0;
	unsigned long round = 0;

	cmd_catch_signals();
	if (screen && !a->common.log_file)
		log_init(-1, LOG_ERROR, NULL, false); // nobody writes over the screen: what is wrong with a VM is told on it
	while (!cmd_interrupted() && (!a->rounds || round < a->rounds)) {
		uint64_t begun = clock_now_ns();

		now = NULL;
		r = ask(a, &now);
		if (r)
			break;
		if (screen && !round)
			fputs(SCREEN_ENTER, stdout);
		r = show_round(a, screen, !round, now, before);
		json_decref(before);
		before = now;
		if (r)
			break;
		if (++round != a->rounds)
			sleep_until(begun + NSEC_PER_SEC);
	}
	json_decref(before);
	if (screen && round) {
		fputs(SCREEN_LEAVE, stdout);
		fflush(stdout);
	}
	if (screen && !a->common.log_file)
		log_init(STDERR_FILENO, LOG_WARN, "criu-vm", false);
	if (r == -ENOENT && round) {
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
	if (rest < argc)
		a.name = argv[rest];
	return a.watch ? watch(&a) : once(&a);
}

const struct cmd cmd_stat = { "stat", "[NAME] [OPTION...]", "what runs here: memory, faults, what waits and why", options, run };
