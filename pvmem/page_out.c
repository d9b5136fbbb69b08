// SPDX-License-Identifier: GPL-2.0-only
#include <assert.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "pvmem/engine_int.h"
#include "util/log.h"

#define MAX_ZAPS 128                     // chunks being zapped at a time: the ring's thread spins for milliseconds after each burst
#define BURST_PART 16                    // of the budget: so much is zapped in a burst, if there are not more
#define MAX_REFUSED 4                    // victims that the zapper will not take, in one step
#define WRITE_RETRY_NS NSEC_PER_SEC      // after a write-out that failed
#define DRAIN_LATE_NS (10 * NSEC_PER_SEC)
#define DRAIN_PAUSE 10                   // times what a drain took passes before the next
#define DRAIN_PAUSE_MIN_NS (10 * NSEC_PER_MSEC)
#define SAMPLE_PERIODS 2                 // of the queues: so long after a page-out chunks are sampled
#define ONCE_PART 8                      // of the budget: what is used once may have so much, and goes first beyond
#define SCAN_PART 64                     // of the budget: what is used once stays mapped as long as there is not more of it

bool pv_is_out(const struct pv_chunk *c)
{
	return c->state != PV_ABSENT && c->state != PV_RESIDENT;
}

// One success says nothing: a full disk still takes what it has blocks for, and the guest waits all the same for the rest.
static void out_went_well(struct pv_engine *e)
{
	if (clock_now_ns() > e->out_not_before_ns + WRITE_RETRY_NS)
		e->out_failing_since_ns = 0;
}

// Where the pages of a stage are counted; NULL: nowhere.
static uint64_t *count_of(struct pv_engine *e, enum pv_chunk_state s)
{
	switch (s) {
	case PV_ZAPPING:
	case PV_IDLE:
		return &e->nr_idle;
	case PV_DRAINING:
	case PV_WRITING:
		return &e->nr_out;
	case PV_STANDBY:
		return &e->nr_standby;
	default:
		return NULL;
	}
}

static void count_out(struct pv_engine *e, const struct pv_chunk *c, int64_t pages)
{
	uint64_t *count = count_of(e, c->state);

	if (count)
		*count += (uint64_t)pages;
}

static void count_scanned(struct pv_engine *e, struct pv_chunk *c, bool scanned)
{
	e->nr_scanned += (uint64_t)scanned - c->scanned;
	c->scanned = scanned;
}

// The chunk goes on to a stage: on its list, and counted there.
void pv_enter_stage(struct pv_engine *e, struct pv_chunk *c, enum pv_chunk_state s, struct list *l)
{
	if (s != PV_ZAPPING && s != PV_IDLE)
		count_scanned(e, c, false);
	count_out(e, c, -c->out_pages);
	list_remove(&c->link);
	pv_enter_state(e, c, s);
	list_append(l, &c->link);
	count_out(e, c, c->out_pages);
	if (s == PV_STANDBY)
		out_went_well(e);
}

void pv_stay(struct pv_engine *e, uint64_t chunk, const uint64_t which[PV_WORDS])
{
	struct pv_chunk *c = &e->chunks[chunk];
	struct pv_maps *m = pv_maps_of(e, chunk);
	uint16_t before = c->out_pages;

	if (!before)
		return;
	for (unsigned w = 0; w < PV_WORDS; w++)
		m->out[w] &= ~which[w];
	c->out_pages = (uint16_t)bitmap_count(m->out, PV_CHUNK_PAGES);
	count_out(e, c, c->out_pages - before);
}

static void leave_stages(struct pv_engine *e, uint64_t chunk, enum pv_chunk_state s)
{
	struct pv_chunk *c = &e->chunks[chunk];

	count_scanned(e, c, false);
	count_out(e, c, -c->out_pages);
	list_remove(&c->link);
	memset(pv_maps_of(e, chunk)->out, 0, sizeof pv_maps_of(e, chunk)->out);
	c->out_pages = 0;
	pv_enter_state(e, c, s);
}

// Resident again, and as recently used as a chunk can be that was on its way out. What was not touched stays unmapped.
static void come_back(struct pv_engine *e, uint64_t chunk)
{
	struct pv_chunk *c = &e->chunks[chunk];

	leave_stages(e, chunk, PV_RESIDENT);
	if (!c->nr_writes && !c->requests)
		pv_queues_return(&e->queues, c);
	pv_chunk_settle(e, chunk);
}

