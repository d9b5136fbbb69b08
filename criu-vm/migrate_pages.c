// SPDX-License-Identifier: GPL-2.0-only
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "criu-vm/cmd.h"
#include "criu-vm/migrate_int.h"
#include "util/bitmap.h"
#include "util/clock.h"
#include "util/log.h"
#include "util/size.h"
#include "util/zero.h"

#define LOOK_MS 100
#define ROUND_TAKEN_MS 600000
#define BURST_NS (20 * NSEC_PER_MSEC)

// ---- what is to be sent

static bool is_idle(const struct migrate *m, uint32_t block, uint64_t chunk, const struct chunk_pages *c)
{
	return bitmap_empty(ram_written(m->src.ram, block, chunk), CHUNK_PAGES) && bitmap_empty(c->due, CHUNK_PAGES);
}

static int choose_chunk(struct migrate *m, uint32_t block, uint64_t chunk, bool first, struct chunk_pages *c)
{
	uint64_t present[CHUNK_WORDS], unchanged[CHUNK_WORDS] = { 0 };
	int r = ram_present(m->src.ram, block, chunk, present);

	if (!r && !first)
		r = ram_unchanged(m->src.ram, block, chunk, present, unchanged);
	for (unsigned w = 0; w < CHUNK_WORDS; w++) {
		c->due[w] |= (present[w] & ~unchanged[w]) | (c->sent[w] & ~present[w]);
		c->content[w] = c->due[w] & present[w];
		c->zero[w] = c->due[w] & c->sent[w] & ~present[w];
	}
	return r;
}

// Memory that was given back is told by what is not there any more, or is zero: all of it is looked at, once it changes no more.
int migrate_choose(struct migrate *m, bool first, bool last, uint64_t *nr_pages)
{
	bool all = first || (last && m->src.tracked.discards);
	int r = 0;

	*nr_pages = 0;
	for (uint32_t b = 0; b < m->src.nr_guest; b++)
		for (uint64_t i = 0; !r && i < DIV_ROUND_UP(m->src.blocks[b].len, CHUNK_SIZE); i++) {
			struct chunk_pages *c = &m->chunks[m->first[b] + i];

			memset(c->content, 0, sizeof c->content);
			memset(c->zero, 0, sizeof c->zero);
			if (all || !is_idle(m, b, i, c))
				r = choose_chunk(m, b, i, first, c);
			*nr_pages += bitmap_count(c->content, CHUNK_PAGES);
		}
	return r;
}

// ---- sending it

// Bytes go no faster than that, but for a burst.
static void pace(struct migrate *m, uint64_t bytes)
{
	uint64_t now, at;

	if (!m->o->max_bandwidth)
		return;
	pthread_mutex_lock(&m->lock);
	now = clock_now_ns();
	if (m->next_byte_ns + BURST_NS < now)
		m->next_byte_ns = now - BURST_NS;
	at = m->next_byte_ns;
	m->next_byte_ns += (uint64_t)((double)bytes * 1e9 / (double)m->o->max_bandwidth);
	pthread_mutex_unlock(&m->lock);
	while (now < at && !m->ending) {
		uint64_t ns = at - now < LOOK_MS * NSEC_PER_MSEC ? at - now : LOOK_MS * NSEC_PER_MSEC;

		nanosleep(&(struct timespec){ .tv_nsec = (long)ns }, NULL);
		now = clock_now_ns();
	}
}

// Pages that are all zero are not worth their content.
static void find_zeros(struct sender *s, struct chunk_pages *c)
{
	for (size_t i = 0, n; (n = bitmap_next_run(c->content, CHUNK_PAGES, &i)); i += n)
		for (size_t page = i; page < i + n; page++)
			if (mem_is_zero(s->buf + page * PAGE_SIZE, PAGE_SIZE))
				bitmap_set(c->zero, page);
	for (unsigned w = 0; w < CHUNK_WORDS; w++)
		c->content[w] &= ~c->zero[w];
}

static void pack(struct sender *s, const uint64_t *content)
{
	char *to = s->buf;

	for (size_t i = 0, n; (n = bitmap_next_run(content, CHUNK_PAGES, &i)); i += n) {
		if (to != s->buf + i * PAGE_SIZE)
			memmove(to, s->buf + i * PAGE_SIZE, n * PAGE_SIZE);
		to += n * PAGE_SIZE;
	}
}

// Of what it never had, nothing has to be said.
static void forget_unknown(struct chunk_pages *c)
{
	for (unsigned w = 0; w < CHUNK_WORDS; w++)
		c->zero[w] &= c->sent[w];
}

