// SPDX-License-Identifier: GPL-2.0-only
// The host's side of character devices: the terminal that the restored VM has not, sockets that listen, files that are written on.
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "qemu/args.h"
#include "qemu/cmdline_int.h"
#include "util/cleanup.h"
#include "util/log.h"
#include "util/size.h"

static bool list_is_on(const char *list, const char *key)
{
	return cmdline_is_on(list, "backend", key);
}

// The list with the property at its end, and not elsewhere. A first word that says what the device is stays where it is.
static int set_property(struct cmdline_option *opt, const char *key, const char *value)
{
	const char *list = opt->value;
	struct cmdline_word first;
	char *text = NULL;
	size_t len;
	FILE *f = open_memstream(&text, &len);

	if (!f)
		return -ENOMEM;
	if (!cmdline_next_word(&list, &first))
		first = (struct cmdline_word){ .s = "" };
	fprintf(f, "%.*s", (int)first.len, first.s);
	cmdline_put_words(f, list, (const char *const[]){ key, NULL }, false);
	fprintf(f, ",%s=%s", key, value);
	return cmdline_set_value(opt, f, &text);
}

// A listening socket that is not told otherwise keeps QEMU from starting until somebody connects.
static int dont_wait(struct cmdline_option *opt)
{
	_cleanup_free_ char *now = qemu_opt_get(opt->value, "backend", "wait");

	if (!list_is_on(opt->value, "server") || (now && !strcmp(now, "off")))
		return 0;
	return set_property(opt, "wait", "off");
}

// A file that is not told otherwise begins anew, and what the VM had written before is lost.
static int go_on(struct cmdline_option *opt, const char *key)
{
	return list_is_on(opt->value, key) ? 0 : set_property(opt, key, "on");
}

static void no_terminal(const struct cmdline_option *opt)
{
	log_info("QEMU option -%s %s: the restored VM has no terminal, what is written there is lost", opt->rule->name, opt->value);
}

static int stdio_to_null(struct cmdline_option *opt)
{
	static const char *const of_stdio[] = { "backend", "signal", NULL };
	const char *list = opt->value;
	struct cmdline_word first;
	char *text = NULL;
	size_t len;
	FILE *f = open_memstream(&text, &len);

	if (!f)
		return -ENOMEM;
	no_terminal(opt);
	fputs("null", f);
	if (!strncmp(list, "stdio", 5))
		cmdline_next_word(&list, &first);
	cmdline_put_words(f, list, of_stdio, false);
	return cmdline_set_value(opt, f, &text);
}

// ---- -serial file:PATH and the like, which only a -chardev can continue

// PATH, or NULL. To a file nobody types, so that a monitor mixed into it is not missed.
static const char *legacy_file(const struct cmdline_option *opt)
{
	const char *dev = opt->value;

	if (opt->rule->fix != cmdline_fix_port && opt->rule->fix != cmdline_fix_monitor)
		return NULL;
	if (!strncmp(dev, "mon:", 4))
		dev += 4;
	return strncmp(dev, "file:", 5) ? NULL : dev + 5;
}

// The id of its -chardev: for a port what QEMU itself calls the character device, which -debugcon relies on.
static char *file_id(const struct cmdline *c, const struct cmdline_option *opt)
{
	size_t nth = 0;
	char *id;

	if (!strcmp(opt->rule->name, "debugcon"))
		return strdup(opt->rule->name);
	for (const struct cmdline_option *o = c->opt; o < opt; o++)
		nth += o->rule == opt->rule;
	if (asprintf(&id, "%s%s%zu", opt->rule->fix == cmdline_fix_port ? "" : "criu-vm-", opt->rule->name, nth) < 0)
		return NULL;
	return id;
}

static bool is_file_id(const char *id)
{
	static const char *const stem[] = { "debugcon", "serial", "parallel", "criu-vm-monitor", "criu-vm-qmp", "criu-vm-qmp-pretty",
					    "criu-vm-gdb" };
	size_t n = strlen(id);

	while (n && strchr("0123456789", id[n - 1]))
		n--;
	for (size_t i = 0; i < ARRAY_SIZE(stem); i++)
		if (n == strlen(stem[i]) && !memcmp(id, stem[i], n))
			return true;
	return false;
}

// "chardev:ID", "chardev=ID,...", JSON.
static bool refers_to(const char *value, const char *id)
{
	for (const char *s = value; (s = strstr(s, id)); s++)
		if ((s == value || strchr(":=,\"", s[-1])) && strchr(",\"", s[strlen(id)]))
			return true;
	return false;
}

