// SPDX-License-Identifier: GPL-2.0-only
#include "criu-vm/provide.h"

#include <errno.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#include "util/bitmap.h"
#include "util/clock.h"
#include "util/log.h"
#include "util/size.h"
#include "util/zero.h"

#define TICK_MS 200
#define WORDS BITMAP_WORDS(WIRE_CHUNK_PAGES)

struct line {
	const struct provider *p;
	struct provided *all;
	struct wire_conn *c;
	struct wire_pages *pages;
	char *buf; // a chunk
	bool background, introduced; // introduced: LEFT has come, with the right id
	uint64_t sent;		     // bytes of answers that wait_turn() was not told of

	// ALIVE, from a thread of its own: a read may take long on a slow disk, and who asks is not to think that the line is lost.
	pthread_t thread;
	pthread_mutex_t lock; // of sending, and of:
	pthread_cond_t changed;
	uint64_t sent_ns;
	bool ending;
};

// ---- ALIVE

static struct timespec time_of(uint64_t ns)
{
	return (struct timespec){ .tv_sec = (time_t)(ns / NSEC_PER_SEC), .tv_nsec = (long)(ns % NSEC_PER_SEC) };
}

static void *stay_alive(void *ctx)
{
	struct line *l = ctx;
	int r = 0;

	pthread_mutex_lock(&l->lock);
	while (!l->ending && !r) {
		uint64_t due = l->sent_ns + WIRE_LINE_ALIVE_MS * NSEC_PER_MSEC;
		struct timespec end = time_of(due);

		if (clock_now_ns() < due) {
			pthread_cond_clockwait(&l->changed, &l->lock, CLOCK_MONOTONIC, &end);
			continue;
		}
		r = wire_line_say(l->pages, WIRE_ALIVE);
		l->sent_ns = clock_now_ns();
	}
	pthread_mutex_unlock(&l->lock);
	return NULL;
}

static void end_alive(struct line *l)
{
	pthread_mutex_lock(&l->lock);
	l->ending = true;
	pthread_cond_broadcast(&l->changed);
	pthread_mutex_unlock(&l->lock);
	pthread_join(l->thread, NULL);
}

// ---- answers

static bool exists(const struct provider *p, const struct wire_frame *want)
{
	uint64_t len = want->block < p->nr_blocks ? p->block_len[want->block] : 0, pages;

	if (want->chunk >= DIV_ROUND_UP(len, WIRE_CHUNK_SIZE))
		return false;
	pages = DIV_ROUND_UP(len - want->chunk * WIRE_CHUNK_SIZE, PAGE_SIZE);
	return pages >= WIRE_CHUNK_PAGES || bitmap_next(want->present, WIRE_CHUNK_PAGES, pages, true) == WIRE_CHUNK_PAGES;
}

// What is in buf, each page where it is in the chunk, becomes what is sent: those that are not zero, one behind the other.
static void fill_in(char *buf, const struct wire_frame *want, struct wire_frame *answer)
{
	char *to = buf;

	for (size_t i = 0, n; (n = bitmap_next_run(want->present, WIRE_CHUNK_PAGES, &i)); i += n)
		for (size_t page = i; page < i + n; page++) {
			char *at = buf + page * PAGE_SIZE;

			if (mem_is_zero(at, PAGE_SIZE)) {
				bitmap_set(answer->zero, page);
				continue;
			}
			bitmap_set(answer->present, page);
			if (to != at)
				memcpy(to, at, PAGE_SIZE);
			to += PAGE_SIZE;
		}
}

static int send_pages(struct line *l, struct wire_frame *answer)
{
	uint64_t bytes;
	int r;

	if (l->background && l->p->wait_turn)
		l->p->wait_turn(l->p->ctx, l->sent);
	pthread_mutex_lock(&l->lock);
	bytes = wire_bytes_sent(l->c);
	r = wire_pages_send(l->pages, answer, l->buf, l->p->zstd);
	bytes = wire_bytes_sent(l->c) - bytes;
	l->sent_ns = clock_now_ns();
	pthread_mutex_unlock(&l->lock);
	if (r)
		return r;
	l->sent = bytes;
	__atomic_fetch_add(&l->all->pages, bitmap_count(answer->present, WIRE_CHUNK_PAGES), __ATOMIC_RELAXED);
	__atomic_fetch_add(&l->all->zero_pages, bitmap_count(answer->zero, WIRE_CHUNK_PAGES), __ATOMIC_RELAXED);
	__atomic_fetch_add(&l->all->bytes, bytes, __ATOMIC_RELAXED);
	return 0;
}

