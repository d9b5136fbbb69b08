// SPDX-License-Identifier: GPL-2.0-only
// Zaps of a pager that was killed come to their end, and are told from what the guest gave back meanwhile.
#include "engine_suite.h"

#include "lazy-pages/take_over.h"
#include "traced.h"
#include "unserved.h"

#define BUDGET (16 * MiB)
#define CHUNKS 8
#define PAGES (CHUNKS * PV_CHUNK_PAGES + 12)
#define MORE_PAGES (3 * PV_CHUNK_PAGES + 5)

static bool is_in_syscall(const struct rig *r, size_t worker, long nr)
{
	char path[64], text[32] = "";
	int fd;

	snprintf(path, sizeof path, "/proc/%d/task/%d/syscall", r->pid, r->g->worker[worker].tid);
	fd = open(path, O_RDONLY | O_CLOEXEC);
	ck_assert(fd >= 0 && read(fd, text, sizeof text - 1) > 0);
	close(fd);
	return strtol(text, NULL, 10) == nr && text[0] != 'r';
}

// Its REMOVE event is there, and nobody reads it.
static void begin_discard(struct rig *r, size_t worker, size_t first, size_t nr)
{
	rig_order(r, worker, GUEST_DISCARD, first, nr);
	ck_assert(unserved_until(is_in_syscall(r, worker, SYS_madvise), 2000));
}

struct zaps {
	struct rig *r;
	const size_t *chunks;
	size_t nr;
};

// As the engine does it.
static void order_zaps(void *arg)
{
	const struct zaps *z = arg;

	rig_new_zapper(z->r);
	for (size_t i = 0; i < z->nr; i++) {
		size_t page = z->chunks[i] * PV_CHUNK_PAGES;

		z->r->pages[z->chunks[i]].zapping = 1;
		if (mm_zap_queue(z->r->zapper, unserved_hva(z->r, page), unserved_chunk_pages(z->r, z->chunks[i]) * PAGE_SIZE, i))
			_exit(1);
	}
	if (mm_zap_submit(z->r->zapper))
		_exit(1);
}

// By a child that ends when it has ordered them, or when it is about to wake the ring's thread, which sleeps.
static void zaps_of_the_dead(struct rig *r, const size_t *chunks, size_t nr, bool started)
{
	struct zaps z = { r, chunks, nr };
	pid_t pid = traced_fork(order_zaps, &z);

	while (traced_step(pid, PTRACE_SYSCALL))
		if (!started && traced_entering(pid) == SYS_io_uring_enter) {
			traced_kill(pid);
			return;
		}
	ck_assert(started);
}

static int settle(struct rig *r)
{
	int pidfd = (int)syscall(SYS_pidfd_open, r->pid, 0), ret;

	if (!r->zapper)
		rig_new_zapper(r);
	ret = lp_settle(&r->plant, r->zapper, r->pagemap, r->block, r->nr_blocks, r->pages, pidfd);
	close(pidfd);
	return ret;
}

static void start_mapped(struct rig *r)
{
	quiet();
	rig_init(r, PAGES, MORE_PAGES, BUDGET);
	for (size_t page = 0; page < r->g->nr_pages; page++)
		rig_put(r, page, 1, PV_HOME_NONE);
	unserved_start(r);
	for (size_t page = 0; page < r->g->nr_pages; page++)
		if (rig_page(r, page))
			unserved_map(r, page, true);
}

// Each second page. It would come back as it was.
static void swap_out(struct rig *r, size_t first, size_t nr)
{
	for (size_t page = first; page < first + nr; page += 2) {
		unserved_punch(r, page);
		pv_page_set_home(&r->pages[page / PV_CHUNK_PAGES], page % PV_CHUNK_PAGES, PV_HOME_SWAP);
		bitmap_clear(r->pages[page / PV_CHUNK_PAGES].valid, page % PV_CHUNK_PAGES);
	}
}

