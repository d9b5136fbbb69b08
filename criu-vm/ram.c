// SPDX-License-Identifier: GPL-2.0-only
#include "criu-vm/ram_int.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "lazy-pages/control.h"
#include "lazy-pages/image_source.h"
#include "util/bitmap.h"
#include "util/cleanup.h"
#include "util/clock.h"
#include "util/io.h"
#include "util/log.h"
#include "util/zero.h"

#define ASK_TIMEOUT_MS 30000
#define ASK_RETRY_US 50000
#define FILE_TICK_NS (100 * NSEC_PER_MSEC) // a file's times are no finer than the kernel's clock tick

static int source_read(void *ctx, uint64_t chunk, const uint64_t pages[PV_WORDS], char *dest)
{
	struct ram *r = ctx;
	uint64_t in_block;
	uint32_t block;
	int err;

	lp_image_chunk(r->images, chunk, &block, &in_block);
	pthread_mutex_lock(&r->reading);
	err = img_dir_read(r->images, r->unpacker, block, in_block, pages, r->scratch, dest);
	pthread_mutex_unlock(&r->reading);
	return err;
}

static int open_images(struct ram *r)
{
	int err = img_dir_open(r->state.images, &r->images);

	if (!err && img_dir_id(r->images) != r->state.images_id) {
		log_err("%s is another checkpoint than the one that VM '%s' has pages in", r->state.images, r->o.name);
		err = -ESTALE;
	}
	if (!err)
		err = img_unpacker_new(&r->unpacker);
	if (!err && !(r->scratch = aligned_alloc(PAGE_SIZE, IMG_STORED_MAX)))
		err = -ENOMEM;
	return err;
}

static int open_memfds(struct ram *r)
{
	r->pv_blocks = calloc(r->state.nr_blocks, sizeof *r->pv_blocks);
	if (!r->pv_blocks)
		return -ENOMEM;
	for (size_t i = 0; i < r->state.nr_blocks; i++)
		r->pv_blocks[i].memfd = -1;
	for (size_t i = 0; i < r->state.nr_blocks; i++) {
		const struct vm_state_block *s = &r->state.blocks[i];
		char path[64];

		snprintf(path, sizeof path, "/proc/%d/fd/%d", r->state.qemu, s->memfd);
		r->pv_blocks[i] = (struct pv_block){ .off = s->off, .len = s->len, .hva = s->hva, .memfd = open(path, O_RDONLY | O_CLOEXEC) };
		if (r->pv_blocks[i].memfd < 0) {
			int err = -errno;

			log_err("cannot open guest RAM (%s): %s", path, strerror(-err));
			return err;
		}
	}
	return 0;
}

// Which block of the state is the one that QEMU has there.
static int match_blocks(struct ram *r)
{
	for (size_t i = 0; i < r->o.nr_blocks; i++) {
		const struct qemu_ramblock *b = &r->o.blocks[i];
		size_t j = 0;

		while (j < r->state.nr_blocks && (r->state.blocks[j].hva != b->hva || r->state.blocks[j].len != b->len))
			j++;
		if (j == r->state.nr_blocks || r->o.nr_blocks != r->state.nr_blocks) {
			log_err("VM '%s' has other guest RAM (block '%s') than it was restored with", r->o.name, b->name);
			return -EOPNOTSUPP;
		}
		r->blocks[i].first = r->state.blocks[j].off / PV_CHUNK_SIZE;
	}
	return 0;
}

static int open_paged(struct ram *r)
{
	int err = match_blocks(r);

	if (!err)
		err = run_dir_map_pages(&r->rd, r->state.nr_chunks, false, &r->pages);
	if (!err)
		err = open_memfds(r);
	if (!err && r->state.images)
		err = open_images(r);
	if (!err && r->state.swap_path) {
		err = pv_swap_find(r->state.swap_path, r->state.nr_chunks * PV_CHUNK_SIZE, r->state.swap_token, &r->swap);
		if (err)
			log_err("the swap image %s of VM '%s': %s", r->state.swap_path, r->o.name, pv_swap_reason(err));
	}
	if (err)
		return err;
	r->reader_opts = (struct pv_reader_opts){ .pages = r->pages, .blocks = r->pv_blocks, .nr_blocks = r->state.nr_blocks,
						  .swap_fd = r->swap.fd, .ctx = r, .source_read = r->images ? source_read : NULL, .shadow_fd = -1 };
	return pv_reader_new(&r->reader_opts, &r->reader);
}

static int open_ordinary(struct ram *r)
{
	int err = mm_pagemap_open(r->o.pid, &r->pagemap);

	for (size_t i = 0; !err && i < r->o.nr_blocks; i++)
		err = mm_source_open(r->o.pid, r->o.blocks[i].hva, r->o.blocks[i].len, &r->blocks[i].source);
	return err;
}

