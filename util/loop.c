// SPDX-License-Identifier: GPL-2.0-only
#include "util/loop.h"

#include <assert.h>
#include <errno.h>
#include <poll.h>

#include "util/clock.h"
#include "util/io_ring.h"

int loop_init(struct loop *l, unsigned entries)
{
	// A completion queue four times as large: polls and timers stay outstanding while requests come and go.
	struct io_uring_params p = { .flags = IORING_SETUP_CQSIZE | IORING_SETUP_SINGLE_ISSUER | IORING_SETUP_DEFER_TASKRUN,
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

// Calls done for all that the ring has completed.
static void take(struct loop *l, struct io_uring *ring)
{
	struct io_uring_cqe *cqe;

	while (!io_uring_peek_cqe(ring, &cqe)) {
		struct loop_op *op = io_uring_cqe_get_data(cqe);
		int res = cqe->res;

		io_uring_cqe_seen(ring, cqe);
		if (!op)
			continue;
		op->busy = false;
		l->nr_busy--;
		l->nr_io -= ring == &l->io;
		op->done(op, res);
	}
}

static void io_completed(struct loop_op *op, int res)
{
	(void)op; // the round takes what is there
	(void)res;
}

// Submits reads and writes, and sees to it that their completions end a wait.
static int begin_io(struct loop *l)
{
	int r = io_uring_submit(&l->io);

	if (l->nr_io && !l->io_op.busy) {
		l->io_op.done = io_completed;
		loop_poll_in(l, &l->io_op, l->io_fd);
	}
	return r;
}

int loop_round(struct loop *l, bool wait)
{
	int r = l->io_fd >= 0 ? begin_io(l) : 0;

	if (is_unexpected(r))
		return l->error = r;
	r = io_uring_submit_and_wait(&l->ring, wait ? 1 : 0);
	if (is_unexpected(r))
		return l->error = r;
	if (!wait || r < 0)
		io_uring_get_events(&l->ring);
	take(l, &l->ring);
	if (l->io_fd >= 0)
		take(l, &l->io);
	return 0;
}
