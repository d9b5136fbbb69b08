// SPDX-License-Identifier: GPL-2.0-only
// The real engine over a guest of engine_guest.h, everything real between them: planted userfaultfd and ring, zapper, swap
// file. The test plays the upper floors: it drains, and it is the page source.
#pragma once
#include <check.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <sys/stat.h>
#include <sys/wait.h>

#include "engine_guest.h"
#include "folio_setting.h"
#include "mm/pagemap.h"
#include "mm/plant.h"
#include "mm/uapi.h"
#include "mm/uffd.h"
#include "mm/zap.h"
#include "pvmem/engine.h"
#include "pvmem/warm.h"
#include "skip.h"
#include "util/clock.h"
#include "util/io_ring.h"
#include "util/loop.h"

#define RIG_FEATURES \
	(UFFD_FEATURE_MISSING_SHMEM | UFFD_FEATURE_MINOR_SHMEM | UFFD_FEATURE_PAGEFAULT_FLAG_WP | UFFD_FEATURE_WP_HUGETLBFS_SHMEM | \
	 UFFD_FEATURE_WP_UNPOPULATED | UFFD_FEATURE_WP_ASYNC | UFFD_FEATURE_EVENT_REMOVE | UFFD_FEATURE_THREAD_ID)
#define RIG_DMA_PAGES 512
#define RIG_ENTRIES 256 // of the loop's rings
#define RIG_PERIOD_NS (50 * NSEC_PER_MSEC) // of the queues
#define RIG_LOOK_NS (2 * NSEC_PER_MSEC)    // how often the loop looks at what the test waits for
#define RIG_PATIENCE_MS 40000 // a journal may be busy with others' data

enum rig_drain { DRAIN_WAIT /* for the guest's I/O */, DRAIN_NOW, DRAIN_HOLD, DRAIN_FAIL };

struct rig {
	struct guest *g;
	pid_t pid;
	bool vcpu[GUEST_WORKERS];
	struct pv_block block[GUEST_BLOCKS];
	size_t nr_blocks, nr_chunks;
	uint64_t budget;
	struct pv_tuning tuning;
	bool folios; // of 1 MiB, where the host has them
	enum mm_zap_method method;
	struct mm_plant plant;
	struct mm_zapper *zapper;
	struct mm_pagemap *pagemap;
	struct pv_swap swap;
	struct pv_pages *pages;
	struct pv_ops ops;
	struct pv_engine *e;
	struct loop loop;
	int io_fd;
	bool more;

	struct loop_watch watch;
	bool deaf;            // reads nothing from the userfaultfd
	bool hold_removed;    // keeps the next REMOVE event back, until rig_removed()
	struct { uint64_t off, len; } removed;

	struct loop_timer look, drain_timer, source_timer;
	uint64_t period_end_ns;
	enum rig_drain drain;
	unsigned drains; // asked for
	bool drain_held;
	bool no_ticks;

	bool source_once;
	const uint8_t *hotness, *ages;
	const struct pv_warm_chunk *warm;
	size_t nr_warm;
	uint64_t *source_seed;
	uint64_t source_given; // pages, those that are zero too
	struct list source_queue;
	bool source_hold;
	bool copy_hold;         // the same for what nobody waits for
	bool warm_hold;         // the same for what was in memory once
	const uint64_t (*in_images)[PV_WORDS];
	bool remote_hold;       // the same for what is not in images
	size_t broken_page;     // it cannot be read; 0: all can
	unsigned demand_reads;  // that somebody waited for
	unsigned source_errors; // so many reads fail
	bool source_gone;       // the engine needs it no longer

	pthread_t sampler;
	_Atomic bool sampling;
	_Atomic uint64_t most; // bytes of guest RAM ever seen in memory
};

static inline uint64_t rig_block_memory(const struct rig *r, size_t block)
{
	struct stat st;

	return fstat(r->block[block].memfd, &st) ? UINT64_MAX / 4 : (uint64_t)st.st_blocks * 512;
}

