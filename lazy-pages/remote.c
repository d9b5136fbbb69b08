// SPDX-License-Identifier: GPL-2.0-only
#include "lazy-pages/remote.h"

#include <assert.h>
#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "lazy-pages/remote_int.h"
#include "util/bitmap.h"
#include "util/clock.h"
#include "util/log.h"

#define TICK_MS (WIRE_LINE_ALIVE_MS / 2)
#define TICKS_A_LEFT 2
#define ALONE_NS NSEC_PER_SEC	     // for so long line 0 is kept free for the guest, when the others are gone
#define STUCK_NS NSEC_PER_SEC	     // who answers nothing for so long hangs in a read; other lines are read by others
#define SHARED_UNASKED 2	     // reads that nobody waits for, ahead of one that somebody waits for
#define CANNOT_NS (3 * NSEC_PER_SEC) // who cannot read is asked again sooner than that
#define CANDIDATES_MAX 18	     // connections that have not shown the key yet

static void event(struct loop_op *op, int res);
static void ticked(struct loop_op *op, int res);

void lp_remote_wake(struct lp_remote *r)
{
	uint64_t one = 1;

	while (write(r->event_fd, &one, sizeof one) < 0 && errno == EINTR)
		;
}

void lp_remote_trouble(struct lp_remote *r, const char *fmt, ...)
{
	va_list args;

	va_start(args, fmt);
	vsnprintf(r->trouble, sizeof r->trouble, fmt, args);
	va_end(args);
}

// Notes since when there is none: a connection that brings nothing, or a refusal, is none.
static void count_lines(struct lp_remote *r)
{
	uint64_t now = clock_now_ns();
	bool any = false, others = false;

	for (unsigned i = 0; i < r->o.nr_lines; i++) {
		any |= r->up[i] && r->up[i]->heard;
		others |= i && r->up[i];
	}
	r->alone_ns = any ? 0 : r->alone_ns ? r->alone_ns : now;
	r->others_gone_ns = others ? 0 : r->others_gone_ns ? r->others_gone_ns : now;
}

int lp_remote_up(struct lp_line *l, struct wire_conn *c, struct wire_pages *pages)
{
	struct lp_remote *r = l->r;
	struct lp_line *old = r->up[l->nr];

	if (r->stopping)
		return -ECANCELED;
	if (old) {
		lp_remote_down(old);
		lp_line_cut(old);
	}
	l->c = c;
	l->pages = pages;
	l->heard = l->greeted = false;
	r->up[l->nr] = l;
	r->to_greet = true;
	count_lines(r);
	return 0;
}

void lp_remote_heard(struct lp_line *l)
{
	l->heard = true;
	count_lines(l->r);
}

static void wait_again(struct lp_remote *r, struct pv_source_read *rd)
{
	list_append(rd->unasked ? &r->background : &r->demand, &rd->link);
}

bool lp_remote_down(struct lp_line *l)
{
	struct lp_remote *r = l->r;
	struct list demand, background;

	if (r->up[l->nr] != l)
		return false;
	r->up[l->nr] = NULL;
	list_init(&demand);
	list_init(&background);
	list_splice(&demand, &r->demand);
	list_splice(&background, &r->background);
	list_for_each(&l->asked, node)
		wait_again(r, list_entry(node, struct pv_source_read, link)); // before those that came later
	list_init(&l->asked);
	l->nr_asked = l->nr_unasked = 0;
	list_splice(&r->demand, &demand);
	list_splice(&r->background, &background);
	count_lines(r);
	return true;
}

void lp_remote_unask(struct lp_line *l, struct pv_source_read *rd)
{
	list_remove(&rd->link);
	l->nr_asked--;
	l->head_ns = clock_now_ns();
	l->nr_unasked -= rd->unasked;
}

// Of a line to which nothing can be sent: its thread will see that it is lost.
static void lose(struct lp_line *l, int err)
{
	lp_remote_trouble(l->r, "%s: the line is lost: %s", wire_peer(l->c), strerror(-err));
	lp_remote_down(l);
	lp_line_cut(l);
}

// The first line from this one on that may be asked, or NULL.
static struct lp_line *next_line(const struct lp_remote *r, unsigned i)
{
	while (i < r->o.nr_lines && !(r->up[i] && r->up[i]->greeted))
		i++;
	return i < r->o.nr_lines ? r->up[i] : NULL;
}

static bool has_room(const struct lp_line *l)
{
	return l->nr_asked < WIRE_LINE_WANTS_MAX;
}

static bool is_stuck(const struct lp_line *l)
{
	return l->nr_asked && clock_now_ns() - l->head_ns > STUCK_NS;
}

// Where a read is asked for that somebody waits for, or NULL.
static struct lp_line *line_of_demand(const struct lp_remote *r)
{
	struct lp_line *first = next_line(r, 0);

	for (struct lp_line *l = first; l; l = next_line(r, l->nr + 1))
		if (!is_stuck(l))
			return has_room(l) ? l : NULL;
	return first && has_room(first) ? first : NULL;
}