static int send_frame(struct sender *s, struct wire_frame *f, struct chunk_pages *c)
{
	struct migrate *m = s->m;
	uint64_t before = wire_bytes_sent(s->conn), len = bitmap_count(f->present, CHUNK_PAGES) * PAGE_SIZE;
	int r;

	pack(s, f->present);
	pace(m, WIRE_FRAME_LEN + len);
	r = wire_pages_send(s->pages, f, s->buf, m->zstd ? m->o->zstd_level : 0);
	if (r) {
		log_err("%s: %s, while pages were sent", wire_peer(s->conn), strerror(-r));
		return r;
	}
	for (unsigned w = 0; w < CHUNK_WORDS; w++)
		c->sent[w] = (c->sent[w] | f->present[w]) & ~f->zero[w];
	s->frames++;
	s->nr_pages += len / PAGE_SIZE;
	s->nr_zero += bitmap_count(f->zero, CHUNK_PAGES);
	pthread_mutex_lock(&m->lock);
	m->bytes += wire_bytes_sent(s->conn) - before;
	progress_add(&m->progress, len);
	pthread_mutex_unlock(&m->lock);
	return m->ending ? -ECANCELED : 0;
}

// The chosen pages of a chunk that are in the mask.
static int send_pages(struct sender *s, uint32_t block, uint64_t chunk, uint8_t flags, const uint64_t mask[CHUNK_WORDS], struct chunk_pages *c)
{
	struct wire_frame f = { .type = WIRE_PAGES, .flags = flags, .round = (uint16_t)s->m->round, .block = block, .chunk = chunk };
	struct chunk_pages part = *c;
	int r;

	for (unsigned w = 0; w < CHUNK_WORDS; w++) {
		part.content[w] &= mask[w];
		part.zero[w] &= mask[w];
		c->due[w] &= ~mask[w];
	}
	r = ram_read(s->m->src.ram, block, chunk, part.content, s->buf);
	if (r)
		return r;
	find_zeros(s, &part);
	forget_unknown(&part);
	memcpy(f.present, part.content, sizeof f.present);
	memcpy(f.zero, part.zero, sizeof f.zero);
	if (bitmap_empty(f.present, CHUNK_PAGES) && bitmap_empty(f.zero, CHUNK_PAGES))
		return 0;
	return send_frame(s, &f, c);
}

static int send_chunk(struct sender *s, uint32_t block, uint64_t chunk, struct chunk_pages *c)
{
	const struct hot_pages *hot = migrate_hot_pages_of(s->m, s->m->first[block] + chunk);
	uint64_t rest[CHUNK_WORDS];
	int r = 0;

	memset(rest, 0xff, sizeof rest);
	if (hot) {
		r = send_pages(s, block, chunk, WIRE_FLAG_TO_RAM, hot->pages, c);
		for (unsigned w = 0; w < CHUNK_WORDS; w++)
			rest[w] &= ~hot->pages[w];
	}
	return r ? r : send_pages(s, block, chunk, s->m->few ? WIRE_FLAG_TO_RAM : 0, rest, c);
}

static bool is_hot(const struct migrate *m, uint64_t chunk)
{
	return m->hotness[chunk * WIRE_HOTNESS_LEN];
}

// What is hot goes last: it has the best chance to be sent but once more.
static int send_chunks(struct sender *s, bool hot)
{
	struct migrate *m = s->m;
	unsigned channel = (unsigned)(s - m->senders);
	int r = 0;

	for (uint32_t b = 0; b < m->src.nr_guest; b++)
		for (uint64_t i = 0; !r && i < DIV_ROUND_UP(m->src.blocks[b].len, CHUNK_SIZE); i++) {
			uint64_t chunk = m->first[b] + i;
			struct chunk_pages *c = &m->chunks[chunk];

			if (wire_channel_of(chunk, m->nr_senders) == channel && is_hot(m, chunk) == hot &&
			    !(bitmap_empty(c->content, CHUNK_PAGES) && bitmap_empty(c->zero, CHUNK_PAGES)))
				r = send_chunk(s, b, i, c);
		}
	return r;
}

static int send_all(struct sender *s)
{
	struct wire_frame end = { .type = WIRE_ROUND_END, .round = (uint16_t)s->m->round };
	int r = send_chunks(s, false);

	if (!r)
		r = send_chunks(s, true);
	end.chunk = s->frames;
	return r ? r : wire_pages_send(s->pages, &end, NULL, 0);
}

static void *send_rounds(void *ctx)
{
	struct sender *s = ctx;
	struct migrate *m = s->m;
	unsigned round = 0;

	pthread_mutex_lock(&m->lock);
	while (!m->ending) {
		int r;

		if (m->round == round) {
			pthread_cond_wait(&m->changed, &m->lock);
			continue;
		}
		round = m->round;
		s->frames = s->nr_pages = s->nr_zero = 0;
		pthread_mutex_unlock(&m->lock);
		r = send_all(s);
		pthread_mutex_lock(&m->lock);
		m->nr_sending--;
		if (r && !m->err)
			m->err = r;
		pthread_cond_broadcast(&m->changed);
	}
	pthread_mutex_unlock(&m->lock);
	return NULL;
}

