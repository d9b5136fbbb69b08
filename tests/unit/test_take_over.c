// SPDX-License-Identifier: GPL-2.0-only
// Pagers are killed at any moment, and others take over, while a guest verifies what it reads: no wrong page, no end of a wait,
// and no memory that nobody knows of. Everything is real but QEMU's monitor and the run directory.
#include "engine_suite.h"

#include <sys/socket.h>
#include <sys/un.h>

#include "lazy-pages/pager.h"
#include "lazy-pages/take_over.h"
#include "traced.h"
#include "unserved.h"
#include "util/io_ring.h"

#define BUDGET (16 * MiB)
#define IO_ENTRIES 1024
#define ROUNDS 40
#define LAST_ROUNDS 6 // of these, few enough that not everything is written
#define CALM_MS 20000

// What the test, which starts pagers and kills them, sees of the one that lives.
struct sight {
	_Atomic unsigned serving; // so many have begun to
	_Atomic unsigned drains, harvests; // of all of them
	uint64_t budget; // for the next
};

struct pager {
	struct rig *r;
	struct sight *sight;
	int io_fd, control_fd;
	uint64_t hold_ns; // before it pages out
	struct lp_pager *lp;
	uint64_t harvest_ns; // between harvests; 0: none
	struct loop_timer drain_timer, release_timer, harvest_timer;
};

// ---- a pager: what vm_pager.c does

static void drain_looked(struct loop_op *op, int res)
{
	struct pager *p = list_entry(op, struct pager, drain_timer.op);
	const struct guest *g = p->r->g;

	(void)res;
	for (size_t i = 0; i < GUEST_WORKERS; i++)
		if (g->worker[i].order == GUEST_DMA && g->worker[i].drain_seen != g->drains) {
			loop_timer(lp_pager_loop(p->lp), &p->drain_timer, NSEC_PER_MSEC / 5);
			return;
		}
	lp_pager_drained(p->lp, 0);
}

static void drain(void *ctx)
{
	struct pager *p = ctx;

	p->r->g->drains++;
	p->sight->drains++;
	loop_timer(lp_pager_loop(p->lp), &p->drain_timer, NSEC_PER_MSEC / 5);
}

static void describe(void *ctx, json_t *answer)
{
	(void)ctx;
	(void)answer;
}

static json_t *command(void *ctx, const char *name, const json_t *request)
{
	(void)ctx;
	(void)name;
	(void)request;
	return json_object();
}

static void source_done(void *ctx)
{
	(void)ctx;
}

static void released(struct loop_op *op, int res)
{
	(void)res;
	lp_pager_release(list_entry(op, struct pager, release_timer.op)->lp);
}

static void harvest(struct loop_op *op, int res)
{
	struct pager *p = list_entry(op, struct pager, harvest_timer.op);

	(void)res;
	pv_engine_harvest(lp_pager_engine(p->lp));
	p->sight->harvests++;
	loop_timer(lp_pager_loop(p->lp), &p->harvest_timer, p->harvest_ns);
}

static void set_vcpus(const struct pager *p)
{
	pid_t tids[GUEST_WORKERS];
	size_t nr = 0;

	for (size_t i = 0; i < GUEST_WORKERS; i++)
		if (p->r->g->worker[i].order != GUEST_DMA)
			tids[nr++] = p->r->g->worker[i].tid;
	ck_assert_int_eq(lp_pager_set_vcpus(p->lp, tids, nr), 0);
}