// Where one is asked for that nobody waits for: not before those that somebody waits for, while that can be.
static struct lp_line *line_of_background(const struct lp_remote *r)
{
	struct lp_line *first = next_line(r, 0), *best = NULL;

	if (!first)
		return NULL;
	for (struct lp_line *l = next_line(r, first->nr + 1); l; l = next_line(r, l->nr + 1))
		if (!best || l->nr_asked < best->nr_asked)
			best = l;
	if (best)
		return has_room(best) ? best : NULL;
	if (!first->nr && r->o.nr_lines > 1 && (!r->others_gone_ns || clock_now_ns() - r->others_gone_ns < ALONE_NS))
		return NULL;
	return has_room(first) && first->nr_unasked < SHARED_UNASKED ? first : NULL;
}

// Under the lock.
static void ask(struct lp_line *l, struct pv_source_read *rd)
{
	uint64_t in_block;
	uint32_t block;
	int err;

	list_remove(&rd->link);
	list_append(&l->asked, &rd->link);
	if (!l->nr_asked++)
		l->head_ns = clock_now_ns();
	l->nr_unasked += rd->unasked;
	lp_remote_chunk(l->r, rd->chunk, &block, &in_block);
	err = wire_line_want(l->pages, block, in_block, rd->pages);
	if (err)
		lose(l, err);
}

// Under the lock: asks for what waits, as far as there are lines.
static void ask_all(struct lp_remote *r)
{
	struct lp_line *l;

	while (!list_empty(&r->demand) && (l = line_of_demand(r)))
		ask(l, list_first(&r->demand, struct pv_source_read, link));
	while (!list_empty(&r->background) && (l = line_of_background(r)))
		ask(l, list_first(&r->background, struct pv_source_read, link));
}

// Tells what is missing: all lines, or those that do not know yet who asks.
static void say_left(struct lp_remote *r, bool all)
{
	uint64_t missing = r->complete ? 0 : r->o.missing(r->o.ctx);

	pthread_mutex_lock(&r->lock);
	for (unsigned i = 0; i < r->o.nr_lines; i++) {
		struct lp_line *l = r->up[i];
		int err;

		if (!l || (l->greeted && !all))
			continue;
		err = wire_line_left(l->pages, r->complete ? WIRE_LINE_COMPLETE : WIRE_LINE_WANTS, missing, r->o.id);
		if (err)
			lose(l, err);
		else
			l->greeted = true;
	}
	r->to_greet = false;
	ask_all(r);
	pthread_mutex_unlock(&r->lock);
}

void lp_remote_read(struct lp_remote *r, struct pv_source_read *rd)
{
	assert(!bitmap_empty(rd->pages, PV_CHUNK_PAGES));
	pthread_mutex_lock(&r->lock);
	wait_again(r, rd);
	ask_all(r);
	pthread_mutex_unlock(&r->lock);
}

static void finish(struct lp_remote *r, struct list *done, int err)
{
	while (!list_empty(done)) {
		struct pv_source_read *rd = list_first(done, struct pv_source_read, link);

		list_remove(&rd->link);
		pv_source_done(r->engine, rd, err, "the source cannot read the page");
	}
}

// Threads that have ended.
static void bury(struct lp_remote *r)
{
	list_for_each(&r->lines, node) {
		struct lp_line *l = list_entry(node, struct lp_line, link);
		bool ended;

		pthread_mutex_lock(&r->lock);
		ended = l->ended;
		pthread_mutex_unlock(&r->lock);
		if (ended)
			lp_line_free(l);
	}
}

static void event(struct loop_op *op, int res)
{
	struct lp_remote *r = list_entry(op, struct lp_remote, event);
	bool stopping, to_greet, over;
	struct list came, cannot;
	uint64_t count;

	(void)res;
	if (read(r->event_fd, &count, sizeof count) < 0 && errno != EAGAIN)
		log_err("cannot hear of pages that have come: %s", strerror(errno));
	list_init(&came);
	list_init(&cannot);
	pthread_mutex_lock(&r->lock);
	stopping = r->stopping;
	if (!stopping) {
		list_splice(&came, &r->came);
		list_splice(&cannot, &r->cannot);
	}
	to_greet = r->to_greet;
	over = r->over && !r->over_told;
	ask_all(r);
	pthread_mutex_unlock(&r->lock);
	if (stopping)
		return;
	loop_poll_in(r->o.loop, &r->event, r->event_fd);
	finish(r, &came, 0);
	finish(r, &cannot, -EIO);
	bury(r);
	if (to_greet)
		say_left(r, false);
	if (over) {
		r->over_told = true;
		r->o.over(r->o.ctx); // which may end all this
	}
}

static void ticked(struct loop_op *op, int res)
{
	struct lp_remote *r = list_entry(op, struct lp_remote, tick.op);

	(void)res;
	if (r->stopping) // only our own thread sets it
		return;
	loop_timer(r->o.loop, &r->tick, TICK_MS * NSEC_PER_MSEC);
	if (++r->ticks % TICKS_A_LEFT) {
		pthread_mutex_lock(&r->lock);
		ask_all(r);
		pthread_mutex_unlock(&r->lock);
	} else {
		say_left(r, true);
	}
}

