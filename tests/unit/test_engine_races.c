// SPDX-License-Identifier: GPL-2.0-only
// What happens between two steps of the engine: no write of the guest's is lost, and nobody waits who need not.
#include <poll.h>
#include <stdarg.h>
#include <sys/ioctl.h>

#include "engine_suite.h"
#include "pvmem/engine_int.h"

#define NR_CHUNKS 24
#define BUDGET (16 * MiB)
#define CHUNK 3 // that it is about
#define FIRST (CHUNK * (size_t)PV_CHUNK_PAGES)
#define WRITTEN (FIRST + 200)

static struct rig rig;

// By a page map of its own: a scan of the engine's may be under way.
static bool is_mapped(const struct rig *r, size_t page)
{
	uint64_t present[1] = { 0 };
	struct mm_pagemap *pm;

	ck_assert_int_eq(mm_pagemap_open(r->pid, &pm), 0);
	ck_assert_int_eq(mm_pagemap_scan(pm, r->block[0].hva + page * PAGE_SIZE, PAGE_SIZE, MM_SCAN_PRESENT, present), 0);
	mm_pagemap_close(pm);
	return present[0] & 1;
}

// Nobody serves the guest meanwhile: it touches what is mapped.
static void do_unserved(struct rig *r, size_t worker, enum guest_order order, size_t first, size_t nr)
{
	rig_order(r, worker, order, first, nr);
	for (unsigned i = 0; i < 2000 && r->g->worker[worker].order != GUEST_IDLE; i++)
		usleep(1000);
	ck_assert_int_eq(r->g->worker[worker].order, GUEST_IDLE);
}

// What the host does when it needs the memory, and what a punch of QEMU's does to the other pages of a folio.
static void unmap(const struct rig *r, size_t page)
{
	struct iovec iov = { (void *)(uintptr_t)(r->block[0].hva + page * PAGE_SIZE), PAGE_SIZE };
	int pidfd = (int)syscall(SYS_pidfd_open, r->pid, 0);

	pv_unmap_own(r->e, page / PV_CHUNK_PAGES); // else it stays
	ck_assert_int_eq(syscall(SYS_process_madvise, pidfd, &iov, 1, MADV_PAGEOUT, 0), PAGE_SIZE);
	close(pidfd);
	ck_assert(!is_mapped(r, page));
}

// The chunk's so many-th scan from now on is followed at once by a write to a page, and by the loss of its mapping.
static unsigned scans_left;

int ioctl(int fd, unsigned long request, ...)
{
	const struct pm_scan_arg *scan;
	va_list args;
	int ret;

	va_start(args, request);
	scan = va_arg(args, const void *);
	va_end(args);
	ret = (int)syscall(SYS_ioctl, fd, request, scan);
	if (ret >= 0 && scans_left && request == PAGEMAP_SCAN && scan->start == rig.block[0].hva + FIRST * PAGE_SIZE && !--scans_left) {
		do_unserved(&rig, 1, GUEST_WRITE, WRITTEN, 1);
		unmap(&rig, WRITTEN);
	}
	return ret;
}

// The chunk is mapped, known to be clean, and both in memory and in the swap image.
static void start_clean(struct rig *r)
{
	uint64_t all[PV_WORDS];

	rig_init(r, NR_CHUNKS * PV_CHUNK_PAGES, 0, BUDGET);
	rig_put(r, FIRST, PV_CHUNK_PAGES, PV_HOME_SWAP);
	rig_start(r);
	pv_engine_run(r->e);
	rig_do(r, 0, GUEST_VERIFY, FIRST, PV_CHUNK_PAGES);
	rig_do(r, 0, GUEST_VERIFY, FIRST, PV_CHUNK_PAGES); // the samples, too
	pv_harvest_chunk(r->e, CHUNK);
	memset(all, 0xff, sizeof all);
	pv_pages_set_home(&r->pages[CHUNK], all, PV_HOME_SWAP);
	memset(r->pages[CHUNK].dirty, 0, sizeof r->pages[CHUNK].dirty);
	ck_assert(bitmap_count(r->pages[CHUNK].valid, PV_CHUNK_PAGES) == PV_CHUNK_PAGES && is_mapped(r, WRITTEN));
}

