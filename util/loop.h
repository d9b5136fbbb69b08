// SPDX-License-Identifier: GPL-2.0-only
//
// DOC: the event loop
//
// One io_uring, one thread. Whatever waits (an O_DIRECT read, a poll, a timer) is a struct loop_op inside the object that
// waits for it; its completion calls op->done, and that is the next step of the object's life. Nothing here locks.
//
//      loop_read(l, op, ...)                 done(op, res)
//   ------------------------->  io_uring  ------------------->  next step
//
// Reads and writes may go through a second ring, which others hold, so that they can be waited for when this process is
// killed (io_ring.h).
#pragma once
#include <liburing.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/uio.h>

struct loop_op {
	// res as io_uring gives it: a count or -errno. The op is free for use again, or for being freed, when it is called.
	void (*done)(struct loop_op *op, int res);
	bool busy; // submitted, done not called yet: owned by the loop
};

struct loop_timer {
	struct loop_op op;
	struct __kernel_timespec at;
};

struct loop {
	struct io_uring ring;
	struct io_uring io;   // for reads and writes, if io_fd >= 0
	int io_fd;            // borrowed
	struct loop_op io_op; // waits for its completions
	unsigned nr_io;       // in flight there
	unsigned nr_busy;
	int error; // a ring itself failed
};

// entries: submissions between two rounds, rounded up to a power of two; more than that are submitted early. -errno.
int loop_init(struct loop *l, unsigned entries);
// Waits for reads and writes in flight; all else is cancelled. done is called of none.
void loop_fini(struct loop *l);
// Reads and writes go through this ring of io_ring_new() from now on: fd and entries as io_ring_map() takes them. There must be
// nothing in flight in it. fd is borrowed. -errno.
int loop_use_io_ring(struct loop *l, int fd, unsigned entries);

// All of these only queue; buffers and the op belong to the loop until done is called. They never fail: an error of
// submission is loop_round()'s.
void loop_read(struct loop *l, struct loop_op *op, int fd, void *buf, size_t len, uint64_t off);
void loop_readv(struct loop *l, struct loop_op *op, int fd, const struct iovec *iov, unsigned nr, uint64_t off);
void loop_write(struct loop *l, struct loop_op *op, int fd, const void *buf, size_t len, uint64_t off);
// Calls done once when fd is readable, has hung up or failed; queue again for the next time.
void loop_poll_in(struct loop *l, struct loop_op *op, int fd);
void loop_poll_out(struct loop *l, struct loop_op *op, int fd);
// done with res -ETIME after ns nanoseconds.
void loop_timer(struct loop *l, struct loop_timer *t, uint64_t ns);
// done of the op comes soon, with -ECANCELED unless it completed by itself. Harmless if it is not busy.
void loop_cancel(struct loop *l, struct loop_op *op);

// Submits what was queued, waits for a completion if wait, and calls done for all that there are. 0 or -errno.
int loop_round(struct loop *l, bool wait);
