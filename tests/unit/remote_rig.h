// SPDX-License-Identifier: GPL-2.0-only
// A remote page source with lines, and what is asked of it.
#pragma once
#include "tests/unit/remote_far.h"

#define UNTOUCHED 0x5a
#define MISSING 4711

struct question {
	struct pv_source_read rd;
	unsigned answered;
	int err;
	const char *what;
};

static inline void rig_looked(struct loop_op *op, int res)
{
	struct rig *r = list_entry(op, struct rig, look.op);

	(void)res;
	loop_timer(&r->loop, &r->look, 2 * NSEC_PER_MSEC);
}

// Rounds of the loop until cond, at most ms.
#define rig_until(r, cond, ms) \
	({ \
		uint64_t end_ = clock_now_ns() + (uint64_t)(ms) * NSEC_PER_MSEC; \
		bool so_ = false; \
		while (!(so_ = (cond)) && clock_now_ns() < end_) \
			ok(loop_round(&(r)->loop, true)); \
		so_; \
	})
#define must_be(r, cond) ck_assert_msg(rig_until(r, cond, PATIENCE_MS), "%s does not come", #cond)
#define rig_pass(r, ms) (void)rig_until(r, false, ms)

static inline uint64_t rig_missing(void *ctx)
{
	(void)ctx;
	return MISSING;
}

static inline void rig_over(void *ctx)
{
	((struct rig *)ctx)->overs++;
}

static inline struct lp_remote_stats rig_stats(struct rig *r)
{
	struct lp_remote_stats s;

	lp_remote_stats(r->remote, &s);
	return s;
}

// Until the next call.
static inline const char *rig_trouble(struct rig *r)
{
	static struct lp_remote_stats s;

	s = rig_stats(r);
	return s.trouble;
}

static inline void rig_init(struct rig *r)
{
	log_init(getenv("VERBOSE") ? 2 : -1, LOG_WARN, NULL, false);
	said_clear();
	memset(r, 0, sizeof *r);
	pthread_mutex_init(&r->lock, NULL);
	r->blocks[0] = (struct pv_block){ .len = 3 * MiB + 20 * PAGE_SIZE };
	r->blocks[1] = (struct pv_block){ .off = 4 * MiB, .len = 2 * MiB };
	r->listen_fd = pair_listen(AF_INET, &r->port);
	ok(loop_init(&r->loop, 64));
	r->look.op.done = rig_looked;
	loop_timer(&r->loop, &r->look, NSEC_PER_MSEC);
	r->o = (struct lp_remote_opts){ .loop = &r->loop, .blocks = r->blocks, .nr_blocks = NR_BLOCKS, .nr_lines = 3, .ctx = r,
					.missing = rig_missing, .over = rig_over };
	memcpy(r->o.id, rig_id, sizeof r->o.id);
	memcpy(r->o.key, rig_key, sizeof r->o.key);
}

static inline void rig_start(struct rig *r, unsigned nr_lines)
{
	rig_init(r);
	r->o.nr_lines = nr_lines;
	ok(lp_remote_new(&r->o, &r->remote));
}

// With a line of each number, which answer so.
static inline void rig_open(struct rig *r, unsigned nr_lines, enum manner manner)
{
	rig_start(r, nr_lines);
	for (unsigned i = 0; i < nr_lines; i++)
		far_new(r, i, manner);
	must_be(r, rig_stats(r).lines == nr_lines);
	for (unsigned i = 0; i < nr_lines; i++)
		must_be(r, r->far[i].left >= 0);
}

static inline void rig_close(struct rig *r)
{
	lp_remote_stop(r->remote);
	loop_fini(&r->loop);
	lp_remote_free(r->remote);
	shutdown(r->listen_fd, SHUT_RDWR);
	for (unsigned i = 0; i < r->nr_fars; i++) {
		r->far[i].manner = ANSWERS;
		far_cut(&r->far[i]);
		ok(pthread_join(r->far[i].thread, NULL));
		wire_pages_free(r->far[i].pages);
		wire_close(r->far[i].c);
		ck_assert(!r->far[i].wrong_id && !r->far[i].wants_first);
	}
	close(r->listen_fd);
	pthread_mutex_destroy(&r->lock);
}

static inline void answered(struct pv_source_read *rd, int err, const char *what)
{
	struct question *q = list_entry(rd, struct question, rd);

	q->answered++;
	q->err = err;
	q->what = what;
}

static inline size_t chunk_pages(uint64_t chunk)
{
	return chunk == 3 ? 20 : 256;
}

static inline void ask_pages(struct rig *r, struct question *q, uint64_t chunk, bool unasked, const uint64_t pages[PV_WORDS])
{
	q->rd = (struct pv_source_read){ .chunk = chunk, .dest = malloc(MiB), .unasked = unasked, .done = answered };
	q->answered = 0;
	memset(q->rd.dest, UNTOUCHED, MiB);
	memcpy(q->rd.pages, pages, sizeof q->rd.pages);
	lp_remote_read(r->remote, &q->rd);
	ck_assert(!q->answered);
}

// Every third page, or all of them.
static inline void ask(struct rig *r, struct question *q, uint64_t chunk, bool unasked, bool all)
{
	uint64_t pages[PV_WORDS] = { 0 };

	for (size_t i = 0; i < chunk_pages(chunk); i += all ? 1 : 3)
		bitmap_set(pages, i);
	ask_pages(r, q, chunk, unasked, pages);
}

static inline void check_untouched(const struct question *q)
{
	ck_assert(q->rd.dest[0] == UNTOUCHED && !memcmp(q->rd.dest, q->rd.dest + 1, MiB - 1));
}

// It was answered once, rightly, and nothing else was touched.
static inline void check(struct question *q)
{
	uint32_t block = q->rd.chunk >= 4;
	uint64_t chunk = block ? q->rd.chunk - 4 : q->rd.chunk;
	char page[PAGE_SIZE];

	ck_assert_uint_eq(q->answered, 1);
	ok(q->err);
	for (size_t i = 0; i < 256; i++) {
		bool wanted = bitmap_test(q->rd.pages, i), zero = wanted && page_is_zero(block, chunk, i);

		ck_assert_int_eq(bitmap_test(q->rd.zero, i), zero);
		if (wanted && !zero)
			page_fill(page, block, chunk, i);
		else
			memset(page, UNTOUCHED, sizeof page);
		ck_assert_int_eq(memcmp(q->rd.dest + i * PAGE_SIZE, page, PAGE_SIZE), 0);
	}
	free(q->rd.dest);
	q->rd.dest = NULL;
}
