// SPDX-License-Identifier: GPL-2.0-only
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "pvmem/engine_int.h"
#include "util/log.h"

#define ZERO_WINDOW 16                       // pages around a touched empty one that are brought in too
#define FIRST_WINDOW 8                       // pages around a touched one of which nothing is known
#define RETRY_NS (NSEC_PER_SEC / 2)          // between attempts to read what can't be read
#define DELAY_TICK_NS NSEC_PER_MSEC
#define LONG_DRAIN_NS NSEC_PER_SEC
#define LONG_HOLD_NS (100 * NSEC_PER_MSEC)

// A fault that waits for memory: see "Overdraft" in engine.h.
struct delayed {
	struct list link;
	uint64_t off, due_ns;
	bool vcpu;
};

void pv_pages_in_flight(const struct pv_chunk *c, uint64_t map[PV_WORDS])
{
	memset(map, 0, PV_WORDS * sizeof *map);
	for (const struct pv_request *r = c->requests; r; r = r->next)
		for (unsigned w = 0; w < PV_WORDS; w++)
			map[w] |= r->submitted[w];
}

void pv_requests_drop_page(struct pv_chunk *c, unsigned page)
{
	for (struct pv_request *r = c->requests; r; r = r->next)
		bitmap_clear(r->pages, page);
}

static void request_begin(struct pv_request *r);

static void retry_done(struct loop_op *op, int res)
{
	(void)res;
	request_begin(list_entry(op, struct pv_request, retry.op));
}

static void count_latency(struct pv_engine *e, uint64_t begun_ns)
{
	uint64_t ns = clock_now_ns() - begun_ns, us = ns / 1000;
	unsigned bucket = us ? 64 - (unsigned)__builtin_clzll(us) : 0;

	e->stats.latency[bucket < PV_LATENCY_BUCKETS ? bucket : PV_LATENCY_BUCKETS - 1]++;
	e->stats.latency_ns += ns;
}

static void clear_pages(const struct pv_engine *e, uint64_t chunk, const uint64_t pages[PV_WORDS])
{
	char *map = pv_chunk_map(e, chunk);

	for (size_t i = 0, n; (n = bitmap_next_run(pages, PV_CHUNK_PAGES, &i)); i += n)
		memset(map + i * PAGE_SIZE, 0, n * PAGE_SIZE);
}

// Pages that have come become valid. A page that a copy of fill_copy.c has given another home meanwhile keeps that.
static void take_in(struct pv_request *r)
{
	struct pv_engine *e = r->e;
	struct pv_pages *p = pv_pages_of(e, r->chunk);
	uint64_t source[PV_WORDS], zero[PV_WORDS], before = pv_chunk_missing(e, r->chunk);

	pv_pages_of_home(p, PV_HOME_SOURCE, source);
	for (unsigned w = 0; w < PV_WORDS; w++) {
		zero[w] = r->from == PV_HOME_SOURCE ? r->source.zero[w] & r->pages[w] : 0;
		source[w] &= r->pages[w];
	}
	clear_pages(e, r->chunk, zero);
	pv_pages_set_valid(p, r->pages, true);
	for (unsigned w = 0; w < PV_WORDS; w++) {
		zero[w] &= source[w];
		source[w] &= e->o.source_once ? ~zero[w] : 0;
	}
	pv_pages_set_home(p, zero, PV_HOME_ZERO);
	pv_pages_set_home(p, source, PV_HOME_NONE);
	e->missing += pv_chunk_missing(e, r->chunk) - before;
}

// The pages are in the memfd, but for those that the guest discarded while they were being read.
static void request_succeeded(struct pv_request *r)
{
	struct pv_engine *e = r->e;
	struct pv_chunk *c = &e->chunks[r->chunk];
	struct pv_request **at = &c->requests;
	uint64_t dropped[PV_WORDS];

	while (*at != r)
		at = &(*at)->next;
	*at = r->next;
	take_in(r);
	for (unsigned w = 0; w < PV_WORDS; w++)
		dropped[w] = r->submitted[w] & ~r->pages[w];
	*(r->from == PV_HOME_SWAP ? &e->stats.in_swap : &e->stats.in_source) += bitmap_count(r->pages, PV_CHUNK_PAGES);
	pv_map_pages(e, r->chunk, r->pages);
	count_latency(e, r->begun_ns);
	if (!bitmap_empty(dropped, PV_CHUNK_PAGES)) {
		pv_drop_pages(e, r->chunk, dropped);
		mm_uffd_wake(e->o.uffd, pv_chunk_hva(e, r->chunk), pv_chunk_nr_pages(e, r->chunk) * PAGE_SIZE);
	}
	pv_chunk_settle(e, r->chunk);
	free(r);
}

