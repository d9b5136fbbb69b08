// SPDX-License-Identifier: GPL-2.0-only
#include <assert.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "pvmem/engine_int.h"
#include "util/log.h"
#include "util/zero.h"

#define MAX_ZAPS 64                      // chunks being zapped at a time
#define PUNCHES_A_STEP 4                 // ahead of need; few, so that faults are not kept waiting behind them
#define WRITES_A_STEP 8                  // chunks
#define MAX_REFUSED 4                    // victims that the zapper will not take, in one step
#define WRITE_RETRY_NS NSEC_PER_SEC      // after a write-out that failed
#define DRAIN_LATE_NS (10 * NSEC_PER_SEC)

// Write-out of a run of stale pages of one chunk.
struct write_out {
	struct list link; // of those in flight
	struct loop_op op;
	struct pv_engine *e;
	uint64_t chunk;
	unsigned first, nr;
	uint64_t rewritten[PV_WORDS]; // pages that QEMU has written to meanwhile, and a harvest has found
};

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

// The chunk goes on to a stage: on its list, and counted there.
static void enter_stage(struct pv_engine *e, struct pv_chunk *c, enum pv_chunk_state s, struct list *l)
{
	list_remove(&c->link);
	pv_chunk_set_state(c, s);
	list_append(l, &c->link);
	if (s == PV_STANDBY) {
		e->nr_out -= c->out_pages;
		e->nr_standby += c->out_pages;
		out_went_well(e);
	}
}

static void leave_stages(struct pv_engine *e, struct pv_chunk *c, enum pv_chunk_state s)
{
	list_remove(&c->link);
	*(c->state == PV_STANDBY ? &e->nr_standby : &e->nr_out) -= c->out_pages;
	c->out_pages = 0;
	pv_chunk_set_state(c, s);
}

// Resident again, mapped, and as recently used as a chunk can be that was on its way out.
static void come_back(struct pv_engine *e, uint64_t chunk)
{
	struct pv_chunk *c = &e->chunks[chunk];

	leave_stages(e, c, PV_RESIDENT);
	c->rescue = false;
	c->placed = pv_snapshot_is_on(e); // then few pages are mapped at a time
	c->thin = c->mapped;
	if (!c->placed)
		pv_map_pages(e, chunk, pv_pages_of(e, chunk)->valid);
	if (!c->nr_writes)
		pv_queues_return(&e->queues, c);
	pv_chunk_settle(e, chunk);
}

void pv_rescue(struct pv_engine *e, uint64_t chunk)
{
	assert(e->chunks[chunk].state != PV_ZAPPING);
	e->stats.chunks_rescued++;
	come_back(e, chunk);
}

static void punch_chunk(struct pv_engine *e, uint64_t chunk)
{
	struct pv_chunk *c = &e->chunks[chunk];
	struct pv_pages *p = pv_pages_of(e, chunk);
	uint64_t homeless[PV_WORDS], valid[PV_WORDS];

	pv_pages_of_home(p, PV_HOME_NONE, homeless);
	if (!bitmap_empty(homeless, PV_CHUNK_PAGES)) {
		log_err("chunk %lu would be dropped with pages that are nowhere else", chunk);
		abort(); // rather than lose them: another pager can take over
	}
	memcpy(valid, p->valid, sizeof valid);
	pv_drop_pages(e, chunk, valid);
	if (e->budget > e->goal) { // half of what has gone is given up, however many faults wait for it
		uint64_t half = bitmap_count(valid, PV_CHUNK_PAGES) / 2;

		e->budget -= half < e->budget - e->goal ? half : e->budget - e->goal;
	}
	leave_stages(e, c, PV_ABSENT);
	e->stats.chunks_out++;
	pv_chunk_settle(e, chunk);
}

bool pv_make_free(struct pv_engine *e, uint64_t pages)
{
	while (pv_free_pages(e) < pages && !list_empty(&e->standby))
		punch_chunk(e, pv_chunk_index(e, list_first(&e->standby, struct pv_chunk, link)));
	return pv_free_pages(e) >= pages;
}

// A page that the guest discarded between the order to write it and the write: to be written, it was allocated again.
static void give_back_discarded(struct pv_engine *e, const struct write_out *w)
{
	const struct pv_pages *p = pv_pages_of(e, w->chunk);
	uint64_t gone[PV_WORDS] = { 0 }, flight[PV_WORDS];

	bitmap_set_range(gone, w->first, w->nr);
	pv_pages_in_flight(&e->chunks[w->chunk], flight);
	for (unsigned i = 0; i < PV_WORDS; i++)
		gone[i] &= ~p->valid[i] & ~flight[i];
	pv_punch_pages(e, w->chunk, gone);
}

void pv_writes_are_old(struct pv_engine *e, uint64_t chunk, const uint64_t written[PV_WORDS])
{
	if (!e->chunks[chunk].nr_writes)
		return;
	for (struct list *node = e->writes.next; node != &e->writes; node = node->next) {
		struct write_out *w = list_entry(node, struct write_out, link);

		for (unsigned i = 0; w->chunk == chunk && i < PV_WORDS; i++)
			w->rewritten[i] |= written[i];
	}
}

