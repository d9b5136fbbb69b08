// SPDX-License-Identifier: GPL-2.0-only
#include <errno.h>
#include <string.h>
#include <time.h>

#include "criu-vm/cmd.h"
#include "criu-vm/migrate_int.h"
#include "util/bitmap.h"
#include "util/clock.h"
#include "util/log.h"
#include "util/size.h"

#define LOOK_MS 100
#define ROUND_TAKEN_MS 600000

// ---- what is to be sent

static bool is_idle(const struct migrate *m, uint32_t block, uint64_t chunk, const struct chunk_pages *c)
{
	return bitmap_empty(ram_written(m->src.ram, block, chunk), CHUNK_PAGES) && bitmap_empty(c->due, CHUNK_PAGES);
}

// Of a private mapping of a file a page that is the file's always counts as written. While the file stands it is as it was.
static int choose_of_file(struct migrate *m, uint32_t block, uint64_t chunk, bool stands, const uint64_t present[CHUNK_WORDS],
			  uint64_t unchanged[CHUNK_WORDS], struct chunk_pages *c)
{
	uint64_t copied[CHUNK_WORDS];
	int r = ram_copied(m->src.ram, block, chunk, copied);

	for (unsigned w = 0; !r && w < CHUNK_WORDS; w++) {
		uint64_t file = present[w] & ~copied[w];

		unchanged[w] &= ~file & ~c->file[w];
		unchanged[w] |= stands ? file & c->file[w] : 0;
		c->file[w] = file;
	}
	return r;
}

static int choose_chunk(struct migrate *m, uint32_t block, uint64_t chunk, bool first, bool stands, struct chunk_pages *c)
{
	uint64_t present[CHUNK_WORDS], unchanged[CHUNK_WORDS];
	const uint64_t *written = ram_written(m->src.ram, block, chunk);
	int r = ram_present(m->src.ram, block, chunk, present);

	for (unsigned w = 0; !r && w < CHUNK_WORDS; w++)
		unchanged[w] = first ? 0 : present[w] & ~written[w];
	if (!r && ram_is_of_file(m->src.ram, block))
		r = choose_of_file(m, block, chunk, stands && !first, present, unchanged, c);
	for (unsigned w = 0; !r && w < CHUNK_WORDS; w++) {
		uint64_t has = c->sent[w] | c->images[w];

		c->due[w] |= (present[w] & ~unchanged[w] & ~c->later[w]) | (has & ~present[w]);
		c->content[w] = c->due[w] & present[w];
		c->zero[w] = c->due[w] & has & ~present[w];
	}
	return r;
}

bool migrate_looks_again(const struct migrate *m, uint32_t block)
{
	return m->src.tracked.discards && ram_hides_discards(m->src.ram, block);
}

static int choose_block(struct migrate *m, uint32_t b, bool first, bool last, uint64_t *nr_pages)
{
	// Who gives memory back makes a page that it wrote the file's again.
	bool stands = ram_is_of_file(m->src.ram, b) && ram_file_stands(m->src.ram, b) && !m->src.tracked.discards;
	bool all = first || (last && m->src.tracked.discards) || (ram_is_of_file(m->src.ram, b) && !stands);
	bool again = migrate_looks_again(m, b);
	int r = 0;

	for (uint64_t i = 0; !r && i < DIV_ROUND_UP(m->src.blocks[b].len, CHUNK_SIZE); i++) {
		struct chunk_pages *c = &m->chunks[m->first[b] + i];

		memset(c->content, 0, sizeof c->content);
		memset(c->zero, 0, sizeof c->zero);
		if (all || !is_idle(m, b, i, c))
			r = choose_chunk(m, b, i, first, stands, c);
		*nr_pages += bitmap_count(c->content, CHUNK_PAGES);
		m->nr_again += again ? bitmap_count(c->sent, CHUNK_PAGES) : 0;
	}
	return r;
}

// Memory that was given back is told by what is not there any more: all of it is looked at, once it changes no more. What was touched
// again since is zero: those who send find that.
int migrate_choose(struct migrate *m, bool first, bool last, uint64_t *nr_pages)
{
	int r = 0;

	*nr_pages = m->nr_again = 0;
	for (uint32_t b = 0; !r && b < m->src.nr_guest; b++)
		r = choose_block(m, b, first, last, nr_pages);
	return r;
}

// ---- a round

int migrate_look_up(struct migrate *m)
{
	WireMsg *msg = NULL;
	int r = 0;

	if (cmd_interrupted()) {
		log_err("interrupted; the VM goes on here");
		return -EINTR;
	}
	if (migrate_standing_ms(m) <= 1) {
		log_err("%s does not take what is left in time, and the VM stands; it goes on here", wire_peer(m->control));
		return -ETIMEDOUT;
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

		clock_gettime(CLOCK_MONOTONIC, &end);
		end.tv_nsec += LOOK_MS * (long)NSEC_PER_MSEC;
		end.tv_sec += end.tv_nsec / (long)NSEC_PER_SEC;
		end.tv_nsec %= (long)NSEC_PER_SEC;
		timeout = pthread_cond_clockwait(&m->changed, &m->lock, CLOCK_MONOTONIC, &end);
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
		for (unsigned i = 0; i < m->nr_channels; i++)
			frames[i] = m->channels[i].frames;
		round.n_frames = m->nr_channels;
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
	r = say_round(m, false);
	if (r) {
		log_err("%s: %s", wire_peer(m->control), strerror(-r));
		return r;
	}
	migrate_begin_sending(m);
	r = wait_sent(m);
	if (!r)
		r = say_round(m, true);
	if (r) { // it may have said why
		migrate_look_up(m);
		return r;
	}
	for (unsigned i = 0; i < m->nr_channels; i++) {
		m->result->pages += m->channels[i].nr_pages;
		m->result->zero_pages += m->channels[i].nr_zero;
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
