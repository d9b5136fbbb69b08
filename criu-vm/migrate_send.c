// SPDX-License-Identifier: GPL-2.0-only
//
// DOC: who sends
//
//	a channel   a connection; a chunk always goes over the same one, so that what is sent of it twice comes in order
//	a worker    a thread of a channel: takes the channel's next chunk, reads it, and sends it under the channel's lock
//
// Of QEMU's memory one worker keeps a channel busy. Of a VM in private virtual memory some read the swap image at once; and of one that
// gives memory back some look at all that was sent again, in the last round at the latest: a page of shared memory that was given back, and
// touched again, counts as not written, but is zero. What was never sent is zero there anyway.
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <time.h>
#include <unistd.h>

#include "criu-vm/migrate_int.h"
#include "util/bitmap.h"
#include "util/clock.h"
#include "util/log.h"
#include "util/size.h"
#include "util/zero.h"

#define READERS 4 // a channel, where reading takes longer than sending

// Pages that are all zero are not worth their content; and of what is zero there anyway, nothing has to be said.
static void find_zeros(const char *buf, struct chunk_pages *c)
{
	for (size_t i = 0, n; (n = bitmap_next_run(c->content, CHUNK_PAGES, &i)); i += n)
		for (size_t page = i; page < i + n; page++)
			if (mem_is_zero(buf + page * PAGE_SIZE, PAGE_SIZE))
				bitmap_set(c->zero, page);
	for (unsigned w = 0; w < CHUNK_WORDS; w++) {
		c->content[w] &= ~c->zero[w];
		c->zero[w] &= c->sent[w] | c->later[w] | c->images[w];
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
	bool content = f->type == WIRE_PAGES;
	int r;

	if (content)
		pack(w->buf, f->present);
	pthread_mutex_lock(&ch->lock);
	pace_wait(&m->pace, &m->ending);
	bytes = wire_bytes_sent(ch->conn);
	r = wire_pages_send(ch->pages, f, w->buf, m->zstd ? m->o->zstd_level : 0);
	bytes = wire_bytes_sent(ch->conn) - bytes;
	if (!r) {
		ch->frames++;
		ch->nr_pages += content ? len / PAGE_SIZE : 0;
		ch->nr_zero += bitmap_count(f->zero, CHUNK_PAGES);
	}
	pthread_mutex_unlock(&ch->lock);
	if (r && !m->ending)
		log_err("%s: %s, while pages were sent", wire_peer(ch->conn), strerror(-r));
	pace_sent(&m->pace, bytes);
	pthread_mutex_lock(&m->lock);
	m->bytes += bytes;
	progress_add(&m->progress, len);
	pthread_mutex_unlock(&m->lock);
	return m->ending ? -ECANCELED : r;
}

// Of the CPU: others may want it now, who will not while the VM stands.
static uint64_t cpu_ns(void)
{
	struct timespec t;

	clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
	return (uint64_t)t.tv_sec * NSEC_PER_SEC + (uint64_t)t.tv_nsec;
}

static int read_pages(struct worker *w, uint32_t block, uint64_t chunk, struct chunk_pages *part)
{
	struct migrate *m = w->channel->m;
	uint64_t begun = cpu_ns();
	int r = ram_read(m->src.ram, block, chunk, part->content, w->buf);

	w->nr_read += bitmap_count(part->content, CHUNK_PAGES);
	if (!r)
		find_zeros(w->buf, part);
	w->read_ns += cpu_ns() - begun;
	if (!r && !m->last && migrate_looks_again(m, block) && ram_expect_zero(m->src.ram, block, chunk, part->content))
		w->quick = true;
	return r;
}

// What was sent, and is not to be sent now, may be zero.
static int look_again(struct worker *w, uint32_t block, uint64_t chunk, const uint64_t mask[CHUNK_WORDS], struct chunk_pages *part)
{
	struct migrate *m = w->channel->m;
	uint64_t begun = cpu_ns(), again[CHUNK_WORDS], zero[CHUNK_WORDS];
	int r;

	for (unsigned i = 0; i < CHUNK_WORDS; i++)
		again[i] = mask[i] & part->sent[i] & ~part->content[i] & ~part->zero[i];
	r = ram_zero(m->src.ram, block, chunk, again, zero, w->buf);
	for (unsigned i = 0; !r && i < CHUNK_WORDS; i++)
		part->zero[i] |= zero[i];
	w->nr_looked += bitmap_count(again, CHUNK_PAGES);
	w->look_ns += cpu_ns() - begun;
	return r;
}

static bool is_time_to_look(const struct migrate *m)
{
	return m->nr_again && (m->last || m->looks);
}

// The chosen pages of a chunk that are in the mask.
static int send_pages(struct worker *w, uint32_t block, uint64_t chunk, uint8_t flags, const uint64_t mask[CHUNK_WORDS], struct chunk_pages *c)
{
	struct migrate *m = w->channel->m;
	struct wire_frame f = { .type = WIRE_PAGES, .flags = flags, .round = (uint16_t)m->round, .block = block, .chunk = chunk };
	struct chunk_pages part = *c;
	int r = 0;

	for (unsigned i = 0; i < CHUNK_WORDS; i++) {
		part.content[i] &= mask[i];
		part.zero[i] &= mask[i];
		c->due[i] &= ~mask[i];
	}
	if (is_time_to_look(m) && migrate_looks_again(m, block))
		r = look_again(w, block, chunk, mask, &part);
	if (!r)
		r = read_pages(w, block, chunk, &part);
	if (r)
		return r;
	if (bitmap_empty(part.content, CHUNK_PAGES) && bitmap_empty(part.zero, CHUNK_PAGES))
		return 0;
	memcpy(f.present, part.content, sizeof f.present);
	memcpy(f.zero, part.zero, sizeof f.zero);
	for (unsigned i = 0; i < CHUNK_WORDS; i++) {
		c->sent[i] = (c->sent[i] | part.content[i]) & ~part.zero[i];
		c->later[i] &= ~(part.content[i] | part.zero[i]);
		c->images[i] &= ~(part.content[i] | part.zero[i]);
	}
	return send_frame(w, &f);
}

static int send_names(struct worker *w, uint32_t block, uint64_t chunk, uint8_t flags, const uint64_t pages[CHUNK_WORDS])
{
	struct wire_frame f = { .type = WIRE_LATER, .flags = flags, .round = (uint16_t)w->channel->m->round, .block = block, .chunk = chunk };

	if (bitmap_empty(pages, CHUNK_PAGES))
		return 0;
	memcpy(f.present, pages, sizeof f.present);
	return send_frame(w, &f);
}

// Of the chosen pages of a chunk that are in the mask, those whose content does not go now: what the destination takes from the images,
// and all, where the rest comes when the VM runs there. They are not chosen any more then.
static int send_later(struct worker *w, uint32_t block, uint64_t chunk, const uint64_t mask[CHUNK_WORDS], struct chunk_pages *c)
{
	struct migrate *m = w->channel->m;
	uint64_t images[CHUNK_WORDS] = { 0 }, later[CHUNK_WORDS];
	int r;

	if (m->images)
		ram_in_images(m->src.ram, block, chunk, images);
	for (unsigned i = 0; i < CHUNK_WORDS; i++) {
		images[i] &= c->content[i] & mask[i];
		later[i] = m->deferring ? c->content[i] & mask[i] & ~images[i] : 0;
		c->content[i] &= ~(images[i] | later[i]);
		c->due[i] &= ~(images[i] | later[i]);
		c->sent[i] &= ~(images[i] | later[i]);
		c->images[i] = (c->images[i] | images[i]) & ~later[i];
		c->later[i] = (c->later[i] | later[i]) & ~images[i];
	}
	r = send_names(w, block, chunk, WIRE_FLAG_IN_IMAGES, images);
	return r ? r : send_names(w, block, chunk, 0, later);
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
	if (!r)
		r = send_later(w, block, chunk, rest, &m->chunks[index]);
	return r ? r : send_pages(w, block, chunk, m->few ? WIRE_FLAG_TO_RAM : 0, rest, &m->chunks[index]);
}

static bool has_something(const struct migrate *m, const struct chunk_pages *c)
{
	bool again = is_time_to_look(m) && !bitmap_empty(c->sent, CHUNK_PAGES);

	return again || !bitmap_empty(c->content, CHUNK_PAGES) || !bitmap_empty(c->zero, CHUNK_PAGES);
}

// The channel's next chunk. What is hot goes last: it has the best chance to be sent but once more. False: there is none.
// Without the lock: others read while one of them sends.
static bool next_chunk(struct channel *ch, uint64_t *index)
{
	struct migrate *m = ch->m;
	unsigned number = (unsigned)(ch - m->channels);

	for (;;) {
		uint64_t next = __atomic_fetch_add(&ch->next, 1, __ATOMIC_RELAXED);
		bool hot = next >= m->nr_chunks;

		if (next >= 2 * m->nr_chunks)
			return false;
		*index = next % m->nr_chunks;
		if (wire_channel_of(*index, m->nr_channels) == number && !m->hotness[*index * WIRE_HOTNESS_LEN] != hot &&
		    has_something(m, &m->chunks[*index]))
			return true;
	}
}

static int send_chunks(struct worker *w)
{
	uint64_t index;
	int r = 0;

	setpriority(PRIO_PROCESS, 0, getpriority(PRIO_PROCESS, getpid())); // that of who waits for it: the VM may stand meanwhile
	w->read_ns = w->nr_read = w->look_ns = w->nr_looked = 0;
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
		m->read_ns += w->read_ns;
		m->nr_read += w->nr_read;
		m->look_ns += w->look_ns;
		m->nr_looked += w->nr_looked;
		m->quick_look |= w->quick;
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
	m->looks = m->quick_look;
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

static bool needs_readers(const struct migrate *m)
{
	bool needs = ram_is_paged(m->src.ram);

	for (uint32_t b = 0; b < m->src.nr_guest; b++)
		needs |= migrate_looks_again(m, b);
	return needs;
}

int migrate_send_init(struct migrate *m)
{
	int r = 0;

	m->nr_workers = needs_readers(m) ? READERS : 1;
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