static void out_failed(struct pv_engine *e, const char *what, int err)
{
	uint64_t now = clock_now_ns();

	if (!e->out_failing_since_ns)
		e->out_failing_since_ns = now;
	e->trouble = what;
	e->trouble_err = err;
	e->out_not_before_ns = now + WRITE_RETRY_NS;
}

static void write_out_done(struct loop_op *op, int res)
{
	struct write_out *w = list_entry(op, struct write_out, op);
	struct pv_engine *e = w->e;
	struct pv_chunk *c = &e->chunks[w->chunk];
	struct pv_pages *p = pv_pages_of(e, w->chunk);

	if (res < 0 || (unsigned)res < w->nr * PAGE_SIZE) {
		int err = res < 0 ? res : -EIO;

		if (clock_now_ns() >= e->out_not_before_ns)
			log_err("the swap image cannot be written: %s; pages stay in memory, trying again", strerror(-err));
		out_failed(e, "the swap image cannot be written", err);
		e->stats.writes_failed++;
		c->write_failed = true;
	} else {
		// A page that QEMU has written to since its rescue is a matter of the next harvest, or was found by one already.
		for (unsigned i = w->first; i < w->first + w->nr; i++)
			if (bitmap_test(p->valid, i) && pv_page_home(p, i) == PV_HOME_NONE && !bitmap_test(w->rewritten, i))
				pv_page_set_home(p, i, PV_HOME_SWAP);
		e->stats.out_written += w->nr;
	}
	list_remove(&w->link);
	give_back_discarded(e, w);
	if (!--c->nr_writes) {
		bool failed = c->write_failed;

		c->write_failed = false;
		if (c->state != PV_WRITING)
			pv_chunk_settle(e, w->chunk);
		else if (failed)
			come_back(e, w->chunk);
		else
			enter_stage(e, c, PV_STANDBY, &e->standby);
	}
	free(w);
}

// Nothing can change the chunk now: QEMU has no mapping, and all I/O that knew its pages has ended.
static void write_out(struct pv_engine *e, uint64_t chunk)
{
	struct pv_chunk *c = &e->chunks[chunk];
	struct pv_pages *p = pv_pages_of(e, chunk);
	const char *map = pv_chunk_map(e, chunk);
	uint64_t stale[PV_WORDS], clean[PV_WORDS];

	enter_stage(e, c, PV_WRITING, &e->writing);
	pv_pages_of_home(p, PV_HOME_NONE, stale);
	for (unsigned w = 0; w < PV_WORDS; w++)
		clean[w] = p->valid[w] & ~stale[w];
	e->stats.out_clean += bitmap_count(clean, PV_CHUNK_PAGES);
	for (unsigned i = 0; i < PV_CHUNK_PAGES; i++)
		if (bitmap_test(stale, i) && mem_is_zero(map + i * PAGE_SIZE, PAGE_SIZE)) {
			bitmap_clear(stale, i);
			pv_page_set_home(p, i, PV_HOME_ZERO);
			e->stats.out_zero++;
		}
	for (size_t i = 0, n; (n = bitmap_next_run(stale, PV_CHUNK_PAGES, &i)); i += n) {
		struct write_out *w = pv_alloc(sizeof *w);

		*w = (struct write_out){ .op.done = write_out_done, .e = e, .chunk = chunk, .first = (unsigned)i, .nr = (unsigned)n };
		c->nr_writes++;
		c->swap_used = true;
		list_append(&e->writes, &w->link);
		loop_write(e->o.loop, &w->op, e->o.swap->fd, map + i * PAGE_SIZE, n * PAGE_SIZE, chunk * PV_CHUNK_SIZE + i * PAGE_SIZE);
	}
	if (!c->nr_writes)
		enter_stage(e, c, PV_STANDBY, &e->standby);
}

void pv_drained(struct pv_engine *e, int err)
{
	uint64_t ns = clock_now_ns() - e->drain_begun_ns;

	e->drain_busy = false;
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
		out_failed(e, "QEMU's block I/O cannot be drained", err);
}

// Unmapped for a snapshot, and otherwise as before.
static void zapped_only(struct pv_engine *e, uint64_t chunk)
{
	struct pv_chunk *c = &e->chunks[chunk];

	leave_stages(e, c, PV_RESIDENT);
	c->untouched = !c->rescue;
	c->zap_only = c->rescue = false;
	c->placed = true;
	c->thin = c->mapped;
	pv_chunk_settle(e, chunk);
}