// Of a read that failed, all but the touched page: it may be another one that cannot be read. Who waits for one of them asks again.
// False: there are no others, or none but these; there is nothing new to be asked for.
static bool give_up_others(struct pv_request *r)
{
	struct pv_engine *e = r->e;
	uint64_t others[PV_WORDS];

	memcpy(others, r->submitted, sizeof others);
	bitmap_clear(others, r->touched);
	if (bitmap_empty(others, PV_CHUNK_PAGES))
		return false;
	for (unsigned w = 0; w < PV_WORDS; w++) {
		r->pages[w] &= ~others[w];
		r->submitted[w] &= ~others[w];
	}
	pv_drop_pages(e, r->chunk, others);
	mm_uffd_wake(e->o.uffd, pv_chunk_hva(e, r->chunk), pv_chunk_nr_pages(e, r->chunk) * PAGE_SIZE);
	return !bitmap_empty(r->submitted, PV_CHUNK_PAGES);
}

static void request_done(struct pv_request *r, int err, const char *what)
{
	struct pv_engine *e = r->e;

	if (!err && r->from == PV_HOME_SOURCE && !r->waiting) {
		pv_fill_answered(e, clock_now_ns() - r->begun_ns);
	} else if (err && r->from == PV_HOME_SOURCE && give_up_others(r)) {
		r->retry.op.done = retry_done;
		loop_timer(e->o.loop, &r->retry, 0);
		return;
	} else if (err && !bitmap_empty(r->pages, PV_CHUNK_PAGES)) {
		e->trouble = what;
		e->trouble_err = err;
		if (!r->waiting) {
			r->waiting = true;
			e->reads_waiting++;
			e->swap_reads_waiting += r->from == PV_HOME_SWAP;
			log_err("%s: %s; the guest waits for chunk %lu, trying again", what, strerror(-err), r->chunk);
		}
		r->retry.op.done = retry_done;
		loop_timer(e->o.loop, &r->retry, RETRY_NS);
		return;
	}
	if (r->waiting) {
		e->reads_waiting--;
		e->swap_reads_waiting -= r->from == PV_HOME_SWAP;
		if (!err)
			log_warn("chunk %lu could be read now; the guest goes on", r->chunk);
	}
	request_succeeded(r);
}

static void swap_read_done(struct loop_op *op, int res)
{
	struct pv_request *r = list_entry(op, struct pv_request, op);
	size_t len = bitmap_count(r->submitted, PV_CHUNK_PAGES) * PAGE_SIZE;

	request_done(r, res < 0 ? res : (size_t)res < len ? -EIO : 0, "the swap image cannot be read");
}

void pv_source_done(struct pv_engine *e, struct pv_source_read *rd, int err, const char *what)
{
	(void)e;
	rd->done(rd, err, what);
}

static void source_read_done(struct pv_source_read *rd, int err, const char *what)
{
	request_done(list_entry(rd, struct pv_request, source), err, what);
}

static void request_begin(struct pv_request *r)
{
	struct pv_engine *e = r->e;

	if (r->from == PV_HOME_SOURCE) {
		r->source.chunk = r->chunk;
		r->source.dest = pv_chunk_map(e, r->chunk);
		r->source.done = source_read_done;
		memset(r->source.zero, 0, sizeof r->source.zero);
		memcpy(r->source.pages, r->submitted, sizeof r->source.pages);
		e->o.ops->source_read(e->o.ops->ctx, &r->source);
	} else { // one run
		size_t first = 0, nr = bitmap_next_run(r->submitted, PV_CHUNK_PAGES, &first);

		r->op.done = swap_read_done;
		loop_read(e->o.loop, &r->op, e->o.swap->fd, pv_chunk_map(e, r->chunk) + first * PAGE_SIZE, nr * PAGE_SIZE,
			  r->chunk * PV_CHUNK_SIZE + first * PAGE_SIZE);
	}
}

// touched: the page that all this is for, maybe one of these.
static void request_new(struct pv_engine *e, uint64_t chunk, enum pv_home from, unsigned touched, const uint64_t pages[PV_WORDS], uint64_t now)
{
	struct pv_request *r = pv_alloc(sizeof *r);

	r->e = e;
	r->chunk = chunk;
	r->from = from;
	r->touched = touched;
	r->begun_ns = now;
	memcpy(r->pages, pages, sizeof r->pages);
	memcpy(r->submitted, pages, sizeof r->submitted);
	r->next = e->chunks[chunk].requests;
	e->chunks[chunk].requests = r;
	request_begin(r);
}

