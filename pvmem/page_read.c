// SPDX-License-Identifier: GPL-2.0-only
// Pages are read into the memfd, and mapped when they have come.
//
// Where to. A folio of 1 MiB for a chunk that comes in whole, where the host has them (folio.h). Else straight into the memfd by its
// mapping of small pages. Of many pages at a time the faults of such a read are most of what a page-in costs: a thread of the kernel's
// takes them, and this one maps meanwhile what has come before. By a buffer and a write() they cost a third less in all, but of
// this thread's time: so it is done while there is writing, which wants the CPUs, too.
#include <assert.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "pvmem/engine_int.h"
#include "util/io.h"
#include "util/log.h"

#define RETRY_NS (NSEC_PER_SEC / 2) // between attempts to read what can't be read
#define MANY_PAGES 64               // a run of so many is read apart, or goes by a buffer

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

bool pv_requests_ask(struct pv_chunk *c, unsigned page)
{
	for (struct pv_request *r = c->requests; r; r = r->next)
		if (bitmap_test(r->submitted, page)) {
			bitmap_set(r->asked, page);
			return true;
		}
	return false;
}

static void request_begin(struct pv_request *r);

static void retry_done(struct loop_op *op, int res)
{
	(void)res;
	request_begin(list_entry(op, struct pv_request, retry.op));
}

// How long it took.
static uint64_t count_latency(struct pv_engine *e, uint64_t begun_ns)
{
	uint64_t ns = clock_now_ns() - begun_ns, us = ns / 1000;
	unsigned bucket = us ? 64 - (unsigned)__builtin_clzll(us) : 0;

	e->stats.latency[bucket < PV_LATENCY_BUCKETS ? bucket : PV_LATENCY_BUCKETS - 1]++;
	e->stats.latency_ns += ns;
	return ns;
}

static void clear_pages(char *map, const uint64_t pages[PV_WORDS])
{
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
	clear_pages(r->dest, zero);
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
	uint64_t dropped[PV_WORDS], map[PV_WORDS], ns;

	while (*at != r)
		at = &(*at)->next;
	*at = r->next;
	take_in(r);
	for (unsigned w = 0; w < PV_WORDS; w++) {
		dropped[w] = r->submitted[w] & ~r->pages[w];
		map[w] = r->pages[w] & (~r->leave[w] | r->asked[w]);
		if (r->samples)
			pv_maps_of(e, r->chunk)->sample[w] |= r->pages[w] & ~map[w];
	}
	*(r->from == PV_HOME_SWAP ? &e->stats.in_swap : &e->stats.in_source) += bitmap_count(r->pages, PV_CHUNK_PAGES);
	pv_map_pages(e, r->chunk, map);
	ns = count_latency(e, r->begun_ns);
	PROBE(page_in_end, r->chunk, bitmap_next(r->submitted, PV_CHUNK_PAGES, 0, true), bitmap_count(r->pages, PV_CHUNK_PAGES), r->from, ns);
	if (!bitmap_empty(dropped, PV_CHUNK_PAGES)) {
		pv_drop_pages(e, r->chunk, dropped);
		mm_uffd_wake(e->o.uffd, pv_chunk_hva(e, r->chunk), pv_chunk_nr_pages(e, r->chunk) * PAGE_SIZE);
	}
	pv_chunk_settle(e, r->chunk);
	if (r->bounce >= 0)
		e->bounces_busy &= ~(1U << r->bounce);
	if (r->busy)
		--*r->busy;
	free(r);
}

// Of a read that failed, all that nobody asked for, or else all but one page: it may be another one that cannot be read. Who waits for one
// of them asks again. False: there are no others, or none but these; there is nothing new to be asked for.
static bool give_up_others(struct pv_request *r)
{
	struct pv_engine *e = r->e;
	uint64_t others[PV_WORDS];
	size_t first = bitmap_next(r->asked, PV_CHUNK_PAGES, 0, true);

	for (unsigned w = 0; w < PV_WORDS; w++)
		others[w] = r->submitted[w] & ~r->asked[w];
	// What is read of swap is one run: a single page is, too.
	if (bitmap_empty(others, PV_CHUNK_PAGES) || (r->from == PV_HOME_SWAP && first < PV_CHUNK_PAGES)) {
		memcpy(others, r->submitted, sizeof others);
		bitmap_clear(others, first);
	}
	if (bitmap_empty(others, PV_CHUNK_PAGES))
		return false;
	for (unsigned w = 0; w < PV_WORDS; w++) {
		r->pages[w] &= ~others[w];
		r->submitted[w] &= ~others[w];
		r->asked[w] &= ~others[w];
	}
	pv_drop_pages(e, r->chunk, others);
	mm_uffd_wake(e->o.uffd, pv_chunk_hva(e, r->chunk), pv_chunk_nr_pages(e, r->chunk) * PAGE_SIZE);
	return !bitmap_empty(r->submitted, PV_CHUNK_PAGES);
}