// Bytes of guest RAM in memory. Two files cannot be looked at in one moment, and what goes from one to the other meanwhile
// must not count twice: a look counts if it was quick, and nothing was seen to move.
static inline uint64_t rig_memory(const struct rig *r)
{
	for (;;) {
		uint64_t begun = clock_now_ns(), one = rig_block_memory(r, 0), other = r->nr_blocks > 1 ? rig_block_memory(r, 1) : 0;

		if (rig_block_memory(r, 0) == one && clock_now_ns() - begun < 20000)
			return one + other;
	}
}

static inline void *rig_sample(void *arg)
{
	struct rig *r = arg;

	while (r->sampling) {
		uint64_t now = rig_memory(r);

		if (now > r->most)
			r->most = now;
		usleep(100);
	}
	return NULL;
}

// NULL: there is no such page.
static inline char *rig_page(const struct rig *r, size_t page)
{
	const struct pv_block *b = &r->block[r->nr_blocks > 1 && page * PAGE_SIZE >= r->block[1].off];

	return page * PAGE_SIZE - b->off < b->len ? b->map + (page * PAGE_SIZE - b->off) : NULL;
}

// What the upper floors do.

static inline void rig_drain_looked(struct loop_op *op, int res)
{
	struct rig *r = list_entry(op, struct rig, drain_timer.op);

	(void)res;
	for (size_t i = 0; i < GUEST_WORKERS; i++)
		if (r->g->worker[i].order == GUEST_DMA && r->g->worker[i].drain_seen != r->g->drains) {
			loop_timer(&r->loop, &r->drain_timer, NSEC_PER_MSEC / 5);
			return;
		}
	pv_drained(r->e, 0);
}

static inline void rig_drain(void *ctx)
{
	struct rig *r = ctx;

	r->drains++;
	r->drain_held = r->drain == DRAIN_HOLD;
	if (r->drain == DRAIN_NOW || r->drain == DRAIN_FAIL)
		pv_drained(r->e, r->drain == DRAIN_FAIL ? -EIO : 0);
	if (r->drain != DRAIN_WAIT)
		return;
	r->g->drains++;
	loop_timer(&r->loop, &r->drain_timer, NSEC_PER_MSEC / 5);
}

// The drain that was held ends now, and those to come are not held.
static inline void rig_release_drain(struct rig *r)
{
	r->drain = DRAIN_WAIT;
	if (r->drain_held)
		pv_drained(r->e, 0);
	r->drain_held = false;
}

// A page of zeros is not written to where it belongs, where there may be anything.
static inline void rig_source_give(struct rig *r, struct pv_source_read *rd, size_t page)
{
	uint64_t seed = r->source_seed[rd->chunk * PV_CHUNK_PAGES + page];

	r->source_given++;
	if (!seed)
		bitmap_set(rd->zero, page);
	guest_fill(rd->dest + page * PAGE_SIZE, seed ? seed : 0x5a5a5a5a);
}

static inline void rig_source_answer(struct rig *r, struct pv_source_read *rd)
{
	if (r->source_errors) {
		r->source_errors--;
		pv_source_done(r->e, rd, -EIO, "the test's source fails");
		return;
	}
	if (r->broken_page && rd->chunk == r->broken_page / PV_CHUNK_PAGES && bitmap_test(rd->pages, r->broken_page % PV_CHUNK_PAGES)) {
		pv_source_done(r->e, rd, -EIO, "the test's source has a bad page");
		return;
	}
	for (size_t i = 0; i < PV_CHUNK_PAGES; i++)
		if (bitmap_test(rd->pages, i))
			rig_source_give(r, rd, i);
	pv_source_done(r->e, rd, 0, NULL);
}

static inline size_t rig_pages_in_images(const struct rig *r, const struct pv_source_read *rd)
{
	size_t nr = 0;

	for (size_t i = 0; r->in_images && i < PV_CHUNK_PAGES; i++)
		nr += bitmap_test(rd->pages, i) && bitmap_test(r->in_images[rd->chunk], i);
	return nr;
}

