// SPDX-License-Identifier: GPL-2.0-only
#include "pvmem/engine.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "pvmem/access_idle.h"
#include "pvmem/engine_int.h"
#include "util/log.h"

#define MIN_TARGET (4 * MiB)
#define MAX_TARGET (256 * MiB)
#define LOCK_PAUSE_NS (5 * NSEC_PER_MSEC)
#define LOCK_SKIP 4096 // chunks
#define ACCESS_NS (10 * NSEC_PER_MSEC) // in a period, to learn what was accessed
#define HUGE_PAGE (2 * MiB)
#define MAX_AHEAD 1024 // pages, that are brought ahead of a stream at a time

static uint64_t target_of(uint64_t budget)
{
	uint64_t t = budget / 8;

	return t < MIN_TARGET ? MIN_TARGET : t > MAX_TARGET ? MAX_TARGET : t;
}

uint64_t pv_min_budget(uint64_t ram_len)
{
	return ram_len < 4 * MIN_TARGET ? ram_len : 4 * MIN_TARGET;
}

uint64_t pv_placement_budget(uint64_t budget)
{
	return budget > target_of(budget) ? budget - target_of(budget) : 0;
}

// Without memory for a few bytes the engine cannot go on; the guest's faults wait for another pager.
void *pv_alloc(size_t len)
{
	void *p = calloc(1, len);

	if (p)
		return p;
	log_err("out of memory in the paging engine");
	abort();
}

const struct pv_block *pv_block_of(const struct pv_engine *e, uint64_t chunk)
{
	const struct pv_block *b = e->blocks;

	while (b + 1 < e->blocks + e->o.nr_blocks && chunk * PV_CHUNK_SIZE >= b[1].off)
		b++;
	return b;
}

unsigned pv_chunk_nr_pages(const struct pv_engine *e, uint64_t chunk)
{
	const struct pv_block *b = pv_block_of(e, chunk);
	uint64_t left = (b->off + b->len - chunk * PV_CHUNK_SIZE) / PAGE_SIZE;

	return left < PV_CHUNK_PAGES ? (unsigned)left : PV_CHUNK_PAGES;
}

uint64_t pv_chunk_hva(const struct pv_engine *e, uint64_t chunk)
{
	const struct pv_block *b = pv_block_of(e, chunk);

	return b->hva + (chunk * PV_CHUNK_SIZE - b->off);
}

char *pv_chunk_map(const struct pv_engine *e, uint64_t chunk)
{
	const struct pv_block *b = pv_block_of(e, chunk);

	return b->map + (chunk * PV_CHUNK_SIZE - b->off);
}

bool pv_engine_offset(const struct pv_engine *e, uint64_t hva, uint64_t *off)
{
	for (size_t i = 0; i < e->o.nr_blocks; i++) {
		const struct pv_block *b = &e->blocks[i];

		if (hva >= b->hva && hva - b->hva < b->len) {
			*off = b->off + (hva - b->hva);
			return true;
		}
	}
	return false;
}

void pv_keep_side(const struct pv_engine *e, uint64_t chunk, bool images, uint64_t map[PV_WORDS])
{
	for (unsigned w = 0; e->o.in_images && w < PV_WORDS; w++)
		map[w] &= images ? e->o.in_images[chunk][w] : ~e->o.in_images[chunk][w];
}

uint64_t pv_chunk_missing(const struct pv_engine *e, uint64_t chunk)
{
	const struct pv_pages *p = pv_pages_of(e, chunk);
	uint64_t missing[PV_WORDS];

	pv_pages_of_home(p, PV_HOME_SOURCE, missing);
	for (unsigned w = 0; w < PV_WORDS; w++)
		missing[w] &= ~p->valid[w];
	return bitmap_count(missing, PV_CHUNK_PAGES);
}

uint64_t pv_engine_missing(const struct pv_engine *e)
{
	return e->missing;
}

static void set_goal(struct pv_engine *e, uint64_t pages)
{
	e->goal = pages;
	e->target = pages < e->ram ? target_of(pages * PAGE_SIZE) / PAGE_SIZE : 0;
	e->low = e->target / 2;
	e->reserve = e->target / 4;
}

// What was in memory before us, this process has never touched, and so not locked (MCL_ONFAULT). A chunk at a time, since faults
// come first.
static void lock_some(struct loop_op *op, int res)
{
	struct pv_engine *e = list_entry(op, struct pv_engine, lock_timer.op);
	uint64_t end = e->lock_next + LOCK_SKIP < e->nr_chunks ? e->lock_next + LOCK_SKIP : e->nr_chunks;
	const struct pv_pages *p;

	(void)res;
	while (e->lock_next < end && e->chunks[e->lock_next].state != PV_RESIDENT)
		e->lock_next++;
	if (e->lock_next < end) {
		p = pv_pages_of(e, e->lock_next);
		for (size_t i = 0, n; (n = bitmap_next_run(p->valid, PV_CHUNK_PAGES, &i)); i += n)
			madvise(pv_chunk_map(e, e->lock_next) + i * PAGE_SIZE, n * PAGE_SIZE, MADV_POPULATE_READ);
		e->lock_next++;
	}
	if (e->lock_next < e->nr_chunks)
		loop_timer(e->o.loop, &e->lock_timer, LOCK_PAUSE_NS);
}

