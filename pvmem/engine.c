// SPDX-License-Identifier: GPL-2.0-only
#include "pvmem/engine.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "pvmem/engine_int.h"
#include "util/log.h"

#define MIN_TARGET (4 * MiB)
#define MAX_TARGET (256 * MiB)
#define LOCK_PAUSE_NS (5 * NSEC_PER_MSEC)
#define LOCK_SKIP 4096 // chunks

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

static void init_lists(struct pv_engine *e)
{
	pv_queues_init(&e->queues);
	list_init(&e->zapping);
	list_init(&e->zapped);
	list_init(&e->draining);
	list_init(&e->drained);
	list_init(&e->writing);
	list_init(&e->standby);
	list_init(&e->writes);
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
			e->chunks[i].placed = e->chunks[i].mapped = true;
			pv_queues_add(&e->queues, &e->chunks[i]);
		}
	}
	return true;
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
	e->nr_chunks = end / PV_CHUNK_SIZE;
	e->chunks = calloc(e->nr_chunks, sizeof *e->chunks);
	e->blocks = malloc(o->nr_blocks * sizeof *e->blocks);
	if (!e->chunks || !e->blocks) {
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
	e->delay_timer.op.done = pv_delay_timer_done;
	e->zap_poll.done = pv_zap_poll_done;
	e->remap_timer.op.done = pv_remap_timer_done;
	if (!init_chunks(e)) {
		pv_engine_free(e);
		return -EINVAL;
	}
	pv_fill_init(e);
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
		free_list(&e->remap);
		free_list(&e->delayed);
	}
	pv_snapshot_end(e);
	for (uint64_t i = 0; e->chunks && i < e->nr_chunks; i++)
		for (struct pv_request *r = e->chunks[i].requests, *next; r; r = next) {
			next = r->next;
			free(r);
		}
	pv_fill_fini(e);
	free(e->chunks);
	free(e->blocks);
	free(e);
}

void pv_punch_pages(struct pv_engine *e, uint64_t chunk, const uint64_t which[PV_WORDS])
{
	const struct pv_block *b = pv_block_of(e, chunk);

	for (size_t i = 0, n; (n = bitmap_next_run(which, PV_CHUNK_PAGES, &i)); i += n) {
		uint64_t at = chunk * PV_CHUNK_SIZE - b->off + i * PAGE_SIZE;

		if (fallocate(b->memfd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, (off_t)at, (off_t)(n * PAGE_SIZE)) < 0)
			log_err("cannot punch guest RAM: %s", strerror(errno)); // not known to happen
	}
}

void pv_drop_pages(struct pv_engine *e, uint64_t chunk, const uint64_t which[PV_WORDS])
{
	uint64_t missing = pv_chunk_missing(e, chunk);

	pv_pages_set_valid(pv_pages_of(e, chunk), which, false);
	e->missing += pv_chunk_missing(e, chunk) - missing;
	pv_pages_count_drop(pv_pages_of(e, chunk));
	pv_punch_pages(e, chunk, which);
	e->charged -= bitmap_count(which, PV_CHUNK_PAGES);
}

void pv_chunk_settle(struct pv_engine *e, uint64_t chunk)
{
	struct pv_chunk *c = &e->chunks[chunk];
	const struct pv_pages *p = pv_pages_of(e, chunk);
	uint64_t swapped[PV_WORDS];

	if (c->requests || c->nr_writes || pv_is_out(c))
		return;
	if (c->state == PV_RESIDENT && bitmap_empty(p->valid, PV_CHUNK_PAGES)) {
		pv_queues_remove(&e->queues, c);
		pv_chunk_set_state(c, PV_ABSENT);
	} else if (c->state == PV_RESIDENT && !c->queued) {
		pv_queues_add_at(&e->queues, c, c->untouched ? pv_queues_index(&e->queues, c) : PV_NR_QUEUES - 1);
		c->untouched = false;
	}
	pv_pages_of_home(p, PV_HOME_SWAP, swapped);
	if (c->state == PV_ABSENT && c->swap_used && bitmap_empty(swapped, PV_CHUNK_PAGES)) {
		pv_swap_forget(e->o.swap, chunk * PV_CHUNK_SIZE, PV_CHUNK_SIZE);
		c->swap_used = false;
	}
}

