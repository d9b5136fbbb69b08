// SPDX-License-Identifier: GPL-2.0-only
#include "util/loop.h"

#include <assert.h>
#include <errno.h>
#include <poll.h>

#include "util/clock.h"
#include "util/io_ring.h"
#include "util/list.h"

#define LOOK_EACH 16  // completions
#define TAKE_MOST 512 // of a ring in a round: what looking submits may complete as fast as it is taken, and others wait

int loop_init(struct loop *l, unsigned entries)
{
	// A completion queue four times as large: polls and timers stay outstanding while requests come and go.
	struct io_uring_params p = { .flags = IORING_SETUP_CQSIZE | IORING_SETUP_SINGLE_ISSUER | IORING_SETUP_DEFER_TASKRUN |
					      IORING_SETUP_TASKRUN_FLAG,
				     .cq_entries = entries * 4 };

	*l = (struct loop){ .io_fd = -1 };
	return io_uring_queue_init_params(entries, &l->ring, &p);
}

int loop_use_io_ring(struct loop *l, int fd, unsigned entries)
{
	int r = io_ring_map(fd, entries, &l->io);

	if (!r)
		l->io_fd = fd;
	return r;
}

static bool is_unexpected(int r)
{
	return r < 0 && r != -EINTR && r != -EAGAIN && r != -EBUSY && r != -ETIME;
}

void loop_fini(struct loop *l)
{
	struct io_uring_cqe *cqe;

	while (l->io_fd >= 0 && l->nr_io && !is_unexpected(io_uring_submit_and_wait(&l->io, 1)))
		while (!io_uring_peek_cqe(&l->io, &cqe)) {
			io_uring_cqe_seen(&l->io, cqe);
			l->nr_io--;
		}
	if (l->io_fd >= 0)
		io_ring_unmap(&l->io);
	l->io_fd = -1;
	if (l->ring.ring_fd > 0)
		io_uring_queue_exit(&l->ring);
	l->ring.ring_fd = -1;
	spin_fini(&l->spin);
}

static struct io_uring_sqe *get_sqe_of(struct loop *l, struct io_uring *ring, struct loop_op *op)
{
	struct io_uring_sqe *sqe = io_uring_get_sqe(ring);

	while (!sqe) {
		int r = io_uring_submit(ring);

		// -EBUSY and -EAGAIN: completions must be taken first, which the round cannot do from here: let the kernel flush.
		if (r < 0 && r != -EINTR)
			io_uring_get_events(ring);
		sqe = io_uring_get_sqe(ring);
	}
	if (op) {
		assert(!op->busy);
		op->busy = true;
		l->nr_busy++;
		l->nr_awaited += op->awaited;
	}
	return sqe;
}

static struct io_uring_sqe *get_sqe(struct loop *l, struct loop_op *op)
{
	return get_sqe_of(l, &l->ring, op);
}

static struct io_uring_sqe *get_io_sqe(struct loop *l, struct loop_op *op)
{
	l->nr_io += l->io_fd >= 0;
	return get_sqe_of(l, l->io_fd >= 0 ? &l->io : &l->ring, op);
}

static void finish(struct io_uring_sqe *sqe, struct loop_op *op)
{
	io_uring_sqe_set_data(sqe, op);
}

void loop_read(struct loop *l, struct loop_op *op, int fd, void *buf, size_t len, uint64_t off)
{
	struct io_uring_sqe *sqe = get_io_sqe(l, op);

	io_uring_prep_read(sqe, fd, buf, (unsigned)len, off);
	if (op->apart)
		io_uring_sqe_set_flags(sqe, IOSQE_ASYNC);
	finish(sqe, op);
}

void loop_readv(struct loop *l, struct loop_op *op, int fd, const struct iovec *iov, unsigned nr, uint64_t off)
{
	struct io_uring_sqe *sqe = get_io_sqe(l, op);

	io_uring_prep_readv(sqe, fd, iov, nr, off);
	finish(sqe, op);
}

void loop_write(struct loop *l, struct loop_op *op, int fd, const void *buf, size_t len, uint64_t off)
{
	struct io_uring_sqe *sqe = get_io_sqe(l, op);

	io_uring_prep_write(sqe, fd, buf, (unsigned)len, off);
	finish(sqe, op);
}

void loop_poll_in(struct loop *l, struct loop_op *op, int fd)
{
	struct io_uring_sqe *sqe = get_sqe(l, op);

	io_uring_prep_poll_add(sqe, fd, POLLIN);
	finish(sqe, op);
}

void loop_poll_out(struct loop *l, struct loop_op *op, int fd)
{
	struct io_uring_sqe *sqe = get_sqe(l, op);

	io_uring_prep_poll_add(sqe, fd, POLLOUT);
	finish(sqe, op);
}

void loop_timer(struct loop *l, struct loop_timer *t, uint64_t ns)
{
	struct io_uring_sqe *sqe = get_sqe(l, &t->op);

	t->at = (struct __kernel_timespec){ .tv_sec = (long long)(ns / NSEC_PER_SEC), .tv_nsec = (long long)(ns % NSEC_PER_SEC) };
	io_uring_prep_timeout(sqe, &t->at, 0, 0);
	finish(sqe, &t->op);
}

