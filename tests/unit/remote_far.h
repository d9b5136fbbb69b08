// SPDX-License-Identifier: GPL-2.0-only
// The other side of a remote page source: the ends of its lines, each a thread that answers as it is told to: well, late, wrongly, or not.
#pragma once
#include <errno.h>
#include <stdatomic.h>

#include "lazy-pages/remote.h"
#include "tests/unit/wire_pair.h"
#include "util/bitmap.h"
#include "util/clock.h"
#include "util/loop.h"
#include "util/size.h"
#include "wire/pages_int.h"

#define ok(expr) ck_assert_int_eq(expr, 0)
#define NR_BLOCKS 2
#define NR_CHUNKS 6 // 3 MiB and 20 pages, 2 MiB
#define NR_FARS 40
#define MAX_WANTS 4096

enum manner {
	ANSWERS,
	HOLDS, // until it is told otherwise
	CANNOT,
	IS_SILENT, // from its first answer on
	FIRST_WRONG, // and from here on
	CUTS = FIRST_WRONG, // in the middle of a frame
	CORRUPTS,
	OTHER_BLOCK,
	OTHER_CHUNK,
	TOO_FEW,
	TOO_MANY,
	TOO_MANY_ZEROS,
	TWICE,
	CANNOT_OTHER,
	ASKS,
	SAYS_OVER,
	NR_MANNERS,
	REFUSES, // as an answer to LEFT
};

// One that we asked for, in the order of asking over all lines.
struct want {
	unsigned line;
	uint32_t block;
	uint64_t chunk;
};

struct far {
	struct rig *r;
	pthread_t thread;
	unsigned line;
	bool accepts; // else it connects
	uint8_t key[WIRE_KEY_LEN];
	const struct wire_tls *tls;
	_Atomic(struct wire_conn *) c;
	struct wire_pages *pages;
	_Atomic int manner; // enum manner
	// What it has seen.
	_Atomic int left;     // enum wire_line_state, -1: none
	_Atomic uint64_t missing;
	_Atomic bool wrong_id, ended, wants_first;
	_Atomic int refused;  // enum wire_refusal
	_Atomic unsigned nr_wants, nr_lefts;
	struct wire_preamble preamble; // if it accepts
};

struct rig {
	struct loop loop;
	struct loop_timer look;
	struct pv_block blocks[NR_BLOCKS];
	struct lp_remote_opts o;
	struct lp_remote *remote;
	int listen_fd;
	uint16_t port;
	struct far far[NR_FARS];
	unsigned nr_fars;
	unsigned overs;
	pthread_mutex_t lock;
	struct want wants[MAX_WANTS];
	unsigned nr_wants;
};

static const uint8_t rig_id[WIRE_LINE_ID_LEN] = "the token and the host, 32 bytes";
static const uint8_t rig_key[WIRE_KEY_LEN] = { 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16 };

// ---- what the pages hold

static inline bool page_is_zero(uint32_t block, uint64_t chunk, size_t page)
{
	return (block * 7 + chunk * 13 + page) % 5 == 0;
}

static inline void page_fill(char *to, uint32_t block, uint64_t chunk, size_t page)
{
	uint64_t v = (uint64_t)block << 56 | chunk << 16 | page | 1ULL << 63;

	for (size_t i = 0; i < PAGE_SIZE; i += sizeof v)
		memcpy(to + i, &(uint64_t){ v * (i + 1) }, sizeof v);
}

static inline struct wire_frame far_answer(const struct wire_frame *want, char *packed)
{
	struct wire_frame f = { .type = WIRE_PAGES, .block = want->block, .chunk = want->chunk };

	for (size_t page = bitmap_next(want->present, 256, 0, true); page < 256; page = bitmap_next(want->present, 256, page + 1, true)) {
		if (page_is_zero(f.block, f.chunk, page)) {
			bitmap_set(f.zero, page);
			continue;
		}
		bitmap_set(f.present, page);
		page_fill(packed, f.block, f.chunk, page);
		packed += PAGE_SIZE;
	}
	return f;
}

static inline size_t a_page_not_in(const struct wire_frame *f)
{
	size_t page = 0;

	while (page < 255 && (bitmap_test(f->present, page) || bitmap_test(f->zero, page)))
		page++;
	return page;
}

// Only a part of a frame, or one whose payload is not that of its header.
static inline int far_break(struct far *f, const struct wire_frame *answer, char *packed, bool cut)
{
	uint8_t head[WIRE_FRAME_LEN];
	struct wire_frame g = *answer;
	size_t len = wire_frame_pages_len(&g);
	int err;

	g.length = (uint32_t)len;
	wire_frame_pack(&g, 0, head);
	wire_frame_pack(&g, wire_frame_checksum(f->pages, head, packed, len), head);
	if (!cut)
		packed[len ? len - 1 : 0] ^= 1;
	err = wire_write(f->c, head, sizeof head);
	if (!err)
		err = wire_write(f->c, packed, cut ? len / 2 : len);
	if (cut)
		wire_shutdown(f->c);
	return err;
}