static int open_state(struct ram *r)
{
	int err = run_dir_open(r->o.run_root, r->o.name, &r->rd);

	if (!err)
		err = vm_state_load(&r->rd, &r->state);
	if (!err)
		r->paged = r->state.paging;
	return err;
}

int ram_open(const struct ram_opts *o, struct ram **out)
{
	struct ram *r = calloc(1, sizeof *r);
	int err = 0;

	if (!r)
		return -ENOMEM;
	*r = (struct ram){ .o = *o, .rd = RUN_DIR_NONE, .swap = PV_SWAP_NONE, .shadow_fd = -1,
			   .reading = PTHREAD_MUTEX_INITIALIZER };
	r->blocks = calloc(o->nr_blocks, sizeof *r->blocks);
	r->ranges = calloc(o->nr_blocks, sizeof *r->ranges);
	if (!r->blocks || !r->ranges)
		err = -ENOMEM;
	for (size_t i = 0; !err && i < o->nr_blocks; i++)
		r->ranges[i] = (struct mm_range){ o->blocks[i].hva, o->blocks[i].len };
	if (!err && o->name)
		err = open_state(r);
	if (!err)
		err = r->paged ? open_paged(r) : open_ordinary(r);
	if (err)
		ram_close(r);
	else
		*out = r;
	return err;
}

void ram_close(struct ram *r)
{
	if (!r)
		return;
	for (size_t i = 0; r->blocks && i < r->o.nr_blocks; i++) {
		mm_source_close(r->blocks[i].source);
		free(r->blocks[i].written);
		if (r->blocks[i].map)
			munmap(r->blocks[i].map, r->o.blocks[i].len);
	}
	free(r->blocks);
	free(r->ranges);
	mm_pagemap_close(r->pagemap);
	ram_snapshot_end(r);
	pv_reader_free(r->reader);
	img_unpacker_free(r->unpacker);
	free(r->scratch);
	img_dir_close(r->images);
	pv_swap_close(&r->swap);
	for (size_t i = 0; r->pv_blocks && i < r->state.nr_blocks; i++)
		if (r->pv_blocks[i].memfd >= 0)
			close(r->pv_blocks[i].memfd);
	free(r->pv_blocks);
	if (r->pages)
		munmap(r->pages, r->state.nr_chunks * sizeof *r->pages);
	vm_state_fini(&r->state);
	run_dir_close(&r->rd);
	free(r);
}

bool ram_is_paged(const struct ram *r)
{
	return r->paged;
}

const struct mm_range *ram_ranges(const struct ram *r)
{
	return r->ranges;
}

static uint64_t chunk_len(const struct ram *r, uint32_t block, uint64_t chunk)
{
	uint64_t left = r->o.blocks[block].len - chunk * PV_CHUNK_SIZE;

	return left < PV_CHUNK_SIZE ? left : PV_CHUNK_SIZE;
}

// A look may be older than the question: a page that came since was written since, too, and one that went reads as zeros.
static int look(struct ram *r, uint32_t block, uint64_t chunk)
{
	struct block *b = &r->blocks[block];
	uint64_t off = chunk * PV_CHUNK_SIZE, len = r->o.blocks[block].len - off;
	int err;

	if (len > WINDOW_CHUNKS * PV_CHUNK_SIZE)
		len = WINDOW_CHUNKS * PV_CHUNK_SIZE;
	memset(b->window, 0, sizeof b->window);
	err = mm_source_present(b->source, off, len, b->window);
	if (!err && b->source->kind == MM_SRC_PRIVATE_FILE)
		err = mm_pagemap_scan(r->pagemap, r->ranges[block].hva + off, len, MM_SCAN_COPIED, b->copied);
	b->window_begin = chunk;
	b->window_end = err ? chunk : chunk + DIV_ROUND_UP(len, PV_CHUNK_SIZE);
	return err;
}

static int look_if_need_be(struct ram *r, uint32_t block, uint64_t chunk)
{
	const struct block *b = &r->blocks[block];

	return chunk < b->window_begin || chunk >= b->window_end ? look(r, block, chunk) : 0;
}

int ram_present(struct ram *r, uint32_t block, uint64_t chunk, uint64_t map[4])
{
	struct block *b = &r->blocks[block];
	int err;

	if (r->paged) {
		pv_reader_present(r->reader, b->first + chunk, map);
		return 0;
	}
	err = look_if_need_be(r, block, chunk);
	if (!err)
		memcpy(map, b->window + (chunk - b->window_begin) * PV_WORDS, PV_WORDS * sizeof *map);
	return err;
}