void loop_cancel(struct loop *l, struct loop_op *op)
{
	struct io_uring_sqe *sqe;

	if (!op->busy)
		return;
	sqe = get_sqe(l, NULL);
	io_uring_prep_cancel(sqe, op, 0);
	finish(sqe, NULL);
}

void loop_spin(struct loop *l)
{
	if (!l->spin.on)
		spin_init(&l->spin);
}

static void polled(struct loop_op *op, int res)
{
	struct loop_watch *w = list_entry(op, struct loop_watch, poll);

	if (res >= 0 && !(res & POLLERR))
		return; // the round looks
	w->loop->watch = NULL;
	if (res < 0)
		w->failed(w, res);
}

void loop_watch(struct loop *l, struct loop_watch *w)
{
	w->loop = l;
	w->poll = (struct loop_op){ .done = polled };
	l->watch = w;
}

// What it asks for is submitted at once; what is wrong with that, the round sees when it submits again.
static bool look(struct loop *l)
{
	if (!l->watch || !l->watch->look(l->watch))
		return false;
	l->wait_over = true;
	if (l->io_fd >= 0)
		io_uring_submit(&l->io);
	return true;
}

// The ring has completions, or what becomes completions as soon as we look: known without a system call.
static bool has_news(struct io_uring *ring)
{
	return io_uring_cq_ready(ring) || IO_URING_READ_ONCE(*ring->sq.kflags) & (IORING_SQ_TASKRUN | IORING_SQ_CQ_OVERFLOW);
}

static bool is_ready(struct loop *l)
{
	return has_news(&l->ring) || (l->io_fd >= 0 && has_news(&l->io));
}

// Calls done for what the ring has completed. What is left the next round finds, without sleeping.
static void take(struct loop *l, struct io_uring *ring)
{
	struct io_uring_cqe *cqe;

	for (unsigned n = 1; n <= TAKE_MOST && !io_uring_peek_cqe(ring, &cqe); n++) {
		struct loop_op *op = io_uring_cqe_get_data(cqe);
		int res = cqe->res;

		io_uring_cqe_seen(ring, cqe);
		if (op) {
			op->busy = false;
			l->nr_busy--;
			l->nr_io -= ring == &l->io;
			l->nr_awaited -= op->awaited;
			l->wait_over |= op->awaited;
			op->done(op, res);
		}
		if (n % LOOK_EACH == 0)
			look(l);
	}
}

static void io_completed(struct loop_op *op, int res)
{
	(void)op; // the round takes what is there
	(void)res;
}

// The system calls that this makes while nothing is there let the kernel do what completes the io ring's requests.
static bool spin(struct loop *l, uint64_t end)
{
	uint64_t now = clock_now_ns();

	while (now < end) {
		uint64_t last = now;

		if (is_ready(l) || look(l))
			return true;
		now = clock_now_ns();
		if (spin_lost_cpu(&l->spin, now - last, now))
			break;
	}
	return false;
}

static int sleep_for_one(struct loop *l)
{
	if (l->watch && !l->watch->poll.busy)
		loop_poll_in(l, &l->watch->poll, l->watch->fd);
	if (l->nr_io && !l->io_op.busy) {
		l->io_op.done = io_completed;
		loop_poll_in(l, &l->io_op, l->io_fd);
	}
	l->wait_slept = true;
	return io_uring_submit_and_wait(&l->ring, 1);
}

static void begin_wait(struct loop *l, uint64_t now)
{
	enum spin_kind kind = l->nr_awaited ? SPIN_IO : SPIN_REST;

	if (l->wait_begun_ns && l->wait_kind == kind)
		return;
	l->wait_begun_ns = now;
	l->wait_kind = kind;
	l->wait_slept = false;
}

static int wait_for_one(struct loop *l)
{
	uint64_t now, end;

	if (is_ready(l) || look(l))
		return io_uring_submit(&l->ring);
	if (!l->spin.on)
		return sleep_for_one(l);
	now = clock_now_ns();
	begin_wait(l, now);
	end = spin_until(&l->spin, l->wait_kind, l->wait_begun_ns, now);
	if (end) {
		int r = io_uring_submit(&l->ring);

		if (is_unexpected(r) || spin(l, end))
			return r;
	}
	return sleep_for_one(l);
}

static void end_wait(struct loop *l)
{
	if (l->wait_over && l->wait_begun_ns) {
		spin_learn(&l->spin, l->wait_kind, clock_now_ns() - l->wait_begun_ns, l->wait_slept);
		l->wait_begun_ns = 0;
	}
	l->wait_over = false;
}

int loop_round(struct loop *l, bool wait)
{
	int r = l->io_fd >= 0 ? io_uring_submit(&l->io) : 0;

	if (!is_unexpected(r))
		r = wait ? wait_for_one(l) : io_uring_submit(&l->ring);
	if (is_unexpected(r))
		return l->error = r;
	take(l, &l->ring);
	if (l->io_fd >= 0)
		take(l, &l->io);
	look(l);
	end_wait(l);
	r = l->io_fd >= 0 ? io_uring_submit(&l->io) : 0;
	return is_unexpected(r) ? l->error = r : 0;
}
