// SPDX-License-Identifier: GPL-2.0-only
#include "lazy-pages/image_source.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "util/list.h"

#define NR_BUFFERS 8

struct buffer {
	struct loop_op op;
	struct loop_timer refusal;
	struct list link; // of the free ones
	struct lp_image_source *source;
	struct pv_source_read *rd;
	struct img_part *parts; // of the chunk, read one after the other
	unsigned nr_parts, part;
	unsigned first, nr; // what is read of a raw part, in pages: of those that are present, the first is 0
	bool whole;         // all that is stored of it, to be checked
	char *data;         // IMG_STORED_MAX
};

struct lp_image_source {
	struct loop *loop;
	const struct img_dir *dir;
	struct pv_engine *engine;
	struct img_unpacker *unpacker;
	uint64_t nr_chunks;
	uint64_t *checked;         // a bit a chunk, of each directory of the chain
	struct list free, waiting; // buffers; reads without one
	struct buffer buffers[NR_BUFFERS];
};

static void read_done(struct loop_op *op, int res);
static void refuse(struct loop_op *op, int res);

static int init_buffers(struct lp_image_source *s)
{
	for (unsigned i = 0; i < NR_BUFFERS; i++) {
		struct buffer *b = &s->buffers[i];

		b->op.done = read_done;
		b->refusal.op.done = refuse;
		b->source = s;
		b->parts = calloc(img_dir_layers(s->dir), sizeof *b->parts);
		b->data = aligned_alloc(PAGE_SIZE, IMG_STORED_MAX);
		if (!b->parts || !b->data)
			return -ENOMEM;
		list_append(&s->free, &b->link);
	}
	return 0;
}

int lp_image_source_new(struct loop *l, const struct img_dir *dir, struct lp_image_source **out)
{
	struct lp_image_source *s = calloc(1, sizeof *s);

	if (!s)
		return -ENOMEM;
	s->loop = l;
	s->dir = dir;
	list_init(&s->free);
	list_init(&s->waiting);
	for (uint32_t i = 0; i < img_dir_nr_blocks(dir); i++)
		s->nr_chunks += img_dir_block_chunks(dir, i);
	s->checked = calloc(BITMAP_WORDS(s->nr_chunks * img_dir_layers(dir)), sizeof *s->checked);
	if (!s->checked || init_buffers(s) || img_unpacker_new(&s->unpacker)) {
		lp_image_source_free(s);
		return -ENOMEM;
	}
	*out = s;
	return 0;
}

void lp_image_source_free(struct lp_image_source *s)
{
	if (!s)
		return;
	for (unsigned i = 0; i < NR_BUFFERS; i++) {
		free(s->buffers[i].parts);
		free(s->buffers[i].data);
	}
	img_unpacker_free(s->unpacker);
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

static size_t checked_bit(const struct buffer *b)
{
	return b->parts[b->part].layer * b->source->nr_chunks + b->rd->chunk;
}

// How many of the part's present pages come before this one.
static unsigned rank_of(const struct img_part *p, size_t page)
{
	return (unsigned)bitmap_count(p->entry->present, page);
}

// Pieces are enough of what is stored page by page and was checked before.
static void read_part(struct buffer *b)
{
	const struct img_part *p = &b->parts[b->part];
	uint64_t len = p->entry->stored, off = p->entry->off;
	size_t last = 0;

	b->whole = !img_part_is_raw(p) || !bitmap_test(b->source->checked, checked_bit(b));
	if (!b->whole) {
		for (size_t i = 0, n; (n = bitmap_next_run(p->pages, PV_CHUNK_PAGES, &i)); i += n)
			last = i + n;
		b->first = rank_of(p, bitmap_next(p->pages, PV_CHUNK_PAGES, 0, true));
		b->nr = rank_of(p, last) - b->first;
		len = b->nr * PAGE_SIZE;
		off += b->first * PAGE_SIZE;
	}
	b->op.awaited = !b->rd->unasked;
	loop_read(b->source->loop, &b->op, img_part_fd(p), b->data, len, off);
}

static void finish(struct buffer *b, int err, const char *what)
{
	struct lp_image_source *s = b->source;

	list_append(&s->free, &b->link);
	pv_source_done(s->engine, b->rd, err, what);
	if (!list_empty(&s->waiting) && !list_empty(&s->free)) {
		struct pv_source_read *rd = list_first(&s->waiting, struct pv_source_read, link);

		list_remove(&rd->link);
		lp_image_source_read(s, rd);
	}
}

// The answer must not come from within the question.
static void refuse(struct loop_op *op, int res)
{
	(void)res;
	finish(list_entry(op, struct buffer, refusal.op), -EBADMSG, "the images do not have the page");
}

static bool have_all(const struct buffer *b)
{
	uint64_t found[PV_WORDS] = {0};

	for (unsigned i = 0; i < b->nr_parts; i++)
		for (unsigned w = 0; w < PV_WORDS; w++)
			found[w] |= b->parts[i].pages[w];
	return b->nr_parts && !memcmp(found, b->rd->pages, sizeof found);
}

void lp_image_source_read(struct lp_image_source *s, struct pv_source_read *rd)
{
	struct buffer *b;
	uint64_t in_block;
	uint32_t block;

	if (list_empty(&s->free)) {
		list_append(&s->waiting, &rd->link);
		return;
	}
	b = list_first(&s->free, struct buffer, link);
	list_remove(&b->link);
	b->rd = rd;
	b->part = 0;
	lp_image_chunk(s->dir, rd->chunk, &block, &in_block);
	b->nr_parts = img_dir_parts(s->dir, block, in_block, rd->pages, b->parts);
	if (have_all(b))
		read_part(b);
	else
		loop_timer(s->loop, &b->refusal, 0);
}

static void copy_pieces(const struct buffer *b)
{
	const struct img_part *p = &b->parts[b->part];

	for (size_t i = 0, n; (n = bitmap_next_run(p->pages, PV_CHUNK_PAGES, &i)); i += n)
		memcpy(b->rd->dest + i * PAGE_SIZE, b->data + (rank_of(p, i) - b->first) * PAGE_SIZE, n * PAGE_SIZE);
}

static void read_done(struct loop_op *op, int res)
{
	struct buffer *b = list_entry(op, struct buffer, op);
	const struct img_part *p = &b->parts[b->part];
	uint64_t len = b->whole ? p->entry->stored : b->nr * PAGE_SIZE;
	int err = 0;

	if (res < 0 || (uint64_t)res < len) {
		finish(b, res < 0 ? res : -EIO, "the images cannot be read");
		return;
	}
	if (b->whole)
		err = img_part_unpack(b->source->unpacker, p, b->data, b->rd->dest);
	else
		copy_pieces(b);
	if (!err)
		bitmap_set(b->source->checked, checked_bit(b));
	if (!err && ++b->part < b->nr_parts)
		read_part(b);
	else
		finish(b, err, "the images are damaged");
}
