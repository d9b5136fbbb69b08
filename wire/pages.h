// SPDX-License-Identifier: GPL-2.0-only
// A data channel: frames of pages of one chunk each, checksummed.
//
// DOC: a frame (little-endian)
//
//	 0 u32 magic "CVPG"        16 u64 chunk of the block; of ROUND_END: frames of the round on this channel
//	 4 u8  type                24 u64 present[4]   pages whose content follows, in order
//	 5 u8  flags               56 u64 zero[4]      pages that are zero now
//	 6 u16 round               88 u64 XXH3 of the header, this field 0, and the payload
//	 8 u32 block               96 payload
//	12 u32 length of the payload
#pragma once
#include <stddef.h>
#include <stdint.h>

#include "wire/conn.h"

#define WIRE_FRAME_LEN 96
#define WIRE_CHUNK_PAGES 256
#define WIRE_CHUNK_SIZE (1U << 20)
#define WIRE_PAYLOAD_MAX WIRE_CHUNK_SIZE // what does not shrink is sent raw

enum wire_frame_type { WIRE_PAGES = 1, WIRE_ROUND_END = 2 };
#define WIRE_FLAG_ZSTD 1   // the payload is one zstd frame
#define WIRE_FLAG_TO_RAM 2 // the pages are needed as soon as the VM runs

struct wire_frame {
	uint8_t type, flags;
	uint16_t round;
	uint32_t block, length;
	uint64_t chunk;
	uint64_t present[4], zero[4];
};

// Which channel a chunk goes over: index counts the chunks of all blocks, each block beginning anew on a chunk.
static inline unsigned wire_channel_of(uint64_t index, unsigned channels)
{
	return (unsigned)(index / 16 % channels);
}

// What one thread needs to send or receive on a channel: zstd contexts, buffers.
struct wire_pages;
int wire_pages_new(struct wire_conn *c, struct wire_pages **p); // -ENOMEM
void wire_pages_free(struct wire_pages *p);

// Sends f: f->length and the ZSTD flag are set here. pages: the present pages in order, packed. zstd: level, 0: raw; pages that do not
// shrink go raw. As wire_write(); -EINVAL: f is none that may be sent. Silent.
int wire_pages_send(struct wire_pages *p, struct wire_frame *f, const void *pages, int zstd);
// Receives the next frame into *f; PAGES: the present pages, unpacked, to pages (WIRE_CHUNK_SIZE bytes). Waits for ever for it to begin,
// between rounds nothing comes (wire_shutdown() ends that); then as wire_read(). Checked: magic, type, flags, present and zero disjoint
// and one of them not empty, length fits present if raw and is less if not, the checksum before anything is decompressed, what is
// decompressed is as long as present says. -EBADMSG (logged: what was wrong). Whether block and chunk exist, and the pages in a last
// chunk, is the caller's to check. After an error what is in pages is of no use.
int wire_pages_receive(struct wire_pages *p, struct wire_frame *f, void *pages);

// Of headers alone; for tests and fuzzing.
void wire_frame_pack(const struct wire_frame *f, uint64_t checksum, uint8_t buf[WIRE_FRAME_LEN]);
int wire_frame_parse(const uint8_t buf[WIRE_FRAME_LEN], struct wire_frame *f, uint64_t *checksum); // -EBADMSG, silent
