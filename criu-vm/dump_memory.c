// SPDX-License-Identifier: GPL-2.0-only
#include <errno.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#include "criu-vm/cmd.h"
#include "criu-vm/dump_int.h"
#include "mm/read.h"
#include "util/bitmap.h"
#include "util/cleanup.h"
#include "util/clock.h"
#include "util/list.h"
#include "util/log.h"
#include "util/size.h"

// Chunks that writers of --background wait for no longer, and that are not written yet.
#define SAVED_CHUNKS 64
#define WANTED_TIMEOUT_MS 100

static int read_small(struct dump *d, const struct qemu_ramblock *b, uint8_t **data)
{
	uint64_t len = ROUND_UP(b->len, PAGE_SIZE), *present = calloc(BITMAP_WORDS(len / PAGE_SIZE), sizeof *present);
	struct mm_source *s = NULL;
	int r;

	*data = aligned_alloc(PAGE_SIZE, len);
	r = *data && present ? mm_source_open(d->vm->pid, b->hva, len, &s) : -ENOMEM;
	if (!r) {
		memset(*data, 0, len);
		r = mm_source_present(s, 0, len, present);
	}
	if (!r)
		r = mm_source_read(s, 0, present, len / PAGE_SIZE, *data);
	mm_source_close(s);
	free(present);
	return r;
}

int dump_small(void *ctx)
{
	struct dump *d = ctx;
	size_t nr = d->nr_blocks - d->nr_guest;
	int r = 0;

	d->small = calloc(nr + 1, sizeof *d->small);
	if (!d->small)
		return -ENOMEM;
	for (size_t i = 0; !r && i < nr; i++)
		r = read_small(d, &d->blocks[d->nr_guest + i], &d->small[i]);
	return r;
}

// What is read of a chunk, and what is as in the parent.
static int look_at(struct dump *d, uint32_t block, uint64_t chunk, uint64_t read[4], uint64_t parent[4])
{
	int r = ram_present(d->ram, block, chunk, read);

	memset(parent, 0, 4 * sizeof *parent);
	if (!r && d->parent)
		r = ram_unchanged(d->ram, block, chunk, read, parent);
	for (unsigned w = 0; w < 4; w++)
		read[w] &= ~parent[w];
	return r;
}

static int copy_chunk(struct dump *d, uint32_t block, uint64_t chunk, char *buf)
{
	uint64_t read[4], parent[4];
	int r = look_at(d, block, chunk, read, parent);

	if (r || (bitmap_empty(read, CHUNK_PAGES) && bitmap_empty(parent, CHUNK_PAGES)))
		return r;
	r = ram_read(d->ram, block, chunk, read, buf);
	return r ? r : img_writer_chunk(d->writer, block, chunk, buf, read, d->parent ? parent : NULL);
}

static int check_interrupted(void)
{
	if (!cmd_interrupted())
		return 0;
	log_err("interrupted; the VM goes on, nothing was dumped");
	return -EINTR;
}

int dump_copy(void *ctx)
{
	struct dump *d = ctx;
	char *buf = aligned_alloc(PAGE_SIZE, CHUNK_SIZE);
	uint64_t begun = clock_now_ns();
	int r = buf ? 0 : -ENOMEM;

	progress_begin(&d->progress, "dumping memory", d->result->ram);
	for (uint32_t i = 0; i < d->nr_guest; i++)
		for (uint64_t c = 0; !r && c < DIV_ROUND_UP(d->blocks[i].len, CHUNK_SIZE); c++) {
			r = check_interrupted();
			if (!r)
				r = copy_chunk(d, i, c, buf);
			progress_add(&d->progress, CHUNK_SIZE);
		}
	progress_end(&d->progress);
	free(buf);
	d->times.memdump_us = (clock_now_ns() - begun) / 1000;
	return r;
}

