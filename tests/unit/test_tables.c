// SPDX-License-Identifier: GPL-2.0-only
// Page tables of what is wholly out are given back, on the real kernel: they are gone, nothing else is, and who comes meanwhile waits.
#include "engine_suite.h"
#include "pvmem/engine_int.h"
#include "util/io.h"

#define NR_CHUNKS 48
#define NR_PAGES (NR_CHUNKS * PV_CHUNK_PAGES)
#define BUDGET (16 * MiB)
#define TABLE_PAGES (PV_TABLE_SIZE / PAGE_SIZE)
#define LEAST 10 // page tables that are given back when two thirds are out
#define NR_WRITTEN 40

static uint64_t guest_tables(const struct rig *r)
{
	char path[32], *status;
	const char *line;
	uint64_t kib;
	size_t len;

	snprintf(path, sizeof path, "/proc/%d/status", r->pid);
	ck_assert_int_eq(io_read_file(path, MiB, &status, &len), 0);
	line = strstr(status, "VmPTE:");
	ck_assert_ptr_nonnull(line);
	kib = strtoull(line + strlen("VmPTE:"), NULL, 10);
	free(status);
	return kib * KiB / PAGE_SIZE;
}

// All of it went through memory once, and none was changed. No page table is given back yet, and nothing else is zapped but to go out.
static void start(struct rig *r)
{
	struct pv_tuning tuning = PV_TUNING_DEFAULT;

	tuning.access = PV_ACCESS_NONE;
	rig_init(r, NR_PAGES, 0, BUDGET);
	rig_put(r, 0, NR_PAGES, PV_HOME_SWAP);
	rig_start(r);
	pv_engine_tune(r->e, &tuning);
	pv_engine_run(r->e);
	r->no_ticks = true;
	rig_do(r, 0, GUEST_VERIFY, 0, NR_PAGES);
}

// The page at which the address space that a table maps begins, of a table that is being given back; or 0.
static size_t being_stripped(const struct rig *r)
{
	for (size_t i = 0; i < r->nr_chunks; i++)
		if (r->pages[i].zapping == PV_ZAPPING_TABLE)
			return (ROUND_UP(r->block[0].hva + i * PV_CHUNK_SIZE, PV_TABLE_SIZE) - r->block[0].hva) / PAGE_SIZE;
	return 0;
}

// From now on a zap of a table cannot end, since nobody reads its event. Until one has begun.
static size_t hold(struct rig *r)
{
	struct pv_stats s;

	do { // the zap of a chunk would not end either, and all others behind it
		rig_pass(r, 50);
		s = rig_stats(r);
	} while (s.page_out_under_way || mm_zap_pending(r->zapper));
	r->deaf = true;
	r->no_ticks = false;
	ck_assert(rig_until(r, being_stripped(r), RIG_PATIENCE_MS));
	r->no_ticks = true;
	return being_stripped(r);
}

static void let_go(struct rig *r)
{
	r->deaf = false;
	rig_listen(r);
}

static void wait_given_back(struct rig *r)
{
	r->no_ticks = false;
	ck_assert(rig_until(r, rig_stats(r).tables_given_back >= LEAST, RIG_PATIENCE_MS));
	r->no_ticks = true;
}

static void forget_dirty(const struct rig *r)
{
	for (size_t i = 0; i < r->nr_chunks; i++)
		memset(r->pages[i].dirty, 0, sizeof r->pages[i].dirty);
}

// Just these.
static void expect_dirty(const struct rig *r, size_t first, size_t nr)
{
	for (size_t i = 0; i < NR_PAGES; i++)
		ck_assert_msg(bitmap_test(r->pages[i / PV_CHUNK_PAGES].dirty, i % PV_CHUNK_PAGES) == (i - first < nr), "page %zu", i);
}

static bool waits(const struct rig *r, size_t worker)
{
	return r->g->worker[worker].order != GUEST_IDLE;
}

START_TEST(given_back)
{
	struct rig r;
	uint64_t before;

	start(&r);
	before = guest_tables(&r);
	wait_given_back(&r);
	ck_assert_uint_le(guest_tables(&r) + LEAST - 1, before); // a thread of the guest may have got one
	verify_all(&r);
	ck_assert_uint_eq(rig_stats(&r).discarded, 0);
	ck_assert_uint_eq(rig_stats(&r).out_written, 0); // the marks of what was not written are gone, and nothing counts as written
	rig_end(&r);
}
END_TEST

