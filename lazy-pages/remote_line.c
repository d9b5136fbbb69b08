// SPDX-License-Identifier: GPL-2.0-only
#include <errno.h>
#include <fcntl.h>
#include <gnutls/gnutls.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "lazy-pages/remote_int.h"
#include "util/bitmap.h"
#include "util/cleanup.h"
#include "util/clock.h"
#include "util/log.h"

#define HANDSHAKE_MS 10000
#define REFUSAL_MS 1000 // in which it gets to the other side
#define FIRST_PAUSE_MS 200
#define LONGEST_PAUSE_MS 10000

// Whose connection this thread makes: what wire_connect() asks has no argument.
static _Thread_local struct lp_remote *connecting;

void lp_remote_chunk(const struct lp_remote *r, uint64_t chunk, uint32_t *block, uint64_t *in_block)
{
	*block = 0;
	while (*block + 1 < r->o.nr_blocks && r->o.blocks[*block + 1].off / PV_CHUNK_SIZE <= chunk)
		++*block;
	*in_block = chunk - r->o.blocks[*block].off / PV_CHUNK_SIZE;
}

static const char *reason(int err)
{
	return err == -ETIMEDOUT ? "nothing comes any more" : err == -EBADMSG ? "what came is not accepted" : strerror(-err);
}

static bool is_of(const struct lp_remote *r, const struct wire_frame *f, const struct pv_source_read *rd)
{
	uint64_t in_block, said;
	uint32_t block;

	lp_remote_chunk(r, rd->chunk, &block, &in_block);
	if (f->block != block || f->chunk != in_block)
		return false;
	for (unsigned w = 0; w < PV_WORDS; w++) {
		said = f->type == WIRE_PAGES ? f->present[w] | f->zero[w] : f->present[w];
		if (said != rd->pages[w])
			return false;
	}
	return true;
}

// The read that the answer is for, which nobody takes from us any more. -ECANCELED: the line is another's now.
static int take(struct lp_line *l, const struct wire_frame *f, struct pv_source_read **rd)
{
	struct lp_remote *r = l->r;
	int err = 0;

	pthread_mutex_lock(&r->lock);
	if (r->up[l->nr] != l) {
		err = -ECANCELED;
	} else if (list_empty(&l->asked) || !is_of(r, f, list_first(&l->asked, struct pv_source_read, link))) {
		err = -EBADMSG;
	} else {
		*rd = list_first(&l->asked, struct pv_source_read, link);
		lp_remote_unask(l, *rd);
		lp_remote_heard(l);
	}
	pthread_mutex_unlock(&r->lock);
	if (err == -EBADMSG)
		log_err("%s: sent an answer that is none to what was asked for: the line is given up", wire_peer(l->c));
	return err;
}

// Pages to where they belong; only those that were asked for, which the answer has been compared with.
static void put(struct pv_source_read *rd, const struct wire_frame *f, const char *packed)
{
	for (size_t i = 0, n; (n = bitmap_next_run(f->present, PV_CHUNK_PAGES, &i)); i += n) {
		memcpy(rd->dest + i * PAGE_SIZE, packed, n * PAGE_SIZE);
		packed += n * PAGE_SIZE;
	}
	memcpy(rd->zero, f->zero, sizeof rd->zero);
}

static int answered(struct lp_line *l, const struct wire_frame *f, const char *packed)
{
	struct lp_remote *r = l->r;
	struct pv_source_read *rd;
	int err = take(l, f, &rd);

	if (err)
		return err;
	if (f->type == WIRE_PAGES)
		put(rd, f, packed);
	pthread_mutex_lock(&r->lock);
	r->bytes += WIRE_FRAME_LEN + f->length;
	if (f->type == WIRE_PAGES) {
		r->cannot_ns = rd->chunk == r->cannot_chunk ? 0 : r->cannot_ns;
		r->pages += bitmap_count(rd->pages, PV_CHUNK_PAGES);
		r->zero_pages += bitmap_count(f->zero, PV_CHUNK_PAGES);
		list_append(&r->came, &rd->link);
	} else {
		r->cannot_ns = clock_now_ns();
		r->cannot_chunk = rd->chunk;
		list_append(&r->cannot, &rd->link);
	}
	pthread_mutex_unlock(&r->lock);
	lp_remote_wake(r);
	return 0;
}

static int alive(struct lp_line *l)
{
	pthread_mutex_lock(&l->r->lock);
	lp_remote_heard(l);
	pthread_mutex_unlock(&l->r->lock);
	return 0;
}

// Nothing more comes: who sent it is about to go.
static int over(struct lp_line *l)
{
	struct lp_remote *r = l->r;
	bool expected;

	pthread_mutex_lock(&r->lock);
	expected = r->complete;
	r->over |= expected;
	pthread_mutex_unlock(&r->lock);
	if (!expected)
		log_err("%s: said that all is over while pages are missing: the line is given up", wire_peer(l->c));
	return expected ? -ECANCELED : -EBADMSG;
}

