// SPDX-License-Identifier: GPL-2.0-only
// What `criu-vm check` asks of the host: each item is tried, not looked up in a version number.
#pragma once
#include <stdbool.h>
#include <stdint.h>

struct check_victim;

// Lives for one run of the command.
struct check_ctx {
	const char *run_dir;
	struct check_victim *victim; // a child to try things on; made when first needed
};

struct check_answer {
	char found[256];  // what was seen: a figure, or why not. May be empty
	char advice[320]; // what to do about it, if the item's own advice does not say it. May be empty
};

struct check_item {
	const char *name, *purpose;
	bool required;
	// Is it there? Changes nothing on the host; blocks some seconds at most.
	bool (*probe)(struct check_ctx *c, const struct check_item *item, struct check_answer *a);
	const char *advice; // what to do if it is not
	uint64_t arg;	    // the probe's own
};

void check_found(struct check_answer *a, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
void check_advise(struct check_answer *a, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
// The first line of a small file (of /proc, /sys), without its end; false: there is none.
bool check_read_line(const char *path, char *buf, int size);

// The kernel's calls, on ourselves. check_kernel.c
bool check_memfd(struct check_ctx *c, const struct check_item *item, struct check_answer *a);
bool check_userfaultfd(struct check_ctx *c, const struct check_item *item, struct check_answer *a);
bool check_uffd_feature(struct check_ctx *c, const struct check_item *item, struct check_answer *a); // arg: UFFD_FEATURE_*
bool check_dev_userfaultfd(struct check_ctx *c, const struct check_item *item, struct check_answer *a);
bool check_pagemap_scan(struct check_ctx *c, const struct check_item *item, struct check_answer *a);
bool check_io_uring(struct check_ctx *c, const struct check_item *item, struct check_answer *a);
bool check_thp(struct check_ctx *c, const struct check_item *item, struct check_answer *a);
bool check_folios(struct check_ctx *c, const struct check_item *item, struct check_answer *a);

// What is done to a QEMU, on a child of ours. check_victim.c
bool check_pidfd_getfd(struct check_ctx *c, const struct check_item *item, struct check_answer *a);
bool check_ptrace(struct check_ctx *c, const struct check_item *item, struct check_answer *a);
bool check_plant(struct check_ctx *c, const struct check_item *item, struct check_answer *a);
bool check_sqpoll(struct check_ctx *c, const struct check_item *item, struct check_answer *a);
bool check_zap_ring(struct check_ctx *c, const struct check_item *item, struct check_answer *a);
bool check_zap_pageout(struct check_ctx *c, const struct check_item *item, struct check_answer *a);
bool check_zap(struct check_ctx *c, const struct check_item *item, struct check_answer *a);
void check_victim_free(struct check_victim *v);

// Rights, places, limits. check_host.c
bool check_root(struct check_ctx *c, const struct check_item *item, struct check_answer *a);
bool check_run_dir(struct check_ctx *c, const struct check_item *item, struct check_answer *a);
bool check_log_dir(struct check_ctx *c, const struct check_item *item, struct check_answer *a);
bool check_swap_dir(struct check_ctx *c, const struct check_item *item, struct check_answer *a);
bool check_cgroup(struct check_ctx *c, const struct check_item *item, struct check_answer *a);
bool check_oom_score(struct check_ctx *c, const struct check_item *item, struct check_answer *a);
bool check_no_host_swap(struct check_ctx *c, const struct check_item *item, struct check_answer *a);
bool check_memlock(struct check_ctx *c, const struct check_item *item, struct check_answer *a);
bool check_idle_bitmap(struct check_ctx *c, const struct check_item *item, struct check_answer *a);

// check_qemu.c
bool check_qemu(struct check_ctx *c, const struct check_item *item, struct check_answer *a);
bool check_kvm(struct check_ctx *c, const struct check_item *item, struct check_answer *a);
