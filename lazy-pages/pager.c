// SPDX-License-Identifier: GPL-2.0-only
#include "lazy-pages/pager.h"

#include <errno.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "lazy-pages/control.h"
#include "lazy-pages/image_source.h"
#include "mm/pagemap.h"
#include "mm/uapi.h"
#include "mm/uffd.h"
#include "mm/zap.h"
#include "util/clock.h"
#include "util/log.h"
#include "util/loop.h"

#define LOOP_ENTRIES 1024
#define EVENTS_A_READ 64

struct lp_pager {
	struct lp_opts o;
	struct loop loop;
	struct pv_engine *engine;
	struct pv_ops ops;
	struct mm_zapper *zapper;
	struct mm_pagemap *pagemap;
	struct lp_image_source *source;
	struct lp_control *control;
	struct loop_op uffd_op, pidfd_op;
	struct loop_timer tick;
	pid_t *vcpus;
	size_t nr_vcpus;
	bool stopping;
	int reason;
	uint64_t begun_ns;
};

// Whose fault is it: a vCPU's, be it by a kernel thread that brings its page asynchronously, or another thread's of QEMU?
static bool is_vcpu(const struct lp_pager *p, pid_t tid)
{
	char path[48];

	for (size_t i = 0; i < p->nr_vcpus; i++)
		if (p->vcpus[i] == tid)
			return true;
	snprintf(path, sizeof path, "/proc/%d/task/%d", p->o.qemu, tid);
	return access(path, F_OK) < 0;
}