static void request_done(struct pv_request *r, int err, const char *what)
{
	struct pv_engine *e = r->e;

	if (!err && r->from == PV_HOME_SOURCE && !r->waiting && !bitmap_empty(r->asked, PV_CHUNK_PAGES)) {
		pv_fill_answered(e, clock_now_ns() - r->begun_ns);
	} else if (err && give_up_others(r)) {
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

// What has come in a buffer goes into the memfd; locked as what page faults allocate (see lock_some() in engine.c).
static int leave_bounce(struct pv_request *r)
{
	struct pv_engine *e = r->e;
	const struct pv_block *b = pv_block_of(e, r->chunk);
	uint64_t off = r->chunk * PV_CHUNK_SIZE - b->off;

	for (size_t i = 0, n; (n = bitmap_next_run(r->pages, PV_CHUNK_PAGES, &i)); i += n) {
		int err = io_pwrite_full(b->memfd, r->dest + i * PAGE_SIZE, n * PAGE_SIZE, off + i * PAGE_SIZE);

		if (err)
			return err;
		if (!e->o.zap_own)
			madvise(b->map + off + i * PAGE_SIZE, n * PAGE_SIZE, MADV_POPULATE_READ);
	}
	return 0;
}

static void swap_read_done(struct loop_op *op, int res)
{
	struct pv_request *r = list_entry(op, struct pv_request, op);
	size_t len = bitmap_count(r->submitted, PV_CHUNK_PAGES) * PAGE_SIZE;
	int err = res < 0 ? res : (size_t)res < len ? -EIO : 0;

	if (!err && r->bounce >= 0 && (err = leave_bounce(r)))
		request_done(r, err, "guest RAM cannot be written");
	else
		request_done(r, err, "the swap image cannot be read");
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
		r->source.dest = r->dest;
		r->source.done = source_read_done;
		memset(r->source.zero, 0, sizeof r->source.zero);
		memcpy(r->source.pages, r->submitted, sizeof r->source.pages);
		e->o.ops->source_read(e->o.ops->ctx, &r->source);
	} else { // one run
		size_t first = 0, nr = bitmap_next_run(r->submitted, PV_CHUNK_PAGES, &first);

		r->op.done = swap_read_done;
		r->op.awaited = !bitmap_empty(r->asked, PV_CHUNK_PAGES);
		loop_read(e->o.loop, &r->op, e->o.swap->fd, r->dest + first * PAGE_SIZE, nr * PAGE_SIZE,
			  r->chunk * PV_CHUNK_SIZE + first * PAGE_SIZE);
	}
}

// A buffer for a chunk, or -1: there is none now.
static int take_bounce(struct pv_engine *e)
{
	for (int i = 0; i < PV_BOUNCES; i++) {
		if (e->bounces_busy & 1U << i)
			continue;
		if (!e->bounce[i] && !(e->bounce[i] = aligned_alloc(PV_CHUNK_SIZE, PV_CHUNK_SIZE)))
			return -1;
		e->bounces_busy |= 1U << i;
		return i;
	}
	return -1;
}

static void request_new(struct pv_engine *e, const struct pv_reading *rd, enum pv_home from, const uint64_t pages[PV_WORDS])
{
	struct pv_request *r = pv_alloc(sizeof *r);
	bool many = from == PV_HOME_SWAP && rd->dest == pv_chunk_map(e, rd->chunk) && bitmap_count(pages, PV_CHUNK_PAGES) >= MANY_PAGES;

	r->e = e;
	r->chunk = rd->chunk;
	r->from = from;
	r->begun_ns = rd->now;
	r->samples = rd->samples;
	r->busy = rd->busy;
	if (r->busy)
		++*r->busy;
	memcpy(r->pages, pages, sizeof r->pages);
	memcpy(r->submitted, pages, sizeof r->submitted);
	for (unsigned w = 0; w < PV_WORDS; w++) {
		r->asked[w] = rd->asked[w] & pages[w];
		r->leave[w] = rd->leave[w] & pages[w];
	}
	r->dest = rd->dest;
	r->op.apart = many && !e->nr_writes;
	r->bounce = many && e->nr_writes ? take_bounce(e) : -1;
	if (r->bounce >= 0)
		r->dest = e->bounce[r->bounce];
	r->next = e->chunks[rd->chunk].requests;
	e->chunks[rd->chunk].requests = r;
	PROBE(page_in_begin, rd->chunk, bitmap_next(pages, PV_CHUNK_PAGES, 0, true), bitmap_count(pages, PV_CHUNK_PAGES), from);
	request_begin(r);
}

static void bring_in_zeros(struct pv_engine *e, const struct pv_reading *rd, const uint64_t pages[PV_WORDS])
{
	uint64_t map[PV_WORDS];

	clear_pages(rd->dest, pages);
	pv_pages_set_valid(pv_pages_of(e, rd->chunk), pages, true);
	e->stats.in_zero += bitmap_count(pages, PV_CHUNK_PAGES);
	for (unsigned w = 0; w < PV_WORDS; w++)
		map[w] = pages[w] & ~rd->leave[w];
	pv_map_pages(e, rd->chunk, map);
	count_latency(e, rd->now);
}

void pv_expect_pages(struct pv_engine *e, uint64_t chunk, const uint64_t pages[PV_WORDS])
{
	const struct pv_block *b = pv_block_of(e, chunk);
	struct pv_chunk *c = &e->chunks[chunk];

	assert(c->state != PV_STRIPPING); // what is mapped there now could be written to unseen
	e->charged += bitmap_count(pages, PV_CHUNK_PAGES) - pv_folio_reuse(&e->folio, b, chunk * PV_CHUNK_SIZE - b->off, pages);
	if (e->charged > e->budget && e->charged - e->budget > e->stats.overdraft_max)
		e->stats.overdraft_max = e->charged - e->budget;
	if (c->state == PV_ABSENT)
		pv_enter_state(e, c, PV_RESIDENT);
	pv_chunk_unlist(e, c);
}

// Before anything of the chunk is written to.
static char *choose_dest(struct pv_engine *e, uint64_t chunk, const uint64_t want[PV_WORDS])
{
	const struct pv_block *b = pv_block_of(e, chunk);
	char *dest = b->huge && bitmap_count(want, PV_CHUNK_PAGES) == PV_CHUNK_PAGES ?
		     pv_folio_dest(&e->folio, b, chunk * PV_CHUNK_SIZE - b->off) : NULL;

	e->chunks[chunk].folio |= dest != NULL;
	return dest ? dest : pv_chunk_map(e, chunk);
}

static void read_swap(struct pv_engine *e, const struct pv_reading *rd, const uint64_t swap[PV_WORDS])
{
	for (size_t i = 0, n; (n = bitmap_next_run(swap, PV_CHUNK_PAGES, &i)); i += n) {
		uint64_t run[PV_WORDS] = { 0 };

		bitmap_set_range(run, i, n);
		request_new(e, rd, PV_HOME_SWAP, run);
	}
}

// No read is for pages of both sides of the source.
static void read_source(struct pv_engine *e, const struct pv_reading *rd, const uint64_t source[PV_WORDS])
{
	for (unsigned images = 0; images <= (e->o.in_images != NULL); images++) {
		uint64_t side[PV_WORDS];

		memcpy(side, source, sizeof side);
		pv_keep_side(e, rd->chunk, images, side);
		if (bitmap_empty(side, PV_CHUNK_PAGES))
			continue;
		pv_fill_asked_again(e, rd->chunk, side);
		request_new(e, rd, PV_HOME_SOURCE, side);
	}
}

void pv_read_pages(struct pv_engine *e, struct pv_reading *rd, const uint64_t want[PV_WORDS])
{
	const struct pv_pages *p = pv_pages_of(e, rd->chunk);
	uint64_t zero[PV_WORDS], swap[PV_WORDS], source[PV_WORDS];

	pv_pages_of_home(p, PV_HOME_ZERO, zero);
	pv_pages_of_home(p, PV_HOME_SWAP, swap);
	pv_pages_of_home(p, PV_HOME_SOURCE, source);
	for (unsigned w = 0; w < PV_WORDS; w++) {
		zero[w] &= want[w];
		swap[w] &= want[w];
		source[w] &= want[w];
	}
	pv_expect_pages(e, rd->chunk, want);
	rd->dest = choose_dest(e, rd->chunk, want);
	if (!bitmap_empty(zero, PV_CHUNK_PAGES))
		bring_in_zeros(e, rd, zero);
	read_source(e, rd, source);
	read_swap(e, rd, swap);
	pv_chunk_settle(e, rd->chunk);
}