// It is of what was in memory once, as listed.
static inline bool rig_is_warm(const struct rig *r, const struct pv_source_read *rd)
{
	for (size_t i = 0; i < r->nr_warm; i++)
		if (r->warm[i].chunk == rd->chunk && !memcmp(r->warm[i].pages, rd->pages, sizeof rd->pages))
			return true;
	return false;
}

static inline void rig_source_due(struct loop_op *op, int res)
{
	struct rig *r = list_entry(op, struct rig, source_timer.op);

	(void)res;
	list_for_each(&r->source_queue, node) {
		struct pv_source_read *rd = list_entry(node, struct pv_source_read, link);

		if (r->source_hold || (r->copy_hold && rd->unasked) || (r->warm_hold && rig_is_warm(r, rd)) ||
		    (r->remote_hold && rig_pages_in_images(r, rd) == 0))
			continue;
		list_remove(node);
		rig_source_answer(r, rd);
	}
	if (!list_empty(&r->source_queue))
		loop_timer(&r->loop, &r->source_timer, NSEC_PER_MSEC / 5);
}

// It is read into guest RAM, by whichever mapping, and not to a buffer.
static inline bool rig_is_read_in_place(const struct rig *r, const struct pv_source_read *rd)
{
	const struct pv_block *b = &r->block[r->nr_blocks > 1 && rd->chunk * PV_CHUNK_SIZE >= r->block[1].off];
	uint64_t at = rd->chunk * PV_CHUNK_SIZE - b->off;

	return rd->dest == b->map + at || (b->huge && rd->dest == b->huge + at);
}

static inline void rig_source_read(void *ctx, struct pv_source_read *rd)
{
	struct rig *r = ctx;

	ck_assert(!r->source_gone && bitmap_empty(rd->zero, PV_CHUNK_PAGES));
	ck_assert((rd->unasked && r->warm) || rig_is_read_in_place(r, rd) == !rd->unasked);
	ck_assert(rig_pages_in_images(r, rd) == 0 || rig_pages_in_images(r, rd) == bitmap_count(rd->pages, PV_CHUNK_PAGES));
	r->demand_reads += !rd->unasked && !rig_is_warm(r, rd);
	list_append(&r->source_queue, &rd->link);
	if (!r->source_timer.op.busy)
		loop_timer(&r->loop, &r->source_timer, NSEC_PER_MSEC / 5);
}

static inline void rig_source_done(void *ctx)
{
	struct rig *r = ctx;

	ck_assert(!r->source_gone && list_empty(&r->source_queue));
	r->source_gone = true;
}

// The wiring.

static inline uint64_t rig_offset(const struct rig *r, uint64_t hva)
{
	uint64_t off;

	if (!pv_engine_offset(r->e, hva, &off))
		ck_abort_msg("%#lx is no guest RAM", hva);
	return off;
}

static inline void rig_event(struct rig *r, const struct uffd_msg *m)
{
	bool vcpu = false;

	if (m->event == UFFD_EVENT_REMOVE) {
		r->removed.off = rig_offset(r, m->arg.remove.start);
		r->removed.len = m->arg.remove.end - m->arg.remove.start;
		if (!r->hold_removed)
			pv_removed(r->e, r->removed.off, r->removed.len);
		r->hold_removed = false;
		return;
	}
	if (m->event != UFFD_EVENT_PAGEFAULT)
		ck_abort_msg("event %u", m->event);
	for (size_t i = 0; i < GUEST_WORKERS; i++)
		vcpu |= r->vcpu[i] && (pid_t)m->arg.pagefault.feat.ptid == r->g->worker[i].tid;
	pv_fault(r->e, rig_offset(r, m->arg.pagefault.address), m->arg.pagefault.flags & UFFD_PAGEFAULT_FLAG_MINOR, vcpu);
}