int ram_read(struct ram *r, uint32_t block, uint64_t chunk, const uint64_t map[4], char *buf)
{
	struct mm_source *source = r->blocks[block].source;
	bool alone;
	int err;

	if (r->paged)
		return pv_reader_read(r->reader, r->blocks[block].first + chunk, map, buf);
	alone = source->kind == MM_SRC_PRIVATE_FILE;
	if (alone)
		pthread_mutex_lock(&r->reading);
	err = mm_source_read(source, chunk * PV_CHUNK_SIZE, map, chunk_len(r, block, chunk) / PAGE_SIZE, buf);
	if (alone)
		pthread_mutex_unlock(&r->reading);
	return err;
}

int ram_ask_pager(struct ram *r, json_t *request, json_t **out)
{
	uint64_t end = clock_now_ns() + ASK_TIMEOUT_MS * NSEC_PER_MSEC;
	json_t *answer = NULL;
	const char *error;
	char path[PATH_MAX];
	int err;

	run_dir_file(&r->rd, "control.sock", path, sizeof path);
	for (;;) {
		err = lp_control_request(path, json_incref(request), ASK_TIMEOUT_MS, &answer);
		if ((err != -ENOENT && err != -ECONNREFUSED && err != -ECONNRESET) || clock_now_ns() > end)
			break;
		usleep(ASK_RETRY_US);
	}
	json_decref(request);
	error = json_string_value(json_object_get(answer, "error"));
	if (err)
		log_err("the pager of VM '%s' does not answer: %s", r->o.name, strerror(-err));
	else if (error)
		log_err("the pager of VM '%s': %s", r->o.name, error);
	if (error)
		err = -EAGAIN;
	if (out && !err)
		*out = answer;
	else
		json_decref(answer);
	return err;
}

static int take_block(struct ram *r, uint32_t i)
{
	struct block *b = &r->blocks[i];
	uint64_t len = r->o.blocks[i].len, nr_chunks = DIV_ROUND_UP(len, PV_CHUNK_SIZE);

	b->window_begin = b->window_end = 0;
	free(b->written);
	b->written = calloc(nr_chunks * PV_WORDS, sizeof *b->written);
	if (!b->written)
		return -ENOMEM;
	if (!r->paged)
		return mm_track_take(r->pagemap, &r->ranges[i], b->written);
	for (uint64_t c = 0; c < nr_chunks; c++)
		pv_reader_take_dirty(r->reader, b->first + c, b->written + c * PV_WORDS);
	return 0;
}

int ram_take(struct ram *r, bool discards)
{
	int err = r->paged ? ram_ask_pager(r, json_pack("{s:s}", "execute", "harvest"), NULL) : 0;

	r->discards = discards;
	for (uint32_t i = 0; !err && i < r->o.nr_blocks; i++)
		err = take_block(r, i);
	return err;
}

const uint64_t *ram_written(const struct ram *r, uint32_t block, uint64_t chunk)
{
	return r->blocks[block].written + chunk * PV_WORDS;
}

// Pages of a private file mapping that QEMU made its own: the others are the file's, whatever they were before.
static int only_copied(struct ram *r, uint32_t block, uint64_t chunk, uint64_t map[PV_WORDS])
{
	uint64_t copied[PV_WORDS] = { 0 };
	int err = mm_pagemap_scan(r->pagemap, r->ranges[block].hva + chunk * PV_CHUNK_SIZE, chunk_len(r, block, chunk), MM_SCAN_COPIED, copied);

	for (unsigned w = 0; w < PV_WORDS; w++)
		map[w] &= copied[w];
	return err;
}

// Pages that were given back and touched again since: they count as not written, and are zero.
static int not_forgotten(struct ram *r, uint32_t block, uint64_t chunk, uint64_t map[PV_WORDS])
{
	uint64_t zero[PV_WORDS] = { 0 };
	int err = mm_source_zero(r->blocks[block].source, chunk * PV_CHUNK_SIZE, map, chunk_len(r, block, chunk) / PAGE_SIZE, zero);

	for (unsigned w = 0; w < PV_WORDS; w++)
		map[w] &= ~zero[w];
	return err;
}

int ram_unchanged(struct ram *r, uint32_t block, uint64_t chunk, const uint64_t present[4], uint64_t map[4])
{
	const struct block *b = &r->blocks[block];

	for (unsigned w = 0; w < PV_WORDS; w++)
		map[w] = present[w] & ~b->written[chunk * PV_WORDS + w];
	if (r->paged || bitmap_empty(map, PV_CHUNK_PAGES))
		return 0;
	if (b->source->kind == MM_SRC_PRIVATE_FILE)
		return only_copied(r, block, chunk, map);
	return r->discards && mm_source_hides_discards(b->source) ? not_forgotten(r, block, chunk, map) : 0;
}

bool ram_hides_discards(const struct ram *r, uint32_t block)
{
	return !r->paged && mm_source_hides_discards(r->blocks[block].source);
}

