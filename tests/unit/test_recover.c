// SPDX-License-Identifier: GPL-2.0-only
// A page table is good after a kill between any two instructions that change it; and what the kernel knows puts it right.
#include "engine_suite.h"

#include <sys/ioctl.h>

#include "pvmem/recover.h"
#include "traced.h"
#include "unserved.h"

// ---- the table itself: a child changes it instruction by instruction, and after each of them it is looked at

struct change {
	struct pv_pages p;
	uint64_t which[PV_WORDS];
	enum pv_home to;
	bool sets_valid, valid;
};

static void do_change(void *arg)
{
	struct change *c = arg;

	if (c->sets_valid)
		pv_pages_set_valid(&c->p, c->which, c->valid);
	else
		pv_pages_set_home(&c->p, c->which, c->to);
}

static void fill_randomly(uint64_t map[PV_WORDS], uint64_t *random)
{
	for (unsigned w = 0; w < PV_WORDS; w++)
		map[w] = *random = guest_mix(*random);
}

// With what an earlier kill may have left: several homes at a time, the first of which is meant.
static struct change *new_change(uint64_t *random)
{
	struct change *c = mmap(NULL, sizeof *c, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);

	ck_assert(c != MAP_FAILED);
	fill_randomly(c->p.valid, random);
	fill_randomly(c->p.zero, random);
	fill_randomly(c->p.swap, random);
	fill_randomly(c->p.source, random);
	fill_randomly(c->which, random);
	return c;
}

// Each page is as before, or as it is to be, and does not go back.
static void expect_old_or_new(const struct change *c, const struct pv_pages *before, const struct pv_pages *last)
{
	for (unsigned i = 0; i < PV_CHUNK_PAGES; i++) {
		enum pv_home is = pv_page_home(&c->p, i), was = pv_page_home(before, i), lately = pv_page_home(last, i);
		bool meant = bitmap_test(c->which, i), valid = bitmap_test(c->p.valid, i);

		if (valid != bitmap_test(before->valid, i) && !(c->sets_valid && meant && valid == c->valid))
			ck_abort_msg("page %u is %svalid", i, valid ? "" : "not ");
		if (is != was && !(!c->sets_valid && meant && is == c->to))
			ck_abort_msg("page %u was %u, is %u on its way to %u", i, was, is, c->to);
		if (is != lately && is != c->to)
			ck_abort_msg("page %u was %u already, is %u again", i, lately, is);
	}
}

// Returns how many states of the table were seen.
static unsigned step_through(struct change *c)
{
	struct pv_pages before = c->p, last = c->p;
	pid_t pid = traced_fork(do_change, c);
	unsigned states = 0;

	while (traced_step(pid, PTRACE_SINGLESTEP)) {
		if (!memcmp(&last, &c->p, sizeof last))
			continue;
		expect_old_or_new(c, &before, &last);
		last = c->p;
		states++;
	}
	for (unsigned i = 0; i < PV_CHUNK_PAGES; i++)
		if (bitmap_test(c->which, i) && c->sets_valid)
			ck_assert(bitmap_test(c->p.valid, i) == c->valid);
		else if (bitmap_test(c->which, i))
			ck_assert_int_eq(pv_page_home(&c->p, i), c->to);
	return states;
}

START_TEST(homes_between_instructions)
{
	uint64_t random = (uint64_t)_i;

	for (unsigned round = 0; round < 4; round++) {
		struct change *c = new_change(&random);

		c->to = (enum pv_home)_i;
		ck_assert_uint_ge(step_through(c), 3 * PV_WORDS / 2);
		munmap(c, sizeof *c);
	}
}
END_TEST

START_TEST(validity_between_instructions)
{
	uint64_t random = (uint64_t)_i;
	struct change *c = new_change(&random);

	c->sets_valid = true;
	c->valid = _i;
	ck_assert_uint_ge(step_through(c), PV_WORDS / 2);
	munmap(c, sizeof *c);
}
END_TEST

// ---- the table and the kernel's truth, row by row of the table in recover.h

enum entry { CLEAN, DIRTY, UNPROTECTED, MARKED, EMPTIED, NEVER, NR_ENTRIES }; // in QEMU's page table

struct row {
	bool valid, data, possible;
	enum entry entry;
	enum pv_home home;
};

#define BUDGET (16 * MiB)
#define NR_ROWS (2 * 2 * NR_ENTRIES * 4)
#define CHUNKS 8
#define HARVESTED 3 // a chunk that was being harvested
#define PAGES (CHUNKS * PV_CHUNK_PAGES + 12)
#define MORE_PAGES (3 * PV_CHUNK_PAGES + 5)

static struct row row_of(size_t page)
{
	unsigned i = page * 5 % NR_ROWS; // neighbours differ
	struct row r = { .valid = i % 2, .data = i / 2 % 2, .home = i / 4 % 4, .entry = i / 16 % NR_ENTRIES };