static void removed(struct lp_pager *p, uint64_t start, uint64_t end)
{
	for (size_t i = 0; i < p->o.nr_blocks; i++) {
		const struct pv_block *b = &p->o.blocks[i];
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

static void uffd_readable(struct loop_op *op, int res)
{
	struct lp_pager *p = list_entry(op, struct lp_pager, uffd_op);
	struct uffd_msg m[EVENTS_A_READ];
	ssize_t n;

	do {
		n = read(p->o.plant->uffd, m, sizeof m);
		// What was removed first: the read has let QEMU go on with it, and a fault's neighbours may be among it.
		for (ssize_t i = 0; i < n / (ssize_t)sizeof m[0]; i++)
			if (m[i].event != UFFD_EVENT_PAGEFAULT)
				uffd_event(p, &m[i]);
		for (ssize_t i = 0; i < n / (ssize_t)sizeof m[0]; i++)
			if (m[i].event == UFFD_EVENT_PAGEFAULT)
				uffd_event(p, &m[i]);
	} while (n == sizeof m);
	if (res < 0) {
		log_err("cannot wait for faults: %s", strerror(-res));
		lp_pager_stop(p, res);
	} else if (!(res & POLLERR)) { // that is said when QEMU has ended
		loop_poll_in(&p->loop, op, p->o.plant->uffd);
	}
}

static void qemu_ended(struct loop_op *op, int res)
{
	(void)res;
	lp_pager_stop(list_entry(op, struct lp_pager, pidfd_op), 0);
}

static void ticked(struct loop_op *op, int res)
{
	struct lp_pager *p = list_entry(op, struct lp_pager, tick.op);

	(void)res;
	if (p->engine)
		pv_tick(p->engine);
	loop_timer(&p->loop, &p->tick, NSEC_PER_SEC);
}

static json_t *bytes(uint64_t pages)
{
	return json_integer((json_int_t)(pages * PAGE_SIZE));
}

static json_t *describe_paging(const struct lp_pager *p)
{
	struct pv_stats s;
	json_t *memory, *counts, *hist = json_array(), *queues = json_array();
	uint64_t blocks = 0;

	pv_engine_stats(p->engine, &s);
	for (size_t i = 0; i < p->o.nr_blocks; i++) {
		struct stat st;

		if (!fstat(p->o.blocks[i].memfd, &st))
			blocks += (uint64_t)st.st_blocks * 512;
	}
	memory = json_pack("{s:o s:I s:o s:o s:o s:o s:o s:o s:o s:o s:o}", "budget", bytes(s.budget), "memfd", (json_int_t)blocks, "resident",
			   bytes(s.resident), "page_out_under_way", bytes(s.page_out_under_way), "standby", bytes(s.standby), "swapped",
			   bytes(s.swapped), "remote", bytes(s.remote), "empty", bytes(s.empty), "reserve", bytes(s.reserve), "overdraft",
			   bytes(s.overdraft), "overdraft_max", bytes(s.overdraft_max));
	counts = json_pack("{s:I s:I s:I s:I s:I s:I s:I s:I s:I s:I s:I s:I s:I s:I s:I s:I s:I}", "faults", (json_int_t)s.faults, "minor_faults",
			   (json_int_t)s.minor_faults, "vcpu_faults", (json_int_t)s.vcpu_faults, "faults_delayed", (json_int_t)s.faults_delayed,
			   "pages_in_zero", (json_int_t)s.in_zero, "pages_in_swap", (json_int_t)s.in_swap, "pages_in_source",
			   (json_int_t)s.in_source, "pages_out_written", (json_int_t)s.out_written, "pages_out_clean", (json_int_t)s.out_clean,
			   "pages_out_zero", (json_int_t)s.out_zero, "chunks_out", (json_int_t)s.chunks_out, "chunks_rescued",
			   (json_int_t)s.chunks_rescued, "pages_discarded", (json_int_t)s.discarded, "drains", (json_int_t)s.drains, "drain_ns",
			   (json_int_t)s.drain_ns, "drain_ns_max", (json_int_t)s.drain_ns_max, "write_errors", (json_int_t)s.writes_failed);
	for (unsigned i = 0; i < PV_LATENCY_BUCKETS; i++)
		json_array_append_new(hist, json_integer((json_int_t)s.latency[i]));
	for (unsigned i = 0; i < PV_NR_QUEUES; i++)
		json_array_append_new(queues, json_integer((json_int_t)s.queue[i]));
	return json_pack("{s:o s:o s:o s:o s:i s:o}", "memory", memory, "counts", counts, "page_in_latency_log2_us", hist, "queues", queues,
			 "reads_waiting", (int)s.reads_waiting, "trouble", s.trouble ? json_string(s.trouble) : json_null());
}

static json_t *answer(void *ctx, const json_t *request)
{
	struct lp_pager *p = ctx;
	const char *command = json_string_value(json_object_get(request, "execute"));
	json_t *reply, *paging;

	if (!command || strcmp(command, "stat"))
		return json_pack("{s:s}", "error", "unknown command");
	reply = json_pack("{s:i s:i s:f s:b}", "qemu_pid", (int)p->o.qemu, "pager_pid", (int)getpid(), "uptime_s",
			  (double)(clock_now_ns() - p->begun_ns) / 1e9, "paging", p->engine != NULL);
	if (p->engine) {
		paging = describe_paging(p);
		json_object_update(reply, paging);
		json_decref(paging);
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

	lp_image_source_read(p->source, rd);
}

// The mappings of guest RAM in QEMU, one for each block.
static int new_zapper(struct lp_pager *p)
{
	struct mm_region *regions = calloc(p->o.nr_blocks, sizeof *regions);
	enum mm_zap_method method = p->o.plant->ring_fd >= 0 ? MM_ZAP_RING : MM_ZAP_PAGEOUT;
	int r = regions ? 0 : -ENOMEM;

	for (size_t i = 0; !r && i < p->o.nr_blocks; i++) {
		struct stat st;

		if (fstat(p->o.blocks[i].memfd, &st) < 0)
			r = -errno;
		regions[i] = (struct mm_region){ .hva = p->o.blocks[i].hva, .len = p->o.blocks[i].len, .dev = st.st_dev, .ino = st.st_ino };
	}
	if (!r)
		r = mm_zapper_new(p->o.qemu, p->o.plant, regions, p->o.nr_blocks, method, &p->zapper);
	free(regions);
	return r;
}

static int new_engine(struct lp_pager *p)
{
	struct pv_opts eo = { .loop = &p->loop, .uffd = p->o.plant->uffd, .zap_own = p->o.plant->ring_fd < 0, .swap = p->o.swap,
			      .blocks = p->o.blocks, .nr_blocks = p->o.nr_blocks, .pages = p->o.pages, .budget = p->o.budget, .ops = &p->ops };
	int r = new_zapper(p);

	if (!r)
		r = mm_pagemap_open(p->o.qemu, &p->pagemap);
	if (!r && p->o.images)
		r = lp_image_source_new(&p->loop, p->o.images, &p->source);
	if (r)
		return r;
	p->ops = (struct pv_ops){ .ctx = p, .drain = drain, .source_read = source_read };
	eo.zapper = p->zapper;
	eo.pagemap = p->pagemap;
	r = pv_engine_new(&eo, &p->engine);
	if (r) {
		log_err("cannot start the paging engine: %s", strerror(-r));
		return r;
	}
	if (p->source)
		lp_image_source_set_engine(p->source, p->engine);
	p->uffd_op.done = uffd_readable;
	loop_poll_in(&p->loop, &p->uffd_op, p->o.plant->uffd);
	// A fault that somebody before us has read, and not answered, is raised again.
	for (size_t i = 0; i < p->o.nr_blocks; i++)
		mm_uffd_wake(p->o.plant->uffd, p->o.blocks[i].hva, p->o.blocks[i].len);
	return 0;
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
	if (!r && o->plant)
		r = new_engine(p);
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
	loop_fini(&p->loop); // cancels what is in flight and waits for it
	mm_zapper_free(p->zapper);
	pv_engine_free(p->engine);
	lp_image_source_free(p->source);
	lp_control_free(p->control);
	mm_pagemap_close(p->pagemap);
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

void lp_pager_drained(struct lp_pager *p, int err)
{
	pv_drained(p->engine, err);
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