static char *map_of(struct ram *r, uint32_t block)
{
	struct block *b = &r->blocks[block];

	if (!b->source->tmpfs)
		return NULL;
	pthread_mutex_lock(&r->reading);
	if (!b->map) {
		void *map = mmap(NULL, r->o.blocks[block].len, PROT_READ, MAP_SHARED, b->source->fd, (off_t)b->source->file_off);

		b->map = map == MAP_FAILED ? NULL : map;
	}
	pthread_mutex_unlock(&r->reading);
	return b->map;
}

bool ram_expect_zero(struct ram *r, uint32_t block, uint64_t chunk, const uint64_t map[4])
{
	char *at = map_of(r, block);

	for (size_t i = 0, n; at && (n = bitmap_next_run(map, PV_CHUNK_PAGES, &i)); i += n)
		madvise(at + chunk * PV_CHUNK_SIZE + i * PAGE_SIZE, n * PAGE_SIZE, MADV_POPULATE_READ);
	return at;
}

int ram_zero(struct ram *r, uint32_t block, uint64_t chunk, const uint64_t candidates[4], uint64_t zero[4], char *buf)
{
	const char *at = map_of(r, block);
	int err = at ? 0 : ram_read(r, block, chunk, candidates, buf);

	at = at ? at + chunk * PV_CHUNK_SIZE : buf;
	memset(zero, 0, PV_WORDS * sizeof *zero);
	for (size_t i = 0, n; !err && (n = bitmap_next_run(candidates, PV_CHUNK_PAGES, &i)); i += n)
		for (size_t page = i; page < i + n; page++)
			if (mem_is_zero(at + page * PAGE_SIZE, PAGE_SIZE))
				bitmap_set(zero, page);
	return err;
}

bool ram_is_of_file(const struct ram *r, uint32_t block)
{
	return !r->paged && r->blocks[block].source->kind == MM_SRC_PRIVATE_FILE;
}

int ram_copied(struct ram *r, uint32_t block, uint64_t chunk, uint64_t map[4])
{
	const struct block *b = &r->blocks[block];
	int err = look_if_need_be(r, block, chunk);

	if (!err)
		memcpy(map, b->copied + (chunk - b->window_begin) * PV_WORDS, PV_WORDS * sizeof *map);
	return err;
}

static uint64_t ns_of(const struct timespec *t)
{
	return (uint64_t)t->tv_sec * NSEC_PER_SEC + (uint64_t)t->tv_nsec;
}

bool ram_file_stands(struct ram *r, uint32_t block)
{
	struct block *b = &r->blocks[block];
	struct stat was = b->file;
	bool was_settled = b->settled;
	struct timespec now;
	uint64_t last;

	clock_gettime(CLOCK_REALTIME, &now);
	b->settled = !fstat(b->source->fd, &b->file);
	last = ns_of(&b->file.st_mtim) > ns_of(&b->file.st_ctim) ? ns_of(&b->file.st_mtim) : ns_of(&b->file.st_ctim);
	b->settled &= last + FILE_TICK_NS < ns_of(&now);
	return was_settled && b->settled && b->file.st_size == was.st_size && ns_of(&b->file.st_mtim) == ns_of(&was.st_mtim) &&
	       ns_of(&b->file.st_ctim) == ns_of(&was.st_ctim);
}

bool ram_has_pager(const struct ram *r)
{
	return r->paged && run_dir_is_locked(&r->rd);
}

void ram_resident(const struct ram *r, uint32_t block, uint64_t chunk, uint64_t map[4])
{
	const struct pv_pages *p = &r->pages[r->blocks[block].first + chunk];

	for (unsigned w = 0; w < PV_WORDS; w++)
		map[w] = __atomic_load_n(&p->valid[w], __ATOMIC_RELAXED);
}

int ram_ages(struct ram *r, uint8_t *ages)
{
	_cleanup_free_ char *list = NULL;
	char path[PATH_MAX];
	size_t len = 0;
	int err = ram_ask_pager(r, json_pack("{s:s}", "execute", "ages"), NULL);

	if (!err)
		err = io_read_file(run_dir_file(&r->rd, "ages", path, sizeof path), r->state.nr_chunks, &list, &len);
	if (!err && len != r->state.nr_chunks)
		err = -EBADMSG;
	if (err) {
		log_err("the ages of the chunks of VM '%s' cannot be had: %s", r->o.name, strerror(-err));
		return err;
	}
	for (size_t i = 0; i < r->o.nr_blocks; i++) {
		uint64_t nr = DIV_ROUND_UP(r->o.blocks[i].len, PV_CHUNK_SIZE);

		memcpy(ages, list + r->blocks[i].first, nr);
		ages += nr;
	}
	return 0;
}