// DOC: --background
//
// One thread waits for writers: it copies the chunk that one of them wants into a buffer, releases it, and hands the buffer on.
// One writes: what was handed on first, else the next chunk that nobody has taken yet. When all buffers are full, writers wait for
// the disk. One lets the VM go on, since QEMU's main thread may be such a writer before it has answered.
struct saved {
	struct list link; // of the free ones, or of those to be written
	uint32_t block;
	uint64_t chunk, present[4];
	char *data;
};

struct background {
	struct dump *d;
	pthread_mutex_t lock;	   // of all below, and of d->ram
	pthread_cond_t changed;	   // of free and full
	struct list free, full;
	struct saved saved[SAVED_CHUNKS];
	uint64_t **taken;	   // a bit a chunk of each block: it is in a buffer, or was
	int err;		   // of the thread that waits for writers
	int go_on_err;
	bool done;
	uint64_t nr_wanted;
};

// Under the lock. The chunk as it was at the instant, into s; then it is released.
static int take(struct background *b, uint32_t block, uint64_t chunk, struct saved *s)
{
	int r;

	bitmap_set(b->taken[block], chunk);
	s->block = block;
	s->chunk = chunk;
	r = ram_present(b->d->ram, block, chunk, s->present);
	if (!r && !bitmap_empty(s->present, CHUNK_PAGES))
		r = ram_read(b->d->ram, block, chunk, s->present, s->data);
	return r ? r : mm_protect_release(b->d->protect, block, chunk * CHUNK_SIZE);
}

static int save_wanted(struct background *b, uint32_t block, uint64_t chunk)
{
	struct saved *s;
	int r = 0;

	pthread_mutex_lock(&b->lock);
	while (list_empty(&b->free) && !b->done)
		pthread_cond_wait(&b->changed, &b->lock);
	if (bitmap_test(b->taken[block], chunk)) {
		r = mm_protect_release(b->d->protect, block, chunk * CHUNK_SIZE);
	} else if (!b->done) {
		s = list_first(&b->free, struct saved, link);
		list_remove(&s->link);
		r = take(b, block, chunk, s);
		list_append(&b->full, &s->link);
		b->nr_wanted++;
	}
	pthread_mutex_unlock(&b->lock);
	return r;
}

static void *wait_for_writers(void *ctx)
{
	struct background *b = ctx;
	bool done = false;
	int r = 0;

	while (!r && !done) {
		size_t block;
		uint64_t off;

		r = mm_protect_wanted(b->d->protect, WANTED_TIMEOUT_MS, &block, &off);
		if (r > 0)
			r = save_wanted(b, (uint32_t)block, off / CHUNK_SIZE);
		pthread_mutex_lock(&b->lock);
		b->err = r;
		done = b->done;
		pthread_mutex_unlock(&b->lock);
	}
	return NULL;
}

static int write_saved(struct background *b, const struct saved *s)
{
	progress_add(&b->d->progress, CHUNK_SIZE);
	if (bitmap_empty(s->present, CHUNK_PAGES))
		return 0;
	return img_writer_chunk(b->d->writer, s->block, s->chunk, s->data, s->present, NULL);
}

// The next chunk that nobody has taken. False: there is none.
static bool find_next(const struct background *b, uint32_t *block, uint64_t *chunk)
{
	for (; *block < b->d->nr_guest; ++*block, *chunk = 0) {
		uint64_t nr = DIV_ROUND_UP(b->d->blocks[*block].len, CHUNK_SIZE);

		*chunk = bitmap_next(b->taken[*block], nr, *chunk, false);
		if (*chunk < nr)
			return true;
	}
	return false;
}

// One chunk to the images. 1, 0: that was all, -errno.
static int write_next(struct background *b, struct saved *own, uint32_t *block, uint64_t *chunk)
{
	struct saved *s = own;
	int r = 0;

	pthread_mutex_lock(&b->lock);
	if (b->err) {
		r = b->err;
	} else if (!list_empty(&b->full)) {
		s = list_first(&b->full, struct saved, link);
		list_remove(&s->link);
		r = 1;
	} else if (find_next(b, block, chunk)) {
		r = take(b, *block, *chunk, own);
		r = r ? r : 1;
	}
	pthread_mutex_unlock(&b->lock);
	if (r <= 0)
		return r;
	r = write_saved(b, s);
	if (s != own) {
		pthread_mutex_lock(&b->lock);
		list_append(&b->free, &s->link);
		pthread_cond_signal(&b->changed);
		pthread_mutex_unlock(&b->lock);
	}
	return r ? r : 1;
}

