// SPDX-License-Identifier: GPL-2.0-only
#include "pvmem/snapshot.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "pvmem/engine_int.h"
#include "util/io.h"
#include "util/log.h"
#include "util/zero.h"

#define ZAPS 64                      // under way at a time
#define FEW 64                       // chunks that are mapped when the VM may be stopped: some milliseconds
#define PATIENCE_NS (5 * NSEC_PER_SEC) // with a reader that does not read what the guest waits for

size_t pv_snapshot_size(uint64_t nr_chunks)
{
	return sizeof(struct pv_snapshot) + nr_chunks * sizeof(struct pv_snapshot_chunk);
}

enum pv_snapshot_phase pv_snapshot_phase(const struct pv_snapshot *s)
{
	return (enum pv_snapshot_phase)__atomic_load_n(&s->phase, __ATOMIC_SEQ_CST);
}

void pv_snapshot_set_phase(struct pv_snapshot *s, enum pv_snapshot_phase phase)
{
	__atomic_store_n(&s->phase, phase, __ATOMIC_SEQ_CST);
}

bool pv_snapshot_is_on(const struct pv_engine *e)
{
	return e->snapping.s;
}

int pv_snapshot_begin(struct pv_engine *e, struct pv_snapshot *s, uint64_t shadow_max, int *shadow_fd)
{
	int fd;

	if (e->snapping.s)
		return -EBUSY;
	fd = memfd_create("criu-vm:shadow", MFD_CLOEXEC);
	if (fd < 0 || ftruncate(fd, (off_t)(e->nr_chunks * PV_CHUNK_SIZE)) < 0) {
		int err = -errno;

		if (fd >= 0)
			close(fd);
		return err;
	}
	e->snapping = (struct pv_snapping){ .s = s, .shadow_fd = fd, .shadow_max = shadow_max / PAGE_SIZE, .mapped = UINT64_MAX };
	pv_snapshot_set_phase(s, PV_SNAP_PREPARING);
	*shadow_fd = fd;
	return 0;
}

void pv_snapshot_instant(struct pv_engine *e)
{
	struct pv_snapping *g = &e->snapping;

	if (!g->s || pv_snapshot_phase(g->s) != PV_SNAP_READY)
		return;
	g->next = g->mapped = 0;
	pv_snapshot_set_phase(g->s, PV_SNAP_CATCHING);
}

static void end(struct pv_engine *e, enum pv_snapshot_phase phase)
{
	struct pv_snapping *g = &e->snapping;

	if (!g->s)
		return;
	pv_snapshot_set_phase(g->s, phase); // before anything is mapped that was not saved
	close(g->shadow_fd);
	*g = (struct pv_snapping){ 0 };
}

void pv_snapshot_end(struct pv_engine *e)
{
	end(e, PV_SNAP_ENDED);
}

static void fail(struct pv_engine *e, const char *why, int err)
{
	log_warn("the snapshot is given up: %s%s%s", why, err ? ": " : "", err ? strerror(-err) : "");
	end(e, PV_SNAP_FAILED);
}

static bool may_be_mapped(const struct pv_engine *e, uint64_t chunk)
{
	const struct pv_chunk *c = &e->chunks[chunk];

	return c->state != PV_ZAPPING && (c->foreign || !bitmap_empty(pv_maps_of(e, chunk)->mapped, PV_CHUNK_PAGES));
}

// The next chunk that may have something mapped, resident: pages that were touched on their way out are mapped, too.
static struct pv_chunk *next_mapped(struct pv_engine *e)
{
	struct pv_snapping *g = &e->snapping;

	while (g->next < e->nr_chunks && !may_be_mapped(e, g->next))
		g->next++;
	if (g->next == e->nr_chunks)
		return NULL;
	if (pv_is_out(&e->chunks[g->next]))
		pv_rescue(e, g->next);
	return &e->chunks[g->next];
}

// All chunks were visited, and no zap is under way: on to what comes next, or once more for those that were touched meanwhile.
static bool pass_done(struct pv_engine *e)
{
	struct pv_snapping *g = &e->snapping;
	uint64_t mapped = 0;

	for (uint64_t i = 0; i < e->nr_chunks; i++)
		mapped += may_be_mapped(e, i);
	if (pv_snapshot_phase(g->s) == PV_SNAP_CATCHING && !mapped) {
		g->saving = true;
		pv_snapshot_set_phase(g->s, PV_SNAP_TAKEN);
		return false;
	}
	if (pv_snapshot_phase(g->s) == PV_SNAP_PREPARING && (mapped <= FEW || mapped >= g->mapped)) { // it gets no better
		pv_snapshot_set_phase(g->s, PV_SNAP_READY);
		return false;
	}
	g->next = 0;
	g->mapped = mapped;
	return true;
}

