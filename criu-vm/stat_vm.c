// SPDX-License-Identifier: GPL-2.0-only
#include "criu-vm/stat_vm.h"

#include <dirent.h>
#include <errno.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "criu-vm/run_dir.h"
#include "lazy-pages/control.h"
#include "util/log.h"

#define ANSWER_TIMEOUT_MS 2000

static const json_t *member(const json_t *vm, const char *group, const char *key)
{
	return json_object_get(group ? json_object_get(vm, group) : vm, key);
}

uint64_t stat_number(const json_t *vm, const char *group, const char *key)
{
	json_int_t n = json_integer_value(member(vm, group, key));

	return n > 0 ? (uint64_t)n : 0;
}

double stat_real(const json_t *vm, const char *group, const char *key)
{
	double d = json_number_value(member(vm, group, key));

	return d > 0 ? d : 0;
}

uint64_t stat_element(const json_t *array, size_t i)
{
	json_int_t n = json_integer_value(json_array_get(array, i));

	return n > 0 ? (uint64_t)n : 0;
}

const char *stat_string(const json_t *vm, const char *key)
{
	return json_string_value(member(vm, NULL, key));
}

bool stat_is_served(const json_t *vm)
{
	const char *state = stat_string(vm, "state");

	return state && !strcmp(state, "served");
}

bool stat_is_paged(const json_t *vm)
{
	return stat_is_served(vm) && json_is_object(json_object_get(vm, "memory"));
}

static void add_string(json_t *vm, const char *key, const char *value)
{
	json_object_set_new(vm, key, value ? json_string(value) : json_null());
}

static void judge(json_t *vm, const char *state, const char *message)
{
	add_string(vm, "state", state);
	if (message)
		add_string(vm, "message", message);
}

// What a restore has recorded, if it came so far.
static void describe_recorded(const struct vm_state *s, json_t *vm)
{
	json_object_set_new(vm, "qemu_pid", json_integer(s->qemu));
	json_object_set_new(vm, "ram", json_integer((json_int_t)s->ram));
	json_object_set_new(vm, "paging", json_boolean(s->paging));
	add_string(vm, "swap", s->swap_path);
	add_string(vm, "images", s->images);
	json_object_set_new(vm, "remote", s->remote ? json_pack("{s:s}", "from", s->remote) : json_null());
	add_string(vm, "log", s->log);
}

// Its QEMU lives, and nobody listens.
static void explain_no_pager(const struct run_dir *rd, const struct vm_state *s, json_t *vm)
{
	char what[256];

	if (run_dir_is_locked(rd)) {
		judge(vm, "starting", run_dir_has(rd, "running") ? "its pager is starting" : "it is being restored");
	} else if (run_dir_is_held(rd, "supervisor")) {
		judge(vm, "unserved", "its pager has ended; its supervisor starts another");
	} else {
		snprintf(what, sizeof what, "no pager%s; 'criu-vm lazy-pages --name %s' gives it one",
			 s->paging ? ": its guest waits for the first page that is not in memory" : "", rd->name);
		judge(vm, "unserved", what);
	}
}

// err: why there is no answer.
static void explain_silence(const struct run_dir *rd, int err, json_t *vm)
{
	struct vm_state s;
	char what[160];
	int r = vm_state_load(rd, &s);

	if (!r)
		describe_recorded(&s, vm);
	if (err == -ETIMEDOUT || err == -EPROTO) {
		judge(vm, "silent", "its pager does not answer");
	} else if (r == -ENOENT) {
		judge(vm, "starting", "nothing is recorded of it yet: it is being restored, or a restore was killed");
	} else if (r) {
		judge(vm, "unknown", log_last_error());
	} else if (!vm_state_qemu_alive(&s, NULL)) {
		judge(vm, "ended", run_dir_is_held(rd, "supervisor") ? "its QEMU has ended; what is left is being removed" :
								       "its QEMU has ended; what is left is removed when the name is used again");
	} else if (err != -ENOENT && err != -ECONNREFUSED && err != -ECONNRESET) {
		snprintf(what, sizeof what, "its pager cannot be asked: %s", strerror(-err));
		judge(vm, "unknown", what);
	} else {
		explain_no_pager(rd, &s, vm);
	}
	vm_state_fini(&s);
}

int stat_ask(const char *root, const char *name, json_t **out)
{
	json_t *vm = NULL;
	struct run_dir rd;
	char path[PATH_MAX];
	int r = run_dir_name_ok(name) ? run_dir_open(root, name, &rd) : -ENOENT, asked;

	if (r)
		return r;
	asked = lp_control_ask(run_dir_file(&rd, "control.sock", path, sizeof path), "stat", ANSWER_TIMEOUT_MS, &vm);
	if (!asked && (!json_is_object(vm) || json_object_get(vm, "error"))) {
		json_decref(vm);
		asked = -EPROTO;
	}
	if (asked)
		vm = json_object();
	if (!vm)
		r = -ENOMEM;
	else if (asked)
		explain_silence(&rd, asked, vm);
	else
		judge(vm, "served", NULL);
	if (!r)
		add_string(vm, "name", name);
	run_dir_close(&rd);
	*out = vm;
	return r;
}

static int is_vm(const struct dirent *d)
{
	return (d->d_type == DT_DIR || d->d_type == DT_UNKNOWN) && run_dir_name_ok(d->d_name);
}

int stat_ask_all(const char *root, json_t **vms)
{
	struct dirent **names = NULL;
	int nr = scandir(root, &names, is_vm, alphasort), r = 0;

	if (nr < 0 && errno != ENOENT) {
		r = -errno;
		log_err("cannot look into %s: %s", root, strerror(-r));
		return r;
	}
	*vms = json_array();
	for (int i = 0; i < nr; i++) {
		json_t *vm;

		// One that has ended since is none.
		if (!stat_ask(root, names[i]->d_name, &vm))
			json_array_append_new(*vms, vm);
		free(names[i]);
	}
	free(names);
	return *vms ? 0 : -ENOMEM;
}
