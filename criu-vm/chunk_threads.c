// SPDX-License-Identifier: GPL-2.0-only
#include "criu-vm/chunk_threads.h"

#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <time.h>
#include <unistd.h>

#include "criu-vm/cmd.h"
#include "criu-vm/progress.h"
#include "images/format.h"
#include "util/clock.h"
#include "util/log.h"

#define THREADS_MAX 8
#define LOOK_NS (100 * NSEC_PER_MSEC)

struct threads {
	const struct chunk_work *work;
	pthread_mutex_t lock; // of all that follows
	pthread_cond_t ended_one;
	unsigned nr_running;
	uint64_t next, bytes;
	int err;
};

static int get_buffers(struct chunk_buffers *b)
{
	int err = img_unpacker_new(&b->unpacker);

	b->stored = aligned_alloc(PAGE_SIZE, IMG_STORED_MAX);
	b->pages = aligned_alloc(PAGE_SIZE, IMG_CHUNK_SIZE);
	if (!err && (!b->stored || !b->pages))
		err = -ENOMEM;
	if (err)
		log_err("out of memory");
	return err;
}

static void *run_thread(void *ctx)
{
	struct threads *t = ctx;
	struct chunk_buffers b = { 0 };
	int64_t n = get_buffers(&b);

	pthread_mutex_lock(&t->lock);
	while (n >= 0 && !t->err && t->next < t->work->nr) {
		uint64_t item = t->next++;

		pthread_mutex_unlock(&t->lock);
		n = t->work->one(t->work->ctx, item, &b);
		pthread_mutex_lock(&t->lock);
		t->bytes += n > 0 ? (uint64_t)n : 0;
	}
	if (n < 0 && !t->err)
		t->err = (int)n;
	t->nr_running--;
	pthread_cond_signal(&t->ended_one);
	pthread_mutex_unlock(&t->lock);
	img_unpacker_free(b.unpacker);
	free(b.stored);
	free(b.pages);
	return NULL;
}

// Signals are for the thread that waits.
static unsigned start(struct threads *t, pthread_t threads[THREADS_MAX])
{
	long nr = 2 * sysconf(_SC_NPROCESSORS_ONLN);
	sigset_t all, old;
	unsigned n = 0;

	sigfillset(&all);
	pthread_sigmask(SIG_SETMASK, &all, &old);
	pthread_mutex_lock(&t->lock);
	while (n < nr && n < THREADS_MAX && !pthread_create(&threads[n], NULL, run_thread, t))
		n++;
	t->nr_running = n;
	pthread_mutex_unlock(&t->lock);
	pthread_sigmask(SIG_SETMASK, &old, NULL);
	if (!n) {
		log_err("cannot start a thread: out of memory, or too many processes");
		t->err = -ENOMEM;
	}
	return n;
}

static void wait_for_all(struct threads *t)
{
	struct progress progress;
	struct timespec until;

	progress_begin(&progress, t->work->what, t->work->bytes);
	pthread_mutex_lock(&t->lock);
	while (t->nr_running) {
		clock_gettime(CLOCK_REALTIME, &until);
		until.tv_nsec += (long)LOOK_NS;
		until.tv_sec += until.tv_nsec / (long)NSEC_PER_SEC;
		until.tv_nsec %= (long)NSEC_PER_SEC;
		pthread_cond_timedwait(&t->ended_one, &t->lock, &until);
		progress_add(&progress, t->bytes - progress.done);
		if (cmd_interrupted() && !t->err)
			t->err = -EINTR;
	}
	pthread_mutex_unlock(&t->lock);
	progress_end(&progress);
}

int chunk_threads_run(const struct chunk_work *work)
{
	struct threads t = { .work = work, .lock = PTHREAD_MUTEX_INITIALIZER, .ended_one = PTHREAD_COND_INITIALIZER };
	pthread_t threads[THREADS_MAX];
	unsigned nr = start(&t, threads);

	wait_for_all(&t);
	for (unsigned i = 0; i < nr; i++)
		pthread_join(threads[i], NULL);
	return t.err;
}

void chunk_of_all(const struct img_dir *d, uint64_t chunk, uint32_t *block, uint64_t *in_block)
{
	for (*block = 0; chunk >= img_dir_block_chunks(d, *block); ++*block)
		chunk -= img_dir_block_chunks(d, *block);
	*in_block = chunk;
}

uint64_t nr_chunks_of_all(const struct img_dir *d)
{
	uint64_t nr = 0;

	for (uint32_t i = 0; i < img_dir_nr_blocks(d); i++)
		nr += img_dir_block_chunks(d, i);
	return nr;
}