void pv_rescue(struct pv_engine *e, uint64_t chunk)
{
	assert(e->chunks[chunk].state != PV_ZAPPING);
	come_back(e, chunk);
}

void pv_leave_idle(struct pv_engine *e, uint64_t chunk)
{
	struct pv_chunk *c = &e->chunks[chunk];

	assert(c->state == PV_IDLE);
	leave_stages(e, chunk, PV_RESIDENT);
	c->untouched = true;
	pv_chunk_settle(e, chunk);
}

// What was touched on its way out stays; all else of it goes.
static void punch_chunk(struct pv_engine *e, uint64_t chunk)
{
	struct pv_chunk *c = &e->chunks[chunk];
	const struct pv_pages *p = pv_pages_of(e, chunk);
	uint64_t homeless[PV_WORDS], out[PV_WORDS];

	memcpy(out, pv_maps_of(e, chunk)->out, sizeof out);
	pv_pages_of_home(p, PV_HOME_NONE, homeless);
	for (unsigned w = 0; w < PV_WORDS; w++)
		homeless[w] &= out[w];
	if (!bitmap_empty(homeless, PV_CHUNK_PAGES)) {
		log_err("chunk %lu would be dropped with pages that are nowhere else", chunk);
		abort(); // rather than lose them: another pager can take over
	}
	pv_drop_pages(e, chunk, out);
	if (e->budget > e->goal) { // half of what has gone is given up, however many faults wait for it
		uint64_t half = bitmap_count(out, PV_CHUNK_PAGES) / 2;

		e->budget -= half < e->budget - e->goal ? half : e->budget - e->goal;
	}
	e->stats.chunks_out++;
	if (c->requests || c->nr_writes || !bitmap_empty(p->valid, PV_CHUNK_PAGES)) {
		come_back(e, chunk);
		return;
	}
	leave_stages(e, chunk, PV_ABSENT);
	pv_tables_absent(e, chunk);
	pv_chunk_settle(e, chunk);
}

bool pv_make_free(struct pv_engine *e, uint64_t pages, unsigned max)
{
	while (pv_free_pages(e) < pages && !list_empty(&e->standby) && max--)
		punch_chunk(e, pv_chunk_index(e, list_first(&e->standby, struct pv_chunk, link)));
	return pv_free_pages(e) >= pages;
}

void pv_out_failed(struct pv_engine *e, const char *what, int err)
{
	uint64_t now = clock_now_ns();

	if (!e->out_failing_since_ns)
		e->out_failing_since_ns = now;
	e->trouble = what;
	e->trouble_err = err;
	e->out_not_before_ns = now + WRITE_RETRY_NS;
}

void pv_drain_timer_done(struct loop_op *op, int res)
{
	(void)op; // the round that it causes ends in pv_balance()
	(void)res;
}

void pv_drained(struct pv_engine *e, int err)
{
	uint64_t now = clock_now_ns(), ns = now - e->drain_begun_ns;

	PROBE(drain_end, err, ns);
	e->drain_busy = false;
	e->next_drain_ns = now + (ns * DRAIN_PAUSE < DRAIN_PAUSE_MIN_NS ? DRAIN_PAUSE_MIN_NS : ns * DRAIN_PAUSE);
	e->stats.drains++;
	e->stats.drain_ns += ns;
	if (ns > e->stats.drain_ns_max)
		e->stats.drain_ns_max = ns;
	if (e->drain_late)
		log_warn("QEMU's block I/O was drained after %lu s", ns / NSEC_PER_SEC);
	e->drain_late = false;
	if (!err && e->drain_failing)
		e->out_failing_since_ns = 0;
	e->drain_failing = err;
	if (!err)
		list_splice(&e->drained, &e->draining);
	while (!list_empty(&e->draining))
		come_back(e, pv_chunk_index(e, list_first(&e->draining, struct pv_chunk, link)));
	if (err)
		pv_out_failed(e, "QEMU's block I/O cannot be drained", err);
}

