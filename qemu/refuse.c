// SPDX-License-Identifier: GPL-2.0-only
#include "qemu/refuse.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "qemu/cmdline.h"
#include "qemu/refuse_int.h"
#include "util/log.h"
#include "util/size.h"

void refuse_because(struct refusal *r, const char *fmt, ...)
{
	char text[1024];
	va_list ap;

	va_start(ap, fmt);
	vsnprintf(text, sizeof text, fmt, ap);
	va_end(ap);
	log_err("process %d cannot be dumped: %s", r->vm->pid, text);
	r->nr_reasons++;
}

int names_add(struct names *n, const char *s)
{
	char **bigger = reallocarray(n->v, n->nr + 1, sizeof *bigger);

	if (!bigger)
		return -ENOMEM;
	n->v = bigger;
	n->v[n->nr] = strdup(s);
	if (!n->v[n->nr])
		return -ENOMEM;
	n->nr++;
	return 0;
}

bool names_take(struct names *n, const char *s)
{
	for (size_t i = 0; i < n->nr; i++) {
		if (strcmp(n->v[i], s))
			continue;
		free(n->v[i]);
		n->v[i] = n->v[--n->nr];
		return true;
	}
	return false;
}

void names_fini(struct names *n)
{
	for (size_t i = 0; i < n->nr; i++)
		free(n->v[i]);
	free(n->v);
	*n = (struct names){ 0 };
}

static const char *text_of(const json_t *o, const char *key)
{
	const char *s = json_string_value(json_object_get(o, key));

	return s ? s : "";
}

// A VM stopped by an error, a panic or a suspend says `running` in its stream, and would be restored as what it is not.
static int refuse_run_state(struct refusal *r)
{
	static const char *const good[] = { "running", "paused", "prelaunch" };
	const char *state;
	json_t *reply;
	int ret = qmp_call(r->vm->qmp, "query-status", NULL, &reply);

	if (ret)
		return ret;
	state = text_of(reply, "status");
	for (size_t i = 0; i < ARRAY_SIZE(good) && state; i++)
		if (!strcmp(state, good[i]))
			state = NULL;
	if (state)
		refuse_because(r,
			"it is in the run state '%s' and cannot be resumed from it; let it run or pause it first (QMP cont, "
			"system_wakeup or system_reset)",
			state);
	json_decref(reply);
	return 0;
}

// Device state can be saved whatever blocks a migration, and would be wrong.
static int refuse_migration(struct refusal *r)
{
	static const char *const idle[] = { "", "none", "completed", "failed", "cancelled" };
	json_t *reply, *reason;
	const char *status;
	bool busy = true;
	size_t i;
	int ret = qmp_call(r->vm->qmp, "query-migrate", NULL, &reply);

	if (ret)
		return ret;
	status = text_of(reply, "status");
	for (i = 0; i < ARRAY_SIZE(idle); i++)
		busy &= strcmp(status, idle[i]) != 0;
	if (busy)
		refuse_because(r, "a migration is under way (%s); wait for its end, or cancel it by QMP migrate_cancel", status);
	json_array_foreach(json_object_get(reply, "blocked-reasons"), i, reason)
		refuse_because(r, "QEMU cannot save all of its state: %s", json_string_value(reason));
	json_decref(reply);
	return 0;
}

static int refuse_jobs(struct refusal *r)
{
	json_t *reply, *o;
	size_t i;
	int ret = qmp_call(r->vm->qmp, "query-jobs", NULL, &reply);

	if (ret)
		return ret;
	json_array_foreach(reply, i, o) refuse_because(r, "the %s job '%s' is %s; wait for its end, or cancel and dismiss it",
		text_of(o, "type"), text_of(o, "id"), text_of(o, "status"));
	json_decref(reply);
	ret = qmp_call(r->vm->qmp, "query-block-exports", NULL, &reply);
	if (ret)
		return ret;
	json_array_foreach(reply, i, o)
		refuse_because(r, "its disk %s is exported to others; end that by QMP block-export-del '%s'",
			text_of(o, "node-name"), text_of(o, "id"));
	json_decref(reply);
	return 0;
}

static int refuse_memory_devices(struct refusal *r)
{
	json_t *reply, *o;
	size_t i;
	int ret = qmp_call(r->vm->qmp, "query-memory-devices", NULL, &reply);

	if (ret)
		return ret;
	json_array_foreach(reply, i, o) if (strcmp(text_of(o, "type"), "dimm")) refuse_because(r,
		"it has a memory device of the type %s%s%s, which is not supported; ordinary memory and pc-dimm are",
		text_of(o, "type"), *text_of(json_object_get(o, "data"), "id") ? ": " : "",
		text_of(json_object_get(o, "data"), "id"));
	json_decref(reply);
	return 0;
}

// The property and the command are there only where QEMU was built for such guests.
static int refuse_confidential(struct refusal *r)
{
	json_t *args = json_pack("{s:s, s:s}", "path", "/machine", "property", "confidential-guest-support"), *reply;
	int ret = qmp_try(r->vm->qmp, "qom-get", args, &reply);
	bool yes = false;

	if (ret && ret != -EREMOTEIO)
		return ret;
	if (!ret && json_is_string(reply))
		yes = *json_string_value(reply);
	json_decref(reply);
	ret = qmp_try(r->vm->qmp, "query-sev", NULL, &reply);
	if (ret && ret != -EREMOTEIO)
		return ret;
	yes |= json_is_true(json_object_get(reply, "enabled"));
	json_decref(reply);
	if (yes)
		refuse_because(r, "it is a confidential guest (SEV, TDX or the like): its memory and CPU state cannot be read "
				  "from outside");
	return 0;
}

static int refuse_machine(struct refusal *r)
{
	if (!strcmp(r->vm->machine, "isapc"))
		refuse_because(r, "QEMU aborts when it loads the state of the machine isapc; use -M pc");
	return 0;
}

int qemu_refuse(struct qemu_vm *vm, const struct qemu_ramblock *blocks, size_t nr, const struct qemu_ours *ours)
{
	static int (*const state[])(struct refusal * r) = {
		refuse_run_state,
		refuse_migration,
		refuse_jobs,
		refuse_memory_devices,
		refuse_confidential,
		refuse_machine,
		refuse_folder,
		refuse_open_files,
		refuse_shared_ram,
	};
	struct refusal r = { .vm = vm, .blocks = blocks, .nr = nr, .ours = ours, .paged = ours->paged };
	int ret = 0;

	for (size_t i = 0; i < ARRAY_SIZE(state) && !ret; i++)
		ret = state[i](&r);
	if (ret == -ENOMEM)
		log_err("process %d: no memory to examine it", vm->pid);
	return ret ? ret : r.nr_reasons ? -EOPNOTSUPP : 0;
}
