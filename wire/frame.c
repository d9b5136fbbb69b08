// SPDX-License-Identifier: GPL-2.0-only
// The header of a frame, and what each type of frame may hold.
#include <endian.h>
#include <errno.h>
#include <string.h>

#include "util/bitmap.h"
#include "util/size.h"
#include "wire/pages_int.h"

#define MAGIC 0x47505643U // "CVPG" in the frame's byte order
#define WORDS BITMAP_WORDS(WIRE_CHUNK_PAGES)

static uint64_t get(const uint8_t **at, size_t len)
{
	uint64_t v = 0;

	memcpy(&v, *at, len);
	*at += len;
	return le64toh(v);
}

static void put(uint8_t **at, size_t len, uint64_t v)
{
	v = htole64(v);
	memcpy(*at, &v, len);
	*at += len;
}

void wire_frame_pack(const struct wire_frame *f, uint64_t checksum, uint8_t buf[WIRE_FRAME_LEN])
{
	put(&buf, 4, MAGIC);
	put(&buf, 1, f->type);
	put(&buf, 1, f->flags);
	put(&buf, 2, f->round);
	put(&buf, 4, f->block);
	put(&buf, 4, f->length);
	put(&buf, 8, f->chunk);
	for (unsigned i = 0; i < WORDS; i++)
		put(&buf, 8, f->present[i]);
	for (unsigned i = 0; i < WORDS; i++)
		put(&buf, 8, f->zero[i]);
	put(&buf, 8, checksum);
}

size_t wire_frame_pages_len(const struct wire_frame *f)
{
	return f->type == WIRE_PAGES ? bitmap_count(f->present, WIRE_CHUNK_PAGES) * PAGE_SIZE : 0;
}

static const char *pages_fault(const struct wire_frame *f)
{
	size_t len = wire_frame_pages_len(f);

	for (unsigned i = 0; i < WORDS; i++)
		if (f->present[i] & f->zero[i])
			return "a page is both present and zero";
	if (!len && bitmap_empty(f->zero, WIRE_CHUNK_PAGES))
		return "it has no page";
	if (f->flags & WIRE_FLAG_ZSTD ? !f->length || f->length >= len : f->length != len)
		return "its length is not that of its pages";
	return NULL;
}

static const char *named_fault(const struct wire_frame *f)
{
	return bitmap_empty(f->present, WIRE_CHUNK_PAGES) ? "it has no page" : NULL;
}

static const char *left_fault(const struct wire_frame *f)
{
	if (f->block > WIRE_LINE_ENDED)
		return "it is of no known state";
	return f->block == WIRE_LINE_COMPLETE && f->chunk ? "nothing is missing, and pages are" : NULL;
}

static const char *refused_fault(const struct wire_frame *f)
{
	return f->round < WIRE_REFUSED_NOW || f->round > WIRE_REFUSED_FULL ? "it has no reason that is known" : NULL;
}

enum { ROUND = 1, BLOCK = 2, LENGTH = 4, CHUNK = 8, PRESENT = 16, ZERO = 32 };

// Which fields a type has, the others being 0, and which flags; what else holds.
static const struct rule {
	uint8_t fields, flags;
	const char *(*fault)(const struct wire_frame *f);
} rules[] = {
	[WIRE_PAGES] = { ROUND | BLOCK | LENGTH | CHUNK | PRESENT | ZERO, WIRE_FLAG_ZSTD | WIRE_FLAG_TO_RAM, pages_fault },
	[WIRE_ROUND_END] = { ROUND | CHUNK, 0, NULL },
	[WIRE_LATER] = { ROUND | BLOCK | CHUNK | PRESENT, WIRE_FLAG_IN_IMAGES, named_fault },
	[WIRE_WANT] = { BLOCK | CHUNK | PRESENT, 0, named_fault },
	[WIRE_CANNOT] = { BLOCK | CHUNK | PRESENT, 0, named_fault },
	[WIRE_LEFT] = { BLOCK | CHUNK | PRESENT, 0, left_fault },
	[WIRE_ALIVE] = { 0, 0, NULL },
	[WIRE_REFUSED] = { ROUND, 0, refused_fault },
	[WIRE_OVER] = { 0, 0, NULL },
};

static unsigned fields_of(const struct wire_frame *f)
{
	return (f->round ? ROUND : 0) | (f->block ? BLOCK : 0) | (f->length ? LENGTH : 0) | (f->chunk ? CHUNK : 0) |
	       (bitmap_empty(f->present, WIRE_CHUNK_PAGES) ? 0 : PRESENT) | (bitmap_empty(f->zero, WIRE_CHUNK_PAGES) ? 0 : ZERO);
}

const char *wire_frame_fault(const struct wire_frame *f)
{
	const struct rule *r;

	if (!f->type || f->type >= ARRAY_SIZE(rules))
		return "it is of an unknown type";
	r = &rules[f->type];
	if (f->flags & ~r->flags)
		return "it has flags that its type does not have";
	if (fields_of(f) & ~(unsigned)r->fields)
		return "it has what its type does not have";
	return r->fault ? r->fault(f) : NULL;
}

const char *wire_frame_read(const uint8_t buf[WIRE_FRAME_LEN], struct wire_frame *f, uint64_t *checksum)
{
	if (get(&buf, 4) != MAGIC)
		return "it does not begin with the magic";
	f->type = (uint8_t)get(&buf, 1);
	f->flags = (uint8_t)get(&buf, 1);
	f->round = (uint16_t)get(&buf, 2);
	f->block = (uint32_t)get(&buf, 4);
	f->length = (uint32_t)get(&buf, 4);
	f->chunk = get(&buf, 8);
	for (unsigned i = 0; i < WORDS; i++)
		f->present[i] = get(&buf, 8);
	for (unsigned i = 0; i < WORDS; i++)
		f->zero[i] = get(&buf, 8);
	*checksum = get(&buf, 8);
	return wire_frame_fault(f);
}

int wire_frame_parse(const uint8_t buf[WIRE_FRAME_LEN], struct wire_frame *f, uint64_t *checksum)
{
	return wire_frame_read(buf, f, checksum) ? -EBADMSG : 0;
}