// Touched in the middle of it, and at either end, where its chunks belong to other tables too; written to, that must not be lost.
START_TEST(touched_meanwhile)
{
	static const long where[] = { 0, TABLE_PAGES - 1, -1 };
	enum guest_order what = _i % 2 ? GUEST_WRITE : GUEST_VERIFY;
	struct uffd_msg m;
	struct rig r;
	uint64_t in;
	size_t page;

	start(&r);
	for (size_t i = 0; i < ARRAY_SIZE(where); i++) {
		page = (size_t)((long)hold(&r) + where[i]);
		in = rig_stats(&r).in_swap;
		rig_order(&r, 0, what, page, 1);
		usleep(20000);
		ck_assert_int_eq(read(r.plant.uffd, &m, sizeof m), sizeof m); // faults come before other events
		rig_event(&r, &m);
		rig_pass(&r, 20);
		ck_assert(waits(&r, 0));
		ck_assert_uint_eq(rig_stats(&r).in_swap, in);
		let_go(&r);
		rig_finish(&r);
		rig_do(&r, 1, GUEST_VERIFY, 0, NR_PAGES);
	}
	verify_all(&r);
	rig_end(&r);
}
END_TEST

// The guest gives back exactly what is being zapped, or more: one REMOVE event is the guest's.
START_TEST(discarded_meanwhile)
{
	size_t page, nr = TABLE_PAGES + (_i ? 100 : 0);
	struct rig r;

	start(&r);
	page = hold(&r);
	rig_order(&r, 0, GUEST_DISCARD, page, nr);
	usleep(20000);
	ck_assert(waits(&r, 0));
	let_go(&r);
	rig_finish(&r);
	ck_assert_uint_eq(rig_stats(&r).discarded, nr);
	verify_all(&r);
	rig_end(&r);
}
END_TEST

// The pager dies in it. The next one reads the event.
START_TEST(taken_over_meanwhile)
{
	struct rig r;
	size_t page;

	start(&r);
	page = hold(&r);
	if (_i) // and the guest gives the same back
		rig_order(&r, 0, GUEST_DISCARD, page, TABLE_PAGES);
	rig_order(&r, 1, GUEST_VERIFY, _i ? 0 : page + 7, 1);
	usleep(20000);
	replace_engine(&r);
	rig_finish(&r);
	for (size_t i = 0; i < TABLE_PAGES; i++)
		ck_assert_int_eq(pv_page_home(&r.pages[(page + i) / PV_CHUNK_PAGES], (page + i) % PV_CHUNK_PAGES), _i ? PV_HOME_ZERO : PV_HOME_SWAP);
	verify_all(&r);
	rig_end(&r);
}
END_TEST

// What is written where a table was given back is found, and nothing else; also while another one is being given back.
START_TEST(harvested)
{
	size_t page;
	struct rig r;

	start(&r);
	wait_given_back(&r);
	rig_do(&r, 0, GUEST_VERIFY, 0, NR_PAGES);
	forget_dirty(&r);
	ck_assert_uint_eq(pv_engine_harvest(r.e), 0);
	rig_do(&r, 0, GUEST_WRITE, TABLE_PAGES, NR_WRITTEN);
	ck_assert_uint_eq(pv_engine_harvest(r.e), NR_WRITTEN);
	expect_dirty(&r, TABLE_PAGES, NR_WRITTEN);
	page = hold(&r);
	forget_dirty(&r);
	ck_assert_uint_eq(pv_engine_harvest(r.e), 0);
	let_go(&r);
	rig_do(&r, 0, GUEST_WRITE, page - NR_WRITTEN / 2, NR_WRITTEN);
	ck_assert_uint_eq(pv_engine_harvest(r.e), NR_WRITTEN);
	expect_dirty(&r, page - NR_WRITTEN / 2, NR_WRITTEN);
	verify_all(&r);
	rig_end(&r);
}
END_TEST

static bool phase_comes(struct rig *r, const struct pv_snapshot *s, enum pv_snapshot_phase phase)
{
	return rig_until(r, pv_snapshot_phase(s) == phase, RIG_PATIENCE_MS);
}

