// SPDX-License-Identifier: GPL-2.0-only
#include <errno.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <time.h>

#include "criu-vm/dump_int.h"
#include "criu-vm/uffd_dev.h"
#include "util/bitmap.h"
#include "util/cleanup.h"
#include "util/clock.h"
#include "util/list.h"
#include "util/log.h"
#include "util/size.h"

// Chunks that writers wait for no longer, and that are not written yet.
#define SAVED_CHUNKS 64
#define WANTED_TIMEOUT_MS 100
#define PATIENCE_S 5
#define WRITER_NICE 10 // the guest's CPUs are the guest's

int dump_protect(void *ctx)
{
	struct dump *d = ctx;
	int dev, r;

	if (ram_is_paged(d->src.ram))
		return ram_snapshot_prepare(d->src.ram);
	r = uffd_dev_give(d->src.vm->qmp, d->src.vm->pid, &dev);
	if (r)
		return r;
	r = mm_protect_prepare(d->src.vm->pid, dev, ram_ranges(d->src.ram), d->src.nr_guest, &d->protect);
	uffd_dev_take_back(d->src.vm->qmp, dev);
	return r;
}

void dump_unprotect(void *ctx)
{
	struct dump *d = ctx;

	mm_protect_end(steal_ptr(&d->protect));
	ram_snapshot_end(d->src.ram);
}

int dump_instant(void *ctx)
{
	struct dump *d = ctx;

	return ram_is_paged(d->src.ram) ? ram_snapshot_instant(d->src.ram) : mm_protect_instant(d->protect);
}

// DOC: --background
//
// One thread waits for writers: it copies the chunk that one of them wants into a buffer, releases it, and hands the buffer on.
// One writes: what was handed on first, else the next chunk that nobody has taken yet. When all buffers are full, writers wait for
// the disk. One lets the VM go on, since QEMU's main thread may be such a writer before it has answered.
//
// Of a VM in private virtual memory its pager is the first one, and has the buffers (pvmem/snapshot.h).
struct saved {
	struct list link; // of the free ones, or of those to be written
	uint32_t block;
	uint64_t chunk, present[4];
	char *data;
};

struct background {
	struct dump *d;
	pthread_mutex_t lock;	   // of all below, and of d->src.ram
	pthread_cond_t changed;	   // of free and full
	struct list free, full;
	struct saved saved[SAVED_CHUNKS];
	uint64_t **taken;	   // a bit a chunk of each block: it is in a buffer, or was
	int err;		   // of the thread that waits for writers
	int go_on_err;
	bool done;
	uint64_t nr_wanted;
	bool paged;
};

// The chunk as it was at the instant, into s; then it is released. Under the lock.
static int take(struct background *b, uint32_t block, uint64_t chunk, struct saved *s)
{
	int r;

	bitmap_set(b->taken[block], chunk);
	s->block = block;
	s->chunk = chunk;
	r = ram_present(b->d->src.ram, block, chunk, s->present);
	if (!r && !bitmap_empty(s->present, CHUNK_PAGES))
		r = ram_read(b->d->src.ram, block, chunk, s->present, s->data);
	if (!r && b->paged)
		ram_snapshot_done(b->d->src.ram, block, chunk);
	return r || b->paged ? r : mm_protect_release(b->d->protect, block, chunk * CHUNK_SIZE);
}

// Under the lock. The guest waits as long as this.
static int wait_for_buffer(struct background *b)
{
	struct timespec end;
	int r = 0;

	clock_gettime(CLOCK_REALTIME, &end);
	end.tv_sec += PATIENCE_S;
	while (!r && list_empty(&b->free) && !b->done)
		r = -pthread_cond_timedwait(&b->changed, &b->lock, &end);
	if (r)
		log_err("the images are not written fast enough: the VM has waited for its memory for %d s; it goes on, nothing was dumped", PATIENCE_S);
	return r;
}

