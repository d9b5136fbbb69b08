// SPDX-License-Identifier: GPL-2.0-only
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <xxhash.h>
#include <zstd.h>

#include "util/log.h"
#include "wire/pages_int.h"

#define CHECKSUM_OFF 88

// Of one direction; the other one is another thread's.
struct direction {
	XXH3_state_t *digest;
	uint8_t *packed; // WIRE_PAYLOAD_MAX, once something is compressed
};

struct wire_pages {
	struct wire_conn *c;
	struct direction sends, receives;
	ZSTD_CCtx *compressor;
	ZSTD_DCtx *decompressor;
};

int wire_pages_new(struct wire_conn *c, struct wire_pages **out)
{
	struct wire_pages *p = calloc(1, sizeof *p);

	if (!p)
		return -ENOMEM;
	p->c = c;
	p->sends.digest = XXH3_createState();
	p->receives.digest = XXH3_createState();
	p->compressor = ZSTD_createCCtx();
	p->decompressor = ZSTD_createDCtx();
	if (!p->sends.digest || !p->receives.digest || !p->compressor || !p->decompressor) {
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
	XXH3_freeState(p->sends.digest);
	XXH3_freeState(p->receives.digest);
	ZSTD_freeCCtx(p->compressor);
	ZSTD_freeDCtx(p->decompressor);
	free(p->sends.packed);
	free(p->receives.packed);
	free(p);
}

// NULL: no memory.
static uint8_t *room(struct direction *d)
{
	if (!d->packed)
		d->packed = malloc(WIRE_PAYLOAD_MAX);
	return d->packed;
}

static uint64_t checksum_of(XXH3_state_t *digest, const uint8_t head[WIRE_FRAME_LEN], const void *payload, size_t len)
{
	static const uint8_t none[WIRE_FRAME_LEN - CHECKSUM_OFF];

	XXH3_64bits_reset(digest);
	XXH3_64bits_update(digest, head, CHECKSUM_OFF);
	XXH3_64bits_update(digest, none, sizeof none);
	if (len)
		XXH3_64bits_update(digest, payload, len);
	return XXH3_64bits_digest(digest);
}

uint64_t wire_frame_checksum(struct wire_pages *p, const uint8_t head[WIRE_FRAME_LEN], const void *payload, size_t len)
{
	return checksum_of(p->sends.digest, head, payload, len);
}

static const char *checksum_fault(struct wire_pages *p, const uint8_t head[WIRE_FRAME_LEN], const void *payload, size_t len, uint64_t checksum)
{
	return checksum_of(p->receives.digest, head, payload, len) == checksum ? NULL : "its checksum is wrong";
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
	const char *fault = wire_frame_read(head, &f, &checksum);

	if (fault)
		return fault;
	fault = checksum_fault(p, head, payload, f.length, checksum);
	if (fault)
		return fault;
	if (f.flags & WIRE_FLAG_ZSTD)
		return decompress(p, payload, f.length, pages, wire_frame_pages_len(&f));
	if (f.length && payload != pages)
		memcpy(pages, payload, f.length);
	return NULL;
}

// The length of what is sent for len bytes of pages: fewer in p->sends.packed, or as many as they are.
static size_t compress(struct wire_pages *p, const void *pages, size_t len, int level)
{
	size_t n = len;

	if (level && len && room(&p->sends))
		n = ZSTD_compressCCtx(p->compressor, p->sends.packed, len - 1, pages, len, level);
	return ZSTD_isError(n) ? len : n; // the error is that it does not fit, or costs no more than that
}

int wire_pages_send(struct wire_pages *p, struct wire_frame *f, const void *pages, int zstd)
{
	size_t len = wire_frame_pages_len(f), packed = compress(p, pages, len, zstd);
	const void *payload = packed < len ? p->sends.packed : pages;
	uint8_t head[WIRE_FRAME_LEN];

	f->length = (uint32_t)packed;
	f->flags &= (uint8_t)~WIRE_FLAG_ZSTD;
	if (packed < len)
		f->flags |= WIRE_FLAG_ZSTD;
	if (wire_frame_fault(f))
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

static int receive_content(struct wire_pages *p, const uint8_t head[WIRE_FRAME_LEN], const struct wire_frame *f, void *pages)
{
	void *payload = f->flags & WIRE_FLAG_ZSTD ? room(&p->receives) : pages;
	const char *fault;
	int ret = payload ? wire_read(p->c, payload, f->length) : -ENOMEM;

	if (ret)
		return ret;
	fault = wire_frame_unpack(p, head, payload, pages);
	return fault ? refuse(p, fault) : 0;
}

int wire_pages_receive(struct wire_pages *p, struct wire_frame *f, void *pages)
{
	uint8_t head[WIRE_FRAME_LEN];
	const char *fault;
	uint64_t checksum;
	int ret = wire_poll(p->c, -1); // between rounds nothing comes for as long as it takes

	ret = ret < 0 ? ret : wire_read(p->c, head, sizeof head);
	if (ret)
		return ret;
	fault = wire_frame_read(head, f, &checksum);
	if (!fault && f->type == WIRE_PAGES && pages)
		return receive_content(p, head, f, pages);
	if (!fault)
		fault = f->type == WIRE_PAGES ? "there are pages where none are to come" : checksum_fault(p, head, NULL, 0, checksum);
	return fault ? refuse(p, fault) : 0;
}
