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
//
// One descriptor may come before all else, being who waits: it is watched. It is read without being polled for first, before a
// wait, in it, after each few completions, and at the end of a round, and what it asks for is on its way when the round ends: the
// work that follows the round keeps nobody waiting. A wait may begin with looking at it and at the rings (spin.h):
//
//      submit -> watch -> [look at watch and rings for up to 192 us] -> [poll, sleep] -> completions, watch -> submit
#pragma once
#include <liburing.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/uio.h>

#include "util/spin.h"

struct loop_op {
	// res as io_uring gives it: a count or -errno. The op is free for use again, or for being freed, when it is called.
	void (*done)(struct loop_op *op, int res);
	bool busy;    // submitted, done not called yet: owned by the loop
	// Set by whoever owns it before it is submitted:
	bool awaited; // somebody waits for it, so it may be looked for
	bool apart;   // a read: it is begun by a thread of the kernel's, for that takes long where pages have to be allocated
};

struct loop_timer {
	struct loop_op op;
	struct __kernel_timespec at;
};

struct loop_watch {
	int fd; // that does not block
	// Takes what there is. False: there was nothing.
	bool (*look)(struct loop_watch *w);
	// It cannot be waited for (-errno), and is watched no more.
	void (*failed)(struct loop_watch *w, int err);
	struct loop *loop;   // the loop's, from here on
	struct loop_op poll; // while it sleeps
};

struct loop {
	struct io_uring ring;
	struct io_uring io;   // for reads and writes, if io_fd >= 0
	int io_fd;            // borrowed
	struct loop_op io_op; // waits for its completions
	unsigned nr_io;       // in flight there
	unsigned nr_busy, nr_awaited;
	int error; // a ring itself failed
	struct loop_watch *watch; // or NULL
	struct spin spin;
	// The wait for what somebody waits for, which may go on over several rounds that end for others; 0: there is none.
	uint64_t wait_begun_ns;
	enum spin_kind wait_kind;
	bool wait_slept, wait_over;
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

// Watches it from now on, until its descriptor says that it is at an end (POLLERR). w outlives the loop. Once for a loop.
void loop_watch(struct loop *l, struct loop_watch *w);
// Waits begin with looking, from now on, where that pays. To be called by the thread that runs the loop.
void loop_spin(struct loop *l);

// Submits what was queued, waits for a completion or the watched descriptor if wait, and calls done for all that there are, up to some
// hundreds; what these have queued is submitted too, as far as it goes through the second ring. 0 or -errno.
int loop_round(struct loop *l, bool wait);