static void serve(void *arg)
{
	struct pager *p = arg;
	struct rig *r = p->r;
	struct lp_opts o = { .qemu = r->pid, .qemu_pidfd = (int)syscall(SYS_pidfd_open, r->pid, 0), .control_fd = p->control_fd, .ctx = p,
			     .drain = drain, .describe = describe, .command = command, .source_done = source_done };
	struct lp_paging paging = { .plant = &r->plant, .blocks = r->block, .nr_blocks = r->nr_blocks, .pages = r->pages, .swap = &r->swap,
				    .budget = p->sight->budget, .tuning = r->tuning };

	ck_assert_int_eq(lp_pager_new(&o, &p->lp), 0);
	ck_assert_int_eq(lp_pager_fence(p->lp, p->io_fd, IO_ENTRIES), 0);
	ck_assert_int_eq(lp_pager_start(p->lp, &paging), 0);
	p->sight->serving++;
	set_vcpus(p);
	p->drain_timer.op.done = drain_looked;
	p->release_timer.op.done = released;
	loop_timer(lp_pager_loop(p->lp), &p->release_timer, p->hold_ns);
	p->harvest_timer.op.done = harvest;
	if (p->harvest_ns)
		loop_timer(lp_pager_loop(p->lp), &p->harvest_timer, p->harvest_ns);
	ck_assert_int_eq(lp_pager_run(p->lp), 0);
}

// ---- the life that they have

static int listen_somewhere(void)
{
	struct sockaddr_un at = { .sun_family = AF_UNIX };
	int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);

	ck_assert(fd >= 0 && !bind(fd, (const struct sockaddr *)&at, sizeof at.sun_family) && !listen(fd, 4));
	return fd;
}

