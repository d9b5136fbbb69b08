// SPDX-License-Identifier: GPL-2.0-only
// The loop: who is watched comes first, looking takes the place of sleeping where that pays, and nowhere else.
#include <check.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "util/clock.h"
#include "util/io.h"
#include "util/io_ring.h"
#include "util/list.h"
#include "util/loop.h"
#include "util/size.h"

#define ENTRIES 64
#define PATIENCE_NS (20 * NSEC_PER_SEC) // on a busy host
#define SHORT_NS 40000
#define QUIET "0.00 0.00 0.00 1/100 1\n"
#define BUSY "9.00 9.00 9.00 999/1000 1\n"

static struct loop l;
static int io_fd;

// Each that is to be counted.
static struct op {
	struct loop_op op;
	int res;
	bool done;
} ops[4 * ENTRIES];
static unsigned nr_done;

static void op_done(struct loop_op *op, int res)
{
	struct op *o = list_entry(op, struct op, op);

	o->res = res;
	o->done = true;
	nr_done++;
}

static void set_up(bool own_ring)
{
	nr_done = 0;
	memset(ops, 0, sizeof ops);
	for (size_t i = 0; i < ARRAY_SIZE(ops); i++)
		ops[i].op.done = op_done;
	ck_assert_int_eq(loop_init(&l, ENTRIES), 0);
	io_fd = own_ring ? io_ring_new(ENTRIES) : -1;
	if (own_ring)
		ck_assert_int_eq(loop_use_io_ring(&l, io_fd, ENTRIES), 0);
}

static void take_down(void)
{
	loop_fini(&l);
	if (io_fd >= 0)
		close(io_fd);
}

static void round_of(bool wait)
{
	ck_assert_int_eq(loop_round(&l, wait), 0);
}

#define until(so) \
	do { \
		uint64_t end_ = clock_now_ns() + PATIENCE_NS; \
		while (!(so)) { \
			round_of(true); \
			ck_assert_msg((so) || clock_now_ns() < end_, "not so: %s", #so); \
		} \
	} while (0)

// What is watched is an eventfd.
static struct {
	struct loop_watch w;
	unsigned looks, found, failed;
	unsigned after[8]; // what was done when it was found
	int err;
	void (*then)(void);
} watch;

static bool looked(struct loop_watch *w)
{
	eventfd_t n;

	watch.looks++;
	if (eventfd_read(w->fd, &n))
		return false;
	watch.after[watch.found++ % ARRAY_SIZE(watch.after)] = nr_done;
	if (watch.then)
		watch.then();
	return true;
}

static void failed(struct loop_watch *w, int err)
{
	ck_assert_ptr_eq(w, &watch.w);
	watch.failed++;
	watch.err = err;
}

static void watch_event(void)
{
	memset(&watch, 0, sizeof watch);
	watch.w = (struct loop_watch){ .fd = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC), .look = looked, .failed = failed };
	loop_watch(&l, &watch.w);
}

static void poke(void)
{
	ck_assert_int_eq(eventfd_write(watch.w.fd, 1), 0);
}

// What the machine is told to be as busy as.
static void load_is(const char *text)
{
	int fd = memfd_create("load", MFD_CLOEXEC);

	ck_assert_int_eq(io_pwrite_full(fd, text, strlen(text), 0), 0);
	ck_assert(l.spin.on);
	close(l.spin.load_fd);
	l.spin.load_fd = fd;
	l.spin.looked_ns = 0;
}

static long sleeps(void)
{
	struct rusage u;

	getrusage(RUSAGE_THREAD, &u);
	return u.ru_nvcsw;
}

static uint64_t cpu_ns(void)
{
	struct timespec t;

	clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
	return (uint64_t)t.tv_sec * NSEC_PER_SEC + (uint64_t)t.tv_nsec;
}

static bool one_cpu(void)
{
	cpu_set_t cpus;

	return sched_getaffinity(0, sizeof cpus, &cpus) || CPU_COUNT(&cpus) < 2;
}

static void fired(struct loop_op *op, int res)
{
	(void)op;
	ck_assert_int_eq(res, -ETIME);
}

static void wait_ns(uint64_t ns, bool awaited)
{
	struct loop_timer t = { .op = { .done = fired, .awaited = awaited } };

	loop_timer(&l, &t, ns);
	while (t.op.busy)
		round_of(true);
}

