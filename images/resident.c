// SPDX-License-Identifier: GPL-2.0-only
#include "images/resident.h"

#include <endian.h>
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <zstd.h>

#include "images/resident_int.h"
#include "images/writer_int.h"
#include "util/bitmap.h"
#include "util/cleanup.h"

#define RAW_MAX (IMG_RESIDENT_GROUP * IMG_RESIDENT_LEN)
#define PACKED_MAX ZSTD_COMPRESSBOUND(RAW_MAX)
#define LEVEL 3

const char *img_resident_unpack(const ResidentEntry *e, uint8_t *raw, unsigned *nr)
{
	size_t frame = ZSTD_findFrameCompressedSize(e->packed.data, e->packed.len);
	unsigned long long len;

	if (ZSTD_isError(frame) || frame != e->packed.len)
		return "what it has packed is no zstd frame";
	len = ZSTD_getFrameContentSize(e->packed.data, e->packed.len);
	if (!len || len > RAW_MAX || len % IMG_RESIDENT_LEN)
		return "its zstd frame is not of whole chunks, or of too many";
	*nr = (unsigned)(len / IMG_RESIDENT_LEN);
	return ZSTD_decompress(raw, RAW_MAX, e->packed.data, e->packed.len) == len ? NULL : "its zstd frame cannot be decompressed";
}

// ---- reading

// Chunk i of nr in a group.
static void get_chunk(const uint8_t *raw, unsigned nr, unsigned i, struct img_resident_chunk *c)
{
	c->age = raw[i];
	memcpy(c->pages, raw + nr + i * sizeof c->pages, sizeof c->pages);
	for (unsigned w = 0; w < IMG_CHUNK_WORDS; w++)
		c->pages[w] = le64toh(c->pages[w]);
}

static uint64_t pages_of_chunk(uint64_t block_len, uint64_t chunk)
{
	uint64_t left = block_len / PAGE_SIZE - chunk * IMG_CHUNK_PAGES;

	return left < IMG_CHUNK_PAGES ? left : IMG_CHUNK_PAGES;
}

static bool has_beyond(const uint64_t pages[4], uint64_t end)
{
	return bitmap_next(pages, IMG_CHUNK_PAGES, end, true) < IMG_CHUNK_PAGES;
}

static int add_chunk(struct img_resident *r, size_t *room, const struct img_resident_chunk *c)
{
	if (r->nr == *room) {
		size_t more = *room ? 2 * *room : IMG_RESIDENT_GROUP;
		struct img_resident_chunk *grown = reallocarray(r->chunks, more, sizeof *grown);

		if (!grown)
			return -ENOMEM;
		r->chunks = grown;
		*room = more;
	}
	r->chunks[r->nr++] = *c;
	return 0;
}

// Where a group may begin, at the earliest.
struct position {
	uint64_t block, chunk;
};

static const char *group_fault(const struct img_dir *d, const ResidentEntry *e, const struct position *at)
{
	if (e->block >= d->nr_blocks || e->chunk >= d->blocks[e->block].nr_chunks || e->chunk % IMG_RESIDENT_GROUP)
		return "there is no such group of chunks";
	if (e->block < at->block || (e->block == at->block && e->chunk < at->chunk))
		return "its entries are not in order";
	return NULL;
}

// r: NULL: it is only checked.
static int read_group(const struct img_dir *d, const struct img_in *in, const ResidentEntry *e, uint8_t *raw, struct img_resident *r,
		      size_t *room)
{
	const struct img_block *b = &d->blocks[e->block];
	uint64_t want = b->nr_chunks - e->chunk < IMG_RESIDENT_GROUP ? b->nr_chunks - e->chunk : IMG_RESIDENT_GROUP;
	unsigned nr, nr_resident = 0;
	const char *fault = img_resident_unpack(e, raw, &nr);
	int ret = 0;

	if (!fault && nr != want)
		fault = "it has another number of chunks than its group";
	for (unsigned i = 0; !fault && !ret && i < want; i++) {
		struct img_resident_chunk c = { .chunk = e->chunk + i, .block = e->block };

		get_chunk(raw, nr, i, &c);
		if (!c.age != bitmap_empty(c.pages, IMG_CHUNK_PAGES))
			fault = "a chunk with an age has no page in memory, or the reverse";
		else if (has_beyond(c.pages, pages_of_chunk(b->len, c.chunk)))
			fault = "a page behind the end of its block is in memory";
		nr_resident += c.age != 0;
		if (!fault && c.age && r)
			ret = add_chunk(r, room, &c);
	}
	if (!fault && !nr_resident)
		fault = "it has an entry of which nothing is in memory";
	if (fault)
		return img_damaged(in->path, "chunk %" PRIu64 " of block %u: %s", e->chunk, e->block + 1, fault);
	return ret ? img_io_error(in->path, "read", ret) : 0;
}

static int read_entries(const struct img_dir *d, struct img_in *in, struct img_resident *r)
{
	_cleanup_free_ uint8_t *raw = malloc(RAW_MAX);
	struct position at = { 0, 0 };
	ProtobufCMessage *m = NULL;
	size_t room = 0;
	int ret;

	if (!raw)
		return img_io_error(in->path, "read", -ENOMEM);
	while ((ret = img_in_get(in, &resident_entry__descriptor, IMG_RESIDENT_ENTRY_MAX, &m)) == 1) {
		const ResidentEntry *e = (const ResidentEntry *)m;
		const char *fault = group_fault(d, e, &at);

		if (fault)
			ret = img_damaged(in->path, "chunk %" PRIu64 " of block %u: %s", e->chunk, e->block + 1, fault);
		else
			ret = read_group(d, in, e, raw, r, &room);
		at = (struct position){ e->block, e->chunk + IMG_RESIDENT_GROUP };
		protobuf_c_message_free_unpacked(m, NULL);
		if (ret)
			return ret;
	}
	return !ret && !at.chunk ? img_damaged(in->path, "there is nothing behind its magic") : ret;
}