// The chunk goes, and is read back in.
static void push_out_and_verify(struct rig *r)
{
	for (unsigned i = 0; i < 8 && !bitmap_empty(r->pages[CHUNK].valid, PV_CHUNK_PAGES); i++)
		rig_do(r, 0, GUEST_WRITE, FIRST + PV_CHUNK_PAGES, (NR_CHUNKS - CHUNK - 1) * PV_CHUNK_PAGES);
	ck_assert(bitmap_empty(r->pages[CHUNK].valid, PV_CHUNK_PAGES));
	rig_do(r, 0, GUEST_VERIFY, FIRST, PV_CHUNK_PAGES);
}

// ---- what a pager before this one has mapped

#define NR_WRITTEN 10

// As long as a removal has not been read the kernel maps nothing.
static void touch_while_nothing_can_be_mapped(struct rig *r)
{
	struct pollfd removal = { .fd = r->plant.uffd, .events = POLLIN };

	r->deaf = true;
	rig_order(r, 1, GUEST_DISCARD, 10 * PV_CHUNK_PAGES, 1);
	ck_assert_int_eq(poll(&removal, 1, 5000), 1);
	pv_fault(r->e, (FIRST + 50) * PAGE_SIZE, true, true);
	ck_assert(!list_empty(&r->e->remap));
}

// Whatever comes before it can: a harvest, or the chunk goes.
START_TEST(foreign_again)
{
	struct rig *r = &rig;

	start_clean(r);
	replace_engine(r);
	ck_assert(r->e->chunks[CHUNK].foreign);
	memset(r->pages[CHUNK].dirty, 0, sizeof r->pages[CHUNK].dirty);
	touch_while_nothing_can_be_mapped(r);
	do_unserved(r, 0, GUEST_WRITE, FIRST, NR_WRITTEN);
	if (_i) {
		ck_assert_int_eq(pv_zap(r->e, &r->e->chunks[CHUNK], false), 0);
		mm_zap_submit(r->zapper);
	} else {
		pv_engine_harvest(r->e);
		ck_assert_uint_ge(bitmap_next(r->pages[CHUNK].dirty, PV_CHUNK_PAGES, 0, false), NR_WRITTEN);
	}
	r->deaf = false;
	rig_finish(r);
	push_out_and_verify(r);
	rig_end(r);
}
END_TEST

// Written, and unmapped by the host, after one of the looks at what is mapped.
START_TEST(unmapped_before_mapped)
{
	struct rig *r = &rig;

	start_clean(r);
	replace_engine(r);
	scans_left = 1 + (unsigned)_i;
	pv_fault(r->e, (FIRST + 5) * PAGE_SIZE, true, true);
	ck_assert_uint_eq(scans_left, 0);
	push_out_and_verify(r);
	rig_end(r);
}
END_TEST

// ---- a folio that loses a page

// The same after one of the looks at what the loss of a page has done to the others. One of them was unmapped by it.
START_TEST(split_between_scans)
{
	struct rig *r = &rig;

	start_clean(r);
	unmap(r, FIRST + 100);
	r->e->chunks[CHUNK].folio = true; // as if it was one
	scans_left = 1 + (unsigned)_i;
	rig_do(r, 0, GUEST_DISCARD, FIRST + 1, 1);
	ck_assert_uint_eq(scans_left, 0);
	ck_assert(!bitmap_test(r->e->maps[CHUNK].mapped, 100));
	push_out_and_verify(r);
	rig_end(r);
}
END_TEST

// ---- a copy of a fill

#define NR_HERE 100 // pages of the chunk; the source has the others
#define COPIED (FIRST + 150)

static void start_with_copy(struct rig *r)
{
	const struct pv_source_read *rd;

	rig_init(r, NR_CHUNKS * PV_CHUNK_PAGES, 0, NR_CHUNKS * MiB);
	rig_put(r, FIRST, NR_HERE, PV_HOME_NONE);
	rig_put(r, FIRST + NR_HERE, PV_CHUNK_PAGES - NR_HERE, PV_HOME_SOURCE);
	r->copy_hold = true;
	rig_start(r);
	pv_engine_run(r->e);
	rig_do(r, 0, GUEST_VERIFY, FIRST, 10);
	pv_fill_begin(r->e);
	ck_assert(rig_until(r, !list_empty(&r->source_queue), RIG_PATIENCE_MS));
	rd = list_first(&r->source_queue, struct pv_source_read, link);
	ck_assert(rd->unasked && rd->chunk == CHUNK);
}