// A batch of waits without a sleep comes sooner or later, however busy the host is otherwise; and what comes is seen as it comes.
static bool looks_instead(uint64_t ns, uint64_t patience_ns)
{
	uint64_t end = clock_now_ns() + patience_ns;

	while (clock_now_ns() < end) {
		uint64_t shortest = UINT64_MAX;
		long before = sleeps();

		for (unsigned i = 0; i < 20; i++) {
			uint64_t begun = clock_now_ns(), took;

			wait_ns(ns, true);
			took = clock_now_ns() - begun;
			shortest = took < shortest ? took : shortest;
		}
		if (sleeps() == before && shortest < ns + ns / 2)
			return true;
	}
	return false;
}

// Tests.

static void queue_write(void)
{
	loop_write(&l, &ops[0].op, ops[0].res, "x", 1, (uint64_t)-1);
}

// It is seen without being waited for, and what it asks for is under way when the round ends.
START_TEST(watched)
{
	int p[2];

	set_up(true);
	watch_event();
	ck_assert_int_eq(pipe2(p, O_CLOEXEC), 0);
	for (unsigned i = 0; i < 3; i++) {
		struct pollfd in = { p[0], POLLIN, 0 };
		char c;

		poke();
		ops[0].res = p[1];
		ops[0].done = false;
		watch.then = queue_write;
		round_of(i == 1);
		ck_assert_uint_eq(watch.found, i + 1);
		ck_assert_int_eq(poll(&in, 1, 10000), 1);
		ck_assert_int_eq(read(p[0], &c, 1), 1);
		until(ops[0].done);
		ck_assert_int_eq(ops[0].res, 1);
	}
	take_down();
	close(p[0]);
	close(p[1]);
	close(watch.w.fd);
}
END_TEST

static void write_next(struct loop_op *op, int res)
{
	op_done(op, res);
	queue_write();
}

// What completions ask for is under way, too.
START_TEST(next_step)
{
	struct pollfd in = { .events = POLLIN };
	int p[2];

	set_up(true);
	ck_assert_int_eq(pipe2(p, O_CLOEXEC), 0);
	in.fd = p[0];
	ops[0].res = p[1];
	ops[1].op.done = write_next;
	loop_poll_out(&l, &ops[1].op, p[1]);
	until(ops[1].done);
	ck_assert_int_eq(poll(&in, 1, 10000), 1);
	until(ops[0].done);
	take_down();
	close(p[0]);
	close(p[1]);
}
END_TEST

static void *poke_later(void *arg)
{
	(void)arg;
	usleep(50000);
	poke();
	return NULL;
}

// Nothing else ends the sleep.
START_TEST(wakes)
{
	pthread_t thread;

	uint64_t end = clock_now_ns() + PATIENCE_NS;
	unsigned slept = 0;

	set_up(_i);
	watch_event();
	for (unsigned i = 1; slept < 3 && clock_now_ns() < end; i++) { // on a busy host it may come before we sleep
		long before = sleeps();

		pthread_create(&thread, NULL, poke_later, NULL);
		until(watch.found == i);
		slept += sleeps() > before;
		pthread_join(thread, NULL);
	}
	ck_assert_uint_eq(slept, 3);
	take_down();
	close(watch.w.fd);
}
END_TEST

static void first_done(struct loop_op *op, int res)
{
	op_done(op, res);
	if (nr_done == 2)
		poke();
}

// Among many completions it does not wait for the last.
START_TEST(before_long_batches)
{
	int null = open("/dev/zero", O_RDONLY | O_CLOEXEC);
	static char buf[8];

	set_up(true);
	watch_event();
	for (size_t i = 0; i < ARRAY_SIZE(ops); i++) {
		ops[i].op.done = first_done;
		loop_read(&l, &ops[i].op, null, buf, sizeof buf, 0);
	}
	until(nr_done == ARRAY_SIZE(ops));
	ck_assert_uint_eq(watch.found, 1);
	ck_assert_uint_ge(watch.after[0], 2);
	ck_assert_uint_le(watch.after[0], 2 + 16);
	take_down();
	close(null);
	close(watch.w.fd);
}
END_TEST

// All else goes on, while there is something at each look.
START_TEST(others_are_not_forgotten)
{
	struct loop_timer t = { .op.done = fired };
	int p[2];

	set_up(true);
	watch_event();
	watch.then = poke;
	ck_assert_int_eq(pipe2(p, O_CLOEXEC), 0);
	poke();
	loop_poll_in(&l, &ops[1].op, p[0]);
	loop_timer(&l, &t, NSEC_PER_MSEC);
	until(!t.op.busy);
	ck_assert(!ops[1].done);
	ck_assert_int_eq(write(p[1], "x", 1), 1);
	until(ops[1].done);
	ck_assert_uint_gt(watch.found, 1);
	take_down();
	close(p[0]);
	close(p[1]);
	close(watch.w.fd);
}
END_TEST

