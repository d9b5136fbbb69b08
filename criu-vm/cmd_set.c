// SPDX-License-Identifier: GPL-2.0-only
// Another budget for a running VM.
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
	{ 0, "swap", "PATH", "file for a swap image, or a folder for it, if the VM has none yet" },
	{ 0, "swap-sparse", NULL, "do not reserve that swap image's space" },
	{ 0 },
};

struct set_args {
	const char *name, *swap;
	uint64_t ram;
	bool swap_sparse;
	struct cmd_common common;
};

static bool on_option(void *ctx, const char *name, const char *value)
{
	struct set_args *a = ctx;

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

// with: names the swap image that was made for it, if any.
static int ask_pager(const struct set_args *a, const struct run_dir *rd, const struct vm_state *with, uint64_t *budget)
{
	json_t *request = json_pack("{s:s s:I}", "execute", "set", "ram", (json_int_t)a->ram), *answer = NULL;
	char path[PATH_MAX];
	const char *error;
	int r;

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
	*budget = (uint64_t)json_integer_value(json_object_get(answer, "budget"));
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

// Asks for the budget, with a swap image for a VM that needs one now and has none.
static int change_budget(const struct set_args *a, const struct run_dir *rd, const struct vm_state *s, uint64_t *budget)
{
	uint64_t len = s->nr_chunks * PV_CHUNK_SIZE;
	struct pv_swap swap = PV_SWAP_NONE;
	struct vm_state with = { .swap_path = NULL };
	int r = 0;

	if (s->paging && !s->swap_path && a->ram < s->ram) {
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
		r = ask_pager(a, rd, &with, budget);
	// Not if the pager has it after all.
	if (r && with.swap_token && !pv_swap_open(with.swap_path, len, with.swap_token, with.swap_sparse, &swap))
		swap_registry_destroy_image(a->name, &swap);
	vm_state_fini(&with);
	return r;
}

static int set_ram(const struct set_args *a, const struct run_dir *rd, const struct vm_state *s)
{
	uint64_t begun = clock_now_ns(), budget;
	char size[16];
	int r;

	if (change_budget(a, rd, s, &budget))
		return CMD_FAILED;
	r = wait_until_within(a, budget);
	if (r)
		log_err("VM '%s': the budget is %s, but more than that is in memory still; criu-vm stat %s tells why", a->name,
			size_format(budget, size), a->name);
	else if (!a->common.json)
		printf("%s: %s of memory, after %.2f s\n", a->name, size_format(budget, size), (double)(clock_now_ns() - begun) / NSEC_PER_SEC);
	else
		printf("{\"name\": \"%s\", \"budget\": %lu, \"seconds\": %.3f}\n", a->name, budget, (double)(clock_now_ns() - begun) / NSEC_PER_SEC);
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
	if (argc - rest != 1 || !a.ram)
		return cmd_usage_error(&cmd_set, "%s", a.ram ? "one NAME is needed" : "--ram SIZE is needed");
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
	r = set_ram(&a, &rd, &s);
	vm_state_fini(&s);
	run_dir_close(&rd);
	return r;
}

const struct cmd cmd_set = { "set", "NAME --ram SIZE [OPTION...]", "change how much memory a running VM takes", options, run };
