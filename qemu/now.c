// SPDX-License-Identifier: GPL-2.0-only
// The command line is edited until it describes the VM. That it does is then checked by what refuses a VM that is no longer what its
// command line says (refuse_devices.c, refuse_disks.c): a difference that no stage here knows of is refused there.
#include "qemu/now.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "qemu/cmdline.h"
#include "qemu/now_int.h"
#include "util/log.h"
#include "util/size.h"

// The name as a whole, not the beginning of a longer one.
static char *find_name(char *text, const char *name)
{
	for (char *s = text; (s = strstr(s, name)); s++)
		if (strchr("\",", s[strlen(name)]))
			return s;
	return NULL;
}

// Block nodes that QEMU named itself, "#block123", cannot be called so on a command line. The new name is made longer until it is free.
static int rename_node(struct now *n, const char *old)
{
	char new[64];

	snprintf(new, sizeof new, "criu-vm-%.40s", old + 1);
	while (now_find(n, "blockdev", "node-name", new) && strlen(new) < sizeof new - 1)
		strcat(new, "x");
	for (struct now_opt *o = n->opt; o < n->opt + n->nr; o++)
		for (char *at; (now_is(o, "blockdev") || now_is(o, "device")) && (at = find_name(o->value, old));) {
			char *text;

			if (asprintf(&text, "%.*s%s%s", (int)(at - o->value), o->value, new, at + strlen(old)) < 0)
				return -ENOMEM;
			free(o->value);
			o->value = text;
		}
	return 0;
}

static int rename_nodes(struct now *n)
{
	int ret = 0;

	for (size_t i = 0; i < n->nr && !ret; i++) {
		json_t *o = now_is(&n->opt[i], "blockdev") && *n->opt[i].value == '{' ? json_loads(n->opt[i].value, 0, NULL) : NULL;

		if (*now_text(o, "node-name") == '#')
			ret = rename_node(n, now_text(o, "node-name"));
		json_decref(o);
	}
	return ret;
}

// An option that cannot be rebuilt is told before what follows from it.
static int check_options(struct now *n)
{
	char **argv;
	int argc, ret = now_export(n, &argv, &argc);

	if (ret)
		return ret;
	ret = qemu_cmdline_check(argv, argc) ? -EOPNOTSUPP : 0;
	qemu_cmdline_free(argv);
	return ret;
}

// Whether it describes the VM.
static int compare(struct now *n)
{
	static int (*const check[])(struct refusal *r) = { refuse_devices, refuse_cpus, refuse_netdevs, refuse_disks };
	struct qemu_vm described = *n->r.vm;
	struct refusal r = n->r;
	int ret = now_export(n, &described.argv, &described.argc);

	if (ret)
		return ret;
	if (qemu_cmdline_check(described.argv, described.argc))
		ret = -EOPNOTSUPP;
	r.vm = &described;
	for (size_t i = 0; i < ARRAY_SIZE(check) && !ret; i++)
		ret = check[i](&r);
	n->r.nr_reasons = r.nr_reasons;
	qemu_cmdline_free(described.argv);
	return ret;
}

int qemu_now_cmdline(struct qemu_vm *vm, char ***argv, int *argc)
{
	static int (*const stage[])(struct now *n) = {
		now_fds, check_options, now_objects, now_netdevs, now_drives, now_devices, now_unused, now_blockdevs,
	};
	struct now n = { .r.vm = vm };
	int ret = now_load(&n, vm->argv, vm->argc);

	for (size_t i = 0; i < ARRAY_SIZE(stage) && !ret; i++)
		ret = stage[i](&n);
	if (!ret && !n.r.nr_reasons)
		ret = compare(&n);
	if (!ret && n.r.nr_reasons)
		ret = -EOPNOTSUPP;
	ret = ret ?: rename_nodes(&n) ?: now_export(&n, argv, argc);
	if (ret == -ENOMEM)
		log_err("process %d: no memory to examine it", vm->pid);
	now_fini(&n);
	return ret;
}
