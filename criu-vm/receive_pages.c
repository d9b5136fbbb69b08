// SPDX-License-Identifier: GPL-2.0-only
#include "criu-vm/receive_pages.h"

#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "criu-vm/cmd.h"
#include "util/clock.h"
#include "util/log.h"

// Chunks on their way to the swap image while the next ones arrive.
#define NR_BUFFERS 8
#define LOOP_ENTRIES 256
#define SILENCE_LOOK_MS 1000
#define INTERRUPT_LOOK_NS (100 * NSEC_PER_MSEC)

struct arrival {
	struct pv_placing placing;
	struct channel *channel;
	bool busy;
};

// One thread's; what ended says is under the lock.
struct channel {
	struct receive_pages *r;
	unsigned index;
	struct wire_conn *conn;
	struct wire_pages *wire;
	struct loop loop;
	struct pv_placer placer;
	struct arrival arrivals[NR_BUFFERS];
	pthread_t thread;
	bool started, failed;
	unsigned round;     // that arrives
	uint64_t nr_frames; // of it, so far
	unsigned ended;     // the last round that has ended
	uint64_t ended_frames;
};

struct receive_pages {
	struct receive_pages_opts o;
	pthread_mutex_t lock; // of all that follows, and what ended says in channels
	pthread_cond_t changed;
	unsigned awaited, taken; // rounds: the one that the source has sent, it says; the last that is complete
	uint64_t awaited_ns;     // since when
	bool stopping;
	int err;
	bool from_source, from_images; // atomic: pages come later
	struct channel channels[];
};

// what: NULL if it is logged already.
static int fail(struct channel *c, int err, const char *what)
{
	struct receive_pages *r = c->r;

	pthread_mutex_lock(&r->lock);
	if (!r->err && !r->stopping) {
		if (what)
			log_err("%s: data channel %u: %s", wire_peer(c->conn), c->index, what);
		r->err = err;
	}
	pthread_cond_broadcast(&r->changed);
	pthread_mutex_unlock(&r->lock);
	c->failed = true;
	return err;
}

static int round_of_loop(struct channel *c, bool wait)
{
	int err = c->loop.nr_busy ? loop_round(&c->loop, wait) : 0;

	if (err)
		return fail(c, err, "its io_uring has failed");
	return c->failed ? -EIO : 0;
}

static void placed(struct pv_placing *p, int err)
{
	struct arrival *a = list_entry(p, struct arrival, placing);
	char text[128];

	if (err) {
		snprintf(text, sizeof text, "chunk %lu of guest RAM cannot be put into memory or the swap image: %s", p->chunk, strerror(-err));
		fail(a->channel, err, text);
	}
	a->busy = false;
}

// The first that is free, which the processor's caches know best.
static struct arrival *free_one(struct channel *c)
{
	for (unsigned i = 0; i < NR_BUFFERS; i++)
		if (!c->arrivals[i].busy)
			return &c->arrivals[i];
	return NULL;
}

static bool is_under_way(const struct channel *c, uint64_t chunk)
{
	for (unsigned i = 0; i < NR_BUFFERS; i++)
		if (c->arrivals[i].busy && c->arrivals[i].placing.chunk == chunk)
			return true;
	return false;
}

// A source that says it has sent all of a round cannot have the line be silent; else it may, for as long as it has nothing to send
// on this channel: the control channel tells whether it lives.
static bool is_lost(struct channel *c, uint64_t silent_since)
{
	struct receive_pages *r = c->r;
	bool awaited;

	pthread_mutex_lock(&r->lock);
	awaited = r->awaited == c->round;
	if (silent_since < r->awaited_ns)
		silent_since = r->awaited_ns;
	pthread_mutex_unlock(&r->lock);
	return awaited && clock_now_ns() > silent_since + WIRE_LOST_MS * NSEC_PER_MSEC;
}

static int wait_for_frame(struct channel *c)
{
	uint64_t since = clock_now_ns();
	int ret;

	while (!(ret = wire_poll(c->conn, SILENCE_LOOK_MS))) {
		if (is_lost(c, since))
			return -ETIMEDOUT;
		ret = round_of_loop(c, false); // what cannot be written is told now
		if (ret)
			return ret;
	}
	return ret < 0 ? ret : 0;
}

static const char *frame_fault(const struct channel *c, const struct wire_frame *f, uint64_t *chunk)
{
	const struct pv_placement *pm = c->r->o.placement;
	unsigned nr_pages;

	if (f->round != c->round)
		return "sent a frame of another round";
	if (f->type == WIRE_ROUND_END)
		return f->chunk == c->nr_frames ? NULL : "sent another number of frames than it says";
	if (f->block >= pm->nr_blocks || f->chunk >= DIV_ROUND_UP(pm->blocks[f->block].len, PV_CHUNK_SIZE))
		return "sent a chunk of memory that the VM does not have";
	*chunk = pm->blocks[f->block].off / PV_CHUNK_SIZE + f->chunk;
	nr_pages = pv_placement_chunk_pages(pm, *chunk);
	if (bitmap_next(f->present, PV_CHUNK_PAGES, nr_pages, true) < PV_CHUNK_PAGES ||
	    bitmap_next(f->zero, PV_CHUNK_PAGES, nr_pages, true) < PV_CHUNK_PAGES)
		return "sent pages behind the end of a block";
	if (wire_channel_of(*chunk, c->r->o.nr_channels) != c->index)
		return "sent a chunk that belongs to another channel";
	if (f->type == WIRE_PAGES)
		return NULL;
	if (f->type != WIRE_LATER || !c->r->o.lazy)
		return "sent a frame that has no place in a round";
	return f->flags & WIRE_FLAG_IN_IMAGES && !c->r->o.in_images ? "sent pages that are in images, which cannot be read here" : NULL;
}

