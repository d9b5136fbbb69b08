// SPDX-License-Identifier: GPL-2.0-only
#include "lazy-pages/pager.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "lazy-pages/control.h"
#include "lazy-pages/describe.h"
#include "lazy-pages/source.h"
#include "lazy-pages/take_over.h"
#include "mm/pagemap.h"
#include "mm/uapi.h"
#include "mm/uffd.h"
#include "mm/zap.h"
#include "util/clock.h"
#include "util/io_ring.h"
#include "util/log.h"
#include "util/loop.h"

#define LOOP_ENTRIES 1024
#define EVENTS_A_READ 64
#define READS_A_LOOK 8 // then others have their turn: a guest of many vCPUs may fault as fast as it is answered
#define KNOWN_THREADS 256
#define FENCE_LOOK_NS (2 * NSEC_PER_MSEC)
#define FENCE_TELL_NS (10 * NSEC_PER_SEC)

struct lp_pager {
	struct lp_opts o;
	struct lp_paging paging;
	struct loop loop;
	struct pv_engine *engine;
	struct pv_ops ops;
	struct mm_zapper *zapper;
	struct mm_pagemap *pagemap;
	struct lp_source *source;
	struct lp_control *control;
	struct loop_watch uffd;
	struct loop_op pidfd_op;
	struct loop_timer tick, pause;
	const char *waits_for; // before it serves
	pid_t *vcpus;
	size_t nr_vcpus;
	struct { pid_t tid; bool vcpu; } known[KNOWN_THREADS]; // whose faults were seen since the last tick, at tid % KNOWN_THREADS
	bool stopping;
	int reason;
	uint64_t begun_ns;
};

static bool look_up_vcpu(const struct lp_pager *p, pid_t tid)
{
	char path[48];

	for (size_t i = 0; i < p->nr_vcpus; i++)
		if (p->vcpus[i] == tid)
			return true;
	snprintf(path, sizeof path, "/proc/%d/task/%d", p->o.qemu, tid);
	return access(path, F_OK) < 0;
}

// Whose fault is it: a vCPU's, be it by a kernel thread that brings its page asynchronously, or another thread's of QEMU?
static bool is_vcpu(struct lp_pager *p, pid_t tid)
{
	size_t i = (size_t)(unsigned)tid % KNOWN_THREADS;

	if (p->known[i].tid != tid || !tid) {
		p->known[i].tid = tid;
		p->known[i].vcpu = look_up_vcpu(p, tid);
	}
	return p->known[i].vcpu;
}

// Threads come and go, and so do their numbers.
static void forget_threads(struct lp_pager *p)
{
	memset(p->known, 0, sizeof p->known);
}

static void removed(struct lp_pager *p, uint64_t start, uint64_t end)
{
	for (size_t i = 0; i < p->paging.nr_blocks; i++) {
		const struct pv_block *b = &p->paging.blocks[i];
		uint64_t from = start > b->hva ? start : b->hva, to = end < b->hva + b->len ? end : b->hva + b->len;

		if (from < to)
			pv_removed(p->engine, b->off + (from - b->hva), to - from);
	}
}

static void uffd_event(struct lp_pager *p, const struct uffd_msg *m)
{
	uint64_t off;

	switch (m->event) {
	case UFFD_EVENT_PAGEFAULT:
		if (pv_engine_offset(p->engine, m->arg.pagefault.address, &off))
			pv_fault(p->engine, off, m->arg.pagefault.flags & UFFD_PAGEFAULT_FLAG_MINOR,
				 is_vcpu(p, (pid_t)m->arg.pagefault.feat.ptid));
		else
			log_err("a fault at %#llx, which is no guest RAM", m->arg.pagefault.address);
		break;
	case UFFD_EVENT_REMOVE:
		removed(p, m->arg.remove.start, m->arg.remove.end);
		break;
	default:
		log_err("unexpected userfaultfd event %u", m->event);
	}
}

