// SPDX-License-Identifier: GPL-2.0-only
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "images/pagemap_int.h"
#include "images/writer_int.h"
#include "util/bitmap.h"
#include "util/zero.h"

static int add_block(struct img_writer *w, uint64_t len)
{
	struct img_written_block *b = &w->blocks[w->nr_blocks++];

	b->len = len;
	b->nr_chunks = DIV_ROUND_UP(len, IMG_CHUNK_SIZE);
	b->chunks = calloc(b->nr_chunks, sizeof *b->chunks);
	b->given = calloc(BITMAP_WORDS(b->nr_chunks), sizeof *b->given);
	w->pages.ahead += len;
	return b->chunks && b->given ? 0 : img_io_error(w->dir.path, "write", -ENOMEM);
}

int img_writer_blocks(struct img_writer *w, const uint64_t *lens, uint32_t nr)
{
	int ret = 0;

	if (w->blocks || !nr || nr > IMG_BLOCKS_MAX || (w->parent && nr != w->parent->nr_blocks))
		return img_writer_keep(w, img_writer_misuse(w, "the blocks come once, and are those of the parent"));
	for (uint32_t i = 0; i < nr; i++)
		if (!lens[i] || lens[i] % PAGE_SIZE || lens[i] > IMG_BLOCK_LEN_MAX || (w->parent && lens[i] != w->parent->blocks[i].len))
			return img_writer_keep(w, img_writer_misuse(w, "a block's length is no multiple of the page, out of range, or not that of the parent"));
	w->blocks = calloc(nr, sizeof *w->blocks);
	if (!w->blocks)
		return img_writer_keep(w, img_io_error(w->dir.path, "write", -ENOMEM));
	for (uint32_t i = 0; !ret && i < nr; i++)
		ret = add_block(w, lens[i]);
	return img_writer_keep(w, ret);
}

// Copies the pages that are not zero one behind the other, and notes which they are.
static size_t pack(const void *buf, const uint64_t look[IMG_CHUNK_WORDS], uint64_t present[IMG_CHUNK_WORDS], uint8_t *to)
{
	size_t packed = 0;

	for (size_t i = 0; (i = bitmap_next(look, IMG_CHUNK_PAGES, i, true)) < IMG_CHUNK_PAGES; i++) {
		const uint8_t *page = (const uint8_t *)buf + i * PAGE_SIZE;

		if (mem_is_zero(page, PAGE_SIZE))
			continue;
		memcpy(to + packed, page, PAGE_SIZE);
		packed += PAGE_SIZE;
		bitmap_set(present, i);
	}
	return packed;
}

static int store(struct img_writer *w, uint32_t block, uint64_t chunk, const void *buf, const uint64_t look[IMG_CHUNK_WORDS])
{
	struct img_chunk *c = &w->blocks[block].chunks[chunk];
	uint8_t *room;
	struct img_place at = { block, chunk };
	size_t packed;
	int ret = w->compressor ? img_compressor_room(w->compressor, &room) : img_pages_room(&w->pages, &room);

	if (ret)
		return ret;
	packed = pack(buf, look, c->present, room);
	w->pages_written += packed / PAGE_SIZE;
	if (packed && w->compressor)
		img_compressor_add(w->compressor, at, c, packed);
	else if (packed)
		ret = img_pages_add(&w->pages, at, c, packed, XXH3_64bits(room, packed));
	return ret;
}

// Takes note of a chunk that comes. Its entry; NULL: w->err.
static struct img_chunk *begin_chunk(struct img_writer *w, uint32_t block, uint64_t chunk, uint64_t valid[IMG_CHUNK_WORDS])
{
	struct img_written_block *b = block < w->nr_blocks ? &w->blocks[block] : NULL;
	uint64_t left;

	if (w->err)
		return NULL;
	if (!b || w->ended || chunk >= b->nr_chunks || bitmap_test(b->given, chunk)) {
		img_writer_keep(w, img_writer_misuse(w, "a chunk comes once, and is inside a block"));
		return NULL;
	}
	if (w->stream && !w->vm) {
		img_writer_keep(w, img_writer_misuse(w, "begins with the VM"));
		return NULL;
	}
	bitmap_set(b->given, chunk);
	left = b->len - chunk * IMG_CHUNK_SIZE;
	left = left < IMG_CHUNK_SIZE ? left : IMG_CHUNK_SIZE;
	memset(valid, 0, IMG_CHUNK_WORDS * sizeof *valid);
	bitmap_set_range(valid, 0, left / PAGE_SIZE);
	w->pages.ahead -= left;
	return &b->chunks[chunk];
}