static int zero;

static void next_read(struct loop_op *op, int res)
{
	op_done(op, res);
	poke();
}

static void queue_reads(void)
{
	static char buf[8];

	for (size_t i = 0; i < ARRAY_SIZE(ops); i++)
		if (!ops[i].op.busy)
			loop_read(&l, &ops[i].op, zero, buf, sizeof buf, 0);
}

// Nor while what it asks for has come by the next look.
START_TEST(completions_without_end)
{
	struct loop_timer t = { .op.done = fired };

	set_up(true);
	watch_event();
	zero = open("/dev/zero", O_RDONLY | O_CLOEXEC);
	watch.then = queue_reads;
	for (size_t i = 0; i < ARRAY_SIZE(ops); i++)
		ops[i].op.done = next_read;
	poke();
	loop_timer(&l, &t, NSEC_PER_MSEC);
	until(!t.op.busy);
	ck_assert_uint_gt(nr_done, ARRAY_SIZE(ops));
	take_down();
	close(zero);
	close(watch.w.fd);
}
END_TEST

START_TEST(watch_fails)
{
	struct loop_timer t = { .op.done = fired };
	unsigned looks;

	set_up(true);
	watch_event();
	close(watch.w.fd);
	watch.w.fd = open("/dev/null", O_PATH | O_CLOEXEC); // it cannot be polled
	until(watch.failed);
	ck_assert_int_eq(watch.err, -EBADF);
	looks = watch.looks;
	loop_timer(&l, &t, NSEC_PER_MSEC);
	until(!t.op.busy);
	ck_assert_uint_eq(watch.looks, looks);
	ck_assert_uint_eq(watch.failed, 1);
	close(watch.w.fd);
	take_down();
}
END_TEST

// It is at its end, and that is no failure.
START_TEST(watch_ends)
{
	struct loop_timer t = { .op.done = fired };
	int p[2];

	set_up(true);
	watch_event();
	close(watch.w.fd);
	ck_assert_int_eq(pipe2(p, O_CLOEXEC | O_NONBLOCK), 0);
	close(p[0]);
	watch.w.fd = p[1]; // POLLERR
	for (unsigned i = 0; i < 3; i++) {
		unsigned rounds = 0;

		loop_timer(&l, &t, 20 * NSEC_PER_MSEC);
		for (; t.op.busy; rounds++)
			round_of(true);
		ck_assert_uint_le(rounds, 5); // nor does it keep the loop awake
	}
	ck_assert_uint_eq(watch.failed, 0);
	close(p[1]);
	take_down();
}
END_TEST

START_TEST(finds_without_sleeping)
{
	if (one_cpu())
		return;
	set_up(_i);
	loop_spin(&l);
	load_is(QUIET);
	watch_event();
	ck_assert(looks_instead(SHORT_NS, PATIENCE_NS));
	take_down();
	close(watch.w.fd);
}
END_TEST

// The same through the ring that others hold, whose completions are there only after a system call of ours.
START_TEST(finds_reads)
{
	char path[] = "/var/tmp/criu-vm-test.XXXXXX"; // not in memory
	char *buf = aligned_alloc(PAGE_SIZE, PAGE_SIZE);
	uint64_t end = clock_now_ns() + PATIENCE_NS;
	int fd = mkostemp(path, O_DIRECT | O_CLOEXEC);
	bool found = false;

	ck_assert(fd >= 0 && !unlink(path));
	memset(buf, 7, PAGE_SIZE);
	ck_assert_int_eq(io_pwrite_full(fd, buf, PAGE_SIZE, 0), 0);
	set_up(true);
	loop_spin(&l);
	load_is(QUIET);
	watch_event();
	while (!found && clock_now_ns() < end && !one_cpu()) {
		long before = sleeps();

		ops[0].done = false;
		ops[0].op.awaited = true;
		loop_read(&l, &ops[0].op, fd, buf, PAGE_SIZE, 0);
		until(ops[0].done);
		ck_assert_int_eq(ops[0].res, PAGE_SIZE);
		found = sleeps() == before && watch.looks > 4;
		l.spin.waits[SPIN_IO].limit_ns = SPIN_MAX_NS; // a slow disk teaches otherwise
	}
	ck_assert(found || one_cpu());
	take_down();
	free(buf);
	close(fd);
	close(watch.w.fd);
}
END_TEST

