// SPDX-License-Identifier: GPL-2.0-only
#include "criu-vm/merge.h"

#include <errno.h>
#include <pthread.h>
#include <string.h>

#include "criu-vm/chunk_threads.h"
#include "criu-vm/owner.h"
#include "images/format.h"
#include "images/resident.h"
#include "images/writer.h"
#include "util/bitmap.h"
#include "util/log.h"

#define ZSTD_LEVEL 3

struct merge {
	struct img_dir *from;
	pthread_mutex_t lock; // the writer takes one thread at a time
	struct img_writer *to;
};

// One directory's extent, all pages of it, and no page from elsewhere.
static bool is_whole(const struct img_part *parts, unsigned nr)
{
	return nr == 1 && !memcmp(parts->pages, parts->entry->present, sizeof parts->pages);
}

static int64_t merge_chunk(void *ctx, uint64_t item, const struct chunk_buffers *b)
{
	struct merge *m = ctx;
	uint64_t all[IMG_CHUNK_WORDS], present[IMG_CHUNK_WORDS] = { 0 }, chunk;
	struct img_part parts[IMG_CHAIN_MAX];
	int64_t bytes = 0;
	uint32_t block;
	unsigned nr;
	int err = 0;

	chunk_of_all(m->from, item, &block, &chunk);
	memset(all, 0xff, sizeof all);
	nr = img_dir_parts(m->from, block, chunk, all, parts);
	for (unsigned i = 0; !err && i < nr; i++) {
		err = img_part_read(b->unpacker, &parts[i], b->stored, b->pages);
		for (unsigned w = 0; w < IMG_CHUNK_WORDS; w++)
			present[w] |= parts[i].pages[w];
		bytes += parts[i].entry->stored;
	}
	if (err || !nr)
		return err;
	pthread_mutex_lock(&m->lock);
	err = is_whole(parts, nr) ? img_writer_stored(m->to, &parts[0], b->stored)
				  : img_writer_chunk(m->to, block, chunk, b->pages, present, NULL);
	pthread_mutex_unlock(&m->lock);
	return err ? err : bytes;
}

// What is read of all directories, at most.
static uint64_t bytes_of(const struct img_dir *newest)
{
	uint64_t bytes = 0;

	for (const struct img_dir *d = newest; d; d = img_dir_parent(d))
		for (uint32_t b = 0; b < img_dir_nr_blocks(d); b++)
			for (uint64_t c = 0; c < img_dir_block_chunks(d, b); c++)
				bytes += img_dir_chunk(d, b, c)->stored;
	return bytes;
}

static bool has_compressed(const struct img_dir *d)
{
	for (uint32_t b = 0; b < img_dir_nr_blocks(d); b++)
		for (uint64_t c = 0; c < img_dir_block_chunks(d, b); c++) {
			struct img_part p = { .dir = d, .block = b, .chunk = c, .entry = img_dir_chunk(d, b, c) };

			if (p.entry->stored && !img_part_is_raw(&p))
				return true;
		}
	return false;
}

static int merge_pages(struct merge *m)
{
	struct chunk_work work = { .what = "merging memory", .nr = nr_chunks_of_all(m->from), .bytes = bytes_of(m->from),
				   .one = merge_chunk, .ctx = m };
	uint64_t lens[IMG_BLOCKS_MAX];
	uint32_t nr = img_dir_nr_blocks(m->from);
	int err;

	for (uint32_t i = 0; i < nr; i++)
		lens[i] = img_dir_block_len(m->from, i);
	err = img_writer_blocks(m->to, lens, nr);
	if (!err)
		err = chunk_threads_run(&work);
	if (err == -EINTR)
		log_err("interrupted; nothing was merged");
	return err ? err : img_writer_end_pages(m->to);
}

// What was in memory at the end of the chain; what it was before does not matter.
static int merge_resident(struct merge *m)
{
	struct img_resident resident;
	int err = img_dir_resident(m->from, &resident);

	if (!err)
		err = img_writer_resident(m->to, &resident);
	img_resident_fini(&resident);
	return err;
}

static int merge_all(struct merge *m, const char *to, struct merge_result *r)
{
	bool ram_only = img_dir_ram_only(m->from);
	struct img_writer_opts o = { .dir = to, .zstd_level = has_compressed(m->from) ? ZSTD_LEVEL : 0, .ram_only = ram_only };
	int err = img_writer_open(&o, &m->to);

	if (!err)
		err = merge_pages(m);
	if (!err && !ram_only)
		err = merge_resident(m);
	if (!err)
		err = img_writer_vm(m->to, img_dir_vm(m->from));
	if (!err && !ram_only)
		err = img_writer_device_state(m->to, img_dir_device_state(m->from));
	if (!err)
		err = img_writer_stats(m->to, &(struct img_times){ 0 });
	if (!err) {
		*r = (struct merge_result){ img_dir_layers(m->from), img_writer_pages(m->to), img_writer_bytes(m->to) };
		err = img_writer_commit(m->to, NULL);
	}
	img_writer_free(m->to);
	return err;
}

int merge_run(const char *from, const char *to, struct merge_result *r)
{
	struct merge m = { .lock = PTHREAD_MUTEX_INITIALIZER };
	int err = img_dir_open(from, &m.from);

	if (!err)
		err = owner_check_chain(m.from); // what is made of it belongs to whom it is trusted
	if (!err)
		err = merge_all(&m, to, r);
	img_dir_close(m.from);
	return err;
}