	r.possible = (r.valid || r.home != PV_HOME_NONE) && (r.data || r.entry >= MARKED);
	if (!r.possible)
		r = (struct row){ .home = PV_HOME_ZERO, .entry = NEVER };
	return r;
}

// One zap, and its REMOVE event.
static void zap(struct rig *r, size_t page, size_t nr)
{
	uint64_t tag, end = clock_now_ns() + NSEC_PER_SEC;
	struct uffd_msg m;
	int res = 1;

	ck_assert_int_eq(mm_zap_queue(r->zapper, unserved_hva(r, page), nr * PAGE_SIZE, 0), 0);
	ck_assert_int_eq(mm_zap_submit(r->zapper), 0);
	while (!mm_zap_reap(r->zapper, &tag, &res) && clock_now_ns() < end)
		if (read(r->plant.uffd, &m, sizeof m) == sizeof m)
			ck_assert_int_eq(m.event, UFFD_EVENT_REMOVE);
	ck_assert_int_eq(res, 0);
}

// All pages of the chunk, some of them by the guest.
static void make_rows(struct rig *r, size_t chunk)
{
	size_t first = chunk * PV_CHUNK_PAGES, nr = unserved_chunk_pages(r, chunk);

	rig_put(r, first, nr, PV_HOME_NONE);
	for (size_t i = first; i < first + nr; i++)
		if (row_of(i).entry != NEVER)
			unserved_map(r, i, true);
	for (size_t i = first; i < first + nr; i++)
		if (row_of(i).entry == EMPTIED)
			unserved_do(r, 0, GUEST_WRITE, i, 1);
	zap(r, first, nr);
	for (size_t i = first; i < first + nr; i++) {
		struct row row = row_of(i);

		if (row.entry < MARKED)
			unserved_map(r, i, row.entry != UNPROTECTED);
		if (row.entry == DIRTY)
			unserved_do(r, 1, GUEST_WRITE, i, 1);
		if (!row.data)
			unserved_punch(r, i);
	}
}

static void make_table(struct rig *r, size_t chunk)
{
	struct pv_pages *p = &r->pages[chunk];

	memset(p, 0, sizeof *p);
	p->zapping = chunk % 2;
	p->harvesting = chunk == HARVESTED;
	for (unsigned i = 0; i < PV_CHUNK_PAGES; i++) {
		struct row row = row_of(chunk * PV_CHUNK_PAGES + i);

		if (i >= unserved_chunk_pages(r, chunk))
			row = (struct row){ .home = PV_HOME_ZERO };
		pv_page_set_home(p, i, row.home);
		if (row.valid)
			bitmap_set(p->valid, i);
	}
}

// What recover.h says of the row. Adds to what.
static void expect_row(struct rig *r, size_t page, struct pv_recovered *what)
{
	const struct pv_pages *p = &r->pages[page / PV_CHUNK_PAGES];
	struct row row = row_of(page);
	bool written = row.entry == DIRTY || row.entry == UNPROTECTED || row.entry == EMPTIED || row.entry == NEVER || page / PV_CHUNK_PAGES == HARVESTED;
	bool stays = row.valid && row.data;
	enum pv_home home = row.valid && !row.data ? PV_HOME_ZERO : stays && written ? PV_HOME_NONE : row.home;
	char text[96], *want = malloc(PAGE_SIZE);

	snprintf(text, sizeof text, "page %zu: %svalid, %s, entry %u, home %u", page, row.valid ? "" : "not ", row.data ? "data" : "hole",
		 (unsigned)row.entry, (unsigned)row.home);
	ck_assert_msg(bitmap_test(p->valid, page % PV_CHUNK_PAGES) == stays, "%s: wrong validity", text);
	ck_assert_msg(pv_page_home(p, page % PV_CHUNK_PAGES) == home, "%s: its home is %u now", text, pv_page_home(p, page % PV_CHUNK_PAGES));
	ck_assert_msg(bitmap_test(p->dirty, page % PV_CHUNK_PAGES) == (row.valid && (!row.data || written)), "%s: wrongly dirty or not", text);
	ck_assert_msg(unserved_has_data(r, page) == stays, "%s: the memfd has %s", text, stays ? "a hole" : "data");
	guest_fill(want, r->g->seed[page]);
	ck_assert_msg(!stays || !memcmp(want, rig_page(r, page), PAGE_SIZE), "%s: wrong content", text);
	free(want);
	what->valid += stays;
	what->stale += stays && home == PV_HOME_NONE;
	what->discarded += row.valid && !row.data;
	what->garbage += !row.valid && row.data;
}