int migrate_look_up(struct migrate *m)
{
	WireMsg *msg = NULL;
	int r = 0;

	if (cmd_interrupted()) {
		log_err("interrupted; the VM goes on here");
		return -EINTR;
	}
	while (!r && wire_poll(m->control, 0) > 0) {
		r = wire_receive(m->control, 1, &msg);
		if (!r) {
			log_err("%s says something that was not asked for", wire_peer(m->control));
			wire_msg__free_unpacked(msg, NULL);
			return -EPROTO;
		}
	}
	if (r == -ECONNRESET)
		log_err("%s: the line is lost", wire_peer(m->control));
	return r == -ETIMEDOUT ? 0 : r;
}

// Until all have sent the round, one has failed, or the destination says something.
static int wait_sent(struct migrate *m)
{
	int r = 0;

	pthread_mutex_lock(&m->lock);
	while (!r && m->nr_sending && !m->err) {
		struct timespec end;
		int timeout;

		clock_gettime(CLOCK_REALTIME, &end);
		end.tv_nsec += LOOK_MS * (long)NSEC_PER_MSEC;
		end.tv_sec += end.tv_nsec / (long)NSEC_PER_SEC;
		end.tv_nsec %= (long)NSEC_PER_SEC;
		timeout = pthread_cond_timedwait(&m->changed, &m->lock, &end);
		if (timeout) {
			pthread_mutex_unlock(&m->lock);
			r = migrate_look_up(m);
			pthread_mutex_lock(&m->lock);
		}
	}
	if (!r)
		r = m->err;
	pthread_mutex_unlock(&m->lock);
	return r;
}

static int say_round(struct migrate *m, bool done)
{
	uint64_t frames[WIRE_MAX_CHANNELS];
	WireRound round = WIRE_ROUND__INIT;
	WireMsg msg = WIRE_MSG__INIT;

	round.round = m->round;
	if (done) {
		for (unsigned i = 0; i < m->nr_senders; i++)
			frames[i] = m->senders[i].frames;
		round.n_frames = m->nr_senders;
		round.frames = frames;
		msg.round_done = &round;
	} else {
		msg.round_begin = &round;
	}
	return wire_send(m->control, &msg);
}

int migrate_send_round(struct migrate *m)
{
	int r;

	m->result->rounds = ++m->round;
	m->bytes = 0;
	r = say_round(m, false);
	if (r) {
		log_err("%s: %s", wire_peer(m->control), strerror(-r));
		return r;
	}
	pthread_mutex_lock(&m->lock);
	m->nr_sending = m->nr_senders;
	pthread_cond_broadcast(&m->changed);
	pthread_mutex_unlock(&m->lock);
	r = wait_sent(m);
	if (!r)
		r = say_round(m, true);
	if (r) { // it may have said why
		migrate_look_up(m);
		return r;
	}
	for (unsigned i = 0; i < m->nr_senders; i++) {
		m->result->pages += m->senders[i].nr_pages;
		m->result->zero_pages += m->senders[i].nr_zero;
	}
	m->result->bytes += m->bytes;
	return 0;
}

int migrate_round_taken(struct migrate *m)
{
	WireMsg *msg;
	int r = migrate_expect(m, ROUND_TAKEN_MS, offsetof(WireMsg, round_taken), "it was to say that it has all pages", &msg);

	if (r)
		return r;
	if (msg->round_taken->round != m->round)
		r = -EPROTO;
	m->result->ram_pages = msg->round_taken->ram_pages;
	m->result->swap_pages = msg->round_taken->swap_pages;
	wire_msg__free_unpacked(msg, NULL);
	if (r)
		log_err("%s has taken another round than %u", wire_peer(m->control), m->round);
	return r;
}

// ---- its threads

int migrate_pages_init(struct migrate *m)
{
	int r = 0;

	for (unsigned i = 0; !r && i < m->nr_senders; i++) {
		struct sender *s = &m->senders[i];

		s->m = m;
		s->buf = aligned_alloc(PAGE_SIZE, CHUNK_SIZE);
		r = s->buf ? wire_pages_new(s->conn, &s->pages) : -ENOMEM;
		if (!r)
			r = -pthread_create(&s->thread, NULL, send_rounds, s);
		s->started = !r;
	}
	if (r)
		log_err("cannot start the threads that send: %s", strerror(-r));
	return r;
}

void migrate_pages_fini(struct migrate *m)
{
	pthread_mutex_lock(&m->lock);
	m->ending = true;
	pthread_cond_broadcast(&m->changed);
	pthread_mutex_unlock(&m->lock);
	for (unsigned i = 0; m->senders && i < m->nr_senders; i++) {
		struct sender *s = &m->senders[i];

		if (s->conn)
			wire_shutdown(s->conn);
		if (s->started)
			pthread_join(s->thread, NULL);
		wire_pages_free(s->pages);
		wire_close(s->conn);
		free(s->buf);
	}
	free(m->senders);
	m->senders = NULL;
	m->nr_senders = 0;
}
