// SPDX-License-Identifier: GPL-2.0-only
#include <stdio.h>
#include <string.h>

#include "criu-vm/cmd.h"
#include "util/log.h"
#include "util/size.h"

#define VERSION "0.1"

static const struct cmd *const commands[] = { &cmd_check, &cmd_dump, &cmd_pre_dump, &cmd_restore, &cmd_migrate, &cmd_lazy_pages, &cmd_set, &cmd_stat,
					       &cmd_verify, &cmd_merge, &cmd_show };

static void help(void)
{
	printf("usage: criu-vm COMMAND [OPTION...] ...\n"
	       "Checkpoints and restores running QEMU virtual machines; runs a VM in less memory than it has.\n\n");
	for (size_t i = 0; i < ARRAY_SIZE(commands); i++)
		printf("  %-12s %s\n", commands[i]->name, commands[i]->summary);
	printf("\n'criu-vm COMMAND --help' tells more.\n");
}

int main(int argc, char **argv)
{
	log_init(2, LOG_WARN, "criu-vm", false);
	if (argc < 2) {
		fprintf(stderr, "criu-vm: no command given; try: criu-vm --help\n");
		return CMD_USAGE;
	}
	if (!strcmp(argv[1], "-h") || !strcmp(argv[1], "--help") || !strcmp(argv[1], "help")) {
		if (argc > 2 && !strcmp(argv[2], "--tables"))
			cmd_print_tables(commands, ARRAY_SIZE(commands));
		else
			help();
		return CMD_OK;
	}
	if (!strcmp(argv[1], "-V") || !strcmp(argv[1], "--version")) {
		printf("criu-vm %s\n", VERSION);
		return CMD_OK;
	}
	for (size_t i = 0; i < ARRAY_SIZE(commands); i++)
		if (!strcmp(argv[1], commands[i]->name))
			return commands[i]->run(argc - 1, argv + 1);
	fprintf(stderr, "criu-vm: there is no command '%s'; try: criu-vm --help\n", argv[1]);
	return CMD_USAGE;
}