// All is written; then it is for receive_pages_wait() to say that the round is complete.
static int end_round(struct channel *c)
{
	struct receive_pages *r = c->r;
	int err = 0;

	while (!err && c->loop.nr_busy)
		err = round_of_loop(c, true);
	if (err)
		return err;
	pthread_mutex_lock(&r->lock);
	c->ended = c->round;
	c->ended_frames = c->nr_frames;
	pthread_cond_broadcast(&r->changed);
	while (!r->stopping && !r->err && r->taken < c->round)
		pthread_cond_wait(&r->changed, &r->lock);
	err = r->stopping || r->err ? -ECANCELED : 0;
	pthread_mutex_unlock(&r->lock);
	c->round++;
	c->nr_frames = 0;
	return err;
}

// Where the pages of this frame that come later come from. No other thread has to do with the chunk.
static void note_later(struct receive_pages *r, const struct wire_frame *f, uint64_t chunk)
{
	bool images = f->flags & WIRE_FLAG_IN_IMAGES;

	if (f->type == WIRE_LATER)
		__atomic_store_n(images ? &r->from_images : &r->from_source, true, __ATOMIC_RELAXED);
	for (unsigned w = 0; r->o.in_images && w < PV_WORDS; w++)
		if (images)
			r->o.in_images[chunk][w] |= f->present[w];
		else
			r->o.in_images[chunk][w] &= ~(f->present[w] | f->zero[w]);
}

static int place(struct channel *c, struct arrival *a, const struct wire_frame *f, uint64_t chunk)
{
	bool later = f->type == WIRE_LATER;
	int err = 0;

	while (!err && is_under_way(c, chunk))
		err = round_of_loop(c, true);
	if (err)
		return err;
	a->placing.chunk = chunk;
	a->placing.to_ram = f->flags & WIRE_FLAG_TO_RAM;
	for (unsigned w = 0; w < PV_WORDS; w++) {
		a->placing.later[w] = later ? f->present[w] : 0;
		a->placing.present[w] = later ? 0 : f->present[w];
		a->placing.touched[w] = later ? 0 : f->present[w] | f->zero[w];
	}
	note_later(c->r, f, chunk);
	c->nr_frames++;
	a->busy = true;
	pv_place(&c->placer, &a->placing);
	return round_of_loop(c, false);
}

static int take_one(struct channel *c)
{
	struct arrival *a = free_one(c);
	struct wire_frame f;
	const char *fault;
	uint64_t chunk = 0;
	char text[128];
	int err;

	if (!a)
		return round_of_loop(c, true);
	err = wait_for_frame(c);
	if (!err)
		err = wire_pages_receive(c->wire, &f, a->placing.packed);
	if (err) {
		snprintf(text, sizeof text, "the line is lost: %s", strerror(-err));
		return fail(c, err, err == -EBADMSG || err == -EINTR ? NULL : text);
	}
	fault = frame_fault(c, &f, &chunk);
	if (fault)
		return fail(c, -EBADMSG, fault);
	return f.type == WIRE_ROUND_END ? end_round(c) : place(c, a, &f, chunk);
}

static void *run(void *ctx)
{
	struct channel *c = ctx;
	int err = loop_init(&c->loop, LOOP_ENTRIES);

	if (err) {
		fail(c, err, "cannot set up an io_uring");
		return NULL;
	}
	while (!err)
		err = take_one(c);
	// Nothing may land in the swap image, or come from a buffer, that is somebody else's by then.
	while (c->loop.nr_busy && !loop_round(&c->loop, true))
		;
	loop_fini(&c->loop);
	return NULL;
}

static int channel_init(struct receive_pages *r, unsigned i)
{
	struct channel *c = &r->channels[i];

	c->r = r;
	c->index = i;
	c->conn = r->o.channels[i];
	c->round = 1;
	c->placer = (struct pv_placer){ .placement = r->o.placement, .loop = &c->loop };
	for (unsigned n = 0; n < NR_BUFFERS; n++) {
		c->arrivals[n].channel = c;
		c->arrivals[n].placing.done = placed;
		c->arrivals[n].placing.packed = aligned_alloc(PAGE_SIZE, WIRE_CHUNK_SIZE);
		if (!c->arrivals[n].placing.packed)
			return -ENOMEM;
	}
	return wire_pages_new(c->conn, &c->wire);
}

