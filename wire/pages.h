// SPDX-License-Identifier: GPL-2.0-only
// A data channel, or a page line: frames of pages of one chunk each, checksummed.
//
// DOC: a page line
//
// A connection of its own over which the pages of a VM that runs already are asked for: line 0 for those that it waits for, the others
// for the rest, in the background. Who needs pages asks, who has them answers, in order:
//
//	asks: LEFT (at once, and every WIRE_LINE_ALIVE_MS), WANT, WANT, ...        answers: PAGES or CANNOT, one for each WANT; ALIVE; OVER
//
// A line that is lost takes nothing with it: what was not answered is asked for again over another one.
//
// DOC: a frame (little-endian)
//
//	 0 u32 magic "CVPG"        16 u64 chunk of the block; of ROUND_END: frames of the round on this channel
//	 4 u8  type                24 u64 present[4]   pages whose content follows, in order; or that are spoken of
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

enum wire_frame_type {
	WIRE_PAGES = 1,
	WIRE_ROUND_END = 2,
	WIRE_LATER = 3,	  // of a round: these pages come over the lines, when the VM runs; what was sent of them before is old
	WIRE_WANT = 4,	  // of a line, as all that follow: these pages are asked for
	WIRE_CANNOT = 5,  // the answer to a WANT, whose fields it has: they cannot be read now
	WIRE_LEFT = 6,	  // who asks: block: enum wire_line_state; chunk: pages that are missing yet; present: the id (struct wire_line_id)
	WIRE_ALIVE = 7,	  // who answers
	WIRE_REFUSED = 8, // instead of LEFT: there is nobody to ask here; round: enum wire_refusal
	WIRE_OVER = 9,	  // who answers, after LEFT has said COMPLETE or ENDED: nothing is held any more for who asks
};
#define WIRE_FLAG_ZSTD 1      // the payload is one zstd frame
#define WIRE_FLAG_TO_RAM 2    // the pages are needed as soon as the VM runs
#define WIRE_FLAG_IN_IMAGES 4 // of LATER: they are as in the checkpoint that OFFER names

#define WIRE_LINE_ALIVE_MS 2000
#define WIRE_LINE_LOST_MS 10000 // without a byte
#define WIRE_LINE_WANTS_MAX 64  // that have no answer yet, on a line: so that asking never blocks

enum wire_line_state {
	WIRE_LINE_WANTS = 0,
	WIRE_LINE_COMPLETE = 1, // nothing is missing any more
	WIRE_LINE_ENDED = 2,	// the VM has ended, or its host was booted since
};
enum wire_refusal {
	WIRE_REFUSED_NOW = 1,	// its pager does not answer just now
	WIRE_REFUSED_UNKNOWN = 2, // no VM of this migration is here
	WIRE_REFUSED_KEY = 3,
	WIRE_REFUSED_CHECKPOINT = 4, // another one is served here
	WIRE_REFUSED_FULL = 5,
};

// Whose pages they are: of a migration its token and ADMIT's host id; of a checkpoint the asker's token, the id (little-endian), zeros.
#define WIRE_LINE_ID_LEN 32

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

// What sending and receiving on a channel needs: zstd contexts, buffers. One thread may send while another one receives.
struct wire_pages;
int wire_pages_new(struct wire_conn *c, struct wire_pages **p); // -ENOMEM
void wire_pages_free(struct wire_pages *p);

// Sends f: f->length and the ZSTD flag are set here. pages: the present pages in order, packed. zstd: level, 0: raw; pages that do not
// shrink go raw. As wire_write(); -EINVAL: f is none that may be sent. Silent.
int wire_pages_send(struct wire_pages *p, struct wire_frame *f, const void *pages, int zstd);
// Receives the next frame into *f; PAGES: the present pages, unpacked, to pages (WIRE_CHUNK_SIZE bytes; NULL: PAGES are refused). Waits for
// ever for it to begin, between rounds nothing comes (wire_shutdown() ends that; who waits for so long only calls wire_poll() before); then
// as wire_read(). Checked: magic, type, flags, no field that the type does not have, present and zero disjoint and one of them not empty,
// length fits present if raw and is less if not, the checksum before anything is decompressed, what is decompressed is as long as present
// says. -EBADMSG (logged: what was wrong). Whether a frame of this type may come now, whether block and chunk exist, and the pages in a
// last chunk, is the caller's to check. After an error what is in pages is of no use.
int wire_pages_receive(struct wire_pages *p, struct wire_frame *f, void *pages);

// The frames of a page line, without content. As wire_pages_send(). Two threads must not send on one line at once.
int wire_line_want(struct wire_pages *p, uint32_t block, uint64_t chunk, const uint64_t pages[4]);
int wire_line_cannot(struct wire_pages *p, const struct wire_frame *want);
// missing: of COMPLETE 0.
int wire_line_left(struct wire_pages *p, enum wire_line_state state, uint64_t missing, const uint8_t id[WIRE_LINE_ID_LEN]);
int wire_line_say(struct wire_pages *p, enum wire_frame_type type); // ALIVE, OVER
int wire_line_refuse(struct wire_pages *p, enum wire_refusal why);
const char *wire_refusal_text(enum wire_refusal why); // for messages
// Is this LEFT of who has this id?
bool wire_line_id_is(const struct wire_frame *left, const uint8_t id[WIRE_LINE_ID_LEN]);

// Of headers alone; for tests and fuzzing.
void wire_frame_pack(const struct wire_frame *f, uint64_t checksum, uint8_t buf[WIRE_FRAME_LEN]);
int wire_frame_parse(const uint8_t buf[WIRE_FRAME_LEN], struct wire_frame *f, uint64_t *checksum); // -EBADMSG, silent