void pv_serve(struct pv_engine *e, uint64_t off, bool vcpu, bool overdue)
{
	uint64_t chunk = off / PV_CHUNK_SIZE;
	unsigned page = (unsigned)(off % PV_CHUNK_SIZE / PAGE_SIZE);
	struct pv_chunk *c = &e->chunks[chunk];
	const struct pv_pages *p = pv_pages_of(e, chunk);

	c->untouched = false;
	if (c->state == PV_ZAPPING) { // it takes microseconds and depends on nothing that may wait for this fault
		c->rescue = true;
		return;
	}
	if (pv_is_out(c))
		pv_rescue(e, chunk);
	else
		pv_queues_access(&e->queues, c);
	if (!bitmap_test(p->valid, page)) {
		pv_page_in(e, chunk, page, vcpu, overdue);
		return;
	}
	pv_map_touched(e, chunk, page);
}

void pv_fault(struct pv_engine *e, uint64_t off, bool minor, bool vcpu)
{
	const struct pv_pages *p = pv_pages_of(e, off / PV_CHUNK_SIZE);
	unsigned page = (unsigned)(off % PV_CHUNK_SIZE / PAGE_SIZE);

	e->stats.faults++;
	e->stats.faults_on[bitmap_test(p->valid, page) ? PV_HOME_NONE : pv_page_home(p, page)]++;
	e->stats.minor_faults += minor;
	e->stats.vcpu_faults += vcpu;
	e->active = true;
	pv_serve(e, off, vcpu, false);
}

static void discard_page(struct pv_engine *e, uint64_t chunk, unsigned page)
{
	uint64_t one[PV_WORDS] = { 0 }, missing = pv_chunk_missing(e, chunk);

	bitmap_set(one, page);
	pv_requests_drop_page(&e->chunks[chunk], page);
	pv_snapshot_discard(e, chunk, page);
	pv_pages_set_dirty(pv_pages_of(e, chunk), one);
	pv_pages_set_home(pv_pages_of(e, chunk), one, PV_HOME_ZERO);
	e->missing += pv_chunk_missing(e, chunk) - missing;
	if (bitmap_test(pv_pages_of(e, chunk)->valid, page))
		pv_drop_pages(e, chunk, one);
	e->stats.discarded++;
}

void pv_removed(struct pv_engine *e, uint64_t off, uint64_t len)
{
	for (uint64_t at = off, next; at < off + len; at = next) {
		uint64_t chunk = at / PV_CHUNK_SIZE, start = chunk * PV_CHUNK_SIZE;
		unsigned first = (unsigned)((at - start) / PAGE_SIZE), end;

		next = start + PV_CHUNK_SIZE < off + len ? start + PV_CHUNK_SIZE : off + len;
		end = (unsigned)((next - start) / PAGE_SIZE);
		if (e->chunks[chunk].zap_event && next - at == len && first == 0 && end == pv_chunk_nr_pages(e, chunk)) {
			// Ours: the zapper takes a chunk only where it is one mapping, so its event has this range. Should
			// the guest discard just this range just now, then there will be a second event.
			e->chunks[chunk].zap_event = false;
			continue;
		}
		for (unsigned page = first; page < end; page++)
			discard_page(e, chunk, page);
		pv_chunk_settle(e, chunk);
	}
}

bool pv_balance(struct pv_engine *e)
{
	bool again;

	pv_retry_maps(e);
	if (e->budget > e->goal)
		approach_goal(e);
	pv_serve_delayed(e);
	pv_page_out(e);
	again = pv_snapshot_step(e);
	return pv_fill(e) || again || e->nr_fast_remaps || !list_empty(&e->drained) || (e->budget > e->goal && !list_empty(&e->standby));
}

void pv_tick(struct pv_engine *e)
{
	if (e->active)
		pv_queues_age(&e->queues);
	e->active = false;
	pv_fill_tick(e);
}

// A chunk that is on no queue goes out, or will go back to where it was, or is being brought in.
static unsigned age_of(const struct pv_engine *e, const struct pv_chunk *c)
{
	bool returns = c->zap_only || (c->state == PV_RESIDENT && c->untouched);

	if (c->queued || returns)
		return pv_queues_index(&e->queues, c);
	return c->state == PV_RESIDENT ? PV_NR_QUEUES - 1 : 0;
}

void pv_engine_ages(const struct pv_engine *e, uint8_t *ages)
{
	for (uint64_t i = 0; i < e->nr_chunks; i++) {
		const struct pv_chunk *c = &e->chunks[i];

		ages[i] = c->state == PV_ABSENT ? 0 : (uint8_t)(1 + age_of(e, c) * 254 / (PV_NR_QUEUES - 1));
	}
}
