// SPDX-License-Identifier: GPL-2.0-only
// A page is missing: how much comes with it, and whether there is room.
#include <limits.h>
#include <stdlib.h>
#include <string.h>

#include "pvmem/engine_int.h"

#define ZERO_WINDOW 16 // pages around a touched empty one that are brought in too
#define FEW_EMPTY 64   // pages, that come with a whole chunk so that it can be one folio
#define SAMPLE_BLOCK 16 // of so many pages that come unasked one is left unmapped, to see whether it is used
#define SAMPLE_CHUNK 32 // the same, with a whole chunk
#define MANY_UNUSED 4   // blocks of a chunk of which nothing was used, it seems: something else of it is missed
#define FEW_PUNCHES 2 // chunks that are punched at once for more than the touched page: it waits for them
#define DELAY_TICK_NS NSEC_PER_MSEC
#define LONG_DRAIN_NS NSEC_PER_SEC
#define LONG_HOLD_NS (100 * NSEC_PER_MSEC)

// A fault that waits for memory: see "Overdraft" in engine.h.
struct delayed {
	struct list link;
	uint64_t off, due_ns;
	bool vcpu;
};

// Of these pages those that may be read together with the touched one: not in memory, nor on the way there. What is empty comes with what is
// empty, or for a folio. What a fill is about to bring is hardly read twice, but for the page itself. What is at another side of the source
// is never read with it.
static void keep_readable(const struct pv_engine *e, uint64_t chunk, unsigned page, uint64_t want[PV_WORDS])
{
	const struct pv_pages *p = pv_pages_of(e, chunk);
	uint64_t flight[PV_WORDS], not[PV_WORDS], source[PV_WORDS], side[PV_WORDS], empty[PV_WORDS];
	bool zero = pv_page_home(p, page) == PV_HOME_ZERO, for_folio;

	pv_pages_of_home(p, PV_HOME_ZERO, empty);
	for_folio = pv_block_of(e, chunk)->huge && bitmap_count(want, PV_CHUNK_PAGES) == PV_CHUNK_PAGES &&
		    bitmap_count(empty, PV_CHUNK_PAGES) <= FEW_EMPTY;
	pv_pages_in_flight(&e->chunks[chunk], flight);
	pv_fill_not_again(e, chunk, page, not);
	pv_pages_of_home(p, PV_HOME_SOURCE, source);
	memcpy(side, source, sizeof side);
	pv_keep_side(e, chunk, e->o.in_images && bitmap_test(e->o.in_images[chunk], page), side);
	for (unsigned w = 0; w < PV_WORDS; w++) {
		want[w] &= ~p->valid[w] & ~flight[w] & ~not[w] & (zero ? empty[w] : for_folio ? ~0UL : ~empty[w]);
		want[w] &= side[w] | ~source[w];
	}
}

// What a chunk was worth before, and is not any more, costs others their place as long as memory is short: that need not wait for its leaving.
static enum pv_window window_of(struct pv_engine *e, uint64_t chunk)
{
	bool short_of_memory = e->sampling.periods_left;

	if (short_of_memory && e->chunks[chunk].window == PV_WINDOW_BLOCK &&
	    bitmap_count(pv_maps_of(e, chunk)->sample, PV_CHUNK_PAGES) >= MANY_UNUSED)
		pv_learn_unused(e, chunk);
	return e->o.tuning.method == PV_METHOD_ADAPTIVE ? pv_adapt_window(&e->adapt, &e->chunks[chunk].history) : PV_WINDOW_CHUNK;
}

// Samples say something of one size of window only.
static void set_window(struct pv_engine *e, uint64_t chunk, enum pv_window window)
{
	struct pv_chunk *c = &e->chunks[chunk];
	struct pv_maps *m = pv_maps_of(e, chunk);

	if (c->window != window && window != PV_WINDOW_PAGE)
		memset(m->sample, 0, sizeof m->sample);
	if (window != PV_WINDOW_PAGE || bitmap_empty(m->sample, PV_CHUNK_PAGES))
		c->window = window;
	e->stats.windows[window]++;
}

// What is brought in with a touched page, that page included. Of an empty one its neighbours; of another what such windows were worth.
static void choose_window(struct pv_engine *e, uint64_t chunk, unsigned page, uint64_t want[PV_WORDS])
{
	static const unsigned pages_of[] = { 1, PV_BLOCK_PAGES, PV_CHUNK_PAGES };
	bool zero = pv_page_home(pv_pages_of(e, chunk), page) == PV_HOME_ZERO;
	enum pv_window window = zero ? PV_WINDOW_PAGE : window_of(e, chunk);
	unsigned size = zero ? ZERO_WINDOW : pages_of[window], first = page / size * size, nr = pv_chunk_nr_pages(e, chunk);

	memset(want, 0, PV_WORDS * sizeof *want);
	bitmap_set_range(want, first, first + size < nr ? size : nr - first);
	keep_readable(e, chunk, page, want);
	bitmap_set(want, page);
	if (zero)
		return;
	set_window(e, chunk, window);
	PROBE(window, chunk, page, window);
}