static int background_init(struct background *b)
{
	int r = 0;

	pthread_mutex_init(&b->lock, NULL);
	pthread_cond_init(&b->changed, NULL);
	list_init(&b->free);
	list_init(&b->full);
	for (unsigned i = 0; i < SAVED_CHUNKS; i++) {
		b->saved[i].data = aligned_alloc(PAGE_SIZE, CHUNK_SIZE);
		if (!b->saved[i].data)
			r = -ENOMEM;
		list_append(&b->free, &b->saved[i].link);
	}
	b->taken = calloc(b->d->nr_guest, sizeof *b->taken);
	for (size_t i = 0; b->taken && i < b->d->nr_guest; i++) {
		b->taken[i] = calloc(BITMAP_WORDS(DIV_ROUND_UP(b->d->blocks[i].len, CHUNK_SIZE)), sizeof **b->taken);
		if (!b->taken[i])
			r = -ENOMEM;
	}
	return b->taken ? r : -ENOMEM;
}

static void background_fini(struct background *b)
{
	for (unsigned i = 0; i < SAVED_CHUNKS; i++)
		free(b->saved[i].data);
	for (size_t i = 0; b->taken && i < b->d->nr_guest; i++)
		free(b->taken[i]);
	free(b->taken);
	pthread_cond_destroy(&b->changed);
	pthread_mutex_destroy(&b->lock);
}

static int write_all(struct background *b)
{
	struct saved own = { .data = aligned_alloc(PAGE_SIZE, CHUNK_SIZE) };
	uint64_t chunk = 0;
	uint32_t block = 0;
	int r = own.data ? 1 : -ENOMEM;

	while (r > 0) {
		r = check_interrupted();
		if (!r)
			r = write_next(b, &own, &block, &chunk);
	}
	free(own.data);
	return r;
}

static void *let_go(void *ctx)
{
	struct background *b = ctx;

	b->go_on_err = dump_go_on(b->d);
	return NULL;
}

static void end_waiting(struct background *b)
{
	pthread_mutex_lock(&b->lock);
	b->done = true;
	pthread_cond_signal(&b->changed);
	pthread_mutex_unlock(&b->lock);
}

// After an error nothing is protected any more: who waits, QEMU's main thread perhaps, goes on.
static int run_threads(struct background *b)
{
	pthread_t waiter, goer;
	int r = -pthread_create(&waiter, NULL, wait_for_writers, b);

	if (r)
		return r;
	r = -pthread_create(&goer, NULL, let_go, b);
	if (!r) {
		r = dump_write_first(b->d);
		if (!r)
			r = write_all(b);
	}
	end_waiting(b);
	pthread_join(waiter, NULL);
	mm_protect_end(steal_ptr(&b->d->protect));
	pthread_join(goer, NULL);
	return r ? r : b->err ? b->err : b->go_on_err;
}

int dump_copy_background(void *ctx)
{
	struct dump *d = ctx;
	struct background b = { .d = d };
	uint64_t begun = clock_now_ns();
	int r = background_init(&b);

	dump_thaw(d); // by who froze it
	if (!r) {
		progress_begin(&d->progress, "dumping memory", d->result->ram);
		r = run_threads(&b);
		progress_end(&d->progress);
		log_info("%lu chunks were wanted before their turn", b.nr_wanted);
	}
	if (r == -ESTALE)
		log_err("the VM gave memory back (a balloon, or free page reporting) that was not copied yet; dump it without --background");
	background_fini(&b);
	mm_protect_end(steal_ptr(&d->protect));
	d->times.memdump_us = (clock_now_ns() - begun) / 1000;
	return r;
}