// No CPU is to spare; or what is waited for takes too long; or nobody waits for what comes soon; or looking is off.
START_TEST(sleeps_instead)
{
	long before;

	set_up(true);
	if (_i != 3) {
		loop_spin(&l);
		load_is(_i == 0 ? BUSY : QUIET);
	}
	watch_event();
	for (unsigned i = 0; i < 300; i++)
		wait_ns(_i == 1 ? NSEC_PER_MSEC : SHORT_NS, _i != 2);
	before = sleeps();
	for (unsigned i = 0; i < 100; i++)
		wait_ns(_i == 1 ? NSEC_PER_MSEC : SHORT_NS, _i != 2);
	ck_assert_int_ge(sleeps(), before + 95);
	ck_assert(_i == 0 || !l.spin.waits[SPIN_IO].limit_ns);
	ck_assert(!l.spin.waits[SPIN_REST].total); // that wait has not ended
	take_down();
	close(watch.w.fd);
}
END_TEST

// After whatever was before, an idle loop takes no CPU time to speak of.
START_TEST(idle_is_idle)
{
	uint64_t cpu, begun;

	set_up(true);
	loop_spin(&l);
	load_is(QUIET);
	watch_event();
	for (unsigned i = 0; i < 300; i++)
		wait_ns(SHORT_NS, true);
	cpu = cpu_ns();
	begun = clock_now_ns();
	for (unsigned i = 0; i < 20; i++)
		wait_ns(50 * NSEC_PER_MSEC, i & 1);
	ck_assert_uint_lt(cpu_ns() - cpu, (clock_now_ns() - begun) / 50);
	take_down();
	close(watch.w.fd);
}
END_TEST

static void read_and_die(int fd)
{
	struct io_uring ring;
	char c;

	if (!io_ring_map(io_fd, ENTRIES, &ring)) {
		io_uring_prep_read(io_uring_get_sqe(&ring), fd, &c, 1, 0);
		io_uring_submit(&ring);
	}
	kill(getpid(), SIGKILL);
}

// What ends behind the back of whoever asked for it, and was killed, does not keep who comes after it awake.
START_TEST(heir_sleeps)
{
	struct loop_timer t = { .op.done = fired };
	struct io_uring ring;
	unsigned rounds = 0;
	int p[2];
	pid_t pid;

	ck_assert_int_eq(loop_init(&l, ENTRIES), 0);
	io_fd = io_ring_new(ENTRIES);
	ck_assert_int_eq(pipe2(p, O_CLOEXEC), 0);
	pid = fork();
	if (!pid)
		read_and_die(p[0]);
	ck_assert_int_eq(waitpid(pid, NULL, 0), pid);
	ck_assert_int_eq(io_ring_map(io_fd, ENTRIES, &ring), 0);
	ck_assert_uint_eq(io_ring_abandoned(&ring), 1);
	ck_assert_int_eq(write(p[1], "x", 1), 1);
	for (uint64_t end = clock_now_ns() + PATIENCE_NS; io_ring_abandoned(&ring) && clock_now_ns() < end;)
		usleep(1000);
	ck_assert_uint_eq(io_ring_abandoned(&ring), 0);
	ck_assert_int_eq(loop_use_io_ring(&l, io_fd, ENTRIES), 0);
	io_ring_unmap(&ring);
	loop_timer(&l, &t, 20 * NSEC_PER_MSEC);
	for (; t.op.busy; rounds++)
		round_of(true);
	ck_assert_uint_le(rounds, 5);
	take_down();
	close(p[0]);
	close(p[1]);
}
END_TEST

int main(void)
{
	Suite *suite = suite_create("loop");
	TCase *t = tcase_create("loop");
	SRunner *sr;
	int nr_failed;

	tcase_set_timeout(t, 60);
	tcase_add_test(t, watched);
	tcase_add_test(t, next_step);
	tcase_add_loop_test(t, wakes, 0, 2);
	tcase_add_test(t, before_long_batches);
	tcase_add_test(t, others_are_not_forgotten);
	tcase_add_test(t, completions_without_end);
	tcase_add_test(t, watch_fails);
	tcase_add_test(t, watch_ends);
	tcase_add_loop_test(t, finds_without_sleeping, 0, 2);
	tcase_add_test(t, finds_reads);
	tcase_add_loop_test(t, sleeps_instead, 0, 4);
	tcase_add_test(t, idle_is_idle);
	tcase_add_test(t, heir_sleeps);
	suite_add_tcase(suite, t);
	sr = srunner_create(suite);
	srunner_run_all(sr, CK_ENV);
	nr_failed = srunner_ntests_failed(sr);
	srunner_free(sr);
	return nr_failed ? 1 : 0;
}