// Of pages that come unasked a few, here and there, at least one: see map.c for what is learnt from them.
static void choose_samples(struct pv_engine *e, uint64_t chunk, unsigned page, const uint64_t want[PV_WORDS], uint64_t samples[PV_WORDS])
{
	unsigned each = e->chunks[chunk].window == PV_WINDOW_CHUNK ? SAMPLE_CHUNK : SAMPLE_BLOCK;
	unsigned skip = (unsigned)((chunk * 2654435761 + page + e->stats.faults) % (each - 1));

	memset(samples, 0, PV_WORDS * sizeof *samples);
	if (e->o.tuning.method != PV_METHOD_ADAPTIVE || pv_is_out(&e->chunks[chunk]) || pv_page_home(pv_pages_of(e, chunk), page) == PV_HOME_ZERO)
		return;
	for (size_t i = 0; (i = bitmap_next(want, PV_CHUNK_PAGES, i, true)) < PV_CHUNK_PAGES; i++)
		if (i != page && !skip--) {
			bitmap_set(samples, i);
			skip = each - 1;
		}
}

// The rest of a chunk is on its way, or about to be.
static bool chunk_comes(const struct pv_engine *e)
{
	unsigned waiting = 0;

	for (unsigned i = 0; i < e->nr_rests; i++)
		waiting += bitmap_count(e->rest[i].pages, PV_CHUNK_PAGES) >= PV_BLOCK_PAGES;
	return waiting + e->rests_busy;
}

// The touched page comes first, and by itself: a disk that is asked for more lets the guest wait for more. The rest is asked for when that has
// come. Of a chunk, which the guest is not likely to want at once, there is one such read at a time, and who comes while it is under way
// gets his page only. All at once: a block that is touched at its beginning, and so is likely to be gone through; a chunk that may be a
// folio; and a block that only the source has, of which each read may cost as much as one of all.
static bool rest_comes_later(struct pv_engine *e, uint64_t chunk, unsigned page, const uint64_t want[PV_WORDS], const uint64_t samples[PV_WORDS])
{
	size_t nr = bitmap_count(want, PV_CHUNK_PAGES);
	bool folio = pv_block_of(e, chunk)->huge && nr == PV_CHUNK_PAGES, block = nr <= PV_BLOCK_PAGES;
	bool source = pv_page_home(pv_pages_of(e, chunk), page) == PV_HOME_SOURCE, begins = page % PV_BLOCK_PAGES == 0;
	struct pv_rest *rest = &e->rest[e->nr_rests];

	if (e->o.tuning.method == PV_METHOD_1 || folio || nr == 1 || (block && (source || begins)))
		return false;
	if (!block && e->o.tuning.method != PV_METHOD_2 && chunk_comes(e))
		return true;
	if (e->nr_rests == PV_RESTS)
		return !block && e->o.tuning.method != PV_METHOD_2;
	rest->chunk = chunk;
	memcpy(rest->pages, want, sizeof rest->pages);
	bitmap_clear(rest->pages, page);
	memcpy(rest->samples, samples, sizeof rest->samples);
	e->nr_rests++;
	return true;
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

		if (pv_make_free(e, 1, UINT_MAX) || (now >= d->due_ns && may_overdraw(e, d->vcpu, now))) {
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
	uint64_t want[PV_WORDS], samples[PV_WORDS], asked[PV_WORDS] = { 0 };
	struct pv_reading rd = { .chunk = chunk, .asked = asked, .leave = samples, .samples = true };
	size_t nr;

	rd.now = clock_now_ns();
	if (pv_page_home(pv_pages_of(e, chunk), page) == PV_HOME_SWAP)
		*(pv_streams_has(&e->streams, chunk * PV_CHUNK_PAGES + page) ? &e->stream_awaited_ns : &e->page_awaited_ns) = rd.now;
	if (pv_requests_ask(&e->chunks[chunk], page))
		return; // the end of that read wakes this one, too
	choose_window(e, chunk, page, want);
	nr = bitmap_count(want, PV_CHUNK_PAGES);
	if (nr > 1 && !pv_make_free(e, nr + e->reserve, FEW_PUNCHES)) {
		memset(want, 0, sizeof want);
		bitmap_set(want, page);
		nr = 1;
	}
	if (nr == 1 && !pv_make_free(e, 1, UINT_MAX) && !overdue && (vcpu || !may_overdraw(e, vcpu, rd.now))) {
		delay(e, chunk * PV_CHUNK_SIZE + page * PAGE_SIZE, vcpu);
		return;
	}
	bitmap_set(asked, page);
	choose_samples(e, chunk, page, want, samples);
	if (rest_comes_later(e, chunk, page, want, samples))
		memcpy(want, asked, sizeof want);
	e->last_page_in_ns = rd.now;
	pv_read_pages(e, &rd, want);
}
