// SPDX-License-Identifier: GPL-2.0-only
// Another budget for a running VM, or another way of paging.
#include <errno.h>
#include <jansson.h>
#include <limits.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "criu-vm/cmd.h"
#include "criu-vm/progress.h"
#include "criu-vm/run_dir.h"
#include "criu-vm/stat_vm.h"
#include "criu-vm/swap_registry.h"
#include "lazy-pages/control.h"
#include "pvmem/swap.h"
#include "util/clock.h"
#include "util/log.h"
#include "util/size.h"

#define ASK_TIMEOUT_MS 5000
#define SHRINK_TIMEOUT_NS (120 * NSEC_PER_SEC)
#define LOOK_US 50000

static const struct cmd_option options[] = {
	{ 0, "ram", "SIZE", "physical memory that guest RAM may take from now on" },
	{ 0, "paging", "KEY=VALUE[,...]", "how it is paged from now on: method, access" },
	{ 0, "swap", "PATH", "file for a swap image, or a folder for it, if the VM has none yet" },
	{ 0, "swap-sparse", NULL, "do not reserve that swap image's space" },
	{ 0 },
};

struct set_args {
	const char *name, *swap, *paging;
	uint64_t ram;
	bool swap_sparse;
	struct cmd_common common;
};

static bool on_paging(struct set_args *a, const char *value)
{
	struct pv_tuning unused = PV_TUNING_DEFAULT;
	char why[128];

	a->paging = value;
	if (pv_tuning_parse(value, &unused, why))
		return true;
	cmd_usage_error(&cmd_set, "--paging: %s", why);
	return false;
}

static bool on_option(void *ctx, const char *name, const char *value)
{
	struct set_args *a = ctx;

	if (!strcmp(name, "paging"))
		return on_paging(a, value);
	if (!strcmp(name, "swap"))
		a->swap = value;
	else if (!strcmp(name, "swap-sparse"))
		a->swap_sparse = true;
	else if (size_parse(value, &a->ram) || !a->ram) {
		cmd_usage_error(&cmd_set, "--ram %s is no size; write for example 256M or 1.5G", value);
		return false;
	}
	return true;
}

// What the pager says now.
struct set_answer {
	uint64_t budget;
	char paging[128]; // as --paging takes it
};

// An earlier version leaves out what it does not know of a request.
static int check_version(const struct set_args *a, const struct vm_state *s)
{
	json_t *vm = NULL;
	int r = 0;

	if (a->paging && s->paging && !stat_ask(a->common.run_dir, a->name, &vm) && stat_is_served(vm) && !json_object_get(vm, "tuning")) {
		log_err("VM '%s': its pager is of an earlier version, which knows no --paging; give it another one first: "
			"criu-vm lazy-pages --name %s", a->name, a->name);
		r = -EPROTO;
	}
	json_decref(vm);
	return r;
}

// with: names the swap image that was made for it, if any.
static int ask_pager(const struct set_args *a, const struct run_dir *rd, const struct vm_state *with, struct set_answer *now)
{
	json_t *request = json_pack("{s:s s:s*}", "execute", "set", "paging", a->paging), *answer = NULL;
	char path[PATH_MAX];
	const char *error, *paging;
	int r;

	if (a->ram)
		json_object_set_new(request, "ram", json_integer((json_int_t)a->ram));
	if (with->swap_path) {
		json_object_set_new(request, "swap", json_string(with->swap_path));
		json_object_set_new(request, "swap_token", json_string(with->swap_token));
		json_object_set_new(request, "swap_sparse", json_boolean(with->swap_sparse));
	}
	r = lp_control_request(run_dir_file(rd, "control.sock", path, sizeof path), request, ASK_TIMEOUT_MS, &answer);
	error = json_string_value(json_object_get(answer, "error"));
	if (error)
		log_err("VM '%s': %s", a->name, error);
	else if (r)
		log_err("VM '%s': its pager does not answer (%s); criu-vm stat %s tells more", a->name, strerror(-r), a->name);
	now->budget = (uint64_t)json_integer_value(json_object_get(answer, "budget"));
	paging = stat_string(answer, "paging");
	snprintf(now->paging, sizeof now->paging, "%s", paging ? paging : "");
	json_decref(answer);
	return error ? -EINVAL : r;
}

