// SPDX-License-Identifier: GPL-2.0-only
#include "criu-vm/migrate_lines.h"

#include <errno.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "criu-vm/migrate_pace.h"
#include "util/cleanup.h"
#include "util/clock.h"
#include "util/log.h"

#define CONNECT_MS 5000
#define FIRST_PAUSE_NS (200 * NSEC_PER_MSEC)
#define MAX_PAUSE_NS (10 * NSEC_PER_SEC)
#define FINISH_MS 1000
#define LOOK_NS (100 * NSEC_PER_MSEC)

struct line {
	struct lines *all;
	unsigned number;
	pthread_t thread;
	struct provider provider;
	// Under the lock.
	struct wire_conn *conn; // while it answers
	bool up;		// it was heard on this connection
	char trouble[128];
};

struct lines {
	struct lines_opts o;
	uint64_t *block_len;
	struct line *line;
	unsigned nr_started;
	struct pace pace;
	struct provided provided;
	bool ending; // atomic; set under the lock
	// Under the lock.
	pthread_mutex_t lock;
	pthread_cond_t changed;
	bool held, over;
	char *host;
	uint16_t port;
	unsigned turns; // how often host was changed
	enum wire_line_state state;
	char trouble[128]; // what cannot be read
};

static bool is_ending(const struct lines *l)
{
	return __atomic_load_n(&l->ending, __ATOMIC_RELAXED);
}

// Under the lock. False: the time has come.
static bool wait_until(struct lines *l, uint64_t ns)
{
	struct timespec end = { .tv_sec = (time_t)(ns / NSEC_PER_SEC), .tv_nsec = (long)(ns % NSEC_PER_SEC) };

	return !pthread_cond_clockwait(&l->changed, &l->lock, CLOCK_MONOTONIC, &end);
}

// ---- what provide() asks

static int read_pages(void *ctx, uint32_t block, uint64_t chunk, const uint64_t want[4], char *buf)
{
	struct lines *l = ((struct line *)ctx)->all;
	const char *name = l->o.blocks[block].name;
	int r;

	pthread_mutex_lock(&l->lock);
	while (l->held && !l->ending)
		pthread_cond_wait(&l->changed, &l->lock);
	r = l->held ? -ECANCELED : 0;
	pthread_mutex_unlock(&l->lock);
	if (r)
		return r;
	r = ram_read(l->o.ram, block, chunk, want, buf);
	if (!r)
		r = ram_vouch(l->o.ram, l->o.pidfd, block);
	pthread_mutex_lock(&l->lock);
	if (r == -ESRCH)
		snprintf(l->trouble, sizeof l->trouble, "QEMU has ended here, and with it pages that the VM needs: chunk %lu of block '%.40s', ...",
			 chunk, name);
	else if (r == -EBUSY)
		snprintf(l->trouble, sizeof l->trouble, "QEMU does not stand still here");
	else if (r)
		snprintf(l->trouble, sizeof l->trouble, "chunk %lu of block '%.40s' cannot be read: %s", chunk, name, strerror(-r));
	else
		*l->trouble = 0;
	pthread_mutex_unlock(&l->lock);
	return r;
}

static void introduced(void *ctx)
{
	struct line *line = ctx;
	struct lines *l = line->all;

	pthread_mutex_lock(&l->lock);
	line->up = true;
	*line->trouble = 0;
	pthread_cond_broadcast(&l->changed);
	pthread_mutex_unlock(&l->lock);
}

static bool ends(void *ctx)
{
	return is_ending(((struct line *)ctx)->all);
}

// What the VM waits for counts, but does not wait.
static void wait_turn(void *ctx, uint64_t bytes)
{
	const struct line *line = ctx;
	struct lines *l = line->all;

	pace_sent(&l->pace, bytes);
	if (line->number)
		pace_wait(&l->pace, &l->ending);
}

// ---- a line

static int say(struct wire_conn *c, enum wire_frame_type what)
{
	struct wire_pages *pages;
	int r = wire_pages_new(c, &pages);

	if (!r)
		r = wire_line_say(pages, what);
	wire_pages_free(pages);
	return r;
}

// Who asks needs nothing any more: when nothing is held here, it is told. The end of a large QEMU takes long. If it hears nothing more the
// line is tried again.
static void wait_over(struct line *line, enum wire_line_state state)
{
	struct lines *l = line->all;
	uint64_t alive = clock_now_ns() + WIRE_LINE_ALIVE_MS * NSEC_PER_MSEC;
	bool over;
	int r = 0;

	pthread_mutex_lock(&l->lock);
	if (l->state == WIRE_LINE_WANTS)
		l->state = state;
	pthread_cond_broadcast(&l->changed);
	while (!l->ending && !r) {
		if (wait_until(l, alive))
			continue;
		pthread_mutex_unlock(&l->lock);
		r = say(line->conn, WIRE_ALIVE);
		alive = clock_now_ns() + WIRE_LINE_ALIVE_MS * NSEC_PER_MSEC;
		pthread_mutex_lock(&l->lock);
	}
	over = l->over;
	pthread_mutex_unlock(&l->lock);
	if (over && !say(line->conn, WIRE_OVER))
		wire_finish(line->conn, FINISH_MS);
}

