// SPDX-License-Identifier: GPL-2.0-only
//
// DOC: the pager
//
// One process for each VM in private virtual memory, for as long as the VM lives. One thread, one loop; all that can wake it:
//
//      userfaultfd    faults, REMOVE events       -> paging engine
//      zapper         zaps that are done          -> paging engine
//      io_uring       swap and image I/O          -> paging engine
//      eventfd        pages from another host     -> paging engine
//      control.sock   stat, set, replace          -> an answer
//      pidfd          QEMU has ended              -> the loop ends
//      tick           a period of the queues
//      whatever the floor above adds to the loop: QMP
#pragma once
#include <jansson.h>
#include <stdbool.h>
#include <sys/types.h>

#include "images/reader.h"
#include "lazy-pages/remote.h"
#include "mm/plant.h"
#include "pvmem/engine.h"

struct lp_pager;

struct lp_opts {
	pid_t qemu;
	int qemu_pidfd;
	int control_fd; // listening unix socket
	void *ctx;
	// Begin to drain QEMU's block I/O; lp_pager_drained() is the answer. Never blocks.
	void (*drain)(void *ctx);
	// Adds what the floor above knows to an answer of stat.
	void (*describe)(void *ctx, json_t *answer);
	// The page source is no longer needed: lp_paging.images may be closed, and the remote be told so. Not called if there was none.
	void (*source_done)(void *ctx);
	// Does what a client asks for but stat: an object with "error", or without one when it is done. Never NULL.
	json_t *(*command)(void *ctx, const char *name, const json_t *request);
};

struct lp_paging {
	const struct mm_plant *plant;
	const struct pv_block *blocks;
	size_t nr_blocks;
	struct pv_pages *pages;
	const struct pv_swap *swap;
	// The page source; both NULL if no page has the home SOURCE. Of one with both, in_images says of each chunk which pages are there.
	const struct img_dir *images;
	struct lp_remote *remote;
	const uint64_t (*in_images)[PV_WORDS];
	bool source_once;       // as in pv_opts
	const uint8_t *hotness; // the same
	const uint8_t *ages;    // the same
	const struct pv_warm_chunk *warm; // the same
	size_t nr_warm;
	uint64_t budget;              // bytes
	struct pv_tuning tuning;
	bool exact;                   // the page table is right, by who made it and has ended properly; nothing of guest RAM was ever mapped
};

// A pager that answers on its control socket and sees QEMU end, and pages nothing yet. All that opts points to must outlive
// it. Logs.
int lp_pager_new(const struct lp_opts *o, struct lp_pager **p);
// Stops lp_paging.remote, which is freed after it.
void lp_pager_free(struct lp_pager *p);

// Waits for reads and writes of a pager before this one; io_fd and entries: the ring that they go through, from now on ours
// (util/io_ring.h). Answers clients meanwhile. 0; -ESRCH: QEMU has ended; or the reason of lp_pager_stop(). Logs.
int lp_pager_fence(struct lp_pager *p, int io_fd, unsigned entries);
// Puts the page table right, and begins to serve faults. Guest RAM is registered with the userfaultfd already. All that paging
// points to must outlive the pager. Page-out is held until lp_pager_release(). May be called again after an error. Logs.
int lp_pager_start(struct lp_pager *p, const struct lp_paging *paging);
// Goes on answering for so long. As lp_pager_fence(). why: what is waited for, static, for stat.
int lp_pager_wait(struct lp_pager *p, uint64_t ns, const char *why);

struct loop *lp_pager_loop(struct lp_pager *p);
void lp_pager_release(struct lp_pager *p);
void lp_pager_drained(struct lp_pager *p, int err);
// Begins to bring all that the page source has left, in the background. Harmless if it has begun, or there is nothing.
void lp_pager_fill(struct lp_pager *p);
// lp_pager_start() has been.
bool lp_pager_serves(const struct lp_pager *p);
// pv_engine_set_budget(), of one that serves.
int lp_pager_set_budget(struct lp_pager *p, uint64_t bytes);
// Of one that serves, for what goes by the pager: harvests and snapshots.
struct pv_engine *lp_pager_engine(struct lp_pager *p);
// Which threads of QEMU are vCPUs. tids is copied. -ENOMEM.
int lp_pager_set_vcpus(struct lp_pager *p, const pid_t *tids, size_t nr);

// Serves until QEMU has ended (0), lp_pager_stop() was called (its reason), or the pager cannot go on (-errno, logged).
int lp_pager_run(struct lp_pager *p);
void lp_pager_stop(struct lp_pager *p, int reason);