static int send_cannot(struct line *l, const struct wire_frame *want)
{
	int r;

	__atomic_fetch_add(&l->all->failed, 1, __ATOMIC_RELAXED);
	pthread_mutex_lock(&l->lock);
	r = wire_line_cannot(l->pages, want);
	l->sent_ns = clock_now_ns();
	pthread_mutex_unlock(&l->lock);
	return r;
}

static int broken(const struct line *l, const char *what)
{
	log_err("%s: %s", wire_peer(l->c), what);
	return -EBADMSG;
}

static int answer_want(struct line *l, const struct wire_frame *want)
{
	struct wire_frame answer = { .type = WIRE_PAGES, .block = want->block, .chunk = want->chunk };

	if (!l->introduced)
		return broken(l, "asks for pages, and has not said of which VM");
	if (!exists(l->p, want))
		return broken(l, "asks for pages that the VM has not got");
	if (l->p->read(l->p->ctx, want->block, want->chunk, want->present, l->buf))
		return send_cannot(l, want);
	fill_in(l->buf, want, &answer);
	return send_pages(l, &answer);
}

static bool is_of(const struct provider *p, const struct wire_frame *left)
{
	uint8_t id[WIRE_LINE_ID_LEN];

	memcpy(id, p->id, sizeof id);
	for (unsigned i = 0; p->any_token && i < WIRE_TOKEN_LEN; i++)
		id[i] = (uint8_t)(left->present[i / 8] >> i % 8 * 8);
	return wire_line_id_is(left, id);
}

// ---- what is said

static int on_left(struct line *l, const struct wire_frame *left, enum wire_line_state *state)
{
	if (!is_of(l->p, left))
		return -ESTALE;
	if (!l->introduced && l->p->introduced)
		l->p->introduced(l->p->ctx);
	l->introduced = true;
	*state = (enum wire_line_state)left->block;
	__atomic_store_n(&l->all->missing, left->chunk, __ATOMIC_RELAXED);
	return 0;
}

static int receive(struct line *l, enum wire_line_state *state, enum wire_refusal *why)
{
	struct wire_frame f;
	int r = wire_pages_receive(l->pages, &f, NULL);

	if (r)
		return r;
	switch (f.type) {
	case WIRE_WANT:
		return answer_want(l, &f);
	case WIRE_LEFT:
		return on_left(l, &f, state);
	case WIRE_REFUSED:
		*why = (enum wire_refusal)f.round;
		return -ECONNREFUSED;
	default:
		return broken(l, "sent a frame that is not for who has the pages");
	}
}

// Until something comes: 0; or -errno.
static int wait_for_frame(const struct line *l)
{
	for (unsigned ms = 0; ms < WIRE_LINE_LOST_MS; ms += TICK_MS) {
		int r;

		if (l->p->ending && l->p->ending(l->p->ctx))
			return -ECANCELED;
		r = wire_poll(l->c, TICK_MS);
		if (r)
			return r < 0 ? r : 0;
	}
	return -ETIMEDOUT;
}

static int serve(struct line *l, enum wire_line_state *state, enum wire_refusal *why)
{
	int r = 0;

	while (!r && *state == WIRE_LINE_WANTS) {
		r = wait_for_frame(l);
		if (!r)
			r = receive(l, state, why);
	}
	return r;
}

int provide(const struct provider *p, struct wire_conn *c, bool background, struct provided *all, enum wire_line_state *state, enum wire_refusal *why)
{
	struct line l = { .p = p, .all = all, .c = c, .background = background, .lock = PTHREAD_MUTEX_INITIALIZER,
			  .changed = PTHREAD_COND_INITIALIZER, .sent_ns = clock_now_ns() };
	int r = -ENOMEM;

	*state = WIRE_LINE_WANTS;
	wire_set_timeout(c, WIRE_LINE_LOST_MS);
	l.buf = aligned_alloc(PAGE_SIZE, WIRE_CHUNK_SIZE);
	if (l.buf && !wire_pages_new(c, &l.pages))
		r = -pthread_create(&l.thread, NULL, stay_alive, &l);
	if (!r) {
		r = serve(&l, state, why);
		end_alive(&l);
	}
	wire_pages_free(l.pages);
	free(l.buf);
	return r;
}