static int save_wanted(struct background *b, uint32_t block, uint64_t chunk)
{
	struct saved *s;
	int r = 0;

	pthread_mutex_lock(&b->lock);
	r = wait_for_buffer(b);
	if (r) {
		mm_protect_give_up(b->d->protect);
	} else if (bitmap_test(b->taken[block], chunk)) {
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
static bool find_next(struct background *b, uint32_t *block, uint64_t *chunk)
{
	for (; *block < b->d->src.nr_guest; ++*block, *chunk = 0) {
		uint64_t nr = DIV_ROUND_UP(b->d->src.blocks[*block].len, CHUNK_SIZE);

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
	uint64_t wanted_chunk;
	uint32_t wanted_block;
	int r = 0;

	pthread_mutex_lock(&b->lock);
	if (b->err) {
		r = b->err;
	} else if (!list_empty(&b->full)) {
		s = list_first(&b->full, struct saved, link);
		list_remove(&s->link);
		r = 1;
	} else if (b->paged && ram_snapshot_wanted(b->d->src.ram, &wanted_block, &wanted_chunk) && !bitmap_test(b->taken[wanted_block], wanted_chunk)) {
		r = take(b, wanted_block, wanted_chunk, own);
		r = r ? r : 1;
		b->nr_wanted++;
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
	b->taken = calloc(b->d->src.nr_guest, sizeof *b->taken);
	for (size_t i = 0; b->taken && i < b->d->src.nr_guest; i++) {
		b->taken[i] = calloc(BITMAP_WORDS(DIV_ROUND_UP(b->d->src.blocks[i].len, CHUNK_SIZE)), sizeof **b->taken);
		if (!b->taken[i])
			r = -ENOMEM;
	}
	return b->taken ? r : -ENOMEM;
}

static void background_fini(struct background *b)
{
	for (unsigned i = 0; i < SAVED_CHUNKS; i++)
		free(b->saved[i].data);
	for (size_t i = 0; b->taken && i < b->d->src.nr_guest; i++)
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
		r = dump_check_interrupted();
		if (!r)
			r = write_next(b, &own, &block, &chunk);
	}
	free(own.data);
	return r;
}

static void *let_go(void *ctx)
{
	struct background *b = ctx;

	b->go_on_err = source_go_on(&b->d->src);
	return NULL;
}

static void end_waiting(struct background *b)
{
	pthread_mutex_lock(&b->lock);
	b->done = true;
	pthread_cond_signal(&b->changed);
	pthread_mutex_unlock(&b->lock);
}

// What QEMU was giving back while the last chunks were read has been told to the pager when QEMU answers.
static int finish_snapshot(struct dump *d)
{
	int r = qmp_call(d->src.vm->qmp, "query-status", NULL, NULL);

	return r ? r : ram_snapshot_finish(d->src.ram);
}

static void tell_waits(const struct background *b)
{
	struct mm_protect_stats s = { 0 };

	if (b->d->protect)
		mm_protect_stats(b->d->protect, &s);
	log_info("%lu chunks were wanted before their turn; %lu writes waited for one, the instant took %lu us", b->nr_wanted, s.waited, s.instant_ns / 1000);
}

// After an error nothing is protected any more: who waits, QEMU's main thread perhaps, goes on.
static int run_threads(struct background *b)
{
	pthread_t waiter = 0, goer = 0;
	int r = b->paged ? 0 : -pthread_create(&waiter, NULL, wait_for_writers, b), going;

	if (r)
		return r;
	r = going = -pthread_create(&goer, NULL, let_go, b);
	setpriority(PRIO_PROCESS, 0, WRITER_NICE); // this thread's
	if (!r)
		r = dump_write_first(b->d);
	if (!r)
		r = write_all(b);
	end_waiting(b);
	if (!b->paged)
		pthread_join(waiter, NULL);
	tell_waits(b);
	if (!b->paged || r)
		dump_unprotect(b->d);
	if (!going)
		pthread_join(goer, NULL);
	r = r ? r : b->err ? b->err : b->go_on_err;
	if (!r && b->paged)
		r = finish_snapshot(b->d);
	return r;
}

int dump_copy_background(void *ctx)
{
	struct dump *d = ctx;
	struct background b = { .d = d, .paged = ram_is_paged(d->src.ram) };
	uint64_t begun = clock_now_ns();
	int r = background_init(&b);

	source_thaw(&d->src); // by who froze it
	if (!r) {
		progress_begin(&d->progress, "dumping memory", d->src.ram_len);
		r = run_threads(&b);
		progress_end(&d->progress);
	}
	if (r == -ESTALE && !b.paged)
		log_err("the VM gave memory back (a balloon, or free page reporting) that was not copied yet; dump it without --background");
	background_fini(&b);
	d->times.memdump_us = (clock_now_ns() - begun) / 1000;
	return r;
}
