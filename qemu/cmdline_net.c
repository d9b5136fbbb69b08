// SPDX-License-Identifier: GPL-2.0-only
// Taps that the new QEMU inherits: their options say the descriptors, and nothing of how QEMU would make the interface itself.
#include <errno.h>
#include <jansson.h>
#include <stdlib.h>
#include <string.h>

#include "qemu/args.h"
#include "qemu/cmdline_int.h"
#include "util/cleanup.h"

// What QEMU does not take together with descriptors, and the descriptors of before; "type" is written first.
static const char *const not_kept[] = {
	"type", "ifname", "br", "helper", "script", "downscript", "queues", "vnet_hdr", "fd", "fds", "vhostfd", "vhostfds", NULL,
};

// NULL: it gets none. A -nic without id goes by its number.
static const struct qemu_cmdline_net *net_of(const struct cmdline *c, const struct cmdline_option *opt)
{
	size_t nth = 0;
	char nic[32];

	for (const struct cmdline_option *o = c->opt; o < opt; o++)
		nth += o->rule == opt->rule;
	snprintf(nic, sizeof nic, "#nic%zu", nth);
	for (size_t i = 0; c->o && i < c->o->nr_nets; i++) {
		const char *id = c->o->nets[i].id;

		if (opt->id ? !strcmp(id, opt->id) : !strcmp(opt->rule->name, "nic") && !strcmp(id, nic))
			return &c->o->nets[i];
	}
	return NULL;
}

// "3" or "3:4:5"; the caller's.
static char *numbers(const struct qemu_cmdline_net *net)
{
	char *text = NULL;
	size_t len;
	FILE *f = open_memstream(&text, &len);

	for (unsigned i = 0; f && i < net->nr_fds; i++)
		fprintf(f, "%s%d", i ? ":" : "", net->fds[i]);
	if (f && !fclose(f))
		return text;
	free(text);
	return NULL;
}

static int to_json(struct cmdline_option *opt, const char *key, const char *fds)
{
	json_t *o = json_loads(opt->value, 0, NULL);
	char *text;

	for (const char *const *k = not_kept; *k; k++)
		json_object_del(o, *k);
	json_object_set_new(o, "type", json_string("tap"));
	json_object_set_new(o, key, json_string(fds));
	text = json_dumps(o, JSON_COMPACT);
	json_decref(o);
	if (!text)
		return -ENOMEM;
	free(opt->value);
	opt->value = text;
	return 0;
}

static int to_list(struct cmdline_option *opt, const char *key, const char *fds)
{
	const char *list = opt->value;
	struct cmdline_word first = { 0 };
	char *text = NULL;
	size_t len;
	FILE *f;

	if (cmdline_check_keys(opt))
		return -EINVAL;
	f = open_memstream(&text, &len);
	if (!f)
		return -ENOMEM;
	cmdline_next_word(&list, &first);
	if (first.key_len != first.len) // else it is the type
		list = opt->value;
	fputs("tap", f);
	cmdline_put_words(f, list, not_kept, false);
	fprintf(f, ",%s=%s", key, fds);
	return cmdline_set_value(opt, f, &text);
}

// -netdev user starts what guestfwd= and smb= say. In JSON any guestfwd is taken for such a one.
static bool starts_program(const struct cmdline_option *opt, const char *type)
{
	json_t *o = *opt->value == '{' ? json_loads(opt->value, 0, NULL) : NULL;
	bool json_does = json_object_get(o, "guestfwd");

	json_decref(o);
	return !strcmp(type, "passt") || json_does || qemu_opt_has(opt->value, "type", "smb") || strstr(opt->value, "-cmd:");
}

int cmdline_fix_net(struct cmdline *c, struct cmdline_option *opt)
{
	_cleanup_free_ char *type = qemu_opt_get(opt->value, "type", "type"), *fds = NULL;
	const struct qemu_cmdline_net *net = opt->ours || !strcmp(opt->rule->name, "net") ? NULL : net_of(c, opt);
	const char *key = net && net->nr_fds > 1 ? "fds" : "fd";
	bool theirs = cmdline_is_theirs(c, opt);

	if (theirs && type && starts_program(opt, type))
		return cmdline_refuse(opt, "it starts a program, which another host cannot have started here");
	if (!type || (strcmp(type, "tap") && strcmp(type, "bridge")))
		return 0;
	if (!net && theirs)
		return cmdline_refuse(opt, "of another host's network interfaces only those are made here that it describes, and it did not");
	if (!net)
		return 0;
	fds = numbers(net);
	if (!fds)
		return -ENOMEM;
	opt->has_fds = true;
	c->nr_nets++;
	return *opt->value == '{' ? to_json(opt, key, fds) : to_list(opt, key, fds);
}
