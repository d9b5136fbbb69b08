// SPDX-License-Identifier: GPL-2.0-only
//
// DOC: who has pages
//
// The answering side of a page line (wire/pages.h), for a VM that has left this host, and for a checkpoint that is served. One thread, or
// process, a line.
#pragma once
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "wire/pages.h"

struct provider {
	void *ctx;
	const uint64_t *block_len; // bytes
	size_t nr_blocks;
	// Pages of one chunk: page i to buf + i * 4096 (1 MiB, page-aligned). Several threads may read at once. Blocks. -errno, logged.
	int (*read)(void *ctx, uint32_t block, uint64_t chunk, const uint64_t want[4], char *buf);
	uint8_t id[WIRE_LINE_ID_LEN]; // of LEFT; any token counts as the right one if any_token
	bool any_token;		      // of a served checkpoint: the first WIRE_TOKEN_LEN bytes are the asker's own
	int zstd;		      // level, 0: raw
	// Before pages are sent in the background, NULL: no limit. Returns when they may go. bytes: that the line has sent since it asked before.
	void (*wait_turn)(void *ctx, uint64_t bytes);
	void (*introduced)(void *ctx); // the first LEFT with the right id has come. May be NULL
	bool (*ending)(void *ctx);    // looked at a few times a second: true ends the line. May be NULL
};

// Of all lines; atomic.
struct provided {
	uint64_t pages, zero_pages, bytes;
	uint64_t missing; // as the other side has said last
	uint64_t failed;  // WANTs that could not be answered
};

// Answers on c until the line is lost (-errno), ending() says so (-ECANCELED), who asks says COMPLETE or ENDED (*state; 0: who has called
// sends OVER when nothing is held any more), or refuses (-ECONNREFUSED: *why). Nothing is answered before a LEFT with the right id; -ESTALE:
// who asks is another one. Silent but for -EBADMSG, a peer that breaks the protocol. background: wait_turn() is for it. Sets c's time-out.
int provide(const struct provider *p, struct wire_conn *c, bool background, struct provided *all, enum wire_line_state *state, enum wire_refusal *why);