static inline bool rig_look(struct loop_watch *w)
{
	struct rig *r = list_entry(w, struct rig, watch);
	struct uffd_msg m[16];
	ssize_t n = r->deaf ? 0 : read(w->fd, m, sizeof m);

	for (unsigned fault = 0; n > 0 && fault < 2; fault++) // removals first, as the pager does it
		for (ssize_t i = 0; i < n / (ssize_t)sizeof m[0]; i++)
			if ((m[i].event == UFFD_EVENT_PAGEFAULT) == fault)
				rig_event(r, &m[i]);
	return n > 0;
}

static inline void rig_listen(struct rig *r)
{
	while (rig_look(&r->watch))
		;
}

static inline void rig_looked(struct loop_op *op, int res)
{
	struct rig *r = list_entry(op, struct rig, look.op);
	uint64_t now = clock_now_ns();

	(void)res;
	if (now >= r->period_end_ns && !r->no_ticks) {
		pv_tick(r->e);
		r->period_end_ns = now + RIG_PERIOD_NS;
	}
	loop_timer(&r->loop, &r->look, RIG_LOOK_NS);
}

static inline void rig_round(struct rig *r)
{
	if (loop_round(&r->loop, !r->more))
		ck_abort_msg("io_uring: %d", r->loop.error);
	r->more = pv_balance(r->e);
}

// Serves the guest until it is so, ms at most.
#define rig_until(r, so, ms) \
	({ \
		uint64_t end_ = clock_now_ns() + (ms) * NSEC_PER_MSEC; \
		while (!(so) && clock_now_ns() < end_) \
			rig_round(r); \
		(bool)(so); \
	})
#define rig_pass(r, ms) rig_until(r, false, ms)

static inline struct pv_stats rig_stats(const struct rig *r)
{
	struct pv_stats s;

	pv_engine_stats(r->e, &s);
	ck_assert_uint_eq(pv_engine_missing(r->e), s.remote);
	return s;
}

// Setting up and taking down.

// A file that is gone from its folder already, of seeds guest_mix(0), guest_mix(1), ... Not in memory.
static inline void rig_files(struct rig *r)
{
	char dir[] = "/var/tmp/criu-vm-test.XXXXXX", path[64];
	char *page = aligned_alloc(PAGE_SIZE, PAGE_SIZE);

	ck_assert_ptr_nonnull(mkdtemp(dir));
	snprintf(path, sizeof path, "%s/swap", dir);
	ck_assert_int_eq(pv_swap_create(path, r->nr_chunks * PV_CHUNK_SIZE, true, &r->swap), 0);
	unlink(path);
	snprintf(path, sizeof path, "%s/disk", dir);
	r->g->dma_fd = open(path, O_RDWR | O_CREAT | O_EXCL | O_DIRECT | O_CLOEXEC, 0600);
	ck_assert_int_ge(r->g->dma_fd, 0);
	unlink(path);
	rmdir(dir);
	r->g->dma_pages = RIG_DMA_PAGES;
	for (size_t i = 0; i < RIG_DMA_PAGES; i++) {
		guest_fill(page, guest_mix(i));
		ck_assert_int_eq(pwrite(r->g->dma_fd, page, PAGE_SIZE, (off_t)(i * PAGE_SIZE)), PAGE_SIZE);
	}
	free(page);
}