// Unmapped for a snapshot, and otherwise as before.
static void zapped_only(struct pv_engine *e, uint64_t chunk)
{
	struct pv_chunk *c = &e->chunks[chunk];

	leave_stages(e, chunk, PV_RESIDENT);
	c->untouched = !c->wake;
	c->zap_only = false;
	pv_chunk_settle(e, chunk);
}

static void zap_done(struct pv_engine *e, uint64_t chunk, int res)
{
	struct pv_chunk *c = &e->chunks[chunk];
	bool wake = c->wake || res;

	c->zap_event = false;
	pv_pages_of(e, chunk)->zapping = 0;
	e->nr_zapping--;
	if (c->zap_only)
		pv_harvest_chunk(e, chunk); // so that the same is not found again when it was touched
	else
		pv_harvest_zapped(e, chunk);
	if (res && res != -EAGAIN)
		log_warn("cannot zap chunk %lu: %s; it stays in memory", chunk, strerror(-res));
	if (res)
		c->foreign = true; // who knows what is mapped
	else
		pv_forget_mappings(e, chunk);
	if (c->zap_only)
		zapped_only(e, chunk);
	else if (res || !c->out_pages) // or all of it was given back meanwhile
		come_back(e, chunk);
	else
		pv_enter_stage(e, c, PV_IDLE, &e->idle);
	c->wake = false;
	if (wake) // who touched a page meanwhile was not answered, and faults again
		mm_uffd_wake(e->o.uffd, pv_chunk_hva(e, chunk), pv_chunk_nr_pages(e, chunk) * PAGE_SIZE);
}

void pv_zap_poll_done(struct loop_op *op, int res)
{
	struct pv_engine *e = list_entry(op, struct pv_engine, zap_poll);
	uint64_t chunk;
	int zapped;

	while (mm_zap_reap(e->o.zapper, &chunk, &zapped))
		if (!pv_tables_zapped(e, chunk, zapped))
			zap_done(e, chunk, zapped);
	if (res >= 0)
		loop_poll_in(e->o.loop, op, mm_zap_fd(e->o.zapper));
	else
		log_err("cannot wait for zaps: %s; nothing is paged out any more", strerror(-res));
}

void pv_learn_unused(struct pv_engine *e, uint64_t chunk)
{
	struct pv_maps *m = pv_maps_of(e, chunk);
	unsigned unused = (unsigned)bitmap_count(m->sample, PV_CHUNK_PAGES);

	if (!unused)
		return;
	pv_adapt_learn(&e->adapt, &e->chunks[chunk].history, e->chunks[chunk].window, unused, 0);
	e->stats.sampled += unused;
	memset(m->sample, 0, sizeof m->sample);
}

int pv_zap(struct pv_engine *e, struct pv_chunk *c, bool only)
{
	uint64_t chunk = pv_chunk_index(e, c), len = pv_chunk_nr_pages(e, chunk) * PAGE_SIZE;
	int r;

	if (e->o.zap_own)
		pv_unmap_own(e, chunk);
	pv_pages_of(e, chunk)->zapping = PV_ZAPPING_CHUNK;
	r = mm_zap_queue(e->o.zapper, pv_chunk_hva(e, chunk), len, chunk);
	if (r) {
		pv_pages_of(e, chunk)->zapping = 0;
		return r;
	}
	count_scanned(e, c, c->once);
	pv_chunk_unlist(e, c);
	c->zap_only = only;
	c->zap_event = !e->o.zap_own; // MADV_PAGEOUT raises none
	e->nr_zapping++;
	pv_enter_stage(e, c, PV_ZAPPING, &e->zapping);
	if (only)
		return 0;
	e->sampling.zaps++;
	pv_learn_unused(e, chunk);
	memcpy(pv_maps_of(e, chunk)->out, pv_pages_of(e, chunk)->valid, sizeof pv_maps_of(e, chunk)->out);
	c->out_pages = (uint16_t)bitmap_count(pv_maps_of(e, chunk)->out, PV_CHUNK_PAGES);
	count_out(e, c, c->out_pages);
	return 0;
}

// By how many pages those that are free, or will be soon, fall short of the target.
static uint64_t lacking(const struct pv_engine *e)
{
	uint64_t used = e->charged + e->target, soon_free = e->goal + e->nr_out + e->nr_standby;

	return used > soon_free ? used - soon_free : 0;
}

