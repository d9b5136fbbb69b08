// SPDX-License-Identifier: GPL-2.0-only
#include "qemu/cmdline.h"

#include <errno.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include "qemu/args.h"
#include "qemu/cmdline_int.h"
#include "util/cleanup.h"
#include "util/log.h"

// ---- options in

static void option_fini(struct cmdline_option *opt)
{
	free(opt->value);
	free(opt->id);
	free(opt->chardev);
}

static void cmdline_fini(struct cmdline *c)
{
	for (size_t i = 0; i < c->nr; i++)
		option_fini(&c->opt[i]);
	free(c->opt);
	free(c->machine_backend);
	if (c->machine)
		fclose(c->machine);
	free(c->machine_text);
}

static int append(struct cmdline *c, const struct cmdline_rule *rule, const char *value, bool ours)
{
	struct cmdline_option *opt = reallocarray(c->opt, c->nr + 1, sizeof *opt);

	if (!opt)
		return -ENOMEM;
	c->opt = opt;
	opt += c->nr;
	*opt = (struct cmdline_option){ .rule = rule, .ours = ours };
	if (value) {
		opt->value = strdup(value);
		if (!opt->value)
			return -ENOMEM;
	}
	if (value && rule->opts)
		opt->id = qemu_opt_get(value, NULL, strcmp(rule->name, "blockdev") ? "id" : "node-name");
	c->nr++;
	return 0;
}

// first: index of the first argument that is an option.
static int parse(struct cmdline *c, char *const *argv, int argc, int first, bool ours)
{
	struct qemu_arg a;

	for (int i = first; qemu_arg_next(argv, argc, &i, &a);) {
		const struct cmdline_rule *rule = cmdline_rule(a.name);

		if (!rule) {
			log_err("QEMU option -%s: unknown, so it cannot be told what becomes of it", a.name);
			return -EINVAL;
		}
		if (rule->flag == (a.value != NULL)) {
			log_err("QEMU option -%s: %s", a.name, rule->flag ? "takes no value" : "its value is missing");
			return -EINVAL;
		}
		if (append(c, rule, a.value, ours))
			return -ENOMEM;
	}
	return 0;
}

static bool replaces(const struct cmdline_option *new, const struct cmdline_option *old)
{
	return new->rule == old->rule && (!new->id || (old->id && !strcmp(new->id, old->id)));
}

// Moves an option; what it leaves behind owns nothing and replaces nothing.
static void move(struct cmdline_option *to, struct cmdline_option *from)
{
	*to = *from;
	*from = (struct cmdline_option){ 0 };
}

// New options stand where the first that they replace stood, since the order of devices is their place on the bus.
static int merge(struct cmdline *c, struct cmdline *new)
{
	struct cmdline_option *all = calloc(c->nr + new->nr + 1, sizeof *all);
	size_t nr = 0;

	if (!all)
		return -ENOMEM;
	for (size_t i = 0; i < c->nr; i++) {
		bool replaced = false;

		for (size_t k = 0; k < nr && !replaced; k++)
			replaced = all[k].ours && replaces(&all[k], &c->opt[i]);
		for (size_t k = 0; k < new->nr; k++)
			if (replaces(&new->opt[k], &c->opt[i])) {
				move(&all[nr++], &new->opt[k]);
				replaced = true;
			}
		if (!replaced)
			move(&all[nr++], &c->opt[i]);
	}
	for (size_t k = 0; k < new->nr; k++)
		if (new->opt[k].rule)
			move(&all[nr++], &new->opt[k]);
	for (size_t i = 0; i < c->nr; i++)
		option_fini(&c->opt[i]);
	free(c->opt);
	c->opt = all;
	c->nr = nr;
	return 0;
}

// ---- guest RAM

static bool has_backend(const struct cmdline *c, const char *id)
{
	for (size_t i = 0; i < c->nr; i++)
		if (c->opt[i].is_ram && !strcmp(c->opt[i].id, id))
			return true;
	return false;
}