static int connect_line(struct line *line, struct wire_conn **c)
{
	struct lines *l = line->all;
	_cleanup_free_ char *host = NULL;
	struct wire_connect_opts o = { .tls = l->o.tls, .timeout_ms = CONNECT_MS, .quiet = true,
				       .preamble = { .kind = WIRE_LINE, .channel = (uint8_t)line->number } };
	int r;

	memcpy(o.preamble.token, l->o.token, sizeof o.preamble.token);
	pthread_mutex_lock(&l->lock);
	host = strdup(l->host);
	o.port = l->port;
	pthread_mutex_unlock(&l->lock);
	if (!host)
		return -ENOMEM;
	o.host = host;
	r = wire_connect(&o, c);
	if (r)
		return r;
	r = wire_write(*c, l->o.key, WIRE_KEY_LEN);
	if (r)
		wire_close(*c);
	return r;
}

static void set_conn(struct line *line, struct wire_conn *c)
{
	pthread_mutex_lock(&line->all->lock);
	line->conn = c;
	line->up = false;
	pthread_mutex_unlock(&line->all->lock);
}

static const char *text_of(int r, enum wire_refusal why)
{
	switch (r) {
	case -ECONNREFUSED:
		return why ? wire_refusal_text(why) : "no server answers there";
	case -ESTALE:
		return "it is another VM, or another host, than the one that was migrated";
	case -EBADMSG:
		return "it breaks the protocol";
	case -ETIMEDOUT:
		return "the line is silent";
	case -ECONNRESET:
		return "the line was cut";
	default:
		return strerror(-r);
	}
}

// *heard: the line was in use.
static int answer(struct line *line, bool *heard, enum wire_refusal *why)
{
	struct lines *l = line->all;
	enum wire_line_state state = WIRE_LINE_WANTS;
	struct wire_conn *c = NULL;
	int r = connect_line(line, &c);

	*heard = false;
	if (r)
		return r;
	set_conn(line, c);
	r = provide(&line->provider, c, true, &l->provided, &state, why);
	*heard = line->up;
	if (!r)
		wait_over(line, state);
	set_conn(line, NULL);
	wire_close(c);
	return r;
}

// Before it is tried again.
static void pause_line(struct line *line, uint64_t ns, const char *trouble)
{
	struct lines *l = line->all;
	uint64_t end = clock_now_ns() + ns;
	unsigned turns;

	pthread_mutex_lock(&l->lock);
	turns = l->turns;
	snprintf(line->trouble, sizeof line->trouble, "%s", trouble);
	while (!l->ending && l->turns == turns && wait_until(l, end))
		;
	pthread_mutex_unlock(&l->lock);
}

static void *serve(void *ctx)
{
	struct line *line = ctx;
	uint64_t ns = FIRST_PAUSE_NS;

	while (!is_ending(line->all)) {
		enum wire_refusal why = 0;
		bool heard;
		int r = answer(line, &heard, &why);

		if (heard)
			ns = FIRST_PAUSE_NS;
		if (!r || is_ending(line->all))
			continue;
		log_dbg("page line %u: %s", line->number, text_of(r, why));
		pause_line(line, ns, text_of(r, why));
		ns = ns * 2 < MAX_PAUSE_NS ? ns * 2 : MAX_PAUSE_NS;
	}
	return NULL;
}

// ---- all of them

static int start_line(struct lines *l, unsigned i)
{
	struct line *line = &l->line[i];

	*line = (struct line){ .all = l, .number = i,
			       .provider = { .ctx = line, .block_len = l->block_len, .nr_blocks = l->o.nr_blocks, .read = read_pages,
					     .zstd = l->o.zstd, .wait_turn = wait_turn, .introduced = introduced, .ending = ends } };
	memcpy(line->provider.id, l->o.token, WIRE_TOKEN_LEN);
	memcpy(line->provider.id + WIRE_TOKEN_LEN, l->o.host_id, WIRE_TOKEN_LEN);
	return -pthread_create(&line->thread, NULL, serve, line);
}

int lines_open(const struct lines_opts *o, struct lines **out)
{
	struct lines *l = calloc(1, sizeof *l);
	int r = 0;

	if (!l)
		return -ENOMEM;
	*l = (struct lines){ .o = *o, .port = o->port, .held = true, .lock = PTHREAD_MUTEX_INITIALIZER, .changed = PTHREAD_COND_INITIALIZER,
			     .pace = { .rate = o->bandwidth, .lock = PTHREAD_MUTEX_INITIALIZER } };
	l->host = strdup(o->host);
	l->line = calloc(o->nr, sizeof *l->line);
	l->block_len = calloc(o->nr_blocks, sizeof *l->block_len);
	if (!l->host || !l->line || !l->block_len)
		r = -ENOMEM;
	for (size_t i = 0; !r && i < o->nr_blocks; i++)
		l->block_len[i] = o->blocks[i].len;
	while (!r && l->nr_started < o->nr && !(r = start_line(l, l->nr_started)))
		l->nr_started++;
	if (r) {
		log_err("cannot start the threads of the page lines: %s", strerror(-r));
		lines_close(l);
		return r;
	}
	*out = l;
	return 0;
}

