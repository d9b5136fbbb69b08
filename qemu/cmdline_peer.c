// SPDX-License-Identifier: GPL-2.0-only
// What another host's VM may not have here: monitors that others reach before it is this host's, and programs of its choice.
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/un.h>

#include "qemu/args.h"
#include "qemu/cmdline_int.h"
#include "util/cleanup.h"
#include "util/log.h"

#define SANDBOX "on,obsolete=deny,elevateprivileges=deny,spawn=deny"

bool cmdline_is_theirs(const struct cmdline *c, const struct cmdline_option *opt)
{
	return c->o && c->o->from_peer && !opt->ours;
}

// ---- names of sockets

bool qemu_cmdline_show(char *path)
{
	size_t len = strlen(path), hidden = strlen(QEMU_CMDLINE_HIDDEN);

	if (len <= hidden || strcmp(path + len - hidden, QEMU_CMDLINE_HIDDEN) != 0)
		return false;
	path[len - hidden] = 0;
	return true;
}

// Of a unix socket on which QEMU listens, so that it can have another name for a while.
static bool can_hide(const char *list, const char *implied)
{
	_cleanup_free_ char *path = qemu_opt_get(list, implied, "path");

	if (!path || !cmdline_is_on(list, implied, "server") || cmdline_is_on(list, implied, "abstract") || strchr(path, '\n'))
		return false;
	qemu_cmdline_show(path);
	return strlen(path) + strlen(QEMU_CMDLINE_HIDDEN) < sizeof((struct sockaddr_un *)NULL)->sun_path;
}

// The path in the list behind prefix, hidden or not. implied: "path" or "backend".
static int name_socket(struct cmdline_option *opt, const char *prefix, const char *implied, bool hide)
{
	const char *list = opt->value + strlen(prefix);
	_cleanup_free_ char *path = qemu_opt_get(list, implied, "path");
	struct cmdline_word first;
	char *text = NULL;
	size_t len;
	FILE *f;

	if (!path || qemu_cmdline_show(path) == hide)
		return 0;
	f = open_memstream(&text, &len);
	if (!f)
		return -ENOMEM;
	fputs(prefix, f);
	if (strcmp(implied, "path") != 0 && cmdline_next_word(&list, &first))
		fprintf(f, "%.*s,path=", (int)first.len, first.s);
	else if (cmdline_next_word(&list, &first) && first.key_len != first.len) // it was written as path=
		list = opt->value + strlen(prefix);
	cmdline_put_escaped(f, path);
	fputs(hide ? QEMU_CMDLINE_HIDDEN : "", f);
	cmdline_put_words(f, list, (const char *const[]){ "path", NULL }, false);
	return cmdline_set_value(opt, f, &text);
}

// ---- monitors

static bool is_legacy_monitor(const struct cmdline_option *opt)
{
	return opt->rule->fix == cmdline_fix_monitor;
}

// Is the character device of this id a monitor's?
static bool has_monitor(const struct cmdline *c, const char *id)
{
	for (const struct cmdline_option *o = c->opt; o < c->opt + c->nr; o++)
		if ((o->rule->fix == cmdline_fix_mon && qemu_opt_is(o->value, "chardev", "chardev", id)) ||
		    (is_legacy_monitor(o) && !strncmp(o->value, "chardev:", 8) && !strcmp(o->value + 8, id)))
			return true;
	return false;
}

static bool chardev_can_hide(const struct cmdline *c, const char *id)
{
	for (const struct cmdline_option *o = c->opt; id && o < c->opt + c->nr; o++)
		if (o->rule->fix == cmdline_fix_chardev && o->id && !strcmp(o->id, id))
			return qemu_opt_is(o->value, "backend", "backend", "socket") && can_hide(o->value, "backend");
	return false;
}