const struct qemu_cmdline_ram *cmdline_ram(const struct qemu_cmdline_opts *o, const char *id)
{
	for (size_t i = 0; i < o->nr_ram; i++)
		if (o->ram[i].backend_id && !strcmp(o->ram[i].backend_id, id))
			return &o->ram[i];
	return NULL;
}

// The RAM of the plain -m, for which no -object was recorded: *ram NULL if there is none.
static int find_default_ram(const struct cmdline *c, const struct qemu_cmdline_ram **ram)
{
	const struct qemu_cmdline_opts *o = c->o;

	*ram = NULL;
	for (size_t i = 0; i < o->nr_ram; i++) {
		const char *id = o->ram[i].backend_id;

		if (id && cmdline_ram(o, id) != &o->ram[i]) {
			log_err("the checkpoint has two RAM blocks '%s'", id);
			return -EINVAL;
		}
		if (id && strcmp(id, QEMU_CMDLINE_RAM_ID) && has_backend(c, id))
			continue;
		if (*ram) {
			log_err("the recorded command line has a place for neither of the RAM blocks '%s' and '%s'",
				(*ram)->backend_id ?: "(default)", id ?: "(default)");
			return -EINVAL;
		}
		*ram = &o->ram[i];
	}
	if (c->machine_backend && strcmp(c->machine_backend, QEMU_CMDLINE_RAM_ID) && (*ram || !has_backend(c, c->machine_backend))) {
		log_err("the recorded machine's memory-backend '%s' does not fit the RAM of the checkpoint", c->machine_backend);
		return -EINVAL;
	}
	return 0;
}

// ---- argv out

struct argv {
	char **v;
	size_t nr;
	bool failed;
};

static void add(struct argv *a, const char *fmt, ...) __attribute__((format(printf, 2, 3)));

static void add(struct argv *a, const char *fmt, ...)
{
	char **v = reallocarray(a->v, a->nr + 2, sizeof *v);
	va_list args;

	if (!v) {
		a->failed = true;
		return;
	}
	a->v = v;
	va_start(args, fmt);
	if (vasprintf(&v[a->nr], fmt, args) < 0)
		a->failed = true;
	else
		a->nr++;
	va_end(args);
	v[a->nr] = NULL;
}

// QEMU prefers KVM if its name ends in "kvm" and nothing says what to use.
static bool named_kvm(const char *qemu)
{
	size_t n = strlen(qemu);

	return n >= 3 && !strcmp(qemu + n - 3, "kvm");
}

static void add_machine(struct argv *a, const struct cmdline *c, const struct qemu_cmdline_ram *default_ram)
{
	const char *backend = default_ram ? QEMU_CMDLINE_RAM_ID : c->machine_backend;

	add(a, "-machine");
	add(a, "%s%s%s%s", c->o->machine, c->machine_text, backend ? ",memory-backend=" : "", backend ?: "");
	if (!default_ram)
		return;
	add(a, "-object");
	add(a, CMDLINE_RAM_FMT, CMDLINE_RAM_ARGS(QEMU_CMDLINE_RAM_ID, default_ram));
}

static void add_option(struct argv *a, const struct cmdline_option *opt)
{
	if (opt->drop)
		return;
	if (opt->chardev) {
		add(a, "-chardev");
		add(a, "%s", opt->chardev);
	}
	add(a, "-%s", opt->rule->name);
	if (opt->chardev)
		add(a, "chardev:%s", opt->id);
	else if (opt->value)
		add(a, "%s", opt->value);
}

static void add_monitor(struct argv *a, const char *id, int fd)
{
	add(a, "-chardev");
	add(a, "socket,id=%s,fd=%d,server=on,wait=off", id, fd);
	add(a, "-mon");
	add(a, "chardev=%s,mode=control", id);
}