static void bring_in_zeros(struct pv_engine *e, uint64_t chunk, const uint64_t pages[PV_WORDS], uint64_t now)
{
	clear_pages(e, chunk, pages);
	pv_pages_set_valid(pv_pages_of(e, chunk), pages, true);
	e->stats.in_zero += bitmap_count(pages, PV_CHUNK_PAGES);
	pv_map_pages(e, chunk, pages);
	count_latency(e, now);
}

// How many pages in a row are valid right before `page`, at most PV_CHUNK_PAGES, into the chunk before if need be.
static unsigned run_before(const struct pv_engine *e, uint64_t chunk, unsigned page)
{
	const struct pv_pages *p = pv_pages_of(e, chunk);
	unsigned n = 0;

	while (n < page && bitmap_test(p->valid, page - 1 - n))
		n++;
	if (n == page && chunk && pv_block_of(e, chunk) == pv_block_of(e, chunk - 1))
		for (p--; n < PV_CHUNK_PAGES && bitmap_test(p->valid, PV_CHUNK_PAGES - 1 - (n - page));)
			n++;
	return n;
}

// The same behind it, within the chunk.
static unsigned run_behind(const struct pv_engine *e, uint64_t chunk, unsigned page)
{
	return (unsigned)bitmap_next(pv_pages_of(e, chunk)->valid, PV_CHUNK_PAGES, page + 1, false) - page - 1;
}

// What is brought in with a page. Of an empty one its neighbours. Of another as the kernel's readahead does it: a few around
// it if it stands alone; twice what was there before if it continues something, so that a scan soon comes by whole chunks
// and scattered accesses never pay for one. What a fill is about to bring is hardly read twice, but for the page itself. What is at
// another side of the source is never read with it.
static void window_of(const struct pv_engine *e, uint64_t chunk, unsigned page, uint64_t want[PV_WORDS])
{
	const struct pv_pages *p = pv_pages_of(e, chunk);
	bool zero = pv_page_home(p, page) == PV_HOME_ZERO;
	unsigned nr = pv_chunk_nr_pages(e, chunk), size = zero ? ZERO_WINDOW : FIRST_WINDOW, first = page / size * size, end = first + size;
	uint64_t inside[PV_WORDS] = { 0 }, empty[PV_WORDS], flight[PV_WORDS], not[PV_WORDS], source[PV_WORDS], side[PV_WORDS];
	unsigned before = zero ? 0 : run_before(e, chunk, page), behind = zero ? 0 : run_behind(e, chunk, page);

	if (before >= FIRST_WINDOW)
		end = page + 2 * before > end ? page + 2 * before : end;
	else if (behind >= FIRST_WINDOW)
		first = page < 2 * behind ? 0 : page - 2 * behind;
	end = end < nr ? end : nr;
	bitmap_set_range(inside, first, end - first);
	pv_pages_of_home(p, PV_HOME_ZERO, empty);
	pv_pages_in_flight(&e->chunks[chunk], flight);
	pv_fill_not_again(e, chunk, page, not);
	pv_pages_of_home(p, PV_HOME_SOURCE, source);
	memcpy(side, source, sizeof side);
	pv_keep_side(e, chunk, e->o.in_images && bitmap_test(e->o.in_images[chunk], page), side);
	for (unsigned w = 0; w < PV_WORDS; w++) {
		want[w] = inside[w] & ~p->valid[w] & ~flight[w] & ~not[w] & (zero ? empty[w] : ~empty[w]);
		want[w] &= side[w] | ~source[w];
	}
}

void pv_expect_pages(struct pv_engine *e, uint64_t chunk, const uint64_t pages[PV_WORDS])
{
	struct pv_chunk *c = &e->chunks[chunk];

	e->charged += bitmap_count(pages, PV_CHUNK_PAGES);
	if (e->charged > e->budget && e->charged - e->budget > e->stats.overdraft_max)
		e->stats.overdraft_max = e->charged - e->budget;
	if (c->state == PV_ABSENT)
		pv_chunk_set_state(c, PV_RESIDENT);
	pv_queues_remove(&e->queues, c);
}

