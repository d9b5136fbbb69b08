// SPDX-License-Identifier: GPL-2.0-only
#include "wire/pages.h"

#include <endian.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <xxhash.h>
#include <zstd.h>

#include "util/bitmap.h"
#include "util/log.h"
#include "util/size.h"
#include "wire/pages_int.h"

#define MAGIC 0x47505643U // "CVPG" in the frame's byte order
#define CHECKSUM_OFF 88
#define WORDS BITMAP_WORDS(WIRE_CHUNK_PAGES)

struct wire_pages {
	struct wire_conn *c;
	XXH3_state_t *digest;
	ZSTD_CCtx *compressor;
	ZSTD_DCtx *decompressor;
	uint8_t *packed; // WIRE_PAYLOAD_MAX
};

int wire_pages_new(struct wire_conn *c, struct wire_pages **out)
{
	struct wire_pages *p = calloc(1, sizeof *p);

	if (!p)
		return -ENOMEM;
	p->c = c;
	p->digest = XXH3_createState();
	p->compressor = ZSTD_createCCtx();
	p->decompressor = ZSTD_createDCtx();
	p->packed = malloc(WIRE_PAYLOAD_MAX);
	if (!p->digest || !p->compressor || !p->decompressor || !p->packed) {
		wire_pages_free(p);
		return -ENOMEM;
	}
	*out = p;
	return 0;
}

void wire_pages_free(struct wire_pages *p)
{
	if (!p)
		return;
	XXH3_freeState(p->digest);
	ZSTD_freeCCtx(p->compressor);
	ZSTD_freeDCtx(p->decompressor);
	free(p->packed);
	free(p);
}

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
	return bitmap_count(f->present, WIRE_CHUNK_PAGES) * PAGE_SIZE;
}

static const char *pages_fault(const struct wire_frame *f)
{
	size_t len = wire_frame_pages_len(f);

	if (f->flags & ~(WIRE_FLAG_ZSTD | WIRE_FLAG_TO_RAM))
		return "it has unknown flags";
	for (unsigned i = 0; i < WORDS; i++)
		if (f->present[i] & f->zero[i])
			return "a page is both present and zero";
	if (!len && bitmap_empty(f->zero, WIRE_CHUNK_PAGES))
		return "it has no page";
	if (f->flags & WIRE_FLAG_ZSTD ? !f->length || f->length >= len : f->length != len)
		return "its length is not that of its pages";
	return NULL;
}

static const char *round_end_fault(const struct wire_frame *f)
{
	if (f->flags || f->block || f->length || !bitmap_empty(f->present, WIRE_CHUNK_PAGES) || !bitmap_empty(f->zero, WIRE_CHUNK_PAGES))
		return "the end of a round has pages";
	return NULL;
}

static const char *frame_fault(const struct wire_frame *f)
{
	if (f->type == WIRE_PAGES)
		return pages_fault(f);
	return f->type == WIRE_ROUND_END ? round_end_fault(f) : "it is of an unknown type";
}

static const char *parse(const uint8_t *at, struct wire_frame *f, uint64_t *checksum)
{
	if (get(&at, 4) != MAGIC)
		return "it does not begin with the magic";
	f->type = (uint8_t)get(&at, 1);
	f->flags = (uint8_t)get(&at, 1);
	f->round = (uint16_t)get(&at, 2);
	f->block = (uint32_t)get(&at, 4);
	f->length = (uint32_t)get(&at, 4);
	f->chunk = get(&at, 8);
	for (unsigned i = 0; i < WORDS; i++)
		f->present[i] = get(&at, 8);
	for (unsigned i = 0; i < WORDS; i++)
		f->zero[i] = get(&at, 8);
	*checksum = get(&at, 8);
	return frame_fault(f);
}

int wire_frame_parse(const uint8_t buf[WIRE_FRAME_LEN], struct wire_frame *f, uint64_t *checksum)
{
	return parse(buf, f, checksum) ? -EBADMSG : 0;
}