static int assemble(const struct cmdline *c, const struct qemu_cmdline_ram *default_ram, struct argv *a)
{
	add(a, "%s", c->o->qemu);
	add_machine(a, c, default_ram);
	for (size_t i = 0; i < c->nr; i++)
		add_option(a, &c->opt[i]);
	if (!c->has_accel && named_kvm(c->o->recorded[0])) {
		add(a, "-accel");
		add(a, "kvm");
		add(a, "-accel");
		add(a, "tcg");
	}
	if (!c->has_display) {
		add(a, "-display");
		add(a, "none");
	}
	if (cmdline_sandbox(c)) {
		add(a, "-sandbox");
		add(a, "%s", cmdline_sandbox(c));
	}
	add_monitor(a, QEMU_CMDLINE_QMP_ID, c->o->qmp_fd);
	add_monitor(a, QEMU_CMDLINE_COMMANDS_ID, c->o->commands_fd);
	add(a, "-incoming");
	add(a, "defer");
	add(a, "-S");
	return a->failed ? -ENOMEM : 0;
}

// ---- the whole

// All options, as recorded, and the machine's memory-backend, which no replacement may change.
static int load(struct cmdline *c, char *const *argv, int argc)
{
	int err;

	if (argc < 1) {
		log_err("the recorded command line is empty");
		return -EINVAL;
	}
	c->machine = open_memstream(&c->machine_text, &c->machine_len);
	err = c->machine ? parse(c, argv, argc, 1, false) : -ENOMEM;
	for (size_t i = 0; i < c->nr && !err; i++) {
		char *id = strcmp(c->opt[i].rule->name, "machine") ? NULL : qemu_opt_get(c->opt[i].value, "type", "memory-backend");

		if (id) {
			free(c->machine_backend);
			c->machine_backend = id;
		}
	}
	return err;
}

static int check_nets(const struct cmdline *c)
{
	if (!c->o || c->nr_nets == c->o->nr_nets)
		return 0;
	log_err("%zu network interfaces are given to the VM, of which its command line has a place for %zu", c->o->nr_nets, c->nr_nets);
	return -EINVAL;
}

// Applies all rules; to a command line that is only checked also behind the first failure, to tell all of them.
static int apply(struct cmdline *c)
{
	int first = 0;

	for (size_t i = 0; i < c->nr && (!first || !c->o); i++) {
		int err = cmdline_apply(c, &c->opt[i]);

		first = first ?: err;
	}
	if (fflush(c->machine))
		first = first ?: -ENOMEM;
	return first;
}

int qemu_cmdline_rebuild(const struct qemu_cmdline_opts *o, char ***argv)
{
	const struct qemu_cmdline_ram *default_ram;
	struct cmdline c = { .o = o }, new = { 0 };
	struct argv a = { 0 };
	int err;

	if (!cmdline_is_name(o->machine)) {
		log_err("'%s' is no machine type", o->machine);
		return -EINVAL;
	}
	err = load(&c, o->recorded, o->nr_recorded) ?: parse(&new, o->replace, o->nr_replace, 0, true) ?: merge(&c, &new);
	err = err ?: apply(&c) ?: check_nets(&c) ?: find_default_ram(&c, &default_ram) ?: assemble(&c, default_ram, &a);
	if (err == -ENOMEM)
		log_err("no memory for the command line of QEMU");
	cmdline_fini(&new);
	cmdline_fini(&c);
	if (err)
		qemu_cmdline_free(a.v);
	else
		*argv = a.v;
	return err;
}

int qemu_cmdline_check(char *const *argv, int argc)
{
	struct cmdline c = { 0 };
	int err = load(&c, argv, argc) ?: apply(&c);

	if (err == -ENOMEM)
		log_err("no memory to check the command line of QEMU");
	cmdline_fini(&c);
	return err;
}

void qemu_cmdline_free(char **argv)
{
	for (char **p = argv; p && *p; p++)
		free(*p);
	free(argv);
}