// Blocks of guest RAM of so many pages each (0: no such block), all of it empty yet.
static inline void rig_init(struct rig *r, size_t pages, size_t more_pages, uint64_t budget)
{
	size_t nr[GUEST_BLOCKS] = { pages, more_pages };

	*r = (struct rig){ .budget = budget, .tuning = PV_TUNING_DEFAULT, .method = MM_ZAP_RING, .nr_blocks = more_pages ? 2 : 1 };
	r->g = mmap(NULL, sizeof *r->g, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	ck_assert_ptr_ne(r->g, MAP_FAILED);
	for (size_t i = 0; i < r->nr_blocks; i++) {
		struct pv_block *b = &r->block[i];

		*b = (struct pv_block){ .off = r->nr_chunks * PV_CHUNK_SIZE, .len = nr[i] * PAGE_SIZE, .memfd = memfd_create("guest", MFD_CLOEXEC) };
		ck_assert(b->memfd >= 0 && !ftruncate(b->memfd, (off_t)b->len));
		ck_assert_int_eq(pv_block_map(b, false), 0);
		r->g->block[i] = (struct guest_block){ .first = b->off / PAGE_SIZE, .nr = nr[i], .memfd = b->memfd };
		r->nr_chunks += DIV_ROUND_UP(nr[i], PV_CHUNK_PAGES);
	}
	r->g->nr_blocks = r->nr_blocks;
	r->g->zeros = true;
	r->g->nr_pages = r->nr_chunks * PV_CHUNK_PAGES;
	ck_assert_uint_le(r->g->nr_pages, GUEST_MAX_PAGES);
	r->pages = calloc(r->nr_chunks, sizeof *r->pages);
	r->source_seed = calloc(r->g->nr_pages, sizeof *r->source_seed);
	for (size_t i = 0; i < r->g->nr_pages; i++)
		pv_page_set_home(&r->pages[i / PV_CHUNK_PAGES], i % PV_CHUNK_PAGES, PV_HOME_ZERO);
	rig_files(r);
}

// Before the guest runs, pages get a content; home NONE: in memory.
static inline void rig_put(struct rig *r, size_t first, size_t nr, enum pv_home home)
{
	char *buf = aligned_alloc(PAGE_SIZE, PAGE_SIZE);

	for (size_t i = first; i < first + nr; i++) {
		struct pv_pages *p = &r->pages[i / PV_CHUNK_PAGES];
		uint64_t seed = guest_mix(i << 20 | (uint64_t)home);

		if (!rig_page(r, i))
			continue;
		r->g->seed[i] = seed;
		pv_page_set_home(p, i % PV_CHUNK_PAGES, home);
		guest_fill(buf, seed);
		if (home == PV_HOME_NONE) {
			memcpy(rig_page(r, i), buf, PAGE_SIZE);
			bitmap_set(p->valid, i % PV_CHUNK_PAGES);
		} else if (home == PV_HOME_SWAP) {
			ck_assert_int_eq(pwrite(r->swap.fd, buf, PAGE_SIZE, (off_t)(i * PAGE_SIZE)), PAGE_SIZE);
		} else {
			r->source_seed[i] = seed;
		}
	}
	free(buf);
}

// Of those with the home SOURCE each so-manyth is zero.
static inline void rig_put_zeros(struct rig *r, size_t first, size_t nr, size_t each)
{
	for (size_t i = first; i < first + nr; i += each)
		if (r->source_seed[i])
			r->source_seed[i] = r->g->seed[i] = 0;
}

// From now on whole chunks may be folios.
static inline void rig_map_folios(struct rig *r)
{
	static bool on; // for as long as this test's process lives

	if (!on)
		folio_setting_on(); // or this runs without them
	on = true;
	for (size_t i = 0; i < r->nr_blocks; i++) {
		pv_block_unmap(&r->block[i]);
		ck_assert_int_eq(pv_block_map(&r->block[i], true), 0);
	}
}

static inline void rig_start_guest(struct rig *r)
{
	if (r->folios)
		rig_map_folios(r);
	fflush(NULL);
	r->pid = fork();
	ck_assert_int_ge(r->pid, 0);
	if (!r->pid) {
		for (size_t i = 0; i < r->nr_blocks; i++)
			pv_block_unmap(&r->block[i]);
		guest_main(r->g);
	}
	for (size_t i = 0; i < GUEST_WORKERS; i++)
		while (!r->g->worker[i].tid)
			usleep(100);
	for (size_t i = 0; i < r->nr_blocks; i++)
		r->block[i].hva = (uint64_t)(uintptr_t)r->g->block[i].ram;
}

static inline void rig_new_engine(struct rig *r)
{
	struct pv_opts o = { .loop = &r->loop, .uffd = r->plant.uffd, .zapper = r->zapper, .zap_own = r->method == MM_ZAP_PAGEOUT,
			     .pagemap = r->pagemap, .swap = &r->swap, .blocks = r->block, .nr_blocks = r->nr_blocks, .pages = r->pages,
			     .budget = r->budget, .source_once = r->source_once, .hotness = r->hotness, .ages = r->ages,
			     .warm = r->warm, .nr_warm = r->nr_warm, .in_images = r->in_images, .ops = &r->ops, .tuning = r->tuning };

	ck_assert_int_eq(pv_engine_new(&o, &r->e), 0);
	r->look.op.done = rig_looked;
	r->drain_timer.op.done = rig_drain_looked;
	r->source_timer.op.done = rig_source_due;
	list_init(&r->source_queue);
	loop_timer(&r->loop, &r->look, RIG_LOOK_NS);
	r->watch = (struct loop_watch){ .fd = r->plant.uffd, .look = rig_look };
	loop_watch(&r->loop, &r->watch);
	rig_listen(r);
}

// Ends a case that needs a way to zap which this host does not have.
#define SKIP_UNLESS_ZAP(method)                                                                                                    \
	do {                                                                                                                       \
		if ((method) == MM_ZAP_PAGEOUT && host_has_swap())                                                                 \
			SKIP_CASE("this host has swap: no zapping without a ring");                                                \
	} while (0)

static inline void rig_new_zapper(struct rig *r)
{
	struct mm_region region[GUEST_BLOCKS];
	struct stat st;

	for (size_t i = 0; i < r->nr_blocks; i++) {
		ck_assert_int_eq(fstat(r->block[i].memfd, &st), 0);
		region[i] = (struct mm_region){ .hva = r->block[i].hva, .len = r->block[i].len, .dev = st.st_dev, .ino = st.st_ino };
	}
	ck_assert_int_eq(mm_zapper_new(r->pid, &r->plant, region, r->nr_blocks, r->method, &r->zapper), 0);
}

// With a ring for reads and writes, as the pager has it: loop_fini() waits for them.
static inline void rig_new_loop(struct rig *r)
{
	ck_assert_int_eq(loop_init(&r->loop, RIG_ENTRIES), 0);
	ck_assert_int_eq(loop_use_io_ring(&r->loop, r->io_fd, RIG_ENTRIES), 0);
}

// The guest is there and its memory is served; page-out begins with pv_engine_run().
static inline void rig_start(struct rig *r)
{
	struct mm_plant_opts po = { .ring_entries = 128, .sq_idle_ms = 1, .target_uffd_dev = -1 };

	rig_start_guest(r);
	ck_assert_int_eq(mm_plant(r->pid, &po, &r->plant), 0);
	ck_assert_int_eq(mm_uffd_api(r->plant.uffd, RIG_FEATURES, NULL), 0);
	for (size_t i = 0; i < r->nr_blocks; i++)
		ck_assert_int_eq(mm_uffd_register(r->plant.uffd, r->block[i].hva, r->block[i].len), 0);
	rig_new_zapper(r);
	ck_assert_int_eq(mm_pagemap_open(r->pid, &r->pagemap), 0);
	r->io_fd = io_ring_new(RIG_ENTRIES);
	ck_assert_int_ge(r->io_fd, 0);
	rig_new_loop(r);
	r->ops = (struct pv_ops){ .ctx = r, .drain = rig_drain, .source_read = rig_source_read, .source_done = rig_source_done };
	rig_new_engine(r);
	r->sampling = true;
	ck_assert_int_eq(pthread_create(&r->sampler, NULL, rig_sample, r), 0);
}

static inline void rig_check(const struct rig *r)
{
	ck_assert_msg(!r->g->wrong, "%u wrong pages; first: page %zu of chunk %zu, word %zu is %#lx, not %#lx", r->g->wrong,
		      r->g->first_wrong.page % PV_CHUNK_PAGES, r->g->first_wrong.page / PV_CHUNK_PAGES, r->g->first_wrong.word,
		      r->g->first_wrong.got, r->g->first_wrong.want);
}

// The end of every test: nothing was ever wrong, and there is no memory that the engine does not know of.
static inline void rig_end(struct rig *r)
{
	rig_check(r);
	ck_assert(rig_until(r, !rig_stats(r).page_out_under_way, RIG_PATIENCE_MS));
	ck_assert_uint_le(rig_memory(r) / PAGE_SIZE, rig_stats(r).charged);
	for (size_t i = 0; i < r->nr_chunks; i++)
		ck_assert(pv_pages_sane(&r->pages[i]));
	r->sampling = false;
	pthread_join(r->sampler, NULL);
	kill(r->pid, SIGKILL);
	waitpid(r->pid, NULL, 0);
	loop_fini(&r->loop);
	mm_zapper_free(r->zapper);
	pv_engine_free(r->e);
	mm_pagemap_close(r->pagemap);
	mm_plant_fini(&r->plant);
	pv_swap_close(&r->swap);
	for (size_t i = 0; i < r->nr_blocks; i++) {
		pv_block_unmap(&r->block[i]);
		close(r->block[i].memfd);
	}
	close(r->g->dma_fd);
	close(r->io_fd);
	munmap(r->g, sizeof *r->g);
	free(r->pages);
	free(r->source_seed);
}

// The ways of paging for which the same must hold, numbered; 0: the default of a host without folios.
#define RIG_WAYS 12
static inline void rig_page_by(struct rig *r, int way)
{
	r->tuning.method = (enum pv_method)(way % PV_NR_METHODS);
	r->tuning.access = way / PV_NR_METHODS % 2 ? PV_ACCESS_NONE : PV_ACCESS_MINOR;
	r->folios = way >= RIG_WAYS / 2;
}

// How many of them a test goes through: a few that have each of these, or with CRIU_VM_LONG all; and the i-th of these.
static inline int rig_nr_ways(void)
{
	return getenv("CRIU_VM_LONG") ? RIG_WAYS : 4;
}

static inline int rig_way(int i)
{
	static const int few[] = { 0, RIG_WAYS / 2, PV_NR_METHODS + PV_METHOD_1, RIG_WAYS / 2 + PV_METHOD_2 };

	return rig_nr_ways() == RIG_WAYS ? i % RIG_WAYS : few[i % 4];
}

// Orders to the guest.

static inline void rig_order(struct rig *r, size_t worker, enum guest_order order, size_t first, size_t nr)
{
	struct worker *w = &r->g->worker[worker];

	ck_assert_int_eq(w->order, GUEST_IDLE);
	w->first = first;
	w->nr = nr;
	w->touched = 0;
	w->order = order;
}

static inline bool rig_idle(const struct rig *r)
{
	for (size_t i = 0; i < GUEST_WORKERS; i++)
		if (r->g->worker[i].order != GUEST_IDLE)
			return false;
	return true;
}

// Until all workers have done what they were told.
static inline void rig_finish(struct rig *r)
{
	if (!rig_until(r, rig_idle(r), RIG_PATIENCE_MS)) {
		struct pv_stats s = rig_stats(r);

		ck_abort_msg("the guest hangs: charged %lu of %lu, reads waiting %u, under way %lu, standby %lu, trouble: %s", s.charged,
			     s.budget, s.reads_waiting, s.page_out_under_way, s.standby, s.trouble ? s.trouble : "none");
	}
	rig_check(r);
}

static inline void rig_do(struct rig *r, size_t worker, enum guest_order order, size_t first, size_t nr)
{
	rig_order(r, worker, order, first, nr);
	rig_finish(r);
}