// Signals are for the thread that waits.
static int start_threads(struct receive_pages *r)
{
	sigset_t all, old;
	int err = 0;

	sigfillset(&all);
	pthread_sigmask(SIG_SETMASK, &all, &old);
	for (unsigned i = 0; !err && i < r->o.nr_channels; i++) {
		err = -pthread_create(&r->channels[i].thread, NULL, run, &r->channels[i]);
		r->channels[i].started = !err;
	}
	pthread_sigmask(SIG_SETMASK, &old, NULL);
	return err;
}

int receive_pages_start(const struct receive_pages_opts *o, struct receive_pages **out)
{
	struct receive_pages *r = calloc(1, sizeof *r + o->nr_channels * sizeof r->channels[0]);
	pthread_condattr_t attr;
	int err = 0;

	if (!r) {
		log_err("out of memory for the data channels");
		return -ENOMEM;
	}
	r->o = *o;
	pthread_mutex_init(&r->lock, NULL);
	pthread_condattr_init(&attr);
	pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
	pthread_cond_init(&r->changed, &attr);
	pthread_condattr_destroy(&attr);
	for (unsigned i = 0; !err && i < o->nr_channels; i++)
		err = channel_init(r, i);
	if (!err)
		err = start_threads(r);
	if (err) {
		log_err("cannot set up %u data channels: %s", o->nr_channels, strerror(-err));
		receive_pages_stop(r);
		receive_pages_free(r);
		return err;
	}
	*out = r;
	return 0;
}

static bool have_all_ended(const struct receive_pages *r, unsigned round)
{
	for (unsigned i = 0; i < r->o.nr_channels; i++)
		if (r->channels[i].ended < round)
			return false;
	return true;
}

static void wait_for_change(struct receive_pages *r)
{
	struct timespec until;

	clock_gettime(CLOCK_MONOTONIC, &until);
	until.tv_nsec += (long)INTERRUPT_LOOK_NS;
	until.tv_sec += until.tv_nsec / (long)NSEC_PER_SEC;
	until.tv_nsec %= (long)NSEC_PER_SEC;
	pthread_cond_timedwait(&r->changed, &r->lock, &until);
}

// Under the lock.
static int wait_for_round(struct receive_pages *r, unsigned round, const uint64_t *frames)
{
	if (r->err)
		return r->err;
	if (round != r->taken + 1) {
		log_err("the source says that round %u has ended, after round %u", round, r->taken);
		return -EBADMSG;
	}
	r->awaited = round;
	r->awaited_ns = clock_now_ns();
	while (!r->err && !have_all_ended(r, round)) {
		if (cmd_interrupted())
			return -EINTR;
		wait_for_change(r);
	}
	for (unsigned i = 0; !r->err && i < r->o.nr_channels; i++)
		if (r->channels[i].ended_frames != frames[i]) {
			log_err("data channel %u brought %lu frames in round %u, of %lu that the source says", i, r->channels[i].ended_frames, round,
				frames[i]);
			return -EBADMSG;
		}
	if (!r->err)
		r->taken = round;
	return r->err;
}

int receive_pages_wait(struct receive_pages *r, unsigned round, const uint64_t *frames)
{
	int err;

	pthread_mutex_lock(&r->lock);
	err = wait_for_round(r, round, frames);
	pthread_cond_broadcast(&r->changed);
	pthread_mutex_unlock(&r->lock);
	return err;
}

void receive_pages_later(const struct receive_pages *r, bool *from_source, bool *from_images)
{
	*from_source = __atomic_load_n(&r->from_source, __ATOMIC_RELAXED);
	*from_images = __atomic_load_n(&r->from_images, __ATOMIC_RELAXED);
}

int receive_pages_error(struct receive_pages *r)
{
	int err;

	pthread_mutex_lock(&r->lock);
	err = r->err;
	pthread_mutex_unlock(&r->lock);
	return err;
}

void receive_pages_stop(struct receive_pages *r)
{
	if (!r)
		return;
	pthread_mutex_lock(&r->lock);
	r->stopping = true;
	pthread_cond_broadcast(&r->changed);
	pthread_mutex_unlock(&r->lock);
	for (unsigned i = 0; i < r->o.nr_channels; i++)
		if (r->channels[i].started)
			wire_shutdown(r->channels[i].conn);
	for (unsigned i = 0; i < r->o.nr_channels; i++)
		if (r->channels[i].started) {
			pthread_join(r->channels[i].thread, NULL);
			r->channels[i].started = false;
		}
}

void receive_pages_free(struct receive_pages *r)
{
	if (!r)
		return;
	for (unsigned i = 0; i < r->o.nr_channels; i++) {
		wire_pages_free(r->channels[i].wire);
		for (unsigned n = 0; n < NR_BUFFERS; n++)
			free(r->channels[i].arrivals[n].placing.packed);
	}
	pthread_cond_destroy(&r->changed);
	pthread_mutex_destroy(&r->lock);
	free(r);
}