// Pages go; the guest runs on meanwhile.
static int wait_until_within(const struct set_args *a, uint64_t budget)
{
	uint64_t end = clock_now_ns() + SHRINK_TIMEOUT_NS, most = 0, have = 0;
	struct progress progress;
	int r = 0;

	do {
		json_t *vm = NULL;

		if (most)
			usleep(LOOK_US);
		r = stat_ask(a->common.run_dir, a->name, &vm);
		have = stat_is_served(vm) ? stat_number(vm, "memory", "memfd") : UINT64_MAX; // another pager may be on its way
		json_decref(vm);
		if (!most)
			progress_begin(&progress, "paging out", have > budget ? have - budget : 0);
		else if (have < most)
			progress_add(&progress, most - have);
		most = !most || have < most ? have + !have : most;
	} while (!r && have > budget && clock_now_ns() < end && !cmd_interrupted());
	progress_end(&progress);
	return r ? r : have <= budget ? 0 : -ETIMEDOUT;
}

// Asks for what is wanted, with a swap image for a VM that needs one now and has none.
static int change(const struct set_args *a, const struct run_dir *rd, const struct vm_state *s, struct set_answer *now)
{
	uint64_t len = s->nr_chunks * PV_CHUNK_SIZE;
	struct pv_swap swap = PV_SWAP_NONE;
	struct vm_state with = { .swap_path = NULL };
	int r = 0;

	if (s->paging && !s->swap_path && a->ram && a->ram < s->ram) {
		r = swap_registry_prepare_image(a->name, a->swap, len, a->swap_sparse, &swap);
		if (!r)
			r = swap_registry_publish_image(a->name, &swap);
		if (!r)
			r = vm_state_set_swap(&with, &swap);
		pv_swap_close(&swap); // its lock is the pager's from now on
	} else if (a->swap) {
		log_warn("VM '%s' has a swap image already, or needs none: --swap is left alone", a->name);
	}
	if (!r)
		r = ask_pager(a, rd, &with, now);
	// Not if the pager has it after all.
	if (r && with.swap_token && !pv_swap_open(with.swap_path, len, with.swap_token, with.swap_sparse, &swap))
		swap_registry_destroy_image(a->name, &swap);
	vm_state_fini(&with);
	return r;
}

static void tell(const struct set_args *a, const struct set_answer *now, double seconds)
{
	char size[16];

	if (a->common.json) {
		json_t *j = json_pack("{s:s s:I s:s s:f}", "name", a->name, "budget", (json_int_t)now->budget, "paging", now->paging, "seconds", seconds);

		json_dumpf(j, stdout, JSON_REAL_PRECISION(6));
		putchar('\n');
		json_decref(j);
		return;
	}
	if (a->ram)
		printf("%s: %s of memory, after %.2f s\n", a->name, size_format(now->budget, size), seconds);
	if (a->paging)
		printf("%s: paged with %s\n", a->name, now->paging);
}

static int set(const struct set_args *a, const struct run_dir *rd, const struct vm_state *s)
{
	uint64_t begun = clock_now_ns();
	struct set_answer now;
	char size[16];
	int r = 0;

	if (check_version(a, s) || change(a, rd, s, &now))
		return CMD_FAILED;
	if (a->ram)
		r = wait_until_within(a, now.budget);
	if (r)
		log_err("VM '%s': the budget is %s, but more than that is in memory still; criu-vm stat %s tells why", a->name,
			size_format(now.budget, size), a->name);
	else
		tell(a, &now, (double)(clock_now_ns() - begun) / NSEC_PER_SEC);
	return r ? CMD_ATTENTION : CMD_OK;
}

static int run(int argc, char **argv)
{
	struct set_args a = { 0 };
	struct vm_state s;
	struct run_dir rd;
	int rest, r = cmd_parse(&cmd_set, argc, argv, &a.common, on_option, &a, &rest);

	if (r != CMD_GO_ON)
		return r;
	if (argc - rest != 1 || (!a.ram && !a.paging))
		return cmd_usage_error(&cmd_set, "%s", a.ram || a.paging ? "one NAME is needed" : "--ram SIZE is needed, or --paging");
	a.name = argv[rest];
	cmd_catch_signals();
	r = run_dir_name_ok(a.name) ? run_dir_open(a.common.run_dir, a.name, &rd) : -ENOENT;
	if (!r) {
		r = vm_state_load(&rd, &s);
		if (r)
			run_dir_close(&rd);
	}
	if (r == -ENOENT)
		log_err("there is no VM '%s' here; criu-vm stat lists those that there are", a.name);
	if (r)
		return CMD_FAILED;
	r = set(&a, &rd, &s);
	vm_state_fini(&s);
	run_dir_close(&rd);
	return r;
}

const struct cmd cmd_set = { "set", "NAME [--ram SIZE] [--paging KEY=VALUE] [OPTION...]",
			     "change how much memory a running VM takes, and how it is paged", options, run };
