// SPDX-License-Identifier: GPL-2.0-only
#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "criu-vm/vm_pager_int.h"
#include "pvmem/snapshot.h"
#include "util/cleanup.h"
#include "util/io.h"
#include "util/log.h"

static uint64_t proc_status_kib(pid_t pid, const char *key)
{
	char path[40], *p;
	_cleanup_free_ char *text = NULL;
	size_t len;

	snprintf(path, sizeof path, "/proc/%d/status", pid);
	if (io_read_file(path, 1 << 16, &text, &len) || !(p = strstr(text, key)))
		return 0;
	return strtoull(p + strlen(key), NULL, 10);
}

// As it was asked for; what has become of that is known to the engine.
static json_t *describe_tuning(const struct pv_tuning *t)
{
	return json_pack("{s:s s:s s:i s:b s:b}", "method", pv_method_name(t->method), "access", pv_access_name(t->access), "queue_bits",
			 (int)t->queue_bits, "spin", t->spin, "folios", t->folios);
}

void vm_commands_describe(void *ctx, json_t *answer)
{
	const struct vm_pager *v = ctx;
	uint64_t memory;

	json_object_set_new(answer, "name", json_string(v->rd->name));
	json_object_set_new(answer, "supervisor_pid", json_integer(run_dir_is_held(v->rd, "supervisor") ? getppid() : 0));
	json_object_set_new(answer, "guest", json_string(v->guest_runs ? "running" : "paused"));
	if (!cgroup_memory_current(&v->state.cgroup, &memory)) {
		json_object_set_new(answer, "cgroup", json_string(v->state.cgroup.path[CGROUP_V2] && !v->state.cgroup.path[CGROUP_V1_MEMORY] ?
									  v->state.cgroup.path[CGROUP_V2] :
									  v->state.cgroup.path[CGROUP_V1_MEMORY]));
		json_object_set_new(answer, "cgroup_memory", json_integer((json_int_t)memory));
	}
	json_object_set_new(answer, "ram", json_integer((json_int_t)v->state.ram));
	if (v->state.paging)
		json_object_set_new(answer, "tuning", describe_tuning(&v->state.tuning));
	json_object_set_new(answer, "swap", v->state.swap_path ? json_string(v->state.swap_path) : json_null());
	json_object_set_new(answer, "images", v->state.images ? json_string(v->state.images) : json_null());
	json_object_set_new(answer, "remote", vm_remote_describe(v));
	json_object_set_new(answer, "log", v->state.log ? json_string(v->state.log) : json_null());
	json_object_set_new(answer, "qemu_host_swap", json_integer((json_int_t)(proc_status_kib(v->state.qemu, "VmSwap:") * KiB)));
	json_object_set_new(answer, "qemu_page_tables", json_integer((json_int_t)(proc_status_kib(v->state.qemu, "VmPTE:") * KiB)));
	if (v->cont_trouble[0])
		json_object_set_new(answer, "trouble", json_string(v->cont_trouble));
	json_object_set_new(answer, "pager_memory", json_integer((json_int_t)(proc_status_kib(getpid(), "RssAnon:") * KiB)));
	json_object_set_new(answer, "pager_page_tables", json_integer((json_int_t)(proc_status_kib(getpid(), "VmPTE:") * KiB)));
}

static json_t *answer_error(const char *fmt, ...) __attribute__((format(printf, 1, 2)));
static json_t *answer_error(const char *fmt, ...)
{
	char text[512];
	va_list ap;

	va_start(ap, fmt);
	vsnprintf(text, sizeof text, fmt, ap);
	va_end(ap);
	return json_pack("{s:s}", "error", text);
}

static void take_string(const json_t *request, const char *key, char **to)
{
	const char *s = json_string_value(json_object_get(request, key));

	if (s) {
		free(*to);
		*to = strdup(s);
	}
}