static void read_pages(struct pv_engine *e, uint64_t chunk, unsigned page, const uint64_t want[PV_WORDS])
{
	const struct pv_pages *p = pv_pages_of(e, chunk);
	uint64_t zero[PV_WORDS], swap[PV_WORDS], source[PV_WORDS], now = clock_now_ns();

	pv_pages_of_home(p, PV_HOME_ZERO, zero);
	pv_pages_of_home(p, PV_HOME_SWAP, swap);
	pv_pages_of_home(p, PV_HOME_SOURCE, source);
	for (unsigned w = 0; w < PV_WORDS; w++) {
		zero[w] &= want[w];
		swap[w] &= want[w];
		source[w] &= want[w];
	}
	e->last_page_in_ns = now;
	pv_expect_pages(e, chunk, want);
	if (!bitmap_empty(zero, PV_CHUNK_PAGES))
		bring_in_zeros(e, chunk, zero, now);
	if (!bitmap_empty(source, PV_CHUNK_PAGES)) {
		pv_fill_asked_again(e, chunk, source);
		request_new(e, chunk, PV_HOME_SOURCE, page, source, now);
	}
	for (size_t i = 0, n; (n = bitmap_next_run(swap, PV_CHUNK_PAGES, &i)); i += n) {
		uint64_t run[PV_WORDS] = { 0 };

		bitmap_set_range(run, i, n);
		request_new(e, chunk, PV_HOME_SWAP, page, run, now);
	}
	pv_chunk_settle(e, chunk);
}

// Only a drain, or what must come before the first one, may depend on the fault; all else that makes room does not. A vCPU's
// fault comes in question only when that takes longer than it does.
static bool may_overdraw(const struct pv_engine *e, bool vcpu, uint64_t now)
{
	return (e->held && (!vcpu || now - e->begun_ns > LONG_HOLD_NS)) || e->drain_failing || (e->drain_busy && (!vcpu || now - e->drain_begun_ns > LONG_DRAIN_NS));
}

static uint64_t overdraft_delay(const struct pv_engine *e)
{
	uint64_t over = e->charged > e->budget ? (e->charged - e->budget) * PAGE_SIZE / (4 * MiB) : 0;

	return NSEC_PER_MSEC << (over < 16 ? over : 16); // a drain that never ends has a bound, too
}

static void delay(struct pv_engine *e, uint64_t off, bool vcpu)
{
	struct delayed *d = pv_alloc(sizeof *d);

	d->off = off;
	d->vcpu = vcpu;
	d->due_ns = clock_now_ns() + (vcpu ? overdraft_delay(e) : 0);
	list_append(&e->delayed, &d->link);
	e->stats.faults_delayed++;
	if (!e->delay_timer.op.busy)
		loop_timer(e->o.loop, &e->delay_timer, DELAY_TICK_NS);
}

void pv_delay_timer_done(struct loop_op *op, int res)
{
	(void)op; // the round that it causes ends in pv_balance(), which serves them
	(void)res;
}

void pv_serve_delayed(struct pv_engine *e)
{
	struct list waiting;
	uint64_t now;

	if (list_empty(&e->delayed))
		return;
	now = clock_now_ns();
	list_init(&waiting);
	list_splice(&waiting, &e->delayed);
	list_for_each(&waiting, node) {
		struct delayed *d = list_entry(node, struct delayed, link);

		if (pv_make_free(e, 1) || (now >= d->due_ns && may_overdraw(e, d->vcpu, now))) {
			pv_serve(e, d->off, d->vcpu, true);
			free(d);
		} else {
			list_append(&e->delayed, &d->link);
		}
	}
	if (!list_empty(&e->delayed) && !e->delay_timer.op.busy)
		loop_timer(e->o.loop, &e->delay_timer, DELAY_TICK_NS);
}

void pv_page_in(struct pv_engine *e, uint64_t chunk, unsigned page, bool vcpu, bool overdue)
{
	uint64_t want[PV_WORDS], flight[PV_WORDS];
	size_t nr;

	pv_pages_in_flight(&e->chunks[chunk], flight);
	if (bitmap_test(flight, page))
		return; // the end of that read wakes this one, too
	window_of(e, chunk, page, want);
	nr = bitmap_count(want, PV_CHUNK_PAGES);
	if (nr > 1 && !pv_make_free(e, nr + e->reserve)) {
		memset(want, 0, sizeof want);
		bitmap_set(want, page);
		nr = 1;
	}
	if (nr == 1 && !pv_make_free(e, 1) && !overdue && (vcpu || !may_overdraw(e, vcpu, clock_now_ns()))) {
		delay(e, chunk * PV_CHUNK_SIZE + page * PAGE_SIZE, vcpu);
		return;
	}
	read_pages(e, chunk, page, want);
}