static void recover(struct rig *r, struct pv_recovered *what)
{
	ck_assert_int_eq(pv_recover(r->block, r->nr_blocks, r->pages, r->pagemap, what), 0);
	for (size_t i = 0; i < r->nr_chunks; i++) {
		ck_assert(pv_pages_sane(&r->pages[i]));
		ck_assert_uint_eq(r->pages[i].zapping, 0);
		ck_assert_uint_eq(r->pages[i].harvesting, 0);
		ck_assert_uint_gt(r->pages[i].drops, 0);
	}
}

static bool same(const struct pv_recovered *a, const struct pv_recovered *b)
{
	return a->valid == b->valid && a->stale == b->stale && a->discarded == b->discarded && a->garbage == b->garbage;
}

// Two blocks, and of each a chunk within and the one that its end cuts off.
static const size_t row_chunks[] = { 1, HARVESTED, CHUNKS, CHUNKS + 2, CHUNKS + 4 };

static void start_rows(struct rig *r)
{
	rig_init(r, PAGES, MORE_PAGES, BUDGET);
	unserved_start(r);
	rig_new_zapper(r);
	for (size_t i = 0; i < ARRAY_SIZE(row_chunks); i++)
		make_rows(r, row_chunks[i]);
}

static void make_tables(struct rig *r)
{
	for (size_t i = 0; i < ARRAY_SIZE(row_chunks); i++)
		make_table(r, row_chunks[i]);
}

static struct pv_recovered expect_rows(struct rig *r)
{
	struct pv_recovered want = { 0 };

	for (size_t i = 0; i < ARRAY_SIZE(row_chunks); i++)
		for (size_t page = 0; page < unserved_chunk_pages(r, row_chunks[i]); page++)
			expect_row(r, row_chunks[i] * PV_CHUNK_PAGES + page, &want);
	return want;
}

START_TEST(rows)
{
	struct pv_recovered what, want;
	struct rig r;

	start_rows(&r);
	make_tables(&r);
	recover(&r, &what);
	want = expect_rows(&r);
	ck_assert(same(&what, &want) && what.valid > what.stale && what.stale && what.discarded && what.garbage);
	want.discarded = want.garbage = 0; // once more, there is nothing to be put right any more
	recover(&r, &what);
	ck_assert(same(&what, &want));
	unserved_end(&r);
}
END_TEST

static void do_recover(void *arg)
{
	struct rig *r = arg;
	struct pv_recovered what;

	if (pv_recover(r->block, r->nr_blocks, r->pages, r->pagemap, &what))
		_exit(1);
}

// Killed before or behind that system call of it. False: it has ended earlier.
static bool recover_killed(struct rig *r, unsigned stop)
{
	pid_t pid = traced_fork(do_recover, r);

	while (traced_step(pid, PTRACE_SYSCALL))
		if (!stop--) {
			traced_kill(pid);
			return true;
		}
	return false;
}

// Who puts it right is killed at that; the next one comes to the same result.
START_TEST(recover_killed_anywhere)
{
	struct pv_recovered what;
	unsigned kills = 0;
	struct rig r;

	start_rows(&r);
	for (unsigned stop = 0;; stop += 1 + stop / 8, kills++) {
		make_tables(&r);
		for (size_t page = 0; page < r.g->nr_pages; page++)
			if (!bitmap_test(r.pages[page / PV_CHUNK_PAGES].valid, page % PV_CHUNK_PAGES) && row_of(page).data && rig_page(&r, page))
				memset(rig_page(&r, page), 0x55, PAGE_SIZE);
		if (!recover_killed(&r, stop))
			break;
		recover(&r, &what);
		expect_rows(&r);
	}
	ck_assert_uint_gt(kills, 20);
	unserved_end(&r);
}
END_TEST

// ---- a harvest that takes the kernel's knowledge away

#define WRITTEN_FIRST 700
#define WRITTEN 30

static void do_harvest(void *arg)
{
	pv_engine_harvest(((struct rig *)arg)->e);
}

// Killed before or behind that system call of it. False: it has ended earlier.
static bool harvest_killed(struct rig *r, unsigned stop)
{
	pid_t pid = traced_fork(do_harvest, r);

	while (traced_step(pid, PTRACE_SYSCALL))
		if (!stop--) {
			traced_kill(pid);
			return true;
		}
	return false;
}