static inline int far_reply(struct far *f, const struct wire_frame *want, char *packed)
{
	struct wire_frame a = far_answer(want, packed);
	enum manner manner;
	int err = 0;

	while ((manner = (enum manner)f->manner) == HOLDS)
		usleep(1000);
	switch (manner) {
	case CANNOT:
		return wire_line_cannot(f->pages, want);
	case IS_SILENT:
		return 0;
	case CUTS:
	case CORRUPTS:
		return far_break(f, &a, packed, manner == CUTS);
	case OTHER_BLOCK:
		a.block ^= 1;
		break;
	case OTHER_CHUNK:
		a.chunk ^= 1;
		break;
	case TOO_FEW:
		bitmap_clear(a.zero, bitmap_next(a.zero, 256, 0, true));
		break;
	case TOO_MANY:
		bitmap_set(a.present, a_page_not_in(&a));
		break;
	case TOO_MANY_ZEROS:
		bitmap_set(a.zero, a_page_not_in(&a));
		break;
	case TWICE:
		err = wire_pages_send(f->pages, &a, packed, 0);
		break;
	case CANNOT_OTHER:
		a = *want;
		a.chunk ^= 1;
		return wire_line_cannot(f->pages, &a);
	case ASKS:
		return wire_line_want(f->pages, want->block, want->chunk, want->present);
	case SAYS_OVER:
		return wire_line_say(f->pages, WIRE_OVER);
	default:
		break;
	}
	return err ? err : wire_pages_send(f->pages, &a, packed, (int)(a.chunk % 2));
}

static inline int far_left(struct far *f, const struct wire_frame *left)
{
	f->missing = left->chunk;
	f->wrong_id = f->wrong_id || !wire_line_id_is(left, rig_id);
	f->left = (int)left->block;
	f->nr_lefts++;
	if (f->manner == REFUSES)
		return wire_line_refuse(f->pages, WIRE_REFUSED_CHECKPOINT);
	return f->manner == IS_SILENT ? 0 : wire_line_say(f->pages, WIRE_ALIVE);
}

static inline void far_note(struct far *f, const struct wire_frame *want)
{
	pthread_mutex_lock(&f->r->lock);
	if (f->r->nr_wants < MAX_WANTS)
		f->r->wants[f->r->nr_wants++] = (struct want){ f->line, want->block, want->chunk };
	pthread_mutex_unlock(&f->r->lock);
	f->wants_first |= f->left < 0;
	f->nr_wants++;
}

static inline int far_one(struct far *f, char *packed)
{
	struct wire_frame frame;
	int err = wire_pages_receive(f->pages, &frame, packed);

	if (err)
		return err;
	if (frame.type == WIRE_LEFT)
		return far_left(f, &frame);
	if (frame.type == WIRE_REFUSED) {
		f->refused = frame.round;
		return 0;
	}
	if (frame.type != WIRE_WANT)
		return -EPROTO;
	far_note(f, &frame);
	return far_reply(f, &frame, packed);
}

static inline int far_begin(struct far *f, struct wire_conn **c)
{
	struct wire_connect_opts o = { .host = "127.0.0.1", .port = f->r->port, .tls = f->tls, .timeout_ms = PATIENCE_MS, .quiet = true,
				       .preamble = { .kind = WIRE_LINE, .channel = (uint8_t)f->line } };
	uint8_t buf[WIRE_PREAMBLE_LEN];
	int fd, err;

	if (!f->accepts) {
		err = wire_connect(&o, c);
		return err ? err : wire_write(*c, f->key, sizeof f->key);
	}
	fd = accept4(f->r->listen_fd, NULL, NULL, SOCK_CLOEXEC);
	err = fd < 0 ? -errno : io_read_full(fd, buf, sizeof buf);
	if (!err)
		err = wire_preamble_parse(buf, &f->preamble);
	f->line = f->preamble.channel;
	return err ? err : wire_accept(fd, f->tls, PATIENCE_MS, c);
}

static inline void *far_thread(void *arg)
{
	struct far *f = arg;
	struct wire_conn *c = NULL;
	char *packed = malloc(WIRE_CHUNK_SIZE);
	int err = far_begin(f, &c);

	f->c = c;
	if (!err)
		err = wire_pages_new(c, &f->pages);
	while (!err)
		err = far_one(f, packed);
	if (c)
		wire_shutdown(c);
	f->ended = true;
	free(packed);
	return NULL;
}

static inline struct far *far_start(struct rig *r, unsigned line, bool accepts, enum manner manner)
{
	struct far *f = &r->far[r->nr_fars++];

	ck_assert_uint_le(r->nr_fars, NR_FARS);
	f->r = r;
	f->line = line;
	f->accepts = accepts;
	f->manner = manner;
	f->left = -1;
	f->tls = NULL;
	memcpy(f->key, rig_key, sizeof f->key);
	return f;
}

// Hands its connection in, as the server does.
static inline void far_hand_in(struct far *f)
{
	uint8_t buf[WIRE_PREAMBLE_LEN];
	struct wire_preamble preamble;
	int fd;

	ok(pthread_create(&f->thread, NULL, far_thread, f));
	if (f->accepts)
		return;
	fd = accept4(f->r->listen_fd, NULL, NULL, SOCK_CLOEXEC);
	ck_assert_int_ge(fd, 0);
	ok(io_read_full(fd, buf, sizeof buf));
	ok(wire_preamble_parse(buf, &preamble));
	ok(lp_remote_accept(f->r->remote, preamble.channel, fd));
}

static inline struct far *far_new(struct rig *r, unsigned line, enum manner manner)
{
	struct far *f = far_start(r, line, false, manner);

	far_hand_in(f);
	return f;
}

static inline void far_cut(struct far *f)
{
	struct wire_conn *c = f->c;

	if (c)
		wire_shutdown(c);
}
