// SPDX-License-Identifier: GPL-2.0-only
// Subcommands: a table in main.c; each file owns its options, its help and its run().
#pragma once
#include <stdbool.h>
#include <stddef.h>

enum cmd_exit { CMD_OK = 0, CMD_FAILED = 1, CMD_USAGE = 2, CMD_ATTENTION = 3 };

struct cmd_option {
	char letter;      // 0: long only
	const char *name; // without dashes
	const char *arg;  // NULL: a flag; "[=WORD]": it may be left out
	const char *help; // NULL: not for people
};

struct cmd {
	const char *name;
	const char *synopsis; // of what follows the options
	const char *summary;
	const struct cmd_option *options; // ends with an empty one; the common ones come by themselves, without letters that are taken here
	int (*run)(int argc, char **argv);
};

// Options that every subcommand takes.
struct cmd_common {
	const char *run_dir;
	const char *log_file; // NULL: standard error
	int verbose;
	bool json;
};

// Goes through argv (argv[0] the subcommand). on is called for each option of the table with its name and its value (NULL
// for a flag, or if it was left out), and returns false if the value is no good, having said why. *rest: index of the first other argument; one
// "--" ends the options. 0, or the exit status to end with: after help, or after an error that was told.
int cmd_parse(const struct cmd *cmd, int argc, char **argv, struct cmd_common *common, bool (*on)(void *ctx, const char *name, const char *value),
	      void *ctx, int *rest);
#define CMD_GO_ON (-1)

void cmd_help(const struct cmd *cmd);
// All commands and options that are for people, as JSON: what the man page and the completion are tested against.
void cmd_print_tables(const struct cmd *const cmds[], size_t nr);

// "NAME: what is wrong", and how to get help. Returns CMD_USAGE.
int cmd_usage_error(const struct cmd *cmd, const char *fmt, ...) __attribute__((format(printf, 2, 3)));

// The value of --compress: "zstd", "zstd:N". False: it is none, which was said.
bool cmd_parse_compress(const char *value, int *level);

extern const struct cmd cmd_check, cmd_dump, cmd_pre_dump, cmd_restore, cmd_lazy_pages, cmd_migrate, cmd_set, cmd_stat, cmd_verify, cmd_merge, cmd_show;

// Ctrl-C, SIGTERM, SIGHUP and SIGQUIT ask for a clean end; long work looks here now and then.
void cmd_catch_signals(void);
bool cmd_interrupted(void);
// For a process that ends only when its work does; and back to normal, for a program to be run.
void cmd_ignore_signals(void);
void cmd_default_signals(void);
