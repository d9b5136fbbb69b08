// SPDX-License-Identifier: GPL-2.0-only
//
// DOC: pages that another host has
//
// A page source behind page lines (wire/pages.h). Line 0 is for what the guest waits for, the others for what nobody has asked for; each
// has a thread that receives, and puts pages where they belong; the loop's thread sends what is asked for, and hears of what has come:
//
//	pv_source_read --> line --WANT--> ...  PAGES --> thread: checked, copied --> eventfd --> pv_source_done()
//
// A line may be lost at any time. What it has not answered is asked for again over another one, or over the next that comes; until
// then the guest waits, and nobody makes anything up. Lines come to us (a migration: the other side connects, and its connection is handed
// in), or we connect (a served checkpoint), again and again, with a pause that grows to 10 s.
#pragma once
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "pvmem/engine.h"
#include "util/loop.h"
#include "wire/pages.h"

#define LP_REMOTE_LINES_MAX 9

struct lp_remote;

struct lp_remote_opts {
	struct loop *loop;
	const struct pv_block *blocks; // off and len; those of the frames, in their order
	size_t nr_blocks;
	unsigned nr_lines; // 1: all goes over it
	uint8_t id[WIRE_LINE_ID_LEN];
	uint8_t key[WIRE_KEY_LEN]; // lines that come begin with it
	const struct wire_tls *tls; // NULL: in the clear
	// We connect:
	const char *host; // NULL: lines come
	uint16_t port;
	uint8_t token[WIRE_TOKEN_LEN]; // of the preamble
	// In a line's thread, of each connection that we have made, when it has answered something, and before that is used: may who answers
	// there be believed? NULL: yes.
	bool (*trusts)(int fd);
	void *ctx;
	// In the loop's thread. The number of pages that are missing, for LEFT.
	uint64_t (*missing)(void *ctx);
	// The other side has said OVER. Once.
	void (*over)(void *ctx);
};

// What o points to must outlive it. Starts no thread before there is a line, or one to connect. -EINVAL: so many lines cannot be; -ENOMEM,
// -EMFILE, -EAGAIN (no thread).
int lp_remote_new(const struct lp_remote_opts *o, struct lp_remote **r);
// Ends lines and threads. What is being read never comes, and nothing of it is touched any more. Before the loop and the engine are freed;
// lp_remote_free() after that. Waits for the resolver, should it be asked just now.
void lp_remote_stop(struct lp_remote *r); // accepts NULL
void lp_remote_free(struct lp_remote *r); // accepts NULL

// A connection whose preamble was read; taken over. Takes the place of the line of that number, should it not be known yet that it is lost.
// Never blocks: TLS, and the key, are its thread's matter. fd is closed on an error, too. -EINVAL: there is no line of that number;
// -EBUSY: too many have come that have shown no key yet, or we stop; -ENOMEM, -EMFILE, -EAGAIN.
int lp_remote_accept(struct lp_remote *r, unsigned line, int fd);
// Instead of what there was, for lines that come from here on.
void lp_remote_set_tls(struct lp_remote *r, const struct wire_tls *tls);
void lp_remote_set_engine(struct lp_remote *r, struct pv_engine *e);
// pv_ops.source_read. Never blocks.
void lp_remote_read(struct lp_remote *r, struct pv_source_read *rd);
// Nothing is missing any more: from now on every line says COMPLETE.
void lp_remote_complete(struct lp_remote *r);

struct lp_remote_stats {
	unsigned lines;	    // that there are now
	uint64_t pages, zero_pages, bytes; // that have come
	unsigned waiting;   // reads that wait for a line
	uint64_t alone_ns;  // since when there is no line: for how long; 0: there is one
	char trouble[128];  // why there is none, or what the other side cannot read; ""
};
void lp_remote_stats(struct lp_remote *r, struct lp_remote_stats *s);
