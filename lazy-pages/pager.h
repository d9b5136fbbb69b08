// SPDX-License-Identifier: GPL-2.0-only
//
// DOC: the pager
//
// One process for each VM in private virtual memory, for as long as the VM lives. One thread, one loop; all that can wake it:
//
//      userfaultfd    faults, REMOVE events       -> paging engine
//      zapper         zaps that are done          -> paging engine
//      io_uring       swap and image I/O          -> paging engine
//      control.sock   stat                        -> an answer
//      pidfd          QEMU has ended              -> the loop ends
//      tick           a period of the queues
//      whatever the floor above adds to the loop: QMP
#pragma once
#include <jansson.h>
#include <stdbool.h>
#include <sys/types.h>

#include "images/reader.h"
#include "mm/plant.h"
#include "pvmem/engine.h"

struct lp_pager;

struct lp_opts {
	pid_t qemu;
	int qemu_pidfd;
	const struct mm_plant *plant; // NULL: nothing is paged, the pager only watches
	const struct pv_block *blocks;
	size_t nr_blocks;
	struct pv_pages *pages;
	const struct pv_swap *swap;
	const struct img_dir *images; // page source, NULL if no page has the home SOURCE
	uint64_t budget;              // bytes
	int control_fd;               // listening unix socket
	void *ctx;
	// Begin to drain QEMU's block I/O; lp_pager_drained() is the answer. Never blocks.
	void (*drain)(void *ctx);
	// Adds what the floor above knows to an answer of stat.
	void (*describe)(void *ctx, json_t *answer);
};

// All that opts points to must outlive the pager. Registers nothing: guest RAM is registered with the userfaultfd already.
// Page-out is held until lp_pager_release(). Logs.
int lp_pager_new(const struct lp_opts *o, struct lp_pager **p);
void lp_pager_free(struct lp_pager *p);

struct loop *lp_pager_loop(struct lp_pager *p);
void lp_pager_release(struct lp_pager *p);
void lp_pager_drained(struct lp_pager *p, int err);
// Which threads of QEMU are vCPUs. tids is copied. -ENOMEM.
int lp_pager_set_vcpus(struct lp_pager *p, const pid_t *tids, size_t nr);

// Serves until QEMU has ended (0), lp_pager_stop() was called (its reason), or the pager cannot go on (-errno, logged).
int lp_pager_run(struct lp_pager *p);
void lp_pager_stop(struct lp_pager *p, int reason);