// What a scan went through goes first, as long as there is much of it, unmapped to see who comes back or not: it does not wash out what is
// used again and again. NULL: none is needed; or there is none.
static struct pv_chunk *next_victim(const struct pv_engine *e, bool needed)
{
	struct pv_chunk *oldest = pv_queues_oldest(&e->queues);
	bool scan = (e->nr_once + e->nr_scanned) * PV_CHUNK_PAGES > e->goal / ONCE_PART;

	if (!list_empty(&e->once) && (!oldest || (scan && e->nr_once * PV_CHUNK_PAGES > e->goal / SCAN_PART)))
		return list_first(&e->once, struct pv_chunk, link);
	return scan && !needed ? NULL : oldest;
}

static void choose_victims(struct pv_engine *e, uint64_t idle)
{
	uint64_t burst = e->goal / BURST_PART < MAX_ZAPS * PV_CHUNK_PAGES ? e->goal / BURST_PART : MAX_ZAPS * PV_CHUNK_PAGES;
	uint64_t lack = lacking(e);
	unsigned refused = 0;

	if (e->nr_zapping || (e->nr_idle >= lack && e->nr_idle + burst > idle))
		return;
	while (e->nr_idle < idle && e->nr_zapping < MAX_ZAPS && refused < MAX_REFUSED) {
		struct pv_chunk *victim = next_victim(e, e->nr_idle < lack);
		int r = victim ? pv_zap(e, victim, false) : -EBUSY;

		if (r == -EBUSY)
			break;
		if (r) { // another one's turn
			refused++;
			pv_chunk_unlist(e, victim);
			pv_queues_add(&e->queues, victim);
		}
	}
	mm_zap_submit(e->o.zapper);
}

// One drain for all that is to go by now; what comes while it runs waits for the next. They keep a distance, since a drain costs
// the guest's disks something, however few chunks it is for; unless memory runs short.
static void drain(struct pv_engine *e, uint64_t now)
{
	bool early = now < e->next_drain_ns && pv_free_pages(e) + e->nr_standby > e->low;

	if (e->drain_busy || list_empty(&e->leaving))
		return;
	if (early) {
		if (!e->drain_timer.op.busy)
			loop_timer(e->o.loop, &e->drain_timer, e->next_drain_ns - now);
		return;
	}
	list_splice(&e->draining, &e->leaving);
	e->drain_busy = true;
	e->drain_begun_ns = now;
	PROBE(drain_begin, e->nr_out);
	e->o.ops->drain(e->o.ops->ctx);
}

bool pv_may_punch(const struct pv_engine *e)
{
	return (pv_free_pages(e) < e->low || e->budget > e->goal) && !list_empty(&e->standby);
}

void pv_page_out(struct pv_engine *e)
{
	uint64_t now = clock_now_ns(), lack;

	if (pv_may_punch(e)) // one, and one to be written, so that faults are not kept waiting behind them
		punch_chunk(e, pv_chunk_index(e, list_first(&e->standby, struct pv_chunk, link)));
	if (e->drain_busy && !e->drain_late && now - e->drain_begun_ns > DRAIN_LATE_NS) {
		e->drain_late = true;
		e->trouble = "QEMU has not drained its block I/O for 10 s; is a disk of the VM stuck?";
		e->trouble_err = 0;
		log_warn("%s", e->trouble);
	}
	pv_write_on(e);
	if (!list_empty(&e->drained))
		pv_write_out(e, pv_chunk_index(e, list_first(&e->drained, struct pv_chunk, link)));
	if (e->held || now < e->out_not_before_ns)
		return;
	lack = lacking(e);
	if (lack > e->target / 4) { // in batches
		e->sampling.periods_left = SAMPLE_PERIODS;
		choose_victims(e, lack + pv_sampling_goal(e));
		while (lacking(e) && !list_empty(&e->idle))
			pv_enter_stage(e, list_first(&e->idle, struct pv_chunk, link), PV_DRAINING, &e->leaving);
	} else if (!e->nr_out) {
		e->out_failing_since_ns = 0; // there is nothing to go any more
	}
	drain(e, now);
}