static bool look_for_faults(struct loop_watch *w)
{
	struct lp_pager *p = list_entry(w, struct lp_pager, uffd);
	struct uffd_msg m[EVENTS_A_READ];
	bool found = false;
	ssize_t n = sizeof m;

	for (unsigned reads = 0; reads < READS_A_LOOK && n == sizeof m; reads++) {
		n = read(w->fd, m, sizeof m);
		found |= n > 0;
		// What was removed first: the read has let QEMU go on with it, and a fault's neighbours may be among it.
		for (ssize_t i = 0; i < n / (ssize_t)sizeof m[0]; i++)
			if (m[i].event != UFFD_EVENT_PAGEFAULT)
				uffd_event(p, &m[i]);
		for (ssize_t i = 0; i < n / (ssize_t)sizeof m[0]; i++)
			if (m[i].event == UFFD_EVENT_PAGEFAULT)
				uffd_event(p, &m[i]);
	}
	return found;
}

static void cannot_wait_for_faults(struct loop_watch *w, int err)
{
	log_err("cannot wait for faults: %s", strerror(-err));
	lp_pager_stop(list_entry(w, struct lp_pager, uffd), err);
}

static void qemu_ended(struct loop_op *op, int res)
{
	struct lp_pager *p = list_entry(op, struct lp_pager, pidfd_op);

	if (res > 0)
		lp_pager_stop(p, 0);
	else
		loop_poll_in(&p->loop, op, p->o.qemu_pidfd);
}

static void ticked(struct loop_op *op, int res)
{
	struct lp_pager *p = list_entry(op, struct lp_pager, tick.op);

	(void)res;
	forget_threads(p);
	if (p->engine)
		pv_tick(p->engine);
	loop_timer(&p->loop, &p->tick, NSEC_PER_SEC);
}

static json_t *answer(void *ctx, const json_t *request)
{
	struct lp_pager *p = ctx;
	const char *command = json_string_value(json_object_get(request, "execute"));
	json_t *reply, *paging;

	if (!command)
		return json_pack("{s:s}", "error", "no command");
	if (strcmp(command, "stat"))
		return p->o.command(p->o.ctx, command, request);
	reply = json_pack("{s:i s:i s:f s:b}", "qemu_pid", (int)p->o.qemu, "pager_pid", (int)getpid(), "uptime_s",
			  (double)(clock_now_ns() - p->begun_ns) / 1e9, "paging", p->engine != NULL);
	if (p->engine) {
		paging = lp_describe_paging(p->engine, p->paging.blocks, p->paging.nr_blocks);
		json_object_update(reply, paging);
		json_decref(paging);
	} else if (p->waits_for) {
		json_object_set_new(reply, "trouble", json_string(p->waits_for));
		json_object_set_new(reply, "trouble_s", json_real((double)(clock_now_ns() - p->begun_ns) / NSEC_PER_SEC));
	}
	p->o.describe(p->o.ctx, reply);
	return reply;
}

static void drain(void *ctx)
{
	struct lp_pager *p = ctx;

	p->o.drain(p->o.ctx);
}

static void source_read(void *ctx, struct pv_source_read *rd)
{
	struct lp_pager *p = ctx;

	lp_source_read(p->source, rd);
}

static void source_done(void *ctx)
{
	struct lp_pager *p = ctx;

	if (!p->source)
		return;
	lp_source_free(p->source);
	p->source = NULL;
	p->paging.images = NULL;
	p->o.source_done(p->o.ctx);
}

// The mappings of guest RAM in QEMU, one for each block.
static int new_zapper(struct lp_pager *p)
{
	struct mm_region *regions = calloc(p->paging.nr_blocks, sizeof *regions);
	enum mm_zap_method method = p->paging.plant->ring_fd >= 0 ? MM_ZAP_RING : MM_ZAP_PAGEOUT;
	int r = regions ? 0 : -ENOMEM;

	for (size_t i = 0; !r && i < p->paging.nr_blocks; i++) {
		struct stat st;

		if (fstat(p->paging.blocks[i].memfd, &st) < 0)
			r = -errno;
		regions[i] = (struct mm_region){ .hva = p->paging.blocks[i].hva, .len = p->paging.blocks[i].len, .dev = st.st_dev, .ino = st.st_ino };
	}
	if (!r)
		r = mm_zapper_new(p->o.qemu, p->paging.plant, regions, p->paging.nr_blocks, method, &p->zapper);
	free(regions);
	return r;
}

