// SPDX-License-Identifier: GPL-2.0-only
#include "images/compress_int.h"

#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <xxhash.h>
#include <zstd.h>

#include "images/file_int.h"
#include "images/format.h"
#include "util/list.h"

#define THREADS_MAX 8

// A chunk's present pages: free -> being filled by the writer's thread -> queued -> with a thread -> free.
struct job {
	struct list link;
	struct img_place at;
	struct img_chunk *chunk;
	size_t len;
	uint8_t *data;
};

struct worker {
	struct img_compressor *c;
	pthread_t thread;
	ZSTD_CCtx *zstd;
	uint8_t *out;
	size_t out_len;
};

struct img_compressor {
	pthread_mutex_t lock; // of all below, and of *pages
	pthread_cond_t queued_one, freed_one;
	struct list free, queue;
	bool stop;
	struct img_pages *pages;
	unsigned nr_workers, nr_jobs;
	struct worker workers[THREADS_MAX];
	struct job jobs[2 * THREADS_MAX];
	struct job *filling; // the writer's thread's own
};

// What is to be stored for the job: its frame if that saves a page.
static const uint8_t *compress(struct worker *w, const struct job *j, size_t *len)
{
	size_t frame = ZSTD_compress2(w->zstd, w->out, w->out_len, j->data, j->len);

	*len = ZSTD_isError(frame) ? j->len : ROUND_UP(frame, PAGE_SIZE);
	if (*len >= j->len) {
		*len = j->len;
		return j->data;
	}
	memset(w->out + frame, 0, *len - frame);
	return w->out;
}

static void append(struct img_pages *pages, const struct job *j, const uint8_t *data, size_t len, uint64_t checksum)
{
	uint8_t *room;

	if (img_pages_room(pages, &room))
		return;
	memcpy(room, data, len);
	img_pages_add(pages, j->at, j->chunk, len, checksum);
}

static void *work(void *arg)
{
	struct worker *w = arg;
	struct img_compressor *c = w->c;

	pthread_mutex_lock(&c->lock);
	for (;;) {
		const uint8_t *data;
		uint64_t checksum;
		struct job *j;
		size_t len;

		while (list_empty(&c->queue) && !c->stop)
			pthread_cond_wait(&c->queued_one, &c->lock);
		if (list_empty(&c->queue))
			break;
		j = list_first(&c->queue, struct job, link);
		list_remove(&j->link);
		pthread_mutex_unlock(&c->lock);

		data = compress(w, j, &len);
		checksum = XXH3_64bits(data, len);

		pthread_mutex_lock(&c->lock);
		append(c->pages, j, data, len, checksum);
		list_append(&c->free, &j->link);
		pthread_cond_signal(&c->freed_one);
	}
	pthread_mutex_unlock(&c->lock);
	return NULL;
}

static int start_worker(struct img_compressor *c, int level)
{
	struct worker *w = &c->workers[c->nr_workers];
	int err = ENOMEM;

	w->c = c;
	w->out_len = ROUND_UP(ZSTD_compressBound(IMG_CHUNK_SIZE), PAGE_SIZE);
	w->out = malloc(w->out_len);
	w->zstd = ZSTD_createCCtx();
	if (w->out && w->zstd && !ZSTD_isError(ZSTD_CCtx_setParameter(w->zstd, ZSTD_c_compressionLevel, level)) &&
	    !ZSTD_isError(ZSTD_CCtx_setParameter(w->zstd, ZSTD_c_checksumFlag, 1)))
		err = pthread_create(&w->thread, NULL, work, w);
	if (err) {
		free(w->out);
		ZSTD_freeCCtx(w->zstd);
	} else {
		c->nr_workers++;
	}
	return -err;
}

// Signals are for the threads that were there before.
static int start_workers(struct img_compressor *c, int level)
{
	long nr = sysconf(_SC_NPROCESSORS_ONLN);
	sigset_t all, old;
	int ret = 0;

	sigfillset(&all);
	pthread_sigmask(SIG_SETMASK, &all, &old);
	do
		ret = start_worker(c, level);
	while (!ret && c->nr_workers < nr && c->nr_workers < THREADS_MAX);
	pthread_sigmask(SIG_SETMASK, &old, NULL);
	return ret;
}

int img_compressor_new(int level, struct img_pages *pages, struct img_compressor **out)
{
	struct img_compressor *c = calloc(1, sizeof *c);
	int ret;

	if (!c)
		return img_io_error(pages->path, "compress", -ENOMEM);
	c->pages = pages;
	pthread_mutex_init(&c->lock, NULL);
	pthread_cond_init(&c->queued_one, NULL);
	pthread_cond_init(&c->freed_one, NULL);
	list_init(&c->free);
	list_init(&c->queue);
	ret = start_workers(c, level);
	for (; !ret && c->nr_jobs < 2 * c->nr_workers; c->nr_jobs++) {
		struct job *j = &c->jobs[c->nr_jobs];

		j->data = aligned_alloc(PAGE_SIZE, IMG_CHUNK_SIZE);
		if (!j->data)
			ret = -ENOMEM;
		list_append(&c->free, &j->link);
	}
	if (ret) {
		img_compressor_free(c);
		return img_io_error(pages->path, "compress", ret);
	}
	*out = c;
	return 0;
}

int img_compressor_room(struct img_compressor *c, uint8_t **room)
{
	int ret;

	pthread_mutex_lock(&c->lock);
	while (!c->filling && list_empty(&c->free))
		pthread_cond_wait(&c->freed_one, &c->lock);
	if (!c->filling) {
		c->filling = list_first(&c->free, struct job, link);
		list_remove(&c->filling->link);
	}
	ret = c->pages->err;
	pthread_mutex_unlock(&c->lock);
	*room = c->filling->data;
	return ret;
}

void img_compressor_add(struct img_compressor *c, struct img_place at, struct img_chunk *chunk, size_t len)
{
	c->filling->at = at;
	c->filling->chunk = chunk;
	c->filling->len = len;
	pthread_mutex_lock(&c->lock);
	list_append(&c->queue, &c->filling->link);
	c->filling = NULL;
	pthread_cond_signal(&c->queued_one);
	pthread_mutex_unlock(&c->lock);
}

void img_compressor_lock(struct img_compressor *c)
{
	pthread_mutex_lock(&c->lock);
}

void img_compressor_unlock(struct img_compressor *c)
{
	pthread_mutex_unlock(&c->lock);
}

void img_compressor_free(struct img_compressor *c)
{
	if (!c)
		return;
	pthread_mutex_lock(&c->lock);
	c->stop = true;
	pthread_cond_broadcast(&c->queued_one);
	pthread_mutex_unlock(&c->lock);
	for (unsigned i = 0; i < c->nr_workers; i++) {
		pthread_join(c->workers[i].thread, NULL);
		ZSTD_freeCCtx(c->workers[i].zstd);
		free(c->workers[i].out);
	}
	for (unsigned i = 0; i < c->nr_jobs; i++)
		free(c->jobs[i].data);
	pthread_cond_destroy(&c->queued_one);
	pthread_cond_destroy(&c->freed_one);
	pthread_mutex_destroy(&c->lock);
	free(c);
}