static void expect_pages(const struct rig *r, size_t first, size_t nr, bool there)
{
	uint64_t mapped[BITMAP_WORDS(PAGES + MORE_PAGES + PV_CHUNK_PAGES)];

	ck_assert_int_eq(mm_pagemap_scan(r->pagemap, unserved_hva(r, first), nr * PAGE_SIZE, MM_SCAN_PRESENT, mapped), 0);
	for (size_t page = first; page < first + nr; page++) {
		const struct pv_pages *p = &r->pages[page / PV_CHUNK_PAGES];

		ck_assert_msg(bitmap_test(p->valid, page % PV_CHUNK_PAGES) == there, "page %zu is %s", page, there ? "gone" : "still valid");
		ck_assert_msg(unserved_has_data(r, page) == there, "page %zu %s", page, there ? "was punched" : "is in memory");
		ck_assert_int_eq(pv_page_home(p, page % PV_CHUNK_PAGES), there ? PV_HOME_NONE : PV_HOME_ZERO);
		ck_assert(!bitmap_test(mapped, page - first) || there);
	}
}

static void expect_chunk(const struct rig *r, size_t chunk, bool there)
{
	expect_pages(r, chunk * PV_CHUNK_PAGES, unserved_chunk_pages(r, chunk), there);
}

static void expect_unmapped(const struct rig *r, size_t chunk)
{
	uint64_t mapped[PV_WORDS];

	ck_assert_int_eq(mm_pagemap_scan(r->pagemap, unserved_hva(r, chunk * PV_CHUNK_PAGES), unserved_chunk_pages(r, chunk) * PAGE_SIZE, MM_SCAN_PRESENT,
					 mapped), 0);
	ck_assert(bitmap_empty(mapped, PV_CHUNK_PAGES));
}

// started: by the ring's thread; else only ordered.
START_TEST(zaps_and_discards)
{
	static const size_t zapped[] = { 1, 7, CHUNKS, CHUNKS + 4 };
	const size_t span = (CHUNKS + 3) * PV_CHUNK_PAGES; // the second block's third chunk
	struct rig r;

	start_mapped(&r);
	swap_out(&r, 3 * PV_CHUNK_PAGES, PV_CHUNK_PAGES);
	swap_out(&r, 6 * PV_CHUNK_PAGES, 10);
	swap_out(&r, 7 * PV_CHUNK_PAGES, PV_CHUNK_PAGES);
	swap_out(&r, span - 2, 5);
	begin_discard(&r, 0, 3 * PV_CHUNK_PAGES, PV_CHUNK_PAGES);
	begin_discard(&r, 1, 6 * PV_CHUNK_PAGES, 10);
	begin_discard(&r, 2, 7 * PV_CHUNK_PAGES, PV_CHUNK_PAGES);
	begin_discard(&r, 3, span - 2, 5);
	zaps_of_the_dead(&r, zapped, ARRAY_SIZE(zapped), _i);
	r.pages[6].zapping = 1; // and the zap was not even ordered
	ck_assert_int_eq(settle(&r), 0);
	ck_assert(unserved_until(rig_idle(&r), 2000));
	for (size_t i = 0; i < r.nr_chunks; i++)
		ck_assert_uint_eq(r.pages[i].zapping, 0);
	for (size_t i = 0; i < ARRAY_SIZE(zapped); i++)
		expect_unmapped(&r, zapped[i]);
	expect_chunk(&r, 0, true);
	expect_chunk(&r, 1, true);
	expect_chunk(&r, 3, false);
	expect_pages(&r, 6 * PV_CHUNK_PAGES, 10, false);
	expect_pages(&r, 6 * PV_CHUNK_PAGES + 10, PV_CHUNK_PAGES - 10, true);
	expect_chunk(&r, 7, false); // twice: by the zap, and by the guest
	expect_chunk(&r, CHUNKS, true);
	expect_pages(&r, span - 2, 5, false);
	expect_pages(&r, span + 3, PV_CHUNK_PAGES - 3, true);
	expect_chunk(&r, CHUNKS + 4, true);
	unserved_end(&r);
}
END_TEST

// The next one does not wait for who is gone.
START_TEST(qemu_ends)
{
	static const size_t zapped[] = { 2 };
	struct rig r;
	int err;

	start_mapped(&r);
	zaps_of_the_dead(&r, zapped, 1, true);
	rig_new_zapper(&r);
	kill(r.pid, SIGKILL);
	err = settle(&r);
	ck_assert_msg(!err || err == -ESRCH, "%s", strerror(-err));
	unserved_end(&r);
}
END_TEST

int main(void)
{
	Suite *s = suite_create("settle");

	add(s, zaps_and_discards, 2);
	add(s, qemu_ends, 1);
	return run(s);
}