void lp_remote_complete(struct lp_remote *r)
{
	pthread_mutex_lock(&r->lock);
	r->complete = true;
	pthread_cond_broadcast(&r->stopped);
	pthread_mutex_unlock(&r->lock);
	say_left(r, true);
}

// Not too many that have shown nothing yet: the oldest of them makes room for who comes again.
static bool too_many(struct lp_remote *r)
{
	struct lp_line *oldest = NULL;
	unsigned nr = 0;

	pthread_mutex_lock(&r->lock);
	list_for_each(&r->lines, node) {
		struct lp_line *l = list_entry(node, struct lp_line, link);

		if (r->up[l->nr] == l)
			continue;
		oldest = oldest ? oldest : l;
		nr++;
	}
	if (nr >= CANDIDATES_MAX)
		lp_line_cut(oldest);
	pthread_mutex_unlock(&r->lock);
	return nr >= CANDIDATES_MAX;
}

int lp_remote_accept(struct lp_remote *r, unsigned line, int fd)
{
	struct lp_line *l;
	int err = r->o.host || line >= r->o.nr_lines ? -EINVAL : r->stopping || too_many(r) ? -EBUSY : 0;

	if (err) {
		close(fd);
		return err;
	}
	err = lp_line_new(r, line, fd, &l);
	if (!err)
		list_append(&r->lines, &l->link);
	return err;
}

int lp_remote_new(const struct lp_remote_opts *o, struct lp_remote **out)
{
	struct lp_remote *r = calloc(1, sizeof *r);
	struct lp_line *l;
	int err = 0;

	if (!r || !o->nr_lines || o->nr_lines > LP_REMOTE_LINES_MAX) {
		free(r);
		return r ? -EINVAL : -ENOMEM;
	}
	r->o = *o;
	list_init(&r->lines);
	list_init(&r->demand);
	list_init(&r->background);
	list_init(&r->came);
	list_init(&r->cannot);
	pthread_mutex_init(&r->lock, NULL);
	pthread_cond_init(&r->stopped, NULL);
	count_lines(r);
	lp_remote_trouble(r, o->host ? "there is no connection yet" : "the other side has not connected yet");
	r->event_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	if (r->event_fd < 0)
		err = -errno;
	for (unsigned i = 0; o->host && !err && i < o->nr_lines; i++) {
		err = lp_line_new(r, i, -1, &l);
		if (!err)
			list_append(&r->lines, &l->link);
	}
	if (err) {
		lp_remote_stop(r);
		lp_remote_free(r);
		return err;
	}
	r->event.done = event;
	loop_poll_in(o->loop, &r->event, r->event_fd);
	r->tick.op.done = ticked;
	loop_timer(o->loop, &r->tick, TICK_MS * NSEC_PER_MSEC);
	*out = r;
	return 0;
}

void lp_remote_stop(struct lp_remote *r)
{
	if (!r)
		return;
	pthread_mutex_lock(&r->lock);
	r->stopping = true;
	pthread_cond_broadcast(&r->stopped);
	list_for_each(&r->lines, node)
		lp_line_cut(list_entry(node, struct lp_line, link));
	pthread_mutex_unlock(&r->lock);
	list_for_each(&r->lines, node)
		lp_line_free(list_entry(node, struct lp_line, link));
}

void lp_remote_free(struct lp_remote *r)
{
	if (!r)
		return;
	if (r->event_fd >= 0)
		close(r->event_fd);
	pthread_cond_destroy(&r->stopped);
	pthread_mutex_destroy(&r->lock);
	explicit_bzero(r->o.key, sizeof r->o.key);
	free(r);
}

void lp_remote_set_tls(struct lp_remote *r, const struct wire_tls *tls)
{
	r->o.tls = tls;
}

void lp_remote_set_engine(struct lp_remote *r, struct pv_engine *e)
{
	r->engine = e;
}

void lp_remote_stats(struct lp_remote *r, struct lp_remote_stats *s)
{
	uint64_t now = clock_now_ns();

	memset(s, 0, sizeof *s);
	pthread_mutex_lock(&r->lock);
	for (unsigned i = 0; i < r->o.nr_lines; i++) {
		s->lines += r->up[i] && r->up[i]->heard;
		s->waiting += r->up[i] && !r->up[i]->heard ? r->up[i]->nr_asked : 0;
	}
	s->pages = r->pages;
	s->zero_pages = r->zero_pages;
	s->bytes = r->bytes;
	list_for_each(&r->demand, node)
		s->waiting++;
	list_for_each(&r->background, node)
		s->waiting++;
	if (r->alone_ns)
		s->alone_ns = now - r->alone_ns + 1;
	if (r->alone_ns)
		memcpy(s->trouble, r->trouble, sizeof s->trouble);
	else if (r->cannot_ns && now - r->cannot_ns < CANNOT_NS)
		snprintf(s->trouble, sizeof s->trouble, "the source cannot read a page");
	pthread_mutex_unlock(&r->lock);
}