// A snapshot begins, and is taken, while tables are given back: it has what the guest overwrites.
START_TEST(snapshot_meanwhile)
{
	char *saved = aligned_alloc(PAGE_SIZE, PAGE_SIZE), *before = aligned_alloc(PAGE_SIZE, PAGE_SIZE);
	const size_t size = pv_snapshot_size(NR_CHUNKS);
	struct pv_snapshot *s = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	uint64_t seed[NR_WRITTEN];
	struct rig r;
	size_t page;
	int fd;

	ck_assert(s != MAP_FAILED);
	start(&r);
	r.no_ticks = false;
	ck_assert(rig_until(&r, being_stripped(&r), RIG_PATIENCE_MS));
	page = being_stripped(&r) - NR_WRITTEN / 2;
	memcpy(seed, r.g->seed + page, sizeof seed);
	ck_assert_int_eq(pv_snapshot_begin(r.e, s, NR_CHUNKS * MiB, &fd), 0);
	ck_assert(phase_comes(&r, s, PV_SNAP_READY));
	pv_snapshot_instant(r.e);
	ck_assert(phase_comes(&r, s, PV_SNAP_TAKEN));
	forget_dirty(&r);
	rig_do(&r, 0, GUEST_WRITE, page, NR_WRITTEN);
	for (size_t i = 0; i < NR_WRITTEN; i++) {
		ck_assert(bitmap_test(s->chunk[(page + i) / PV_CHUNK_PAGES].kept, (page + i) % PV_CHUNK_PAGES));
		ck_assert_int_eq(pread(fd, saved, PAGE_SIZE, (off_t)((page + i) * PAGE_SIZE)), PAGE_SIZE);
		guest_fill(before, seed[i]);
		ck_assert_mem_eq(saved, before, PAGE_SIZE);
	}
	pv_snapshot_end(r.e);
	ck_assert_uint_eq(pv_engine_harvest(r.e), NR_WRITTEN);
	expect_dirty(&r, page, NR_WRITTEN);
	verify_all(&r);
	rig_end(&r);
	munmap(s, size);
	free(saved);
	free(before);
}
END_TEST

// With another block, in which there is one whole table at most.
static void start_load(struct rig *r)
{
	rig_init(r, NR_PAGES, 3 * PV_CHUNK_PAGES + 77, BUDGET);
	rig_put(r, 0, NR_PAGES, PV_HOME_SWAP);
	rig_start(r);
	pv_engine_run(r->e);
}

// All at once, tables coming and going.
START_TEST(under_load)
{
	struct rig r;

	start_load(&r);
	for (size_t i = 0; i < 6; i++) { // a part of it at a time, so that others are out for long
		rig_order(&r, 0, GUEST_WRITE, (i * 8 % NR_CHUNKS) * PV_CHUNK_PAGES, 12 * PV_CHUNK_PAGES);
		rig_order(&r, 1, GUEST_VERIFY, (i * 16 % NR_CHUNKS) * PV_CHUNK_PAGES, 12 * PV_CHUNK_PAGES);
		rig_order(&r, 2, GUEST_DISCARD, (i * 512 + 100) % NR_PAGES, 512);
		rig_pass(&r, 1000);
		rig_finish(&r);
	}
	ck_assert_uint_ge(rig_stats(&r).tables_given_back, LEAST);
	verify_all(&r);
	rig_end(&r);
}
END_TEST

// One pager after the other dies while it gives tables back.
START_TEST(taken_over_under_load)
{
	unsigned met = 0;
	struct rig r;

	start_load(&r);
	for (size_t i = 0; i < 6; i++) {
		rig_do(&r, 0, GUEST_WRITE, 0, NR_PAGES);
		rig_pass(&r, 500);
		r.deaf = true;
		met += rig_until(&r, being_stripped(&r), 2000);
		rig_order(&r, 0, GUEST_WRITE, (i * 8 % NR_CHUNKS) * PV_CHUNK_PAGES, 6 * PV_CHUNK_PAGES);
		rig_order(&r, 1, GUEST_VERIFY, (i * 16 % NR_CHUNKS) * PV_CHUNK_PAGES, 6 * PV_CHUNK_PAGES);
		rig_order(&r, 2, GUEST_DISCARD, (i * 512 + 100) % NR_PAGES, 512);
		rig_pass(&r, i * 5);
		replace_engine(&r);
		rig_finish(&r);
		verify_all(&r);
	}
	ck_assert_uint_ge(met, 1);
	rig_end(&r);
}
END_TEST

int main(void)
{
	Suite *s;

	if (!pv_tables_can_be_freed()) {
		printf("skipped: the kernel frees no page tables\n");
		return 77;
	}
	s = suite_create("tables");
	add(s, given_back, 1);
	add(s, touched_meanwhile, 2);
	add(s, discarded_meanwhile, 2);
	add(s, taken_over_meanwhile, 2);
	add(s, harvested, 1);
	add(s, snapshot_meanwhile, 1);
	add(s, under_load, 1);
	add(s, taken_over_under_load, 1);
	return run(s);
}
