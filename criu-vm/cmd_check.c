// SPDX-License-Identifier: GPL-2.0-only
#include <jansson.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "criu-vm/check.h"
#include "criu-vm/run_dir.h"
#include "criu-vm/cmd.h"
#include "criu-vm/swap_registry.h"
#include "mm/uapi.h"
#include "util/log.h"
#include "util/size.h"

#define NEWER_KERNEL "run a newer kernel: Linux 6.7, or later, with CONFIG_USERFAULTFD"
#define UFFD(feature) check_uffd_feature, NEWER_KERNEL, feature

static const struct check_item items[] = {
	{ "root", "to look into QEMU's process, and to stop it for a moment", true, check_root, "run criu-vm as root", 0 },
	{ "memfd", "guest RAM that QEMU and its pager share", true, check_memfd, "run a kernel with CONFIG_MEMFD_CREATE", 0 },
	{ "userfaultfd", "QEMU's faults come to its pager", true, check_userfaultfd, NEWER_KERNEL, 0 },
	{ "uffd-missing", "faults on pages that are not in memory", true, UFFD(UFFD_FEATURE_MISSING_SHMEM) },
	{ "uffd-minor", "faults on pages that are in memory: access bits, rescue of victims", true, UFFD(UFFD_FEATURE_MINOR_SHMEM) },
	{ "uffd-wp", "write-protection of shared memory", true,
	  UFFD(UFFD_FEATURE_PAGEFAULT_FLAG_WP | UFFD_FEATURE_WP_HUGETLBFS_SHMEM) },
	{ "uffd-wp-unpopulated", "write-protection where no page is yet", true, UFFD(UFFD_FEATURE_WP_UNPOPULATED) },
	{ "uffd-wp-async", "learning what was written without a fault", true, UFFD(UFFD_FEATURE_WP_ASYNC) },
	{ "uffd-remove", "learning what the guest discards (balloon)", true, UFFD(UFFD_FEATURE_EVENT_REMOVE) },
	{ "uffd-thread-id", "telling a vCPU's faults from a device's", true, UFFD(UFFD_FEATURE_THREAD_ID) },
	{ "dev-userfaultfd", "QEMU that does not run as root", false, check_dev_userfaultfd,
	  "run Linux 6.1 or later; or set vm.unprivileged_userfaultfd=1", 0 },
	{ "pagemap-scan", "which pages were written, asked and reset in one step", true, check_pagemap_scan,
	  "run Linux 6.7 or later, with CONFIG_PAGE_MONITOR and CONFIG_PTE_MARKER_UFFD_WP", 0 },
	{ "io-uring", "the pager's loop and its I/O", true, check_io_uring, "set kernel.io_uring_disabled=0", 0 },
	{ "pidfd-getfd", "bringing a descriptor out of QEMU", true, check_pidfd_getfd, "run Linux 5.6 or later, as root", 0 },
	{ "ptrace", "injecting system calls into QEMU", true, check_ptrace,
	  "set kernel.yama.ptrace_scope to 2 or less, and run as root", 0 },
	{ "plant", "leaving a userfaultfd and a ring inside QEMU", true, check_plant, "see ptrace and userfaultfd", 0 },
	{ "sqpoll", "a ring inside QEMU with a thread of its own", false, check_sqpoll, "set kernel.io_uring_disabled=0", 0 },
	{ "zap-ring", "taking pages from QEMU, by the ring inside it", false, check_zap_ring, "see sqpoll", 0 },
	{ "zap-pageout", "the same without a ring, by process_madvise", false, check_zap_pageout,
	  "only needed where zap-ring is missing: turn the host's swap off (swapoff -a)", 0 },
	{ "zap", "taking pages from QEMU, one way or the other", true, check_zap, "make zap-ring or zap-pageout work", 0 },
	{ "run-dir", "what is recorded of VMs that run here", true, check_run_dir, "choose another place with --run-dir", 0 },
	{ "log-dir", "the logs of VMs", true, check_log_dir, "make " LOG_DIR_DEFAULT " a folder that can be written to, or use -o", 0 },
	{ "swap-dir", "swap images, written around the host's page cache", true, check_swap_dir,
	  "make " SWAP_DIR_DEFAULT " a folder on a disk's file system (ext4, xfs), or use --swap", 0 },
	{ "cgroup", "a VM's memory counted as one, and kept out of the host's swap", false, check_cgroup,
	  "mount cgroup2, or v1's memory controller", 0 },
	{ "no-host-swap", "physical memory that stays physical", false, check_no_host_swap,
	  "swapoff -a, or boot with cgroup v2 only (systemd.unified_cgroup_hierarchy=1)", 0 },
	{ "oom-score", "a pager that is spared when memory is short", false, check_oom_score, "run with CAP_SYS_RESOURCE", 0 },
	{ "thp", "a page brought in takes one page of memory, at most a chunk", false, check_thp,
	  "write 'never' to the shmem_enabled of the sizes named", 0 },
	{ "folios", "chunks that are one piece of 1 MiB: a quarter of the CPU time that paging them takes", false, check_folios,
	  "run Linux 6.11 or later; without them memory is taken by pages of 4 KiB", 0 },
	{ "memlock", "memory that the pager may lock", false, check_memlock, "run as root, or raise 'ulimit -l'", 0 },
	{ "idle-bitmap", "cheaper knowledge of what the guest uses", false, check_idle_bitmap,
	  "run a kernel with CONFIG_IDLE_PAGE_TRACKING; without it the pager samples by faults", 0 },
	{ "qemu", "to restore VMs with", true, check_qemu, "install qemu-system-x86 (7.2 to 10), or name one in $QEMU", 0 },
	{ "kvm", "guests at the speed of the machine", false, check_kvm,
	  "load kvm_intel or kvm_amd; without it guests run under TCG", 0 },
};