// It comes when the chunk has been unmapped, and before the engine knows.
static void copy_comes_after_zap(struct rig *r)
{
	struct pv_source_read *rd = list_first(&r->source_queue, struct pv_source_read, link);
	struct pollfd zapped = { .fd = mm_zap_fd(r->zapper), .events = POLLIN };

	pv_balance(r->e);
	ck_assert_int_eq(r->e->chunks[CHUNK].state, PV_ZAPPING);
	for (unsigned i = 0; i < 5000 && !poll(&zapped, 1, 1); i++)
		rig_listen(r); // its removal
	ck_assert_int_eq(zapped.revents, POLLIN);
	ck_assert_int_eq(r->e->chunks[CHUNK].state, PV_ZAPPING);
	list_remove(&rd->link);
	rig_source_answer(r, rd);
	ck_assert(bitmap_test(r->pages[CHUNK].valid, COPIED % PV_CHUNK_PAGES));
}

// What a snapshot takes for unmapped is: it has what the guest overwrites, and an increment after it the write.
START_TEST(copy_meets_snapshot_zap)
{
	struct rig *r = &rig;
	struct pv_snapshot *s;
	size_t size;
	int fd;

	start_with_copy(r);
	size = pv_snapshot_size(r->nr_chunks);
	s = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	ck_assert(s != MAP_FAILED);
	ck_assert_int_eq(pv_snapshot_begin(r->e, s, NR_CHUNKS * MiB, &fd), 0);
	copy_comes_after_zap(r);
	ck_assert(rig_until(r, pv_snapshot_phase(s) == PV_SNAP_READY, RIG_PATIENCE_MS));
	pv_snapshot_instant(r->e);
	ck_assert(rig_until(r, pv_snapshot_phase(s) == PV_SNAP_TAKEN, RIG_PATIENCE_MS));
	ck_assert(!is_mapped(r, COPIED));
	memset(r->pages[CHUNK].dirty, 0, sizeof r->pages[CHUNK].dirty);
	rig_do(r, 0, GUEST_WRITE, COPIED, 1);
	ck_assert(bitmap_test(s->chunk[CHUNK].kept, COPIED % PV_CHUNK_PAGES));
	pv_snapshot_end(r->e);
	pv_engine_harvest(r->e);
	ck_assert(bitmap_test(r->pages[CHUNK].dirty, COPIED % PV_CHUNK_PAGES));
	rig_do(r, 0, GUEST_VERIFY, FIRST, PV_CHUNK_PAGES);
	munmap(s, size);
	rig_end(r);
}
END_TEST

// ---- who waits

#define NR_GOOD 10 // pages that can be read
#define NR_BAD 6   // pages right behind them

// A page that cannot be read, and is read with one that can, keeps nobody waiting but who needs it.
START_TEST(bad_neighbour)
{
	struct rig *r = &rig;

	quiet();
	rig_init(r, NR_CHUNKS * PV_CHUNK_PAGES, 0, BUDGET);
	rig_page_by(r, _i);
	rig_put(r, FIRST, NR_GOOD + NR_BAD, PV_HOME_SWAP);
	ck_assert_int_eq(ftruncate(r->swap.fd, (off_t)((FIRST + NR_GOOD) * PAGE_SIZE)), 0);
	rig_start(r);
	pv_engine_run(r->e);
	rig_order(r, 0, GUEST_VERIFY, FIRST, NR_GOOD);
	ck_assert(rig_until(r, rig_idle(r), 5000));
	ck_assert_uint_eq(rig_stats(r).reads_waiting, 0);
	rig_order(r, 0, GUEST_VERIFY, FIRST + NR_GOOD, NR_BAD);
	expect_trouble(r, "the swap image cannot be read", -EIO, 0);
	rig_put(r, FIRST + NR_GOOD, NR_BAD, PV_HOME_SWAP);
	rig_finish(r);
	rig_end(r);
}
END_TEST

int main(void)
{
	Suite *s = suite_create("engine_races");

	add(s, foreign_again, 2);
	add(s, unmapped_before_mapped, 2);
	add(s, split_between_scans, 2);
	add(s, copy_meets_snapshot_zap, 1);
	add(s, bad_neighbour, PV_NR_METHODS);
	return run(s);
}