uint64_t wire_frame_checksum(struct wire_pages *p, const uint8_t head[WIRE_FRAME_LEN], const void *payload, size_t len)
{
	static const uint8_t none[WIRE_FRAME_LEN - CHECKSUM_OFF];

	XXH3_64bits_reset(p->digest);
	XXH3_64bits_update(p->digest, head, CHECKSUM_OFF);
	XXH3_64bits_update(p->digest, none, sizeof none);
	if (len)
		XXH3_64bits_update(p->digest, payload, len);
	return XXH3_64bits_digest(p->digest);
}

// The frame's size is set and bounded before anything is decompressed; there is nothing behind it.
static const char *decompress(struct wire_pages *p, const void *payload, size_t length, void *pages, size_t len)
{
	if (ZSTD_findFrameCompressedSize(payload, length) != length || ZSTD_getFrameContentSize(payload, length) != len)
		return "its payload is not one zstd frame of its pages";
	return ZSTD_decompressDCtx(p->decompressor, pages, len, payload, length) == len ? NULL : "its zstd frame cannot be decompressed";
}

const char *wire_frame_unpack(struct wire_pages *p, const uint8_t head[WIRE_FRAME_LEN], const void *payload, void *pages)
{
	struct wire_frame f;
	uint64_t checksum;
	const char *fault = parse(head, &f, &checksum);

	if (fault)
		return fault;
	if (wire_frame_checksum(p, head, payload, f.length) != checksum)
		return "its checksum is wrong";
	if (f.flags & WIRE_FLAG_ZSTD)
		return decompress(p, payload, f.length, pages, wire_frame_pages_len(&f));
	if (f.length && payload != pages)
		memcpy(pages, payload, f.length);
	return NULL;
}

// The length of what is sent for len bytes of pages: fewer in p->packed, or as many as they are.
static size_t compress(struct wire_pages *p, const void *pages, size_t len, int level)
{
	size_t n = level && len ? ZSTD_compressCCtx(p->compressor, p->packed, len - 1, pages, len, level) : len;

	return ZSTD_isError(n) ? len : n; // the error is that it does not fit, or costs no more than that
}

int wire_pages_send(struct wire_pages *p, struct wire_frame *f, const void *pages, int zstd)
{
	size_t len = wire_frame_pages_len(f), packed = compress(p, pages, len, zstd);
	const void *payload = packed < len ? p->packed : pages;
	uint8_t head[WIRE_FRAME_LEN];

	f->length = (uint32_t)packed;
	f->flags &= (uint8_t)~WIRE_FLAG_ZSTD;
	if (packed < len)
		f->flags |= WIRE_FLAG_ZSTD;
	if (frame_fault(f))
		return -EINVAL;
	wire_frame_pack(f, 0, head);
	wire_frame_pack(f, wire_frame_checksum(p, head, payload, packed), head);
	return wire_writev(p->c, (struct iovec[]){ { head, sizeof head }, { (void *)payload, packed } }, packed ? 2 : 1);
}

static int refuse(const struct wire_pages *p, const char *fault)
{
	log_err("%s: sent a frame of pages that is not accepted: %s", wire_peer(p->c), fault);
	return -EBADMSG;
}

int wire_pages_receive(struct wire_pages *p, struct wire_frame *f, void *pages)
{
	uint8_t head[WIRE_FRAME_LEN];
	const char *fault;
	uint64_t checksum;
	void *payload;
	int ret = wire_poll(p->c, -1); // between rounds nothing comes for as long as it takes

	ret = ret < 0 ? ret : wire_read(p->c, head, sizeof head);
	if (ret)
		return ret;
	fault = parse(head, f, &checksum);
	if (fault)
		return refuse(p, fault);
	payload = f->flags & WIRE_FLAG_ZSTD ? p->packed : pages;
	if (f->length)
		ret = wire_read(p->c, payload, f->length);
	if (ret)
		return ret;
	fault = wire_frame_unpack(p, head, payload, pages);
	return fault ? refuse(p, fault) : 0;
}