static void leave_out(struct cmdline_option *opt)
{
	log_warn("QEMU option -%s%s%s: left out: a monitor of another host's VM is kept if it listens on a unix socket, with a path that is "
		 "not too long", opt->rule->name, opt->value ? " " : "", opt->value ?: "");
	opt->drop = true;
}

int cmdline_hide_chardev(const struct cmdline *c, struct cmdline_option *opt)
{
	return name_socket(opt, "", "backend", cmdline_is_theirs(c, opt) && opt->id && has_monitor(c, opt->id) && chardev_can_hide(c, opt->id));
}

void cmdline_hide_mon(const struct cmdline *c, struct cmdline_option *opt)
{
	_cleanup_free_ char *id = qemu_opt_get(opt->value, "chardev", "chardev");

	if (cmdline_is_theirs(c, opt) && !chardev_can_hide(c, id))
		leave_out(opt);
}

int cmdline_hide_monitor(const struct cmdline *c, struct cmdline_option *opt)
{
	bool is_unix = !strncmp(opt->value, "unix:", 5), theirs = cmdline_is_theirs(c, opt);

	if (!theirs)
		return is_unix ? name_socket(opt, "unix:", "path", false) : 0;
	if (is_unix && can_hide(opt->value + 5, "path"))
		return name_socket(opt, "unix:", "path", true);
	if (strcmp(opt->value, "none") != 0 && (strncmp(opt->value, "chardev:", 8) != 0 || !chardev_can_hide(c, opt->value + 8)))
		leave_out(opt);
	return 0;
}

// "mon:BACKEND": the port stays, its monitor does not.
void cmdline_split_port(const struct cmdline *c, struct cmdline_option *opt)
{
	if (!cmdline_is_theirs(c, opt) || strncmp(opt->value, "mon:", 4) != 0)
		return;
	log_warn("QEMU option -%s %s: without the monitor, which another host's VM has on a unix socket or nowhere", opt->rule->name, opt->value);
	memmove(opt->value, opt->value + 4, strlen(opt->value + 4) + 1);
}

int cmdline_fix_s(struct cmdline *c, struct cmdline_option *opt)
{
	if (cmdline_is_theirs(c, opt))
		leave_out(opt);
	return 0;
}

// ---- what changes other options, and what guards against programs

int cmdline_fix_set(struct cmdline *c, struct cmdline_option *opt)
{
	if (cmdline_is_theirs(c, opt) && strncmp(opt->value, "device.", 7) != 0)
		return cmdline_refuse(opt, "another host may set properties of devices only; write it into the option that it changes");
	return 0;
}

int cmdline_fix_sandbox(struct cmdline *c, struct cmdline_option *opt)
{
	if (!cmdline_is_theirs(c, opt))
		return 0;
	opt->drop = !cmdline_is_on(opt->value, "enable", "enable") || !qemu_opt_is(opt->value, "enable", "spawn", "deny");
	c->has_sandbox |= !opt->drop;
	return 0;
}

const char *cmdline_sandbox(const struct cmdline *c)
{
	return c->o->from_peer && !c->has_sandbox ? SANDBOX : NULL;
}

// ---- of the new command line

static bool is_hidden(const char *path)
{
	_cleanup_free_ char *copy = path ? strdup(path) : NULL;

	return copy && qemu_cmdline_show(copy);
}

int qemu_cmdline_hidden(char *const *argv, FILE *f)
{
	struct qemu_arg a;
	int argc = 0;

	while (argv[argc])
		argc++;
	for (int i = 1; qemu_arg_next(argv, argc, &i, &a);) {
		_cleanup_free_ char *path = NULL;

		if (!strcmp(a.name, "chardev"))
			path = qemu_opt_get(a.value, "backend", "path");
		else if (a.value && !strncmp(a.value, "unix:", 5))
			path = qemu_opt_get(a.value + 5, "path", "path");
		if (is_hidden(path))
			fprintf(f, "%s\n", path);
	}
	return ferror(f) ? -ENOMEM : 0;
}