static int refused(struct lp_line *l, const char *why)
{
	pthread_mutex_lock(&l->r->lock);
	if (lp_remote_down(l))
		lp_remote_trouble(l->r, "%s: %s", wire_peer(l->c), why);
	pthread_mutex_unlock(&l->r->lock);
	return -ECONNREFUSED;
}

// Before it has said anything, the system may not know yet whose the other end is.
static bool may_be_believed(struct lp_line *l)
{
	if (!l->trusted)
		l->trusted = !l->r->o.trusts || l->r->o.trusts(wire_fd(l->c));
	return l->trusted;
}

static int receive_one(struct lp_line *l, char *packed)
{
	struct wire_frame f;
	int r = wire_poll(l->c, WIRE_LINE_LOST_MS);

	if (r <= 0)
		return r ? r : -ETIMEDOUT;
	if (!may_be_believed(l))
		return refused(l, "who answers there is not trusted");
	r = wire_pages_receive(l->pages, &f, packed);
	if (r)
		return r;
	if (f.type == WIRE_PAGES && (f.round || f.flags & ~WIRE_FLAG_ZSTD)) {
		log_err("%s: sent pages of a round over a page line: it is given up", wire_peer(l->c));
		return -EBADMSG;
	}
	switch (f.type) {
	case WIRE_PAGES:
	case WIRE_CANNOT:
		return answered(l, &f, packed);
	case WIRE_ALIVE:
		return alive(l);
	case WIRE_OVER:
		return over(l);
	case WIRE_REFUSED:
		return refused(l, wire_refusal_text(f.round));
	default:
		log_err("%s: sent a frame that is no answer (type %u): the line is given up", wire_peer(l->c), f.type);
		return -EBADMSG;
	}
}

// After it nobody uses the connection but who closes it.
static void come_down(struct lp_line *l, struct wire_conn *c, int err)
{
	struct lp_remote *r = l->r;
	bool lost;

	pthread_mutex_lock(&r->lock);
	lost = lp_remote_down(l) && !r->stopping && !r->over && !(r->complete && r->o.host);
	if (lost)
		lp_remote_trouble(r, "%s: the line is lost: %s", wire_peer(c), reason(err));
	l->c = NULL;
	l->pages = NULL;
	pthread_mutex_unlock(&r->lock);
	lp_remote_wake(r);
	if (lost && l->told)
		log_warn("page line %u to %s is lost: %s; what it has not brought is asked for again", l->nr, wire_peer(c), reason(err));
}

// Not of each attempt.
static void tell_once(struct lp_line *l)
{
	if (!l->told)
		log_info("page line %u: connected with %s", l->nr, wire_peer(l->c));
	l->told = true;
}

// All that a connection brings, until it is lost, or another one has its place. Why.
static int work(struct lp_line *l, struct wire_conn *c)
{
	_cleanup_free_ char *packed = malloc(WIRE_CHUNK_SIZE);
	struct wire_pages *pages = NULL;
	int err = packed ? wire_pages_new(c, &pages) : -ENOMEM;

	wire_set_timeout(c, WIRE_LINE_LOST_MS);
	l->told = false;
	if (!err) {
		pthread_mutex_lock(&l->r->lock);
		err = lp_remote_up(l, c, pages);
		pthread_mutex_unlock(&l->r->lock);
	}
	if (!err) {
		lp_remote_wake(l->r);
		while (!(err = receive_one(l, packed)))
			tell_once(l);
		come_down(l, c, err);
	}
	wire_pages_free(pages);
	return err;
}

static void refuse_key(struct lp_line *l, struct wire_conn *c)
{
	struct wire_pages *pages;

	log_warn("%s: a page line with a wrong key was refused", wire_peer(c));
	pthread_mutex_lock(&l->r->lock);
	lp_remote_trouble(l->r, "%s: connected with a wrong key", wire_peer(c));
	pthread_mutex_unlock(&l->r->lock);
	if (wire_pages_new(c, &pages))
		return;
	if (!wire_line_refuse(pages, WIRE_REFUSED_KEY))
		wire_finish(c, REFUSAL_MS);
	wire_pages_free(pages);
}

// It came, and shows the key.
static void serve_one(struct lp_line *l)
{
	uint8_t key[WIRE_KEY_LEN];
	struct wire_conn *c;
	int err = wire_accept(steal_fd(&l->fd), l->r->o.tls, HANDSHAKE_MS, &c);

	if (err) { // logged
		pthread_mutex_lock(&l->r->lock);
		lp_remote_trouble(l->r, "a connection that came did not get on: %s", strerror(-err));
		pthread_mutex_unlock(&l->r->lock);
		return;
	}
	wire_set_deadline(c, clock_now_ns() + HANDSHAKE_MS * NSEC_PER_MSEC);
	if (wire_read(c, key, sizeof key)) {
		log_warn("%s: a page line came without a key", wire_peer(c));
	} else if (gnutls_memcmp(key, l->r->o.key, sizeof key)) {
		refuse_key(l, c);
	} else {
		wire_set_deadline(c, 0);
		l->trusted = true;
		work(l, c);
	}
	explicit_bzero(key, sizeof key);
	wire_close(c);
}