// How the VM is to be paged, as somebody asks: *t. NULL: it can be.
static json_t *wanted_tuning(const struct vm_pager *v, const json_t *request, struct pv_tuning *t)
{
	const char *text = json_string_value(json_object_get(request, "paging"));
	char why[128];

	*t = v->state.tuning;
	return !text || pv_tuning_parse(text, t, why) ? NULL : answer_error("--paging: %s", why);
}

// Another pager, perhaps of another binary, perhaps with other paths, is to go on. Who asks has checked them.
static json_t *replace(struct vm_pager *v, const json_t *request)
{
	const char *exe = json_string_value(json_object_get(request, "exe"));
	struct pv_tuning tuning;
	json_t *refusal = wanted_tuning(v, request, &tuning);
	int r = 0;

	if (refusal)
		return refusal;
	if (!v->started)
		return answer_error("the VM is still being restored");
	if (!run_dir_is_held(v->rd, "supervisor"))
		return answer_error("no supervisor is there to start another pager");
	v->state.tuning = tuning;
	take_string(request, "swap", &v->state.swap_path);
	take_string(request, "images", &v->state.images);
	take_string(request, "remote", &v->state.remote);
	take_string(request, "remote_tls", &v->state.remote_tls);
	if (json_is_null(json_object_get(request, "remote_tls")))
		free(steal_ptr(&v->state.remote_tls));
	if (json_object_get(request, "remote_insecure"))
		v->state.remote_insecure = json_is_true(json_object_get(request, "remote_insecure"));
	r = vm_state_save(v->rd, &v->state);
	if (!r && exe)
		r = run_dir_mark(v->rd, "exe", exe);
	if (r)
		return answer_error("the state of the VM cannot be written: %s", strerror(-r));
	log_info("another pager was asked for; making room for it");
	lp_pager_stop(v->lp, VM_PAGER_REPLACED);
	return json_object();
}

// Why nothing can be asked of its paging now; NULL: it can.
static json_t *not_paged(const struct vm_pager *v)
{
	if (!v->state.paging)
		return answer_error("all of its memory is plain memory: it was restored without --ram and --lazy-pages");
	if (!lp_pager_serves(v->lp))
		return answer_error("its pager does not serve yet; criu-vm stat tells what it waits for");
	return NULL;
}

// The swap image that a smaller budget needs, made by who asks.
static int take_swap(struct vm_pager *v, const json_t *request)
{
	if (v->swap.fd >= 0 || !json_object_get(request, "swap"))
		return 0;
	take_string(request, "swap", &v->state.swap_path);
	take_string(request, "swap_token", &v->state.swap_token);
	v->state.swap_sparse = json_is_true(json_object_get(request, "swap_sparse"));
	return v->state.swap_path && v->state.swap_token ? vm_pager_open_swap(v) : -EINVAL;
}

static void give_swap_up(struct vm_pager *v)
{
	pv_swap_close(&v->swap);
	free(v->state.swap_path);
	free(v->state.swap_token);
	v->state.swap_path = v->state.swap_token = NULL;
}

static json_t *set_budget(struct vm_pager *v, const json_t *request)
{
	uint64_t ram = (uint64_t)json_integer_value(json_object_get(request, "ram")), old = v->state.budget;
	bool had_swap = v->swap.fd >= 0;
	char want[16], least[16];
	int r;

	if (ram < pv_min_budget(v->state.ram))
		return answer_error("%s is too little for this VM: it needs %s at least, so that I/O in flight and page-outs have room",
				    size_format(ram, want), size_format(pv_min_budget(v->state.ram), least));
	v->state.budget = ram < v->state.ram ? ram : v->state.ram;
	r = take_swap(v, request);
	if (!r && v->state.budget < v->state.ram && v->swap.fd < 0)
		r = -ENODEV;
	if (!r)
		r = vm_state_save(v->rd, &v->state); // first: whoever comes after us must find that swap image
	if (r) {
		v->state.budget = old;
		if (!had_swap)
			give_swap_up(v);
		return r == -ENODEV ? answer_error("it has no swap image") : answer_error("%s", log_last_error());
	}
	lp_pager_set_budget(v->lp, v->state.budget);
	log_info("the budget is %s now", size_format(v->state.budget, want));
	return NULL;
}