// What an earlier restore made for an option that has been replaced since.
static bool is_left_over(const struct cmdline *c, const struct cmdline_option *opt)
{
	if (opt->ours || !opt->id || !is_file_id(opt->id) || !qemu_opt_is(opt->value, "backend", "backend", "file"))
		return false;
	for (const struct cmdline_option *o = c->opt; o < c->opt + c->nr; o++)
		if (o != opt && o->value && !legacy_file(o) && refers_to(o->value, opt->id))
			return false;
	return true;
}

static int to_chardev(const struct cmdline *c, struct cmdline_option *opt, const char *path)
{
	size_t len;
	FILE *f;

	opt->id = file_id(c, opt);
	f = opt->id ? open_memstream(&opt->chardev, &len) : NULL;
	if (!f)
		return -ENOMEM;
	fprintf(f, "file,id=%s,path=", opt->id);
	cmdline_put_escaped(f, path);
	fputs(",append=on", f);
	return fclose(f) ? -ENOMEM : 0;
}

static bool on_terminal(const char *dev)
{
	return !strcmp(dev, "stdio") || !strcmp(dev, "mon:stdio");
}

// "[mon:]BACKEND..."
static int fix_legacy(const struct cmdline *c, struct cmdline_option *opt)
{
	static const char *const socket[] = { "unix:", "tcp:", "telnet:", "tn3270:", "websocket:" };
	const char *dev = opt->value;
	int err;

	if (legacy_file(opt))
		return to_chardev(c, opt, legacy_file(opt));
	if (!strncmp(dev, "mon:", 4))
		dev += 4;
	for (size_t i = 0; i < ARRAY_SIZE(socket); i++) {
		if (strncmp(dev, socket[i], strlen(socket[i])))
			continue;
		err = dont_wait(opt);
		return err || !qemu_opt_has(opt->value, "backend", "logfile") ? err : go_on(opt, "logappend");
	}
	return 0;
}

// ---- the rules

static const char mine[] = "this id is that of a monitor of criu-vm's own; choose another";

int cmdline_fix_chardev(struct cmdline *c, struct cmdline_option *opt)
{
	_cleanup_free_ char *backend = qemu_opt_get(opt->value, "backend", "backend");
	int err = 0;

	if (*opt->value == '{')
		return cmdline_invalid(opt, "JSON is not understood here, use key=value");
	if (opt->id && (!strcmp(opt->id, QEMU_CMDLINE_QMP_ID) || !strcmp(opt->id, QEMU_CMDLINE_COMMANDS_ID))) {
		opt->drop = true; // an earlier restore's, whatever descriptor it had: made anew
		return opt->ours ? cmdline_invalid(opt, mine) : 0;
	}
	opt->drop = is_left_over(c, opt);
	if (opt->drop || !backend)
		return 0;
	if (!strcmp(backend, "socket"))
		err = dont_wait(opt);
	else if (!strcmp(backend, "file"))
		err = go_on(opt, "append");
	else if (!strcmp(backend, "stdio"))
		err = stdio_to_null(opt);
	if (!err && qemu_opt_has(opt->value, "backend", "logfile"))
		err = go_on(opt, "logappend");
	return err ? err : cmdline_hide_chardev(c, opt);
}

int cmdline_fix_mon(struct cmdline *c, struct cmdline_option *opt)
{
	opt->drop = qemu_opt_is(opt->value, "chardev", "chardev", QEMU_CMDLINE_QMP_ID) ||
		    qemu_opt_is(opt->value, "chardev", "chardev", QEMU_CMDLINE_COMMANDS_ID);
	if (opt->drop)
		return opt->ours ? cmdline_invalid(opt, mine) : 0;
	cmdline_hide_mon(c, opt);
	return 0;
}

int cmdline_fix_port(struct cmdline *c, struct cmdline_option *opt)
{
	cmdline_split_port(c, opt);
	if (!on_terminal(opt->value))
		return fix_legacy(c, opt);
	no_terminal(opt);
	return cmdline_set_string(opt, "null");
}

int cmdline_fix_monitor(struct cmdline *c, struct cmdline_option *opt)
{
	int err;

	opt->drop = on_terminal(opt->value);
	if (opt->drop)
		return 0;
	err = cmdline_hide_monitor(c, opt);
	return err || opt->drop ? err : fix_legacy(c, opt);
}