static int new_engine(struct lp_pager *p)
{
	struct pv_opts eo = { .loop = &p->loop, .uffd = p->paging.plant->uffd, .zap_own = p->paging.plant->ring_fd < 0, .swap = p->paging.swap,
			      .blocks = p->paging.blocks, .nr_blocks = p->paging.nr_blocks, .pages = p->paging.pages,
			      .budget = p->paging.budget, .tuning = p->paging.tuning, .ops = &p->ops,
			      .source_once = p->paging.source_once, .hotness = p->paging.hotness,
			      .ages = p->paging.ages, .warm = p->paging.warm, .nr_warm = p->paging.nr_warm,
			      .in_images = p->paging.images && p->paging.remote ? p->paging.in_images : NULL };
	struct lp_source_opts so = { .loop = &p->loop, .images = p->paging.images, .remote = p->paging.remote, .in_images = p->paging.in_images };
	int r = new_zapper(p);

	if (!r)
		r = mm_pagemap_open(p->o.qemu, &p->pagemap);
	if (!r && (p->paging.images || p->paging.remote))
		r = lp_source_new(&so, &p->source);
	if (!r && !p->paging.exact)
		r = lp_settle(p->paging.plant, p->zapper, p->pagemap, p->paging.blocks, p->paging.nr_blocks, p->paging.pages, p->o.qemu_pidfd);
	if (r)
		return r;
	p->ops = (struct pv_ops){ .ctx = p, .drain = drain, .source_read = source_read, .source_done = source_done };
	eo.zapper = p->zapper;
	eo.pagemap = p->pagemap;
	r = pv_engine_new(&eo, &p->engine);
	if (r)
		log_err("cannot start the paging engine: %s", strerror(-r));
	else if (p->source)
		lp_source_set_engine(p->source, p->engine);
	return r;
}

static void free_engine(struct lp_pager *p)
{
	mm_zapper_free(p->zapper);
	pv_engine_free(p->engine);
	lp_source_free(p->source);
	mm_pagemap_close(p->pagemap);
	p->zapper = NULL;
	p->engine = NULL;
	p->source = NULL;
	p->pagemap = NULL;
}

int lp_pager_start(struct lp_pager *p, const struct lp_paging *paging)
{
	int r;

	p->paging = *paging;
	r = new_engine(p);
	if (r) {
		free_engine(p);
		return r;
	}
	p->waits_for = NULL;
	p->uffd = (struct loop_watch){ .fd = p->paging.plant->uffd, .look = look_for_faults, .failed = cannot_wait_for_faults };
	loop_watch(&p->loop, &p->uffd);
	if (p->paging.tuning.spin)
		loop_spin(&p->loop);
	// A fault that somebody before us has read, and not answered, is raised again.
	for (size_t i = 0; i < p->paging.nr_blocks; i++)
		mm_uffd_wake(p->paging.plant->uffd, p->paging.blocks[i].hva, p->paging.blocks[i].len);
	return 0;
}

static void paused(struct loop_op *op, int res)
{
	(void)op; // lp_pager_wait() looks at it
	(void)res;
}

int lp_pager_wait(struct lp_pager *p, uint64_t ns, const char *why)
{
	p->waits_for = why;
	p->pause.op.done = paused;
	loop_timer(&p->loop, &p->pause, ns);
	while (p->pause.op.busy && !p->stopping) {
		int r = loop_round(&p->loop, true);

		if (r)
			return r;
	}
	return !p->stopping ? 0 : p->reason ? p->reason : -ESRCH;
}