// Not inlined: see util/probe.h.
void __attribute__((noinline)) pv_enter_state(const struct pv_engine *e, struct pv_chunk *c, enum pv_chunk_state to)
{
	PROBE(chunk_state, pv_chunk_index(e, c), c->state, to);
	pv_chunk_set_state(c, to);
}

// The provider of access information that is asked for, or the best that works here.
static void choose_access(struct pv_engine *e)
{
	enum pv_access_kind kind = e->o.tuning.access;

	if (kind == PV_ACCESS_AUTO || kind == PV_ACCESS_IDLE)
		kind = e->o.pagemap && !pv_access_idle_new(e, &e->access_idle) ? PV_ACCESS_IDLE : PV_ACCESS_MINOR;
	if (e->o.tuning.access == PV_ACCESS_IDLE && kind != PV_ACCESS_IDLE)
		log_warn("this kernel has no bitmap of idle pages: accesses are sampled by minor faults");
	e->stats.access = kind;
}

void pv_engine_tune(struct pv_engine *e, const struct pv_tuning *t)
{
	e->o.tuning.method = t->method;
	e->o.tuning.access = t->access;
	pv_access_idle_free(e->access_idle);
	e->access_idle = NULL;
	choose_access(e);
}

static void init_lists(struct pv_engine *e)
{
	pv_queues_init(&e->queues, e->o.tuning.queue_bits);
	list_init(&e->once);
	list_init(&e->zapping);
	list_init(&e->idle);
	list_init(&e->leaving);
	list_init(&e->draining);
	list_init(&e->drained);
	list_init(&e->writing);
	list_init(&e->standby);
	list_init(&e->writes);
	list_init(&e->writes_waiting);
	list_init(&e->remap);
	list_init(&e->delayed);
}

// False: the page table is damaged; logged.
static bool init_chunks(struct pv_engine *e)
{
	for (uint64_t i = 0; i < e->nr_chunks; i++) {
		size_t valid = bitmap_count(e->o.pages[i].valid, PV_CHUNK_PAGES);
		uint64_t swapped[PV_WORDS];

		list_init(&e->chunks[i].link);
		e->missing += pv_chunk_missing(e, i);
		pv_pages_of_home(&e->o.pages[i], PV_HOME_SWAP, swapped);
		e->chunks[i].swap_used = !bitmap_empty(swapped, PV_CHUNK_PAGES);
		if (!pv_pages_sane(&e->o.pages[i])) {
			log_err("page table of chunk %lu is damaged: a page would be nowhere", i);
			return false;
		}
		if (valid) {
			e->charged += valid;
			e->chunks[i].state = PV_RESIDENT;
			e->chunks[i].foreign = true;
			e->chunks[i].folio = true;
			pv_queues_add_at(&e->queues, &e->chunks[i],
					 e->o.ages ? pv_queues_index_of(&e->queues, e->o.ages[i]) : pv_queues_nr(&e->queues) - 1);
		}
	}
	return true;
}

// Of zeros. Of large pages: an access at random costs half as much.
static void *new_table(size_t len)
{
	size_t align = len < HUGE_PAGE ? PAGE_SIZE : HUGE_PAGE;
	void *p = aligned_alloc(align, ROUND_UP(len, align));

	if (!p)
		return NULL;
	if (align == HUGE_PAGE)
		madvise(p, ROUND_UP(len, align), MADV_HUGEPAGE);
	return memset(p, 0, len);
}