static const struct line *first_without_word(const struct lines *l)
{
	for (unsigned i = 0; i < l->o.nr; i++)
		if (!l->line[i].up)
			return &l->line[i];
	return NULL;
}

int lines_wait(struct lines *l, unsigned timeout_ms, int (*look)(void *ctx), void *ctx)
{
	uint64_t end = clock_now_ns() + timeout_ms * NSEC_PER_MSEC;
	const struct line *missing;
	int r = 0;

	pthread_mutex_lock(&l->lock);
	while (!r && (missing = first_without_word(l))) {
		wait_until(l, clock_now_ns() + LOOK_NS);
		pthread_mutex_unlock(&l->lock);
		r = look ? look(ctx) : 0;
		pthread_mutex_lock(&l->lock);
		if (!r && clock_now_ns() > end)
			r = -ETIMEDOUT;
	}
	if (r == -ETIMEDOUT)
		log_err("%s, port %u: page line %u was not taken within %u s%s%s; the VM goes on here", l->host, l->port, missing->number,
			timeout_ms / 1000, *missing->trouble ? ": " : "", missing->trouble);
	pthread_mutex_unlock(&l->lock);
	return r;
}

void lines_hold(struct lines *l, bool hold)
{
	pthread_mutex_lock(&l->lock);
	l->held = hold;
	pthread_cond_broadcast(&l->changed);
	pthread_mutex_unlock(&l->lock);
}

void lines_set_missing(struct lines *l, uint64_t pages)
{
	__atomic_store_n(&l->provided.missing, pages, __ATOMIC_RELAXED);
}

void lines_redirect(struct lines *l, const char *host, uint16_t port)
{
	char *copy = strdup(host);

	pthread_mutex_lock(&l->lock);
	if (copy) {
		free(l->host);
		l->host = copy;
		l->port = port;
		l->turns++;
	}
	pthread_cond_broadcast(&l->changed);
	pthread_mutex_unlock(&l->lock);
}

void lines_wait_change(struct lines *l, unsigned ms)
{
	uint64_t end = clock_now_ns() + ms * NSEC_PER_MSEC;

	pthread_mutex_lock(&l->lock);
	while (l->state == WIRE_LINE_WANTS && wait_until(l, end))
		;
	pthread_mutex_unlock(&l->lock);
}

static struct provided provided_by(const struct lines *l)
{
	return (struct provided){ .pages = __atomic_load_n(&l->provided.pages, __ATOMIC_RELAXED),
				  .zero_pages = __atomic_load_n(&l->provided.zero_pages, __ATOMIC_RELAXED),
				  .bytes = __atomic_load_n(&l->provided.bytes, __ATOMIC_RELAXED),
				  .missing = __atomic_load_n(&l->provided.missing, __ATOMIC_RELAXED),
				  .failed = __atomic_load_n(&l->provided.failed, __ATOMIC_RELAXED) };
}

void lines_status(struct lines *l, struct lines_status *s)
{
	const char *trouble = NULL;

	*s = (struct lines_status){ .nr = 0 };
	pthread_mutex_lock(&l->lock);
	s->state = l->state;
	for (unsigned i = 0; i < l->o.nr; i++) {
		s->nr += l->line[i].up;
		if (!l->line[i].up && *l->line[i].trouble && !trouble)
			trouble = l->line[i].trouble;
	}
	if (*l->trouble)
		snprintf(s->trouble, sizeof s->trouble, "%s", l->trouble);
	else if (trouble)
		snprintf(s->trouble, sizeof s->trouble, "%.60s: %s", l->host, trouble);
	pthread_mutex_unlock(&l->lock);
	s->provided = provided_by(l);
}

// A thread that answers is woken, unless it is to say something yet.
static void end(struct lines *l, bool over, struct provided *all)
{
	pthread_mutex_lock(&l->lock);
	l->over = over;
	__atomic_store_n(&l->ending, true, __ATOMIC_RELAXED);
	for (unsigned i = 0; !over && i < l->nr_started; i++)
		if (l->line[i].conn)
			wire_shutdown(l->line[i].conn);
	pthread_cond_broadcast(&l->changed);
	pthread_mutex_unlock(&l->lock);
	for (unsigned i = 0; i < l->nr_started; i++)
		pthread_join(l->line[i].thread, NULL);
	if (all)
		*all = provided_by(l);
	free(l->line);
	free(l->block_len);
	free(l->host);
	free(l);
}

void lines_over(struct lines *l, struct provided *all)
{
	end(l, true, all);
}

void lines_close(struct lines *l)
{
	if (l)
		end(l, false, NULL);
}
