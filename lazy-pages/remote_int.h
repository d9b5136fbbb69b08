// SPDX-License-Identifier: GPL-2.0-only
// Shared by the files of the remote page source: remote.c is the loop's side, remote_line.c the threads'.
//
// Who may touch what. A read belongs to the loop's side while it waits, and to the thread of a line from the moment that its answer is
// found to be right until its pages are where they belong; in between, on `asked`, it may be taken from the line. So nobody writes to a
// destination that somebody else writes to, or that has been handed on. All that goes between threads is under the lock, sending included
// (never two threads on one line): what is outstanding on a line fits into an empty socket, so that sending does not wait. Nothing else
// that may wait is done under it.
#pragma once
#include <pthread.h>

#include "lazy-pages/remote.h"
#include "util/list.h"

// A connection that has come, or in turn those that we make, and its thread.
struct lp_line {
	struct list link; // of lp_remote.lines
	struct lp_remote *r;
	unsigned nr;
	pthread_t thread;
	int fd; // that has come, until its thread takes it; -1: we connect
	bool trusted, told; // its thread's: who answers over c may be believed; it is logged that there is a line
	// Under the lock:
	int wake_fd;		 // the connection that has come, once more: to end whatever is being done with it; -1: there is none
	struct wire_conn *c;	 // what it works on; NULL: it is not there yet, or no more
	struct wire_pages *pages; // of c
	bool heard;		 // c has answered something: not before is it a line for who looks
	bool greeted;		 // LEFT has been sent over c: it may be asked
	bool ended;		 // its thread returns now
	struct list asked;	 // reads that c has to answer, in order
	unsigned nr_asked, nr_unasked; // of these, those that nobody waits for
	uint64_t head_ns;	       // since when the first of these is the first
};

struct lp_remote {
	struct lp_remote_opts o;
	struct pv_engine *engine;
	struct loop_op event; // waits for event_fd
	struct loop_timer tick;
	int event_fd; // a thread has something for the loop
	unsigned ticks;
	struct list lines; // the loop's: all that have a thread
	bool over_told;

	pthread_mutex_t lock;
	pthread_cond_t stopped; // stopping, or complete
	// Under the lock:
	bool stopping, complete, over;
	struct lp_line *up[LP_REMOTE_LINES_MAX]; // that may be asked, once they are greeted
	bool to_greet;
	struct list demand, background; // wait for a line
	struct list came, cannot;	// for pv_source_done()
	uint64_t pages, zero_pages, bytes;
	uint64_t alone_ns, others_gone_ns; // since when there is no line, none but line 0; 0: there is
	uint64_t cannot_ns, cannot_chunk;  // when the other side could not read something last, and where; 0: it can again
	char trouble[128];		   // why there is no line
};

// remote.c, any thread:
void lp_remote_wake(struct lp_remote *r);
// Under the lock:
// The line takes the place of its number, and of who has it. -ECANCELED: we end.
int lp_remote_up(struct lp_line *l, struct wire_conn *c, struct wire_pages *pages);
// It has its place no longer, its reads wait again. False: it had it no more.
bool lp_remote_down(struct lp_line *l);
// Why there is no line; printf-like.
void lp_remote_trouble(struct lp_remote *r, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
// Something that is no refusal has come over it.
void lp_remote_heard(struct lp_line *l);
// The oldest read on the line has an answer.
void lp_remote_unask(struct lp_line *l, struct pv_source_read *rd);

// remote_line.c
// Where a chunk is. It must exist.
void lp_remote_chunk(const struct lp_remote *r, uint64_t chunk, uint32_t *block, uint64_t *in_block);
// A line with its thread; takes fd over (-1: it connects), also on an error. -errno.
int lp_line_new(struct lp_remote *r, unsigned nr, int fd, struct lp_line **l);
// Under the lock: ends what the thread does, or will begin, with a connection; not a pause between two.
void lp_line_cut(struct lp_line *l);
// Waits for the thread.
void lp_line_free(struct lp_line *l);
