// SPDX-License-Identifier: GPL-2.0-only
#include "pvmem/tables.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "pvmem/engine_int.h"
#include "util/cleanup.h"
#include "util/io.h"
#include "util/log.h"

#define ROUND_PERIODS 8     // a round takes at least so long
#define LOOK_A_PERIOD (1 << 18)
#define LOOK_A_STEP (1 << 16)
#define GIVE_A_PERIOD 256
#define GIVE_A_STEP 2
#define TAG (1ULL << 63)    // of a zap, with the index of its struct pv_table; others are for a chunk
#define PROBE_TABLES 32

// The first whole table of the block, and how many there are.
static uint64_t block_tables(const struct pv_block *b, uint64_t *first)
{
	uint64_t end = (b->hva + b->len) / PV_TABLE_SIZE * PV_TABLE_SIZE;

	*first = ROUND_UP(b->hva, PV_TABLE_SIZE);
	return end > *first ? (end - *first) / PV_TABLE_SIZE : 0;
}

// Tables are numbered so that those of a block follow its chunks: a block of n chunks has at most n / 2.
static uint64_t first_number(const struct pv_block *b)
{
	return b->off / PV_CHUNK_SIZE / 2;
}

static const struct pv_block *block_of_number(const struct pv_engine *e, uint64_t number, uint64_t *hva)
{
	*hva = 0;
	for (const struct pv_block *b = e->blocks; b < e->blocks + e->o.nr_blocks; b++) {
		uint64_t first, nr = block_tables(b, &first);

		if (number >= first_number(b) && number - first_number(b) < nr) {
			*hva = first + (number - first_number(b)) * PV_TABLE_SIZE;
			return b;
		}
	}
	return NULL;
}

static uint64_t chunk_at(const struct pv_block *b, uint64_t hva)
{
	return (b->off + (hva - b->hva)) / PV_CHUNK_SIZE;
}

static uint64_t vm_pte(void)
{
	_cleanup_free_ char *status = NULL;
	const char *line;
	size_t len;

	if (io_read_file("/proc/self/status", MiB, &status, &len))
		return 0;
	line = strstr(status, "VmPTE:");
	return line ? strtoull(line + strlen("VmPTE:"), NULL, 10) * KiB : 0;
}

bool pv_tables_can_be_freed(void)
{
	size_t len = (PROBE_TABLES + 1) * PV_TABLE_SIZE;
	char *map = mmap(NULL, len, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0), *at;
	uint64_t before, after;

	if (map == MAP_FAILED)
		return false;
	munlock(map, len); // a pager locks what it maps, and that cannot be zapped
	madvise(map, len, MADV_NOHUGEPAGE);
	at = (char *)ROUND_UP((uintptr_t)map, PV_TABLE_SIZE);
	for (size_t i = 0; i < PROBE_TABLES; i++)
		((volatile char *)at)[i * PV_TABLE_SIZE] = 1;
	before = vm_pte();
	madvise(at, PROBE_TABLES * PV_TABLE_SIZE, MADV_DONTNEED);
	after = vm_pte();
	munmap(map, len);
	return before >= after + PROBE_TABLES / 2 * PAGE_SIZE;
}

int pv_tables_init(struct pv_engine *e)
{
	struct pv_tables *t = &e->tables;
	uint64_t nr = DIV_ROUND_UP(e->nr_chunks, 2);

	if (!e->o.zapper || e->o.zap_own || !pv_tables_can_be_freed())
		return 0;
	t->wanted = calloc(BITMAP_WORDS(nr), sizeof *t->wanted);
	t->fresh = calloc(BITMAP_WORDS(nr), sizeof *t->fresh);
	if (!t->wanted || !t->fresh)
		return -ENOMEM;
	t->nr = t->next = nr;
	return 0;
}

void pv_tables_fini(struct pv_engine *e)
{
	free(e->tables.wanted);
	free(e->tables.fresh);
}

void pv_tables_absent(struct pv_engine *e, uint64_t chunk)
{
	const struct pv_block *b = pv_block_of(e, chunk);
	uint64_t first, nr = block_tables(b, &first), hva = pv_chunk_hva(e, chunk);

	if (!e->tables.nr)
		return;
	for (uint64_t at = hva / PV_TABLE_SIZE * PV_TABLE_SIZE; at < hva + PV_CHUNK_SIZE; at += PV_TABLE_SIZE)
		if (at >= first && (at - first) / PV_TABLE_SIZE < nr) {
			bitmap_set(e->tables.wanted, first_number(b) + (at - first) / PV_TABLE_SIZE);
			bitmap_set(e->tables.fresh, first_number(b) + (at - first) / PV_TABLE_SIZE);
		}
}

// 0; -EBUSY: not now, since a chunk has a part in another table that is being given back; -EINPROGRESS: not in this round, since a chunk
// is being filled, into memory or not; -ENOTEMPTY: there is a page in memory, or on its way there.
static int may_strip(const struct pv_engine *e, uint64_t first, uint64_t last)
{
	int r = 0;

	for (uint64_t chunk = first; chunk <= last; chunk++) {
		const struct pv_chunk *c = &e->chunks[chunk];

		if (c->state != PV_ABSENT && c->state != PV_STRIPPING)
			return -ENOTEMPTY;
		if (c->state == PV_STRIPPING)
			r = -EBUSY;
		else if (c->nr_writes && !r)
			r = -EINPROGRESS;
	}
	return r;
}