// Written down with the budget, or by itself.
static json_t *save_tuning(struct vm_pager *v)
{
	int r = vm_state_save(v->rd, &v->state);

	return r ? answer_error("the state of the VM cannot be written: %s", strerror(-r)) : NULL;
}

static json_t *set(struct vm_pager *v, const json_t *request)
{
	struct pv_tuning old = v->state.tuning, *now = &v->state.tuning, tuning;
	json_t *refusal = not_paged(v);
	char text[128];

	if (!refusal)
		refusal = wanted_tuning(v, request, &tuning);
	if (refusal)
		return refusal;
	if (tuning.queue_bits != old.queue_bits || tuning.spin != old.spin || tuning.folios != old.folios)
		return answer_error("queue-bits, spin and folios are chosen when its pager begins; give it another one: criu-vm lazy-pages --name %s "
				    "--paging %s", v->rd->name, json_string_value(json_object_get(request, "paging")));
	*now = tuning;
	refusal = json_object_get(request, "ram") ? set_budget(v, request) : save_tuning(v);
	if (refusal) {
		*now = old;
		return refusal;
	}
	pv_engine_tune(lp_pager_engine(v->lp), now);
	pv_tuning_print(now, text, sizeof text);
	return json_pack("{s:I s:s}", "budget", (json_int_t)v->state.budget, "paging", text);
}

// What was written, and not taken yet, is dirty in the page table when the answer comes. All of it at once: the guest's faults wait
// for 1-2 ms a GiB that is in memory.
static json_t *harvest(struct vm_pager *v)
{
	return json_pack("{s:I}", "harvested", (json_int_t)pv_engine_harvest(lp_pager_engine(v->lp)));
}

// Into a file, a byte a chunk: a VM has many.
static json_t *ages(struct vm_pager *v)
{
	_cleanup_free_ uint8_t *list = malloc(v->state.nr_chunks);
	_cleanup_close_ int fd = openat(v->rd->fd, "ages", O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
	int r = fd < 0 ? -errno : list ? 0 : -ENOMEM;

	if (!r) {
		pv_engine_ages(lp_pager_engine(v->lp), list);
		r = io_write_full(fd, list, v->state.nr_chunks);
	}
	return r ? answer_error("the ages of its chunks cannot be written: %s", strerror(-r)) : json_object();
}

static json_t *begin_snapshot(struct vm_pager *v, const json_t *request)
{
	int shadow, r = vm_snapshot_begin(v, (pid_t)json_integer_value(json_object_get(request, "pid")), &shadow);

	if (r == -EBUSY)
		return answer_error("another snapshot of it is under way");
	if (r)
		return answer_error("a snapshot cannot be made: %s", strerror(-r));
	return json_pack("{s:i s:i}", "shadow", shadow, "pager_pid", (int)getpid());
}

json_t *vm_commands_do(void *ctx, const char *name, const json_t *request)
{
	struct vm_pager *v = ctx;
	json_t *refusal;

	if (!strcmp(name, "replace"))
		return replace(v, request);
	if (!strcmp(name, "set"))
		return set(v, request);
	if (!strcmp(name, "line"))
		return vm_remote_take_line(v, request);
	if (strcmp(name, "harvest") && strcmp(name, "ages") && strncmp(name, "snapshot-", 9))
		return answer_error("unknown command");
	if ((refusal = not_paged(v)))
		return refusal;
	if (!strcmp(name, "harvest"))
		return harvest(v);
	if (!strcmp(name, "ages"))
		return ages(v);
	if (!strcmp(name, "snapshot-begin"))
		return begin_snapshot(v, request);
	if (!strcmp(name, "snapshot-end"))
		return json_pack("{s:b}", "taken", vm_snapshot_end(v));
	if (strcmp(name, "snapshot-instant"))
		return answer_error("unknown command");
	pv_snapshot_instant(lp_pager_engine(v->lp));
	return json_object();
}