// All that was written is found by the next one, as stale and as dirty.
START_TEST(harvest_killed_anywhere)
{
	struct pv_recovered what;
	bool killed = true;
	struct rig r;

	rig_init(&r, PAGES, 0, BUDGET);
	unserved_start(&r);
	r.io_fd = io_ring_new(RIG_ENTRIES);
	rig_new_zapper(&r);
	rig_new_loop(&r);
	r.ops = (struct pv_ops){ .ctx = &r, .drain = rig_drain, .source_done = rig_source_done };
	rig_new_engine(&r);
	pv_engine_run(r.e);
	rig_do(&r, 0, GUEST_WRITE, 0, r.g->nr_pages);
	for (unsigned stop = 0; killed; stop++) {
		pv_engine_harvest(r.e);
		for (size_t i = 0; i < r.nr_chunks; i++) {
			uint64_t all[PV_WORDS];

			memset(all, 0xff, sizeof all);
			pv_pages_set_home(&r.pages[i], all, PV_HOME_SWAP); // as if it were
			memset(r.pages[i].dirty, 0, sizeof all);
		}
		rig_do(&r, 1, GUEST_WRITE, WRITTEN_FIRST, WRITTEN);
		killed = harvest_killed(&r, stop);
		recover(&r, &what);
		for (size_t page = WRITTEN_FIRST; page < WRITTEN_FIRST + WRITTEN; page++) {
			const struct pv_pages *p = &r.pages[page / PV_CHUNK_PAGES];

			ck_assert_msg(bitmap_test(p->dirty, page % PV_CHUNK_PAGES), "page %zu is not dirty, after %u", page, stop);
			ck_assert_int_eq(pv_page_home(p, page % PV_CHUNK_PAGES), PV_HOME_NONE);
		}
		ck_assert(killed || stop >= 2);
	}
	loop_fini(&r.loop);
	pv_engine_free(r.e);
	close(r.io_fd);
	unserved_end(&r);
}
END_TEST

// What QEMU has never mapped may count as written, or as the table says: it is as good.
START_TEST(never_mapped)
{
	struct pv_recovered what;
	struct rig r;

	rig_init(&r, PAGES, 0, BUDGET);
	rig_put(&r, 5 * PV_CHUNK_PAGES, PV_CHUNK_PAGES, PV_HOME_NONE);
	for (unsigned i = 0; i < PV_CHUNK_PAGES; i++)
		pv_page_set_home(&r.pages[5], i, (enum pv_home)(i % 4));
	unserved_start(&r);
	recover(&r, &what);
	ck_assert_uint_eq(what.valid, PV_CHUNK_PAGES);
	ck_assert_uint_eq(what.discarded + what.garbage, 0);
	for (unsigned i = 0; i < PV_CHUNK_PAGES; i++)
		ck_assert(pv_page_home(&r.pages[5], i) == PV_HOME_NONE || pv_page_home(&r.pages[5], i) == (enum pv_home)(i % 4));
	unserved_end(&r);
}
END_TEST

// Nothing can be learnt from the kernel: everything counts as written.
START_TEST(not_known)
{
	struct uffdio_range range;
	struct pv_recovered what;
	struct rig r;

	quiet();
	rig_init(&r, PAGES, 0, BUDGET);
	rig_put(&r, 0, 300, PV_HOME_NONE);
	unserved_start(&r);
	for (size_t i = 0; i < 300; i++) {
		unserved_map(&r, i, true);
		pv_page_set_home(&r.pages[i / PV_CHUNK_PAGES], i % PV_CHUNK_PAGES, PV_HOME_SWAP);
	}
	recover(&r, &what);
	ck_assert_uint_eq(what.stale, 0);
	range = (struct uffdio_range){ r.block[0].hva, r.block[0].len };
	ck_assert_int_eq(ioctl(r.plant.uffd, UFFDIO_UNREGISTER, &range), 0);
	recover(&r, &what);
	ck_assert_uint_eq(what.valid, 300);
	ck_assert_uint_eq(what.stale, 300);
	unserved_end(&r);
}
END_TEST

START_TEST(damaged)
{
	struct pv_recovered what;
	struct rig r;

	quiet();
	rig_init(&r, PAGES, MORE_PAGES, BUDGET);
	unserved_start(&r);
	recover(&r, &what);
	for (size_t page = 0; page < r.g->nr_pages; page += 699) {
		struct pv_pages *p = &r.pages[page / PV_CHUNK_PAGES];

		pv_page_set_home(p, page % PV_CHUNK_PAGES, PV_HOME_NONE); // and not valid
		ck_assert_int_eq(pv_recover(r.block, r.nr_blocks, r.pages, r.pagemap, &what), -EBADMSG);
		pv_page_set_home(p, page % PV_CHUNK_PAGES, PV_HOME_SWAP);
		recover(&r, &what);
	}
	unserved_end(&r);
}
END_TEST

int main(void)
{
	Suite *s = suite_create("recover");

	add(s, homes_between_instructions, 4);
	add(s, validity_between_instructions, 2);
	add(s, rows, 1);
	add(s, recover_killed_anywhere, 1);
	add(s, harvest_killed_anywhere, 1);
	add(s, never_mapped, 1);
	add(s, not_known, 1);
	add(s, damaged, 1);
	return run(s);
}