static void set_states(struct pv_engine *e, uint64_t first, uint64_t last, enum pv_chunk_state s)
{
	for (uint64_t chunk = first; chunk <= last; chunk++)
		pv_enter_state(e, &e->chunks[chunk], s);
}

static struct pv_table *idle_table(struct pv_tables *t)
{
	struct pv_table *at = t->table;

	while (at < t->table + PV_TABLES_BUSY && at->busy)
		at++;
	return at < t->table + PV_TABLES_BUSY ? at : NULL;
}

// 0, or why not now (also -EAGAIN: QEMU's address space is changing), or not at all.
static int strip(struct pv_engine *e, const struct pv_block *b, uint64_t hva, struct pv_table *t)
{
	uint64_t first = chunk_at(b, hva), last = chunk_at(b, hva + PV_TABLE_SIZE - 1);
	struct pv_pages *p = pv_pages_of(e, first);
	int r = may_strip(e, first, last);

	if (!r)
		r = mm_uffd_writeprotect(e->o.uffd, hva, PV_TABLE_SIZE, false);
	if (r)
		return r;
	p->zapping = PV_ZAPPING_TABLE;
	r = mm_zap_queue(e->o.zapper, hva, PV_TABLE_SIZE, TAG | (uint64_t)(t - e->tables.table));
	if (r) {
		p->zapping = 0;
		return r;
	}
	*t = (struct pv_table){ .hva = hva, .busy = true, .event = true };
	set_states(e, first, last, PV_STRIPPING);
	return 0;
}

// False: not now.
static bool look_at(struct pv_engine *e, uint64_t number, struct pv_table *slot, unsigned *given)
{
	struct pv_tables *t = &e->tables;
	uint64_t hva;
	const struct pv_block *b = block_of_number(e, number, &hva);
	int r;

	if (bitmap_test(t->fresh, number)) { // the next round's
		bitmap_clear(t->fresh, number);
		return true;
	}
	r = strip(e, b, hva, slot);
	if (r == -EBUSY || r == -EAGAIN)
		return false;
	*given += !r;
	if (r != -EINPROGRESS)
		bitmap_clear(t->wanted, number); // if not all of it is absent, there will be a chunk that is the last to go
	return true;
}

bool pv_tables_step(struct pv_engine *e)
{
	struct pv_tables *t = &e->tables;
	uint64_t stop = t->next + (t->left_look < LOOK_A_STEP ? t->left_look : LOOK_A_STEP), begun = t->next;
	struct pv_table *slot = NULL;
	unsigned given = 0;
	bool later = false;

	// Not behind other zaps: who touches one of these chunks waits for all that the ring has before it.
	if (!t->left || !t->left_look || t->next >= t->nr || !list_empty(&e->delayed) || e->nr_zapping)
		return false;
	stop = stop < t->nr ? stop : t->nr;
	while (!later && given < GIVE_A_STEP && (slot = idle_table(t))) {
		t->next = bitmap_next(t->wanted, stop, t->next, true);
		if (t->next == stop)
			break;
		later = !look_at(e, t->next, slot, &given);
		t->next += !later;
	}
	if (given)
		mm_zap_submit(e->o.zapper);
	t->left_look -= t->next - begun;
	t->left -= given < t->left ? given : t->left;
	return slot && !later && t->next < t->nr && t->left && t->left_look;
}

void pv_tables_tick(struct pv_engine *e)
{
	struct pv_tables *t = &e->tables;

	t->left_look = LOOK_A_PERIOD;
	t->left = GIVE_A_PERIOD;
	if (++t->periods < ROUND_PERIODS || t->next < t->nr)
		return;
	t->next = t->periods = 0;
}

bool pv_tables_zapped(struct pv_engine *e, uint64_t tag, int res)
{
	struct pv_table *t;
	const struct pv_block *b;
	uint64_t off, first, last;

	if (!(tag & TAG))
		return false;
	t = &e->tables.table[tag & ~TAG];
	pv_engine_offset(e, t->hva, &off);
	first = off / PV_CHUNK_SIZE;
	b = pv_block_of(e, first);
	last = chunk_at(b, t->hva + PV_TABLE_SIZE - 1);
	pv_pages_of(e, first)->zapping = 0;
	set_states(e, first, last, PV_ABSENT);
	for (uint64_t chunk = first; chunk <= last; chunk++) {
		e->chunks[chunk].wake = false;
		pv_chunk_settle(e, chunk); // it may have been discarded
	}
	*t = (struct pv_table){ .hva = 0 };
	if (res)
		log_warn("a page table of chunk %lu cannot be given back: %s", first, strerror(-res));
	else
		e->stats.tables_given_back++;
	// Who touched a page meanwhile, in any part of these chunks, was not answered, and faults again.
	mm_uffd_wake(e->o.uffd, pv_chunk_hva(e, first), pv_chunk_hva(e, last) + pv_chunk_nr_pages(e, last) * PAGE_SIZE - pv_chunk_hva(e, first));
	return true;
}

bool pv_tables_removed(struct pv_engine *e, uint64_t off, uint64_t len)
{
	for (struct pv_table *t = e->tables.table; len == PV_TABLE_SIZE && t < e->tables.table + PV_TABLES_BUSY; t++) {
		uint64_t own;

		if (!t->event || !pv_engine_offset(e, t->hva, &own) || own != off)
			continue;
		t->event = false;
		return true;
	}
	return false;
}