static void start(struct rig *r, struct pager *p, size_t pages, enum mm_zap_method method, int way)
{
	size_t quarter;

	quiet();
	rig_init(r, pages, 24 * 256, BUDGET);
	rig_page_by(r, way);
	r->g->zeros = false; // what was read from the userfaultfd, and not noted, did not happen
	quarter = r->g->nr_pages / 4;
	rig_put(r, 0, quarter < 2000 ? quarter : 2000, PV_HOME_NONE);
	rig_put(r, quarter, quarter, PV_HOME_SWAP);
	unserved_start(r);
	if (method == MM_ZAP_PAGEOUT) {
		close(r->plant.ring_fd);
		r->plant.ring_fd = -1;
	}
	for (size_t i = 0; i < r->nr_blocks; i++) // it zaps what nobody else has mapped
		madvise(r->block[i].map, r->block[i].len, MADV_DONTNEED);
	*p = (struct pager){ .r = r, .io_fd = io_ring_new(IO_ENTRIES), .control_fd = listen_somewhere() };
	ck_assert_int_ge(p->io_fd, 0);
	p->sight = mmap(NULL, sizeof *p->sight, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	ck_assert(p->sight != MAP_FAILED);
	p->sight->budget = BUDGET;
}

static void end(struct rig *r, struct pager *p)
{
	unserved_end(r);
	close(p->io_fd);
	close(p->control_fd);
	munmap(p->sight, sizeof *p->sight);
}

static pid_t start_pager(struct pager *p)
{
	pid_t pid = fork();

	ck_assert_int_ge(pid, 0);
	if (!pid) {
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		serve(p);
		_exit(0);
	}
	return pid;
}

static void wait_served(const struct pager *p, unsigned before)
{
	ck_assert_msg(unserved_until(p->sight->serving > before, CALM_MS), "a pager does not begin to serve");
}

static uint64_t pick(uint64_t *random, uint64_t below)
{
	return (*random = guest_mix(*random)) / 256 % below;
}

// Where one step is done and the next is not: behind that system call, when it has come so often, or before and behind any if it is
// -1; or so many instructions later.
static void kill_at(struct pager *p, long syscall_nr, uint64_t times, uint64_t instructions)
{
	uint64_t end = clock_now_ns() + NSEC_PER_SEC;
	pid_t pid = traced_fork(serve, p);

	while (times && clock_now_ns() < end) {
		ck_assert(traced_step(pid, PTRACE_SYSCALL));
		times -= syscall_nr < 0 || traced_left(pid) == syscall_nr;
	}
	while (instructions--)
		ck_assert(traced_step(pid, PTRACE_SINGLESTEP));
	usleep(1000); // the guest goes on with what it has
	traced_kill(pid);
}

static void kill_after(struct pager *p, bool served, uint64_t us)
{
	unsigned before = p->sight->serving;
	pid_t pid = start_pager(p);

	if (served)
		wait_served(p, before);
	usleep((useconds_t)us);
	traced_kill(pid);
}

static void live_and_die(struct pager *p, unsigned round, uint64_t *random)
{
	static const long at[] = { SYS_fallocate, SYS_io_uring_enter, SYS_ioctl, SYS_read };

	p->hold_ns = pick(random, 2) * pick(random, 3000) * 1000 + 1;
	switch (round % 8) {
	case 0:
		kill_after(p, false, pick(random, 8000));
		break;
	case 1:
	case 2:
		kill_after(p, true, pick(random, 60000));
		break;
	case 3:
		kill_at(p, -1, pick(random, 6000), 0);
		break;
	default:
		kill_at(p, at[round % 4], 1 + pick(random, round & 8 ? 20 : 200), round & 16 ? pick(random, 3000) : 0);
	}
}

static void everybody_works(struct rig *r)
{
	for (size_t i = 0; i < GUEST_WORKERS; i++)
		rig_order(r, i, i < 2 ? GUEST_RANDOM : GUEST_DMA, 0, 0);
}

static void wait_idle(const struct rig *r, const char *what)
{
	ck_assert_msg(unserved_until(rig_idle(r), RIG_PATIENCE_MS), "the guest hangs: %s", what);
	rig_check(r);
}

// What memory there is, the page table knows of.
static void expect_known(struct rig *r, const struct pager *p)
{
	struct io_uring ring;
	size_t valid = 0;

	ck_assert_int_eq(io_ring_map(p->io_fd, IO_ENTRIES, &ring), 0);
	while (io_ring_abandoned(&ring))
		usleep(1000);
	io_ring_unmap(&ring);
	for (size_t i = 0; i < r->nr_chunks; i++) {
		ck_assert(pv_pages_sane(&r->pages[i]));
		valid += bitmap_count(r->pages[i].valid, PV_CHUNK_PAGES);
	}
	ck_assert_uint_le(rig_memory(r) / PAGE_SIZE, valid);
}

// The last one lives: all that there is can be verified, within the budget.
static void live_on(struct rig *r, struct pager *p)
{
	unsigned before = p->sight->serving;
	pid_t pid;

	p->hold_ns = 1;
	p->sight->budget = BUDGET;
	pid = start_pager(p);
	wait_served(p, before);
	r->g->stop = true;
	wait_idle(r, "what it was at");
	r->g->stop = false;
	for (size_t i = 0; i < 2; i++)
		rig_order(r, i, GUEST_VERIFY, 0, r->g->nr_pages);
	wait_idle(r, "verifying everything");
	ck_assert_msg(unserved_until(rig_memory(r) <= BUDGET, 5000), "%lu KiB are in memory", rig_memory(r) / KiB);
	before = p->sight->harvests;
	ck_assert(!p->harvest_ns || unserved_until(p->sight->harvests > before + 1, CALM_MS));
	traced_kill(pid);
	expect_known(r, p);
}

static const struct {
	enum mm_zap_method method;
	bool budgets; // change from one to the next
	uint64_t harvest_ns;
	int way; // rig_page_by()
} cases[] = {
	{ MM_ZAP_RING, false, 0, 0 },  { MM_ZAP_PAGEOUT, false, NSEC_PER_MSEC, 3 }, { MM_ZAP_RING, true, 0, 1 }, { MM_ZAP_RING, false, NSEC_PER_MSEC, 5 },
	{ MM_ZAP_RING, false, 0, 7 }, { MM_ZAP_PAGEOUT, false, 0, 9 }, { MM_ZAP_RING, false, NSEC_PER_MSEC, 6 }, { MM_ZAP_RING, true, 0, 11 },
};

// Somebody takes the dirty bits. What he knows of the guest then; seq is odd of a page that was just being changed, or that may hold
// two things.
struct taken {
	uint32_t seq[GUEST_MAX_PAGES];
	uint64_t seed[GUEST_MAX_PAGES];
};

static struct taken *take_dirty(struct rig *r)
{
	struct taken *t = calloc(1, sizeof *t);

	for (size_t i = 0; i < r->nr_chunks; i++)
		for (unsigned w = 0; w < PV_WORDS; w++)
			__atomic_store_n(&r->pages[i].dirty[w], 0, __ATOMIC_SEQ_CST);
	for (size_t i = 0; i < r->g->nr_pages; i++) {
		t->seq[i] = r->g->seq[i];
		t->seed[i] = r->g->seed[i];
		if (r->g->seq[i] != t->seq[i] || r->g->other[i])
			t->seq[i] |= 1;
	}
	return t;
}

// What is not dirty is as it was then, however many pagers were killed since.
static void expect_dirty(const struct rig *r, struct taken *t)
{
	size_t clean = 0;

	for (size_t i = 0; i < r->g->nr_pages; i++) {
		bool dirty = bitmap_test(r->pages[i / PV_CHUNK_PAGES].dirty, i % PV_CHUNK_PAGES);

		if (!(t->seq[i] & 1) && r->g->seed[i] != t->seed[i] && !dirty)
			ck_abort_msg("page %zu was changed, and is not dirty", i);
		clean += !dirty;
	}
	ck_assert_uint_gt(clean, 0);
	free(t);
}

START_TEST(killed_again_and_again)
{
	uint64_t random = clock_now_ns();
	struct taken *taken = NULL;
	struct pager p;
	struct rig r;

	SKIP_UNLESS_ZAP(cases[_i].method);
	start(&r, &p, 40 * 256 + 12, cases[_i].method, cases[_i].way);
	p.harvest_ns = cases[_i].harvest_ns;
	everybody_works(&r);
	for (unsigned round = 0; round < ROUNDS; round++) {
		if (round == ROUNDS - LAST_ROUNDS)
			taken = take_dirty(&r);
		if (cases[_i].budgets)
			p.sight->budget = BUDGET * (1 + pick(&random, 4));
		live_and_die(&p, round, &random);
		rig_check(&r);
	}
	ck_assert_msg(p.sight->serving > ROUNDS / 2 && p.sight->drains > ROUNDS / 10, "%u came to serve, %u drains: that is not much of a test",
		      p.sight->serving, p.sight->drains);
	live_on(&r, &p);
	if (p.harvest_ns)
		expect_dirty(&r, taken);
	else
		free(taken);
	end(&r, &p);
}
END_TEST

// ---- what must be so at any moment, be it the last of a pager

static void has_data(const struct pv_block *b, uint64_t *map)
{
	off_t at = 0, end = 0;

	memset(map, 0, DIV_ROUND_UP(b->len, PV_CHUNK_SIZE) * PV_WORDS * sizeof *map);
	while ((at = lseek(b->memfd, end, SEEK_DATA)) >= 0 && (end = lseek(b->memfd, at, SEEK_HOLE)) > at)
		bitmap_set_range(map, (size_t)at / PAGE_SIZE, (size_t)(end - at) / PAGE_SIZE);
}

// The pager stands still. The guest does not: it discards nothing, and zaps come to their end.
static void expect_order(const struct rig *r, const struct pv_block *b)
{
	uint64_t mapped[GUEST_MAX_PAGES / 64], data[GUEST_MAX_PAGES / 64];
	const struct pv_pages *p = &r->pages[b->off / PV_CHUNK_SIZE];

	ck_assert_int_eq(mm_pagemap_scan(r->pagemap, b->hva, b->len, MM_SCAN_PRESENT, mapped), 0);
	has_data(b, data);
	for (size_t page = 0; page < b->len / PAGE_SIZE; page++, p += page % PV_CHUNK_PAGES == 0) {
		bool valid = bitmap_test(p->valid, page % PV_CHUNK_PAGES);

		if (bitmap_test(mapped, page) && !valid)
			ck_abort_msg("page %zu is mapped, and not valid", page);
		if (valid && !bitmap_test(data, page))
			ck_abort_msg("page %zu is valid, and not in memory", page);
		if (!valid && pv_page_home(p, page % PV_CHUNK_PAGES) == PV_HOME_NONE)
			ck_abort_msg("page %zu is nowhere", page);
	}
}

START_TEST(between_system_calls)
{
	static const enum guest_order orders[] = { GUEST_WRITE, GUEST_VERIFY, GUEST_DMA, GUEST_DMA };
	struct pager p;
	struct rig r;
	pid_t pid;

	start(&r, &p, 12, MM_ZAP_RING, _i);
	pid = traced_fork(serve, &p);
	for (unsigned stops = 0; stops < 4000 || p.sight->drains < 3; stops++) {
		for (size_t i = 0; i < GUEST_WORKERS && p.sight->serving; i++)
			if (r.g->worker[i].order == GUEST_IDLE)
				rig_order(&r, i, orders[i], 0, r.g->nr_pages);
		ck_assert(traced_step(pid, PTRACE_SYSCALL));
		for (size_t i = 0; i < r.nr_blocks && p.sight->serving; i++)
			expect_order(&r, &r.block[i]);
	}
	traced_kill(pid);
	live_on(&r, &p);
	end(&r, &p);
}
END_TEST

// ---- the budget

// Another engine, as if a pager had been killed and the next one were there at once.
static void next_engine(struct rig *r, int io_fd, bool pages_out)
{
	int pidfd = (int)syscall(SYS_pidfd_open, r->pid, 0);

	r->deaf = true;
	loop_fini(&r->loop);
	pv_engine_free(r->e);
	mm_zapper_free(r->zapper);
	rig_new_zapper(r);
	ck_assert_int_eq(lp_settle(&r->plant, r->zapper, r->pagemap, r->block, r->nr_blocks, r->pages, pidfd), 0);
	close(pidfd);
	ck_assert_int_eq(loop_init(&r->loop, 256), 0);
	ck_assert_int_eq(loop_use_io_ring(&r->loop, io_fd, IO_ENTRIES), 0);
	r->deaf = r->watch.poll.busy = r->look.op.busy = r->drain_timer.op.busy = r->source_timer.op.busy = r->source_gone = false;
	rig_new_engine(r);
	for (size_t i = 0; i < r->nr_blocks; i++)
		mm_uffd_wake(r->plant.uffd, r->block[i].hva, r->block[i].len);
	if (pages_out)
		pv_engine_run(r->e);
}

// vCPUs only, drains that take no time, and no long wait for the first one: there is no reason to go beyond it.
START_TEST(budget_is_kept)
{
	int io_fd = io_ring_new(IO_ENTRIES);
	struct rig r;

	quiet();
	rig_init(&r, 40 * 256, 0, BUDGET);
	rig_page_by(&r, rig_way(_i));
	r.drain = DRAIN_NOW;
	r.g->zeros = false;
	for (size_t i = 0; i < GUEST_WORKERS; i++)
		r.vcpu[i] = true;
	rig_start(&r);
	next_engine(&r, io_fd, true);
	for (unsigned i = 0; i < 12; i++) {
		for (size_t w = 0; w < GUEST_WORKERS; w++)
			if (r.g->worker[w].order == GUEST_IDLE)
				rig_order(&r, w, w % 2 ? GUEST_WRITE : GUEST_VERIFY, 0, r.g->nr_pages);
		rig_pass(&r, 50); // the monitor does not answer yet, each second time: what is free goes, and no more
		next_engine(&r, io_fd, i % 2);
	}
	rig_finish(&r);
	ck_assert_msg(r.most <= BUDGET, "%lu KiB too many", (r.most - BUDGET) / KiB);
	verify_all(&r);
	rig_end(&r);
	close(io_fd);
}
END_TEST

// ---- the fence

struct pending {
	int ring_fd, pipe[2];
};

// Reads that end with the last who could write. By a child that is killed, so that they are nobody's.
static void leave_pending(struct pending *l)
{
	pid_t pid = fork();
	int status;

	ck_assert_int_ge(pid, 0);
	if (!pid) {
		static char buf[8];
		struct io_uring ring;

		ck_assert_int_eq(io_ring_map(l->ring_fd, IO_ENTRIES, &ring), 0);
		for (unsigned i = 0; i < sizeof buf; i++)
			io_uring_prep_read(io_uring_get_sqe(&ring), l->pipe[0], buf + i, 1, 0);
		ck_assert_int_eq(io_uring_submit(&ring), sizeof buf);
		raise(SIGKILL);
	}
	ck_assert_int_eq(waitpid(pid, &status, 0), pid);
	ck_assert(WIFSIGNALED(status));
}

// Holds open for so long what we have open now.
static pid_t lives_for(unsigned ms)
{
	pid_t pid = fork();

	ck_assert_int_ge(pid, 0);
	if (!pid) {
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		usleep(ms * 1000);
		_exit(0);
	}
	return pid;
}

static void end_process(pid_t pid)
{
	kill(pid, SIGKILL);
	waitpid(pid, NULL, 0);
}

static void nothing_done(struct loop_op *op, int res)
{
	(void)op;
	(void)res;
}

// A read of this pager's is counted by the ring, too.
static void expect_counted(const struct pending *l, struct lp_pager *lp)
{
	struct loop_op op = { .done = nothing_done };
	struct io_uring ring;
	unsigned before;
	char c;

	ck_assert_int_eq(io_ring_map(l->ring_fd, IO_ENTRIES, &ring), 0);
	before = *ring.sq.khead;
	loop_read(lp_pager_loop(lp), &op, l->pipe[0], &c, 1, 0);
	ck_assert_int_eq(lp_pager_wait(lp, NSEC_PER_MSEC, "the test"), 0);
	ck_assert_uint_eq(*ring.sq.khead, before + 1);
	io_ring_unmap(&ring);
}

// What is in flight ends after ms, and what should be QEMU after qemu_ms.
static int fence_time(unsigned ms, unsigned qemu_ms, uint64_t *took_ms)
{
	struct pending l = { .ring_fd = io_ring_new(IO_ENTRIES) };
	struct pager p = { .lp = NULL };
	struct lp_opts o = { .qemu = lives_for(qemu_ms), .ctx = &p, .drain = drain, .describe = describe, .command = command,
			     .source_done = source_done };
	uint64_t begun = clock_now_ns();
	pid_t holder;
	int r;

	ck_assert(l.ring_fd >= 0 && !pipe2(l.pipe, O_CLOEXEC));
	leave_pending(&l);
	holder = lives_for(ms);
	close(l.pipe[1]);
	o.qemu_pidfd = (int)syscall(SYS_pidfd_open, o.qemu, 0);
	o.control_fd = listen_somewhere();
	ck_assert_int_eq(lp_pager_new(&o, &p.lp), 0);
	r = lp_pager_fence(p.lp, l.ring_fd, IO_ENTRIES);
	*took_ms = (clock_now_ns() - begun) / NSEC_PER_MSEC;
	if (!r)
		expect_counted(&l, p.lp);
	lp_pager_free(p.lp);
	end_process(holder);
	end_process(o.qemu);
	close(o.qemu_pidfd);
	close(o.control_fd);
	close(l.pipe[0]);
	close(l.ring_fd);
	return r;
}

START_TEST(fence)
{
	uint64_t took_ms;

	quiet();
	ck_assert_int_eq(fence_time(300, 60000, &took_ms), 0);
	ck_assert_uint_ge(took_ms, 250);
	ck_assert_int_eq(fence_time(60000, 300, &took_ms), -ESRCH);
	ck_assert_uint_ge(took_ms, 250);
}
END_TEST

int main(void)
{
	Suite *s = suite_create("take_over");

	add(s, budget_is_kept, rig_nr_ways());
	add(s, fence, 1);
	add(s, between_system_calls, PV_NR_METHODS);
	add(s, killed_again_and_again, ARRAY_SIZE(cases));
	return run(s);
}
