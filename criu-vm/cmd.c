// SPDX-License-Identifier: GPL-2.0-only
#include "criu-vm/cmd.h"

#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <jansson.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "criu-vm/run_dir.h"
#include "util/log.h"
#include "util/size.h"

#define ZSTD_LEVEL_DEFAULT 1
#define ZSTD_LEVEL_MAX 19

#define MAX_OPTIONS 40

static const struct cmd_option common_options[] = {
	{ 0, "run-dir", "DIR", "where the VMs that run here are recorded (default " RUN_DIR_DEFAULT ")" },
	{ 'o', "log-file", "FILE", "write messages there" },
	{ 'v', "verbose", NULL, "say more; twice for everything" },
	{ 0, "json", NULL, "print for programs" },
	{ 'h', "help", NULL, "print this help" },
	{ 0 },
};

static volatile sig_atomic_t interrupted;

// What asks for an end; and what would end or stop us in the middle of something, where an error is told by errno as well.
static const int ending[] = { SIGINT, SIGTERM, SIGHUP, SIGQUIT }, unwanted[] = { SIGPIPE, SIGXFSZ, SIGTSTP, SIGUSR1, SIGUSR2, SIGALRM };

static void on_signal(int sig)
{
	interrupted = sig;
}

void cmd_catch_signals(void)
{
	struct sigaction sa = { .sa_handler = on_signal }, was;

	for (size_t i = 0; i < ARRAY_SIZE(ending); i++)
		if (!sigaction(ending[i], NULL, &was) && was.sa_handler != SIG_IGN) // nohup means it
			sigaction(ending[i], &sa, NULL);
	for (size_t i = 0; i < ARRAY_SIZE(unwanted); i++)
		signal(unwanted[i], SIG_IGN);
}

bool cmd_interrupted(void)
{
	return interrupted;
}

void cmd_ignore_signals(void)
{
	for (size_t i = 0; i < ARRAY_SIZE(ending); i++)
		signal(ending[i], SIG_IGN);
	for (size_t i = 0; i < ARRAY_SIZE(unwanted); i++)
		signal(unwanted[i], SIG_IGN);
}

void cmd_default_signals(void)
{
	for (size_t i = 0; i < ARRAY_SIZE(ending); i++)
		signal(ending[i], SIG_DFL);
	for (size_t i = 0; i < ARRAY_SIZE(unwanted); i++)
		signal(unwanted[i], SIG_DFL);
}

static bool may_be_left_out(const struct cmd_option *o)
{
	return o->arg && *o->arg == '[';
}

static bool has_letter(const struct cmd_option *o, char letter)
{
	while (o->name && o->letter != letter)
		o++;
	return o->name && letter;
}

// taken: options that come first, with their letters.
static void print_options(const struct cmd_option *o, const struct cmd_option *taken)
{
	for (; o->name; o++) {
		char left[48], letter = has_letter(taken, o->letter) ? 0 : o->letter;

		if (!o->help)
			continue;
		snprintf(left, sizeof left, "%c%c%s --%s%s%s", letter ? '-' : ' ', letter ? letter : ' ', letter ? "," : " ", o->name,
			 o->arg && !may_be_left_out(o) ? " " : "", o->arg ? o->arg : "");
		printf("  %-28s %s\n", left, o->help);
	}
}

void cmd_help(const struct cmd *cmd)
{
	printf("usage: criu-vm %s %s\n%s\n\n", cmd->name, cmd->synopsis, cmd->summary);
	print_options(cmd->options, &(struct cmd_option){ 0 });
	print_options(common_options, cmd->options);
}

static json_t *table(const struct cmd_option *o)
{
	json_t *options = json_array();

	for (; o->name; o++)
		if (o->help)
			json_array_append_new(options, json_pack("{s:s s:s# s:s? s:s}", "name", o->name, "letter", &o->letter, o->letter ? 1 : 0,
								 "arg", o->arg, "help", o->help));
	return options;
}