int pv_engine_new(const struct pv_opts *o, struct pv_engine **out)
{
	uint64_t ram = 0, end = 0;
	struct pv_engine *e;

	for (size_t i = 0; i < o->nr_blocks; i++) {
		if (o->blocks[i].off != end || !o->blocks[i].len || o->blocks[i].len % PAGE_SIZE)
			return -EINVAL;
		ram += o->blocks[i].len;
		end = ROUND_UP(o->blocks[i].off + o->blocks[i].len, PV_CHUNK_SIZE);
	}
	if (!o->nr_blocks || o->budget < pv_min_budget(ram))
		return -EINVAL;
	e = calloc(1, sizeof *e);
	if (!e)
		return -ENOMEM;
	e->o = *o;
	if (!e->o.tuning.queue_bits)
		e->o.tuning = PV_TUNING_DEFAULT;
	e->nr_chunks = end / PV_CHUNK_SIZE;
	e->chunks = new_table(e->nr_chunks * sizeof *e->chunks);
	e->maps = new_table(e->nr_chunks * sizeof *e->maps);
	e->blocks = malloc(o->nr_blocks * sizeof *e->blocks);
	if (!e->chunks || !e->maps || !e->blocks) {
		pv_engine_free(e);
		return -ENOMEM;
	}
	memcpy(e->blocks, o->blocks, o->nr_blocks * sizeof *e->blocks);
	e->ram = ram / PAGE_SIZE;
	e->budget = o->budget / PAGE_SIZE;
	set_goal(e, e->budget);
	e->held = true;
	e->begun_ns = clock_now_ns();
	init_lists(e);
	pv_adapt_init(&e->adapt);
	pv_streams_init(&e->streams, e->nr_chunks * PV_CHUNK_PAGES, MAX_AHEAD);
	e->sampling.share = PV_SAMPLE_SHARE_MIN;
	choose_access(e);
	e->drain_timer.op.done = pv_drain_timer_done;
	e->delay_timer.op.done = pv_delay_timer_done;
	e->zap_poll.done = pv_zap_poll_done;
	e->remap_timer.op.done = pv_remap_timer_done;
	if (pv_tables_init(e)) {
		pv_engine_free(e);
		return -ENOMEM;
	}
	if (!init_chunks(e)) {
		pv_engine_free(e);
		return -EINVAL;
	}
	pv_folio_init(&e->folio);
	pv_fill_init(e);
	pv_warm_init(e);
	// A pager before us was killed while it shrank: goes on as that one would have.
	if (e->charged > e->budget)
		e->budget = e->charged;
	if (o->zapper)
		loop_poll_in(o->loop, &e->zap_poll, mm_zap_fd(o->zapper));
	e->lock_timer.op.done = lock_some;
	if (!o->zap_own)
		loop_timer(o->loop, &e->lock_timer, LOCK_PAUSE_NS);
	*out = e;
	return 0;
}

int pv_engine_set_budget(struct pv_engine *e, uint64_t bytes)
{
	uint64_t pages = bytes / PAGE_SIZE < e->ram ? bytes / PAGE_SIZE : e->ram;

	if (bytes < pv_min_budget(e->ram * PAGE_SIZE))
		return -EINVAL;
	set_goal(e, pages);
	if (e->budget < pages)
		e->budget = pages;
	return 0;
}

// A smaller budget is reached as pages go, so that faults find room all the while; see also punch_chunk().
static void approach_goal(struct pv_engine *e)
{
	uint64_t now = e->charged + e->reserve;

	if (e->budget > now)
		e->budget = now > e->goal ? now : e->goal;
}

void pv_engine_run(struct pv_engine *e)
{
	e->held = false;
}

static void free_list(struct list *l)
{
	list_for_each(l, node)
		free(node); // link is the first member of what is listed
	list_init(l);
}

void pv_engine_free(struct pv_engine *e)
{
	if (!e)
		return;
	if (e->remap.next) {
		free_list(&e->writes);
		free_list(&e->writes_waiting);
		free_list(&e->remap);
		free_list(&e->delayed);
	}
	pv_access_idle_free(e->access_idle);
	pv_snapshot_end(e);
	for (uint64_t i = 0; e->chunks && i < e->nr_chunks; i++)
		for (struct pv_request *r = e->chunks[i].requests, *next; r; r = next) {
			next = r->next;
			free(r);
		}
	pv_fill_fini(e);
	pv_tables_fini(e);
	pv_folio_fini(&e->folio);
	for (unsigned i = 0; i < PV_BOUNCES; i++)
		free(e->bounce[i]);
	free(e->chunks);
	free(e->maps);
	free(e->blocks);
	free(e);
}

void pv_chunk_unlist(struct pv_engine *e, struct pv_chunk *c)
{
	if (c->once) {
		list_remove(&c->link);
		e->nr_once--;
	}
	c->once = false;
	pv_queues_remove(&e->queues, c);
}

// What was touched goes to the last queue, and what only a scan has gone through yet to a list of its own.
static void enlist(struct pv_engine *e, struct pv_chunk *c)
{
	if (c->untouched) {
		pv_queues_add_at(&e->queues, c, pv_queues_index(&e->queues, c));
	} else if (c->streamed) {
		list_append(&e->once, &c->link);
		e->nr_once++;
		c->once = true;
	} else {
		pv_queues_add(&e->queues, c);
	}
	c->untouched = c->streamed = false;
}