static const struct cmd_option options[] = {
	{ 0, "feature", "NAME", "look at this one only; exit status 0: it is there, 1: it is not" },
	{ 0 },
};

void check_found(struct check_answer *a, const char *fmt, ...)
{
	va_list ap;

	va_start(ap, fmt);
	vsnprintf(a->found, sizeof a->found, fmt, ap);
	va_end(ap);
}

void check_advise(struct check_answer *a, const char *fmt, ...)
{
	va_list ap;

	va_start(ap, fmt);
	vsnprintf(a->advice, sizeof a->advice, fmt, ap);
	va_end(ap);
}

static bool on_option(void *ctx, const char *name, const char *value)
{
	const struct check_item **only = ctx;

	(void)name;
	for (size_t i = 0; i < ARRAY_SIZE(items); i++)
		if (!strcmp(items[i].name, value)) {
			*only = &items[i];
			return true;
		}
	fprintf(stderr, "criu-vm check: there is no feature '%s'; these are known:", value);
	for (size_t i = 0; i < ARRAY_SIZE(items); i++)
		fprintf(stderr, " %s", items[i].name);
	fputc('\n', stderr);
	return false;
}

static const char *advice(const struct check_item *item, const struct check_answer *a)
{
	return *a->advice ? a->advice : item->advice;
}

static const char *state(const struct check_item *item, bool there)
{
	return there ? "ok" : item->required ? "missing" : "optional-missing";
}

static void print_item(const struct check_item *item, bool there, const struct check_answer *a)
{
	const bool color = isatty(STDOUT_FILENO);
	const char *on = !color ? "" : there ? "\033[32m" : item->required ? "\033[1;31m" : "\033[33m";

	printf("%s%-8s%s %-20s %s%s%s\n", on, there ? "ok" : item->required ? "MISSING" : "optional", color ? "\033[0m" : "", item->name,
	       item->purpose, there && *a->found ? ": " : "", there ? a->found : "");
	if (there)
		return;
	if (*a->found)
		printf("%29s why: %s\n", "", a->found);
	printf("%29s do:  %s\n", "", advice(item, a));
}

static json_t *item_json(const struct check_item *item, bool there, const struct check_answer *a)
{
	json_t *j = json_pack("{s:s s:s s:b s:s}", "feature", item->name, "state", state(item, there), "required", (int)item->required,
			      "purpose", item->purpose);

	// What was found may quote somebody who does not write UTF-8.
	json_object_set_new(j, "found", *a->found ? json_string(a->found) : NULL);
	if (!there)
		json_object_set_new(j, "advice", json_string(advice(item, a)));
	return j;
}

static void print_summary(size_t nr, size_t missing, size_t optional)
{
	if (missing)
		printf("\n%zu of %zu are missing that criu-vm cannot do without", missing, nr);
	else
		printf("\nAll that criu-vm needs is here");
	if (optional)
		printf("; %zu that would be good to have %s not", optional, optional > 1 ? "are" : "is");
	puts(".");
}

// What fails here is an answer, not an error: the modules that are tried say it on standard error only if asked to.
static void mute(const struct cmd_common *common, bool on)
{
	if (!common->verbose && !common->log_file)
		log_init(on ? -1 : STDERR_FILENO, LOG_WARN, "criu-vm", false);
}

static int run(int argc, char **argv)
{
	const struct check_item *only = NULL;
	struct check_ctx ctx = { 0 };
	struct cmd_common common;
	size_t nr = 0, missing = 0, optional = 0;
	json_t *all = NULL;
	int rest, r = cmd_parse(&cmd_check, argc, argv, &common, on_option, &only, &rest);

	if (r != CMD_GO_ON)
		return r;
	if (rest != argc)
		return cmd_usage_error(&cmd_check, "what is '%s'? One feature is asked for with --feature", argv[rest]);
	ctx.run_dir = common.run_dir;
	if (common.json)
		all = json_array();
	mute(&common, true);
	for (const struct check_item *item = items; item < items + ARRAY_SIZE(items); item++) {
		struct check_answer a = { 0 };
		bool there;

		if (only && item != only)
			continue;
		there = item->probe(&ctx, item, &a);
		nr++;
		missing += !there && (item->required || only);
		optional += !there && !item->required;
		if (all)
			json_array_append_new(all, item_json(item, there, &a));
		else
			print_item(item, there, &a);
		fflush(stdout);
	}
	check_victim_free(ctx.victim);
	mute(&common, false);
	if (all) {
		json_dumpf(all, stdout, JSON_INDENT(1));
		putchar('\n');
	} else if (!only) {
		print_summary(nr, missing, optional);
	}
	json_decref(all);
	return missing ? CMD_FAILED : CMD_OK;
}

const struct cmd cmd_check = { "check", "[OPTION...]", "what this host and its QEMU can do, and what to change", options, run };