int lp_pager_fence(struct lp_pager *p, int io_fd, unsigned entries)
{
	uint64_t begun = clock_now_ns(), told = begun, now;
	struct io_uring ring = { .ring_fd = 0 };
	unsigned left, most = 0;
	int r = io_ring_map(io_fd, entries, &ring);

	while (!r && (left = io_ring_abandoned(&ring))) {
		most = left > most ? left : most;
		r = lp_pager_wait(p, FENCE_LOOK_NS, "I/O of a pager that died has not ended yet");
		now = clock_now_ns();
		if (!r && now - told > FENCE_TELL_NS) {
			log_warn("%u reads or writes of a pager that died have not ended; the guest waits for them", left);
			told = now;
		}
	}
	if (r && r != -ESRCH)
		log_err("the ring of the pager's I/O: %s", strerror(-r));
	if (!r && most)
		log_info("%u reads or writes of a pager that died ended after %.1f ms", most, (double)(clock_now_ns() - begun) / NSEC_PER_MSEC);
	if (!r)
		r = loop_use_io_ring(&p->loop, io_fd, entries);
	if (ring.ring_fd)
		io_ring_unmap(&ring);
	return r;
}

int lp_pager_new(const struct lp_opts *o, struct lp_pager **out)
{
	struct lp_pager *p = calloc(1, sizeof *p);
	int r;

	if (!p)
		return -ENOMEM;
	p->o = *o;
	p->begun_ns = clock_now_ns();
	r = loop_init(&p->loop, LOOP_ENTRIES);
	if (r) {
		log_err("cannot set up an io_uring: %s; is kernel.io_uring_disabled set, or RLIMIT_MEMLOCK too low?", strerror(-r));
		free(p);
		return r;
	}
	r = lp_control_new(&p->loop, o->control_fd, answer, p, &p->control);
	if (r) {
		lp_pager_free(p);
		return r;
	}
	p->pidfd_op.done = qemu_ended;
	loop_poll_in(&p->loop, &p->pidfd_op, o->qemu_pidfd);
	p->tick.op.done = ticked;
	loop_timer(&p->loop, &p->tick, NSEC_PER_SEC);
	*out = p;
	return 0;
}

void lp_pager_free(struct lp_pager *p)
{
	if (!p)
		return;
	lp_remote_stop(p->paging.remote); // its threads write where the engine says
	loop_fini(&p->loop); // cancels what is in flight and waits for it
	free_engine(p);
	lp_control_free(p->control);
	free(p->vcpus);
	free(p);
}

struct loop *lp_pager_loop(struct lp_pager *p)
{
	return &p->loop;
}

void lp_pager_release(struct lp_pager *p)
{
	if (p->engine)
		pv_engine_run(p->engine);
}

void lp_pager_fill(struct lp_pager *p)
{
	if (p->engine)
		pv_fill_begin(p->engine);
}

void lp_pager_drained(struct lp_pager *p, int err)
{
	pv_drained(p->engine, err);
}

int lp_pager_set_budget(struct lp_pager *p, uint64_t bytes)
{
	return pv_engine_set_budget(p->engine, bytes);
}

struct pv_engine *lp_pager_engine(struct lp_pager *p)
{
	return p->engine;
}

bool lp_pager_serves(const struct lp_pager *p)
{
	return p->engine != NULL;
}

int lp_pager_set_vcpus(struct lp_pager *p, const pid_t *tids, size_t nr)
{
	pid_t *copy = malloc(nr * sizeof *copy + 1);

	if (!copy)
		return -ENOMEM;
	memcpy(copy, tids, nr * sizeof *copy);
	free(p->vcpus);
	p->vcpus = copy;
	p->nr_vcpus = nr;
	forget_threads(p);
	return 0;
}

int lp_pager_run(struct lp_pager *p)
{
	bool more = false;

	while (!p->stopping) {
		int r = loop_round(&p->loop, !more);

		if (r) {
			log_err("the pager's io_uring fails: %s", strerror(-r));
			return r;
		}
		more = p->engine && pv_balance(p->engine);
	}
	return p->reason;
}

void lp_pager_stop(struct lp_pager *p, int reason)
{
	p->stopping = true;
	p->reason = reason;
}