static int read_file(const struct img_dir *d, struct img_resident *r)
{
	const VmFileEntry *f;
	struct img_in in;
	int ret = img_dir_open_listed(d, IMG_NAME_RESIDENT, IMG_MAGIC_RESIDENT, &in, &f);

	if (!ret)
		ret = read_entries(d, &in, r);
	if (!ret)
		ret = img_dir_check_sum(&in, f);
	img_in_fini(&in);
	return ret;
}

int img_resident_check(const struct img_dir *d)
{
	return read_file(d, NULL);
}

int img_dir_resident(const struct img_dir *d, struct img_resident *r)
{
	int ret;

	*r = (struct img_resident){ 0 };
	if (!(d->inv->vm_features & IMG_FEATURE_RESIDENT))
		return 0;
	ret = read_file(d, r);
	if (ret)
		img_resident_fini(r);
	return ret;
}

void img_resident_fini(struct img_resident *r)
{
	free(r->chunks);
	*r = (struct img_resident){ 0 };
}

// ---- writing

static void put_chunk(uint8_t *raw, unsigned nr, unsigned i, const struct img_resident_chunk *c)
{
	raw[i] = c->age;
	for (unsigned w = 0; w < IMG_CHUNK_WORDS; w++) {
		uint64_t le = htole64(c->pages[w]);

		memcpy(raw + nr + i * sizeof c->pages + w * sizeof le, &le, sizeof le);
	}
}

// The chunks from *i on that are in one group.
static int put_group(struct img_writer *w, struct img_out *o, const struct img_resident *r, size_t *i, uint8_t *raw, uint8_t *packed)
{
	const struct img_resident_chunk *first = &r->chunks[*i];
	uint64_t begin = first->chunk / IMG_RESIDENT_GROUP * IMG_RESIDENT_GROUP, left = w->blocks[first->block].nr_chunks - begin;
	unsigned nr = left < IMG_RESIDENT_GROUP ? (unsigned)left : IMG_RESIDENT_GROUP;
	ResidentEntry e = RESIDENT_ENTRY__INIT;
	size_t len;

	memset(raw, 0, nr * IMG_RESIDENT_LEN);
	for (; *i < r->nr && r->chunks[*i].block == first->block && r->chunks[*i].chunk < begin + nr; ++*i)
		put_chunk(raw, nr, (unsigned)(r->chunks[*i].chunk - begin), &r->chunks[*i]);
	len = ZSTD_compress(packed, PACKED_MAX, raw, nr * IMG_RESIDENT_LEN, LEVEL);
	if (ZSTD_isError(len))
		return img_io_error(o->path, "compress", -ENOMEM);
	e.block = first->block;
	e.chunk = begin;
	e.packed = (ProtobufCBinaryData){ len, packed };
	return img_out_put(o, &e.base);
}

static const char *list_fault(const struct img_writer *w, const struct img_resident *r)
{
	if (!w->blocks || w->features & (IMG_FEATURE_RAM_ONLY | IMG_FEATURE_RESIDENT))
		return "what was in memory is written once, behind the blocks, and not for a pre-dump";
	for (size_t i = 0; i < r->nr; i++) {
		const struct img_resident_chunk *c = &r->chunks[i], *last = i ? c - 1 : NULL;

		if (c->block >= w->nr_blocks || c->chunk >= w->blocks[c->block].nr_chunks || !c->age ||
		    bitmap_empty(c->pages, IMG_CHUNK_PAGES) || has_beyond(c->pages, pages_of_chunk(w->blocks[c->block].len, c->chunk)))
			return "what was in memory is no page of the blocks";
		if (last && (last->block > c->block || (last->block == c->block && last->chunk >= c->chunk)))
			return "what was in memory is not in order";
	}
	return NULL;
}

static int write_file(struct img_writer *w, const struct img_resident *r)
{
	_cleanup_free_ uint8_t *raw = malloc(RAW_MAX), *packed = malloc(PACKED_MAX);
	struct img_out o;
	int ret;

	if (!raw || !packed)
		return img_io_error(w->dir.path, "write", -ENOMEM);
	ret = img_out_open(&o, w->dir.fd, w->dir.path, IMG_NAME_RESIDENT, IMG_MAGIC_RESIDENT);
	for (size_t i = 0; !ret && i < r->nr;)
		ret = put_group(w, &o, r, &i, raw, packed);
	if (!ret)
		ret = img_writer_finish_file(w, &o, IMG_NAME_RESIDENT);
	img_out_fini(&o);
	return ret;
}

int img_writer_resident(struct img_writer *w, const struct img_resident *r)
{
	const char *fault = w->stream ? NULL : list_fault(w, r);
	int ret = w->err;

	if (!ret && fault)
		ret = img_writer_misuse(w, fault);
	if (ret || w->stream || !r->nr)
		return img_writer_keep(w, ret);
	w->features |= IMG_FEATURE_RESIDENT;
	return img_writer_keep(w, write_file(w, r));
}