void cmd_print_tables(const struct cmd *const cmds[], size_t nr)
{
	json_t *all = json_array();

	for (size_t i = 0; i < nr; i++)
		json_array_append_new(all, json_pack("{s:s s:s s:s s:o}", "name", cmds[i]->name, "synopsis", cmds[i]->synopsis, "summary",
						     cmds[i]->summary, "options", table(cmds[i]->options)));
	all = json_pack("{s:o s:o}", "commands", all, "common", table(common_options));
	json_dumpf(all, stdout, JSON_INDENT(1));
	putchar('\n');
	json_decref(all);
}

int cmd_usage_error(const struct cmd *cmd, const char *fmt, ...)
{
	char what[512];
	va_list ap;

	va_start(ap, fmt);
	vsnprintf(what, sizeof what, fmt, ap);
	va_end(ap);
	fprintf(stderr, "criu-vm %s: %s\ntry: criu-vm %s --help\n", cmd->name, what, cmd->name);
	return CMD_USAGE;
}

static int open_log(const struct cmd_common *c)
{
	int fd = STDERR_FILENO;

	if (c->log_file) {
		fd = open(c->log_file, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
		if (fd < 0) {
			log_err("cannot write log file %s: %s", c->log_file, strerror(errno));
			return CMD_FAILED;
		}
	}
	log_init(fd, LOG_WARN + (c->verbose < 2 ? c->verbose : 2), "criu-vm", c->log_file != NULL);
	return CMD_GO_ON;
}

static void take_common(struct cmd_common *c, const char *name, const char *value)
{
	if (!strcmp(name, "run-dir"))
		c->run_dir = value;
	else if (!strcmp(name, "log-file"))
		c->log_file = value;
	else if (!strcmp(name, "verbose"))
		c->verbose++;
	else if (!strcmp(name, "json"))
		c->json = true;
}

int cmd_parse(const struct cmd *cmd, int argc, char **argv, struct cmd_common *common, bool (*on)(void *ctx, const char *name, const char *value),
	      void *ctx, int *rest)
{
	const struct cmd_option *const tables[] = { cmd->options, common_options };
	const struct cmd_option *all[MAX_OPTIONS];
	struct option longs[MAX_OPTIONS + 1] = { 0 };
	char shorts[2 * MAX_OPTIONS + 2] = "";
	unsigned n = 0, own = 0;
	int i, c;

	*common = (struct cmd_common){ .run_dir = RUN_DIR_DEFAULT };
	for (unsigned t = 0; t < 2; t++) {
		for (const struct cmd_option *o = tables[t]; o->name; o++, n++) {
			all[n] = o;
			longs[n] = (struct option){ .name = o->name, .has_arg = !o->arg ? no_argument :
										      may_be_left_out(o) ? optional_argument : required_argument };
			if (o->letter && !(t && has_letter(cmd->options, o->letter)))
				sprintf(shorts + strlen(shorts), "%c%s", o->letter, o->arg ? ":" : "");
		}
		if (!t)
			own = n;
	}
	optind = 1;
	while ((c = getopt_long(argc, argv, shorts, longs, &i)) != -1) {
		if (c == '?')
			return cmd_usage_error(cmd, "see above");
		for (unsigned o = n; c && o--;) // so that the command's own come last, and win
			if (all[o]->letter == c)
				i = (int)o;
		if (!strcmp(all[i]->name, "help")) {
			cmd_help(cmd);
			return CMD_OK;
		}
		if ((unsigned)i >= own)
			take_common(common, all[i]->name, optarg);
		else if (!on(ctx, all[i]->name, all[i]->arg ? optarg : NULL))
			return CMD_USAGE;
	}
	*rest = optind;
	return open_log(common);
}

bool cmd_parse_compress(const char *value, int *level)
{
	char *end;
	long n = ZSTD_LEVEL_DEFAULT;

	if (!strncmp(value, "zstd:", 5)) {
		n = strtol(value + 5, &end, 10);
		if (!value[5] || *end)
			n = 0;
	} else if (strcmp(value, "zstd")) {
		n = 0;
	}
	if (n < 1 || n > ZSTD_LEVEL_MAX) {
		fprintf(stderr, "--compress %s: say zstd, or zstd:N with a level N from 1 to %d\n", value, ZSTD_LEVEL_MAX);
		return false;
	}
	*level = (int)n;
	return true;
}
