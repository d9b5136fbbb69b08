// SPDX-License-Identifier: GPL-2.0-only
//
// DOC: who sends
//
//	a channel   a connection; a chunk always goes over the same one, so that what is sent of it twice comes in order
//	a worker    a thread of a channel: takes the channel's next chunk, reads it, and sends it under the channel's lock
//
// Of QEMU's memory one worker keeps a channel busy. Of a VM in private virtual memory some read the swap image at once.
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "criu-vm/migrate_int.h"
#include "util/bitmap.h"
#include "util/clock.h"
#include "util/log.h"
#include "util/size.h"
#include "util/zero.h"

#define PAGED_WORKERS 4 // a channel
#define BURST_NS (20 * NSEC_PER_MSEC)
#define PAUSE_NS (100 * NSEC_PER_MSEC)

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
		uint64_t ns = at - now < PAUSE_NS ? at - now : PAUSE_NS;

		nanosleep(&(struct timespec){ .tv_nsec = (long)ns }, NULL);
		now = clock_now_ns();
	}
}

// Pages that are all zero are not worth their content; and of what the destination never had, nothing has to be said.
static void find_zeros(const char *buf, struct chunk_pages *c)
{
	for (size_t i = 0, n; (n = bitmap_next_run(c->content, CHUNK_PAGES, &i)); i += n)
		for (size_t page = i; page < i + n; page++)
			if (mem_is_zero(buf + page * PAGE_SIZE, PAGE_SIZE))
				bitmap_set(c->zero, page);
	for (unsigned w = 0; w < CHUNK_WORDS; w++) {
		c->content[w] &= ~c->zero[w];
		c->zero[w] &= c->sent[w];
	}
}

static void pack(char *buf, const uint64_t *content)
{
	char *to = buf;

	for (size_t i = 0, n; (n = bitmap_next_run(content, CHUNK_PAGES, &i)); i += n) {
		if (to != buf + i * PAGE_SIZE)
			memmove(to, buf + i * PAGE_SIZE, n * PAGE_SIZE);
		to += n * PAGE_SIZE;
	}
}

static int send_frame(struct worker *w, struct wire_frame *f)
{
	struct channel *ch = w->channel;
	struct migrate *m = ch->m;
	uint64_t len = bitmap_count(f->present, CHUNK_PAGES) * PAGE_SIZE, bytes;
	int r;

	pack(w->buf, f->present);
	pace(m, WIRE_FRAME_LEN + len);
	pthread_mutex_lock(&ch->lock);
	bytes = wire_bytes_sent(ch->conn);
	r = wire_pages_send(ch->pages, f, w->buf, m->zstd ? m->o->zstd_level : 0);
	bytes = wire_bytes_sent(ch->conn) - bytes;
	if (!r) {
		ch->frames++;
		ch->nr_pages += len / PAGE_SIZE;
		ch->nr_zero += bitmap_count(f->zero, CHUNK_PAGES);
	}
	pthread_mutex_unlock(&ch->lock);
	if (r && !m->ending)
		log_err("%s: %s, while pages were sent", wire_peer(ch->conn), strerror(-r));
	pthread_mutex_lock(&m->lock);
	m->bytes += bytes;
	progress_add(&m->progress, len);
	pthread_mutex_unlock(&m->lock);
	return m->ending ? -ECANCELED : r;
}

// The chosen pages of a chunk that are in the mask.
static int send_pages(struct worker *w, uint32_t block, uint64_t chunk, uint8_t flags, const uint64_t mask[CHUNK_WORDS], struct chunk_pages *c)
{
	struct migrate *m = w->channel->m;
	struct wire_frame f = { .type = WIRE_PAGES, .flags = flags, .round = (uint16_t)m->round, .block = block, .chunk = chunk };
	struct chunk_pages part = *c;
	int r;

	for (unsigned i = 0; i < CHUNK_WORDS; i++) {
		part.content[i] &= mask[i];
		part.zero[i] &= mask[i];
		c->due[i] &= ~mask[i];
	}
	r = ram_read(m->src.ram, block, chunk, part.content, w->buf);
	if (r)
		return r;
	find_zeros(w->buf, &part);
	if (bitmap_empty(part.content, CHUNK_PAGES) && bitmap_empty(part.zero, CHUNK_PAGES))
		return 0;
	memcpy(f.present, part.content, sizeof f.present);
	memcpy(f.zero, part.zero, sizeof f.zero);
	for (unsigned i = 0; i < CHUNK_WORDS; i++)
		c->sent[i] = (c->sent[i] | part.content[i]) & ~part.zero[i];
	return send_frame(w, &f);
}

static int send_chunk(struct worker *w, uint64_t index)
{
	struct migrate *m = w->channel->m;
	const struct hot_pages *hot = migrate_hot_pages_of(m, index);
	uint64_t rest[CHUNK_WORDS], chunk;
	uint32_t block = m->src.nr_guest - 1;
	int r = 0;

	while (index < m->first[block])
		block--;
	chunk = index - m->first[block];
	memset(rest, 0xff, sizeof rest);
	if (hot) {
		r = send_pages(w, block, chunk, WIRE_FLAG_TO_RAM, hot->pages, &m->chunks[index]);
		for (unsigned i = 0; i < CHUNK_WORDS; i++)
			rest[i] &= ~hot->pages[i];
	}
	return r ? r : send_pages(w, block, chunk, m->few ? WIRE_FLAG_TO_RAM : 0, rest, &m->chunks[index]);
}

