// SPDX-License-Identifier: GPL-2.0-only
#include "lazy-pages/image_source.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "util/list.h"

#define NR_BUFFERS 8

struct buffer {
	struct loop_op op;
	struct list link; // of the free ones
	struct lp_image_source *source;
	struct pv_source_read *rd;
	const struct img_chunk *chunk;
	unsigned first, nr; // what is read, in pages: of those that are present, the first is 0
	char *data; // PV_CHUNK_SIZE
};

struct lp_image_source {
	struct loop *loop;
	const struct img_dir *dir;
	struct pv_engine *engine;
	uint64_t *checked;         // a bit a chunk
	struct list free, waiting; // buffers; reads without one
	struct buffer buffers[NR_BUFFERS];
};

static void read_done(struct loop_op *op, int res);

int lp_image_source_new(struct loop *l, const struct img_dir *dir, struct lp_image_source **out)
{
	struct lp_image_source *s = calloc(1, sizeof *s);
	uint64_t nr_chunks = 0;

	if (!s)
		return -ENOMEM;
	for (uint32_t i = 0; i < img_dir_nr_blocks(dir); i++)
		nr_chunks += img_dir_block_chunks(dir, i);
	s->checked = calloc(BITMAP_WORDS(nr_chunks), sizeof *s->checked);
	if (!s->checked) {
		free(s);
		return -ENOMEM;
	}
	s->loop = l;
	s->dir = dir;
	list_init(&s->free);
	list_init(&s->waiting);
	for (unsigned i = 0; i < NR_BUFFERS; i++) {
		struct buffer *b = &s->buffers[i];

		b->op.done = read_done;
		b->source = s;
		b->data = aligned_alloc(PAGE_SIZE, PV_CHUNK_SIZE);
		if (!b->data) {
			lp_image_source_free(s);
			return -ENOMEM;
		}
		list_append(&s->free, &b->link);
	}
	*out = s;
	return 0;
}

void lp_image_source_free(struct lp_image_source *s)
{
	if (!s)
		return;
	for (unsigned i = 0; i < NR_BUFFERS; i++)
		free(s->buffers[i].data);
	free(s->checked);
	free(s);
}

void lp_image_source_set_engine(struct lp_image_source *s, struct pv_engine *e)
{
	s->engine = e;
}

void lp_image_chunk(const struct img_dir *dir, uint64_t chunk, uint32_t *block, uint64_t *in_block)
{
	*block = 0;
	for (uint64_t nr; chunk >= (nr = img_dir_block_chunks(dir, *block)); ++*block)
		chunk -= nr;
	*in_block = chunk;
}

// How many of the chunk's present pages come before this one.
static unsigned rank_of(const struct img_chunk *c, size_t page)
{
	return (unsigned)bitmap_count(c->present, page);
}

static void start(struct lp_image_source *s, struct pv_source_read *rd)
{
	struct buffer *b = list_first(&s->free, struct buffer, link);
	uint64_t in_block;
	uint32_t block;

	list_remove(&b->link);
	b->rd = rd;
	lp_image_chunk(s->dir, rd->chunk, &block, &in_block);
	b->chunk = img_dir_chunk(s->dir, block, in_block);
	b->first = 0;
	b->nr = rank_of(b->chunk, PV_CHUNK_PAGES);
	if (bitmap_test(s->checked, rd->chunk)) {
		size_t last = 0;

		for (size_t i = 0, n; (n = bitmap_next_run(rd->pages, PV_CHUNK_PAGES, &i)); i += n)
			last = i + n;
		b->first = rank_of(b->chunk, bitmap_next(rd->pages, PV_CHUNK_PAGES, 0, true));
		b->nr = rank_of(b->chunk, last) - b->first;
	}
	loop_read(s->loop, &b->op, img_dir_pages_fd(s->dir, block), b->data, b->nr * PAGE_SIZE, b->chunk->off + b->first * PAGE_SIZE);
}

void lp_image_source_read(struct lp_image_source *s, struct pv_source_read *rd)
{
	if (list_empty(&s->free))
		list_append(&s->waiting, &rd->link);
	else
		start(s, rd);
}

// Copies the pages that are asked for; all of these are in the image.
static int hand_over(const struct buffer *b)
{
	for (unsigned i = 0; i < PV_CHUNK_PAGES; i++) {
		unsigned rank = rank_of(b->chunk, i);

		if (!bitmap_test(b->rd->pages, i))
			continue;
		if (!bitmap_test(b->chunk->present, i) || rank < b->first || rank >= b->first + b->nr)
			return -EBADMSG;
		memcpy(b->rd->dest + i * PAGE_SIZE, b->data + (rank - b->first) * PAGE_SIZE, PAGE_SIZE);
	}
	return 0;
}

static void read_done(struct loop_op *op, int res)
{
	struct buffer *b = list_entry(op, struct buffer, op);
	struct lp_image_source *s = b->source;
	struct pv_source_read *rd = b->rd;
	const char *what = "the images cannot be read";
	int err = res < 0 ? res : (size_t)res < b->nr * PAGE_SIZE ? -EIO : 0;

	if (!err && !bitmap_test(s->checked, rd->chunk)) {
		what = "the images are damaged";
		if (img_chunk_check(b->chunk, b->data))
			bitmap_set(s->checked, rd->chunk);
		else
			err = -EBADMSG;
	}
	if (!err)
		err = hand_over(b);
	list_append(&s->free, &b->link);
	pv_source_done(s->engine, rd, err, what);
	if (!list_empty(&s->waiting) && !list_empty(&s->free)) {
		rd = list_first(&s->waiting, struct pv_source_read, link);
		list_remove(&rd->link);
		start(s, rd);
	}
}