void pv_chunk_settle(struct pv_engine *e, uint64_t chunk)
{
	struct pv_chunk *c = &e->chunks[chunk];
	const struct pv_pages *p = pv_pages_of(e, chunk);
	uint64_t swapped[PV_WORDS];

	if (c->requests || c->nr_writes || pv_is_out(c))
		return;
	if (c->state == PV_RESIDENT && bitmap_empty(p->valid, PV_CHUNK_PAGES)) {
		pv_chunk_unlist(e, c);
		pv_enter_state(e, c, PV_ABSENT);
		pv_tables_absent(e, chunk);
		c->foreign = false;
	} else if (c->state == PV_RESIDENT && !c->queued && !c->once) {
		enlist(e, c);
	}
	pv_pages_of_home(p, PV_HOME_SWAP, swapped);
	if (c->state == PV_ABSENT && c->swap_used && bitmap_empty(swapped, PV_CHUNK_PAGES)) {
		pv_swap_forget(e->o.swap, chunk * PV_CHUNK_SIZE, PV_CHUNK_SIZE);
		c->swap_used = false;
	}
}

// What a scan has gone through, and is touched again, is used more than once.
static void accessed(struct pv_engine *e, struct pv_chunk *c, uint64_t page)
{
	if (!c->once) {
		pv_queues_access(&e->queues, c);
	} else if (!pv_streams_has(&e->streams, page)) {
		pv_chunk_unlist(e, c);
		pv_queues_add(&e->queues, c);
	}
}

void pv_serve(struct pv_engine *e, uint64_t off, bool vcpu, bool overdue)
{
	uint64_t chunk = off / PV_CHUNK_SIZE;
	unsigned page = (unsigned)(off % PV_CHUNK_SIZE / PAGE_SIZE);
	struct pv_chunk *c = &e->chunks[chunk];

	c->untouched = false;
	// It takes microseconds and depends on nothing that may wait for this fault.
	if (pv_is_unmapping(c)) {
		c->wake = true;
		return;
	}
	accessed(e, c, off / PAGE_SIZE);
	if (bitmap_test(pv_pages_of(e, chunk)->valid, page))
		pv_map_touched(e, chunk, page);
	else
		pv_page_in(e, chunk, page, vcpu, overdue);
	if (!overdue)
		pv_look_ahead(e, chunk, page);
}

void pv_fault(struct pv_engine *e, uint64_t off, bool minor, bool vcpu)
{
	const struct pv_pages *p = pv_pages_of(e, off / PV_CHUNK_SIZE);
	unsigned page = (unsigned)(off % PV_CHUNK_SIZE / PAGE_SIZE);

	PROBE(fault, off / PV_CHUNK_SIZE, page, minor, vcpu);
	e->stats.faults++;
	e->stats.faults_on[bitmap_test(p->valid, page) ? PV_HOME_NONE : pv_page_home(p, page)]++;
	e->stats.minor_faults += minor;
	e->stats.vcpu_faults += vcpu;
	e->active = true;
	pv_serve(e, off, vcpu, false);
}

bool pv_balance(struct pv_engine *e)
{
	bool again;

	pv_retry_maps(e);
	if (e->budget > e->goal)
		approach_goal(e);
	pv_serve_delayed(e);
	pv_page_out(e);
	pv_bring_ahead(e);
	again = pv_snapshot_step(e);
	again |= pv_warm_step(e);
	again |= pv_tables_step(e);
	return pv_fill(e) || again || e->nr_fast_remaps || !list_empty(&e->drained) || pv_may_punch(e);
}

void pv_tick(struct pv_engine *e)
{
	if (e->access_idle)
		pv_access_idle_tick(e->access_idle, ACCESS_NS);
	if (e->active) {
		PROBE(tick, e->charged);
		pv_queues_age(&e->queues);
	}
	e->active = false;
	pv_sampling_tick(e);
	pv_tables_tick(e);
	if (e->folio.nr_left)
		e->charged -= pv_folio_retry(&e->folio);
	pv_fill_tick(e);
}

// A chunk that is on no queue goes out, or will go back to where it was, or is being brought in.
static unsigned age_of(const struct pv_engine *e, const struct pv_chunk *c)
{
	bool returns = c->zap_only || (c->state == PV_RESIDENT && c->untouched);

	if (c->queued || returns)
		return pv_queues_index(&e->queues, c);
	if (c->once)
		return 0;
	return c->state == PV_RESIDENT ? pv_queues_nr(&e->queues) - 1 : 0;
}

void pv_engine_ages(const struct pv_engine *e, uint8_t *ages)
{
	for (uint64_t i = 0; i < e->nr_chunks; i++) {
		const struct pv_chunk *c = &e->chunks[i];

		ages[i] = c->state == PV_ABSENT || c->state == PV_STRIPPING ? 0 : pv_queues_age_of(&e->queues, age_of(e, c));
	}
}