static void zap_done(struct pv_engine *e, uint64_t chunk, int res)
{
	struct pv_chunk *c = &e->chunks[chunk];

	c->zap_event = false;
	pv_pages_of(e, chunk)->zapping = 0;
	e->nr_zapping--;
	c->mapped |= res != 0;
	if (c->zap_only)
		pv_harvest_chunk(e, chunk); // so that the same is not found again when it was touched
	else
		pv_harvest_zapped(e, chunk);
	if (res && res != -EAGAIN)
		log_warn("cannot zap chunk %lu: %s; it stays in memory", chunk, strerror(-res));
	if (!res && !c->rescue && !c->zap_only) {
		enter_stage(e, c, PV_DRAINING, &e->zapped);
		return;
	}
	if (c->zap_only) {
		zapped_only(e, chunk);
	} else {
		e->stats.chunks_rescued += c->rescue;
		come_back(e, chunk);
	}
	// Who touched a page meanwhile was not answered, and faults again.
	mm_uffd_wake(e->o.uffd, pv_chunk_hva(e, chunk), pv_chunk_nr_pages(e, chunk) * PAGE_SIZE);
}

void pv_zap_poll_done(struct loop_op *op, int res)
{
	struct pv_engine *e = list_entry(op, struct pv_engine, zap_poll);
	uint64_t chunk;
	int zapped;

	while (mm_zap_reap(e->o.zapper, &chunk, &zapped))
		zap_done(e, chunk, zapped);
	if (res >= 0)
		loop_poll_in(e->o.loop, op, mm_zap_fd(e->o.zapper));
	else
		log_err("cannot wait for zaps: %s; nothing is paged out any more", strerror(-res));
}

int pv_zap(struct pv_engine *e, struct pv_chunk *c, bool only)
{
	uint64_t chunk = pv_chunk_index(e, c), len = pv_chunk_nr_pages(e, chunk) * PAGE_SIZE;
	int r;

	if (e->o.zap_own)
		madvise(pv_chunk_map(e, chunk), len, MADV_DONTNEED);
	pv_pages_of(e, chunk)->zapping = 1;
	r = mm_zap_queue(e->o.zapper, pv_chunk_hva(e, chunk), len, chunk);
	if (r) {
		pv_pages_of(e, chunk)->zapping = 0;
		return r;
	}
	pv_queues_remove(&e->queues, c);
	c->placed = c->thin = c->mapped = false;
	c->zap_only = only;
	c->zap_event = !e->o.zap_own; // MADV_PAGEOUT raises none
	c->out_pages = only ? 0 : (uint16_t)bitmap_count(pv_pages_of(e, chunk)->valid, PV_CHUNK_PAGES);
	e->nr_out += c->out_pages;
	e->nr_zapping++;
	enter_stage(e, c, PV_ZAPPING, &e->zapping);
	return 0;
}

// By how many pages those that are free, or will be soon, fall short of the target.
static uint64_t lacking(const struct pv_engine *e)
{
	uint64_t used = e->charged + e->target, soon_free = e->goal + e->nr_out + e->nr_standby;

	return used > soon_free ? used - soon_free : 0;
}

static void choose_victims(struct pv_engine *e)
{
	unsigned refused = 0;

	while (lacking(e) && e->nr_zapping < MAX_ZAPS && refused < MAX_REFUSED) {
		struct pv_chunk *victim = pv_queues_oldest(&e->queues);
		int r = victim ? pv_zap(e, victim, false) : -EBUSY;

		if (r == -EBUSY)
			break;
		if (r) { // another one's turn
			refused++;
			pv_queues_remove(&e->queues, victim);
			pv_queues_add(&e->queues, victim);
		}
	}
	mm_zap_submit(e->o.zapper);
}

void pv_page_out(struct pv_engine *e)
{
	uint64_t now = clock_now_ns();

	for (unsigned i = 0; i < PUNCHES_A_STEP && (pv_free_pages(e) < e->low || e->budget > e->goal) && !list_empty(&e->standby); i++)
		punch_chunk(e, pv_chunk_index(e, list_first(&e->standby, struct pv_chunk, link)));
	if (e->drain_busy && !e->drain_late && now - e->drain_begun_ns > DRAIN_LATE_NS) {
		e->drain_late = true;
		e->trouble = "QEMU has not drained its block I/O for 10 s; is a disk of the VM stuck?";
		e->trouble_err = 0;
		log_warn("%s", e->trouble);
	}
	for (unsigned i = 0; i < WRITES_A_STEP && !list_empty(&e->drained); i++)
		write_out(e, pv_chunk_index(e, list_first(&e->drained, struct pv_chunk, link)));
	if (e->held || now < e->out_not_before_ns)
		return;
	if (lacking(e) > e->target / 4) // in batches: a drain costs the guest's disks something, however few chunks it is for
		choose_victims(e);
	else if (!e->nr_out)
		e->out_failing_since_ns = 0; // there is nothing to go any more
	// One drain for all that is zapped by now; what is zapped while it runs waits for the next.
	if (!e->drain_busy && !e->nr_zapping && !list_empty(&e->zapped)) {
		list_splice(&e->draining, &e->zapped);
		e->drain_busy = true;
		e->drain_begun_ns = now;
		e->o.ops->drain(e->o.ops->ctx);
	}
}