// Nothing is missing any more, so there is no need of another connection.
static bool is_done(struct lp_remote *r)
{
	bool done;

	pthread_mutex_lock(&r->lock);
	done = r->stopping || r->complete;
	pthread_mutex_unlock(&r->lock);
	return done;
}

static bool interrupted(void)
{
	return is_done(connecting);
}

static void pause_for(struct lp_remote *r, unsigned ms)
{
	uint64_t end = clock_now_ns() + ms * NSEC_PER_MSEC;
	struct timespec at = { .tv_sec = (time_t)(end / NSEC_PER_SEC), .tv_nsec = (long)(end % NSEC_PER_SEC) };
	int err = 0;

	pthread_mutex_lock(&r->lock);
	while (!r->stopping && !r->complete && !err)
		err = pthread_cond_clockwait(&r->stopped, &r->lock, CLOCK_MONOTONIC, &at);
	pthread_mutex_unlock(&r->lock);
}

// Did it bring anything?
static bool connect_once(struct lp_line *l, bool quiet)
{
	struct lp_remote *r = l->r;
	struct wire_connect_opts o = { .host = r->o.host, .port = r->o.port, .tls = r->o.tls, .timeout_ms = HANDSHAKE_MS, .quiet = quiet,
				       .interrupted = interrupted, .preamble = { .kind = WIRE_IMAGE_LINE, .channel = (uint8_t)l->nr } };
	struct wire_conn *c;
	int err;

	memcpy(o.preamble.token, r->o.token, WIRE_TOKEN_LEN);
	err = wire_connect(&o, &c);
	if (err) {
		pthread_mutex_lock(&r->lock);
		lp_remote_trouble(r, "cannot connect to %s: %s", r->o.host, strerror(-err));
		pthread_mutex_unlock(&r->lock);
		return false;
	}
	wire_set_interrupted(c, NULL); // lp_line_cut() from here on
	l->heard = l->trusted = false;
	work(l, c);
	wire_close(c);
	return l->heard;
}

static void connect_again_and_again(struct lp_line *l)
{
	unsigned pause = FIRST_PAUSE_MS;
	bool quiet = l->nr; // what one says of it is enough

	connecting = l->r;
	while (!is_done(l->r)) {
		bool heard = connect_once(l, quiet);

		quiet = !heard || l->nr;
		pause = heard ? FIRST_PAUSE_MS : pause;
		pause_for(l->r, pause);
		pause = 2 * pause < LONGEST_PAUSE_MS ? 2 * pause : LONGEST_PAUSE_MS;
	}
}

static void *thread_of_line(void *arg)
{
	struct lp_line *l = arg;
	struct lp_remote *r = l->r;
	int wake_fd;

	if (l->fd >= 0)
		serve_one(l);
	else
		connect_again_and_again(l);
	pthread_mutex_lock(&r->lock);
	wake_fd = steal_fd(&l->wake_fd);
	l->ended = true;
	pthread_mutex_unlock(&r->lock);
	if (wake_fd >= 0)
		close(wake_fd);
	lp_remote_wake(r);
	return NULL;
}

// Signals are for the threads that were there before.
static int start_thread(struct lp_line *l)
{
	sigset_t all, old;
	int err;

	sigfillset(&all);
	pthread_sigmask(SIG_SETMASK, &all, &old);
	err = pthread_create(&l->thread, NULL, thread_of_line, l);
	pthread_sigmask(SIG_SETMASK, &old, NULL);
	return -err;
}

int lp_line_new(struct lp_remote *r, unsigned nr, int fd, struct lp_line **out)
{
	struct lp_line *l = calloc(1, sizeof *l);
	int wake_fd = fd >= 0 && l ? fcntl(fd, F_DUPFD_CLOEXEC, 0) : -1, err = !l ? -ENOMEM : fd >= 0 && wake_fd < 0 ? -errno : 0;

	if (!err) {
		*l = (struct lp_line){ .r = r, .nr = nr, .fd = fd, .wake_fd = wake_fd };
		list_init(&l->asked);
		err = start_thread(l);
	}
	if (!err) {
		*out = l;
		return 0;
	}
	if (fd >= 0)
		close(fd);
	if (wake_fd >= 0)
		close(wake_fd);
	free(l);
	return err;
}

void lp_line_cut(struct lp_line *l)
{
	if (l->wake_fd >= 0)
		shutdown(l->wake_fd, SHUT_RDWR);
	if (l->c)
		wire_shutdown(l->c);
}

void lp_line_free(struct lp_line *l)
{
	pthread_join(l->thread, NULL);
	list_remove(&l->link);
	free(l);
}