int img_writer_chunk(struct img_writer *w, uint32_t block, uint64_t chunk, const void *buf, const uint64_t maybe[4],
		     const uint64_t parent[4])
{
	uint64_t look[IMG_CHUNK_WORDS], valid[IMG_CHUNK_WORDS];
	struct img_chunk *c = begin_chunk(w, block, chunk, valid);

	if (!c)
		return w->err;
	for (unsigned i = 0; i < IMG_CHUNK_WORDS; i++) {
		c->parent[i] = parent ? parent[i] & valid[i] : 0;
		look[i] = maybe[i] & valid[i] & ~c->parent[i];
	}
	w->pages_parent += bitmap_count(c->parent, IMG_CHUNK_PAGES);
	w->pages_scanned += bitmap_count(look, IMG_CHUNK_PAGES);
	if (!w->parent && !bitmap_empty(c->parent, IMG_CHUNK_PAGES))
		return img_writer_keep(w, img_writer_misuse(w, "there is no parent that a page could be as in"));
	return bitmap_empty(look, IMG_CHUNK_PAGES) ? 0 : img_writer_keep(w, store(w, block, chunk, buf, look));
}

static int copy_stored(struct img_writer *w, const struct img_part *p, struct img_chunk *c, const void *stored)
{
	struct img_place at = { p->block, p->chunk };
	uint8_t *room;
	int ret;

	c->stored = p->entry->stored;
	c->checksum = p->entry->checksum;
	ret = img_pages_clone(&w->pages, c, img_part_fd(p), p->entry->off);
	if (ret != -EOPNOTSUPP)
		return ret;
	ret = img_pages_room(&w->pages, &room);
	if (ret)
		return ret;
	memcpy(room, stored, p->entry->stored);
	return img_pages_add(&w->pages, at, c, p->entry->stored, p->entry->checksum);
}

int img_writer_stored(struct img_writer *w, const struct img_part *p, const void *stored)
{
	uint64_t valid[IMG_CHUNK_WORDS];
	struct img_chunk *c = begin_chunk(w, p->block, p->chunk, valid);
	int ret;

	if (!c)
		return w->err;
	for (unsigned i = 0; i < IMG_CHUNK_WORDS; i++)
		if (p->entry->present[i] & ~valid[i])
			return img_writer_keep(w, img_writer_misuse(w, "a chunk is longer than its block"));
	if (w->stream && !(w->features & IMG_FEATURE_ZSTD) && !img_part_is_raw(p))
		return img_writer_keep(w, img_writer_misuse(w, "cannot have compressed chunks: it has begun without"));
	memcpy(c->present, p->entry->present, sizeof c->present);
	w->pages_written += bitmap_count(c->present, IMG_CHUNK_PAGES);
	if (!img_part_is_raw(p))
		w->features |= IMG_FEATURE_ZSTD;
	if (w->compressor)
		img_compressor_lock(w->compressor);
	ret = copy_stored(w, p, c, stored);
	if (w->compressor)
		img_compressor_unlock(w->compressor);
	return img_writer_keep(w, ret);
}

static int write_pagemap(struct img_writer *w, uint32_t block)
{
	const struct img_written_block *b = &w->blocks[block];
	struct img_out o;
	char name[24];
	int ret;

	snprintf(name, sizeof name, IMG_NAME_PAGEMAP, block + 1);
	ret = img_out_open(&o, w->dir.fd, w->dir.path, name, IMG_MAGIC_PAGEMAP);
	if (!ret)
		ret = img_pagemap_put_head(&o);
	for (uint64_t i = 0; !ret && i < b->nr_chunks; i++)
		ret = img_pagemap_put(&o, i, &b->chunks[i]);
	if (!ret)
		ret = img_writer_finish_file(w, &o, name);
	img_out_fini(&o);
	return ret;
}

int img_writer_end_pages(struct img_writer *w)
{
	int ret = w->err;

	if (ret)
		return ret;
	if (!w->blocks || w->ended)
		return img_writer_keep(w, img_writer_misuse(w, "pages end once, after the blocks were given"));
	w->ended = true;
	img_compressor_free(w->compressor);
	w->compressor = NULL;
	ret = img_pages_close(&w->pages);
	if (!ret && !w->stream)
		img_writer_list(w, IMG_NAME_PAGES, w->pages.len, NULL);
	for (uint32_t i = 0; !ret && !w->stream && i < w->nr_blocks; i++)
		ret = write_pagemap(w, i);
	return img_writer_keep(w, ret);
}

uint64_t img_writer_pages(const struct img_writer *w)
{
	return w->pages_written;
}

uint64_t img_writer_bytes(const struct img_writer *w)
{
	return w->pages.len;
}