bool pv_snapshot_step(struct pv_engine *e)
{
	struct pv_snapping *g = &e->snapping;
	struct pv_chunk *c;
	int r = 0;

	if (!g->s || (pv_snapshot_phase(g->s) != PV_SNAP_PREPARING && pv_snapshot_phase(g->s) != PV_SNAP_CATCHING))
		return false;
	while (!r && e->nr_zapping < ZAPS && (c = next_mapped(e)))
		r = pv_zap(e, c, true);
	mm_zap_submit(e->o.zapper);
	if (r && r != -EBUSY) {
		fail(e, "guest RAM cannot be unmapped", r);
		return false;
	}
	return !r && !e->nr_zapping && !next_mapped(e) ? pass_done(e) : false;
}

// The shadow has room for a page. The reader gives back without a word.
static bool has_room(struct pv_snapping *g)
{
	struct stat st;

	if (g->shadow_pages >= g->shadow_max && !fstat(g->shadow_fd, &st))
		g->shadow_pages = (uint64_t)st.st_blocks * 512 / PAGE_SIZE;
	return g->shadow_pages < g->shadow_max;
}

static void wait_for_reader(struct pv_engine *e, struct pv_snapshot_chunk *sc)
{
	struct pv_snapping *g = &e->snapping;
	uint64_t now = clock_now_ns();

	if (!__atomic_exchange_n(&sc->wanted, 1, __ATOMIC_SEQ_CST))
		__atomic_fetch_add(&g->s->wants, 1, __ATOMIC_SEQ_CST);
	if (!g->waiting_since_ns)
		g->waiting_since_ns = now;
	else if (now - g->waiting_since_ns > PATIENCE_NS)
		fail(e, "the guest waits for what its reader does not read", 0);
}

// False: not now.
static bool save_page(struct pv_engine *e, uint64_t chunk, unsigned page)
{
	struct pv_snapping *g = &e->snapping;
	struct pv_snapshot_chunk *sc = &g->s->chunk[chunk];
	const char *content = pv_chunk_map(e, chunk) + page * PAGE_SIZE;
	uint64_t bit = 1UL << page % 64;
	int err;

	if (__atomic_load_n(&sc->saved[page / 64], __ATOMIC_ACQUIRE) & bit)
		return true;
	if (!mem_is_zero(content, PAGE_SIZE)) {
		if (!has_room(g)) {
			wait_for_reader(e, sc);
			return !g->saving;
		}
		err = io_pwrite_full(g->shadow_fd, content, PAGE_SIZE, chunk * PV_CHUNK_SIZE + page * PAGE_SIZE);
		if (err) {
			fail(e, "a page cannot be saved", err);
			return true;
		}
		g->shadow_pages++;
		__atomic_store_n(&g->s->shadow, g->shadow_pages, __ATOMIC_RELAXED);
		__atomic_fetch_or(&sc->kept[page / 64], bit, __ATOMIC_SEQ_CST);
	}
	g->waiting_since_ns = 0;
	__atomic_fetch_or(&sc->saved[page / 64], bit, __ATOMIC_SEQ_CST);
	return true;
}

unsigned pv_snapshot_save(struct pv_engine *e, uint64_t chunk, unsigned first, unsigned nr)
{
	struct pv_snapping *g = &e->snapping;

	for (unsigned i = 0; i < nr && g->saving; i++) {
		if (__atomic_load_n(&g->s->chunk[chunk].done, __ATOMIC_ACQUIRE)) {
			g->waiting_since_ns = 0;
			return nr;
		}
		if (!save_page(e, chunk, first + i))
			return i;
	}
	return nr;
}

void pv_snapshot_discard(struct pv_engine *e, uint64_t chunk, unsigned page)
{
	const struct pv_snapping *g = &e->snapping;

	if (!g->saving || pv_page_home(pv_pages_of(e, chunk), page) == PV_HOME_ZERO)
		return;
	if (!bitmap_test(g->s->chunk[chunk].kept, page))
		fail(e, "the guest gives memory back that was not saved yet", 0);
}