static bool has_something(const struct chunk_pages *c)
{
	return !bitmap_empty(c->content, CHUNK_PAGES) || !bitmap_empty(c->zero, CHUNK_PAGES);
}

// The channel's next chunk. What is hot goes last: it has the best chance to be sent but once more. False: there is none.
static bool next_chunk(struct channel *ch, uint64_t *index)
{
	struct migrate *m = ch->m;
	unsigned number = (unsigned)(ch - m->channels);
	bool found = false;

	pthread_mutex_lock(&ch->lock);
	for (; !found && ch->next < 2 * m->nr_chunks; ch->next++) {
		bool hot = ch->next >= m->nr_chunks;

		*index = ch->next % m->nr_chunks;
		found = wire_channel_of(*index, m->nr_channels) == number && !m->hotness[*index * WIRE_HOTNESS_LEN] != hot &&
			has_something(&m->chunks[*index]);
	}
	pthread_mutex_unlock(&ch->lock);
	return found;
}

static int send_chunks(struct worker *w)
{
	uint64_t index;
	int r = 0;

	while (!r && !w->channel->m->ending && next_chunk(w->channel, &index))
		r = send_chunk(w, index);
	return r;
}

// The last worker of a channel says that its round is over.
static int end_round(struct channel *ch)
{
	struct wire_frame end = { .type = WIRE_ROUND_END, .round = (uint16_t)ch->m->round, .chunk = ch->frames };

	return wire_pages_send(ch->pages, &end, NULL, 0);
}

static void *work(void *ctx)
{
	struct worker *w = ctx;
	struct channel *ch = w->channel;
	struct migrate *m = ch->m;
	unsigned round = 0;

	pthread_mutex_lock(&m->lock);
	while (!m->ending) {
		int r;

		if (m->begun == round) {
			pthread_cond_wait(&m->changed, &m->lock);
			continue;
		}
		round = m->begun;
		pthread_mutex_unlock(&m->lock);
		r = send_chunks(w);
		pthread_mutex_lock(&m->lock);
		if (!--ch->nr_working && !r && !m->err && !m->ending) {
			pthread_mutex_unlock(&m->lock);
			r = end_round(ch);
			pthread_mutex_lock(&m->lock);
		}
		if (r && !m->err)
			m->err = r;
		if (!--m->nr_sending || r)
			pthread_cond_broadcast(&m->changed);
	}
	pthread_mutex_unlock(&m->lock);
	return NULL;
}

void migrate_begin_sending(struct migrate *m)
{
	pthread_mutex_lock(&m->lock);
	m->bytes = 0;
	m->nr_sending = m->nr_channels * m->nr_workers;
	for (unsigned i = 0; i < m->nr_channels; i++) {
		struct channel *ch = &m->channels[i];

		ch->next = ch->frames = ch->nr_pages = ch->nr_zero = 0;
		ch->nr_working = m->nr_workers;
	}
	m->begun = m->round;
	pthread_cond_broadcast(&m->changed);
	pthread_mutex_unlock(&m->lock);
}

static int start_worker(struct channel *ch, struct worker *w)
{
	int r;

	w->channel = ch;
	w->buf = aligned_alloc(PAGE_SIZE, CHUNK_SIZE);
	r = w->buf ? -pthread_create(&w->thread, NULL, work, w) : -ENOMEM;
	w->started = !r;
	return r;
}

int migrate_send_init(struct migrate *m)
{
	int r = 0;

	m->nr_workers = ram_is_paged(m->src.ram) ? PAGED_WORKERS : 1;
	for (unsigned i = 0; !r && i < m->nr_channels; i++) {
		struct channel *ch = &m->channels[i];

		ch->workers = calloc(m->nr_workers, sizeof *ch->workers);
		r = ch->workers ? wire_pages_new(ch->conn, &ch->pages) : -ENOMEM;
		for (unsigned j = 0; !r && j < m->nr_workers; j++)
			r = start_worker(ch, &ch->workers[j]);
	}
	if (r)
		log_err("cannot start the threads that send: %s", strerror(-r));
	return r;
}

static void end_channel(struct channel *ch)
{
	for (unsigned i = 0; ch->workers && i < ch->m->nr_workers; i++) {
		if (ch->workers[i].started)
			pthread_join(ch->workers[i].thread, NULL);
		free(ch->workers[i].buf);
	}
	free(ch->workers);
	wire_pages_free(ch->pages);
	wire_close(ch->conn);
	pthread_mutex_destroy(&ch->lock);
}

void migrate_send_fini(struct migrate *m)
{
	pthread_mutex_lock(&m->lock);
	m->ending = true;
	pthread_cond_broadcast(&m->changed);
	pthread_mutex_unlock(&m->lock);
	for (unsigned i = 0; i < m->nr_channels; i++)
		if (m->channels[i].conn)
			wire_shutdown(m->channels[i].conn);
	for (unsigned i = 0; i < m->nr_channels; i++)
		end_channel(&m->channels[i]);
	free(m->channels);
	m->channels = NULL;
	m->nr_channels = 0;
}
