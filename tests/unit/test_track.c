// SPDX-License-Identifier: GPL-2.0-only
// A process's memory is put together out of increments, as a dump does, and is what the process sees.
#include <stdlib.h>

#include "mm/plant.h"
#include "mm/read.h"
#include "mm/track.h"
#include "mm/uapi.h"
#include "mm/uffd.h"
#include "tests/unit/memory_child.h"
#include "tests/unit/skip.h"
#include "util/bitmap.h"
#include "util/log.h"

#define PAGES 4096UL
#define LEN (PAGES * PAGE_SIZE)

// What was put together so far.
struct copy {
	struct memory_child child;
	struct mm_range range;
	struct mm_source *source;
	struct mm_pagemap *pagemap;
	int tracker;
	size_t taken; // pages
	char *memory, *now;
};

static void copy_start(struct copy *c)
{
	c->range = (struct mm_range){ c->child.hva, LEN };
	c->memory = calloc(PAGES, PAGE_SIZE);
	c->now = malloc(LEN);
	ck_assert(c->memory && c->now);
	ck_assert_int_eq(mm_source_open(c->child.pid, c->range.hva, LEN, &c->source), 0);
	ck_assert_int_eq(mm_pagemap_open(c->child.pid, &c->pagemap), 0);
	ck_assert_int_eq(mm_track_begin(c->child.pid, -1, &c->range, 1, &c->tracker), 0);
}

static void copy_end(struct copy *c)
{
	ck_assert(mm_track_id(c->child.pid, c->tracker));
	ck_assert_int_eq(mm_track_end(c->child.pid, c->tracker, &c->range, 1), 0);
	ck_assert(!mm_track_id(c->child.pid, c->tracker));
	ck_assert_int_eq(mm_track_end(c->child.pid, c->tracker, &c->range, 1), 0);
	mm_source_close(c->source);
	mm_pagemap_close(c->pagemap);
	free(c->memory);
	free(c->now);
}

// whole: the first one.
static void copy_increment(struct copy *c, bool whole)
{
	static uint64_t written[BITMAP_WORDS(PAGES)], present[BITMAP_WORDS(PAGES)], clean[BITMAP_WORDS(PAGES)], zero[BITMAP_WORDS(PAGES)];

	memset(written, 0xff, sizeof written);
	if (!whole)
		ck_assert_int_eq(mm_track_take(c->pagemap, &c->range, written), 0);
	c->taken = bitmap_count(written, PAGES);
	ck_assert_int_eq(mm_source_present(c->source, 0, LEN, present), 0);
	for (size_t w = 0; w < BITMAP_WORDS(PAGES); w++) {
		clean[w] = present[w] & ~written[w];
		written[w] &= present[w];
	}
	memset(zero, 0, sizeof zero);
	if (mm_source_hides_discards(c->source))
		ck_assert_int_eq(mm_source_zero(c->source, 0, clean, PAGES, zero), 0);
	ck_assert_int_eq(mm_source_read(c->source, 0, written, PAGES, c->memory), 0);
	for (size_t i = 0; i < PAGES; i++)
		if (!bitmap_test(present, i) || bitmap_test(zero, i))
			memset(c->memory + i * PAGE_SIZE, 0, PAGE_SIZE);
}

static void copy_is_right(struct copy *c)
{
	memory_copy(&c->child, 0, PAGES, c->now);
	for (size_t i = 0; i < PAGES; i++)
		ck_assert_msg(!memcmp(c->memory + i * PAGE_SIZE, c->now + i * PAGE_SIZE, PAGE_SIZE), "%s: page %zu is wrong", memory_name[c->child.kind], i);
}

static void some_orders(struct copy *c, unsigned nr)
{
	static const enum memory_job order[] = { WRITE, WRITE, READ, READ, UNMAP, DISCARD };
	const bool huge = c->child.kind == HUGETLB || c->child.kind == HUGETLB_SHARED;

	while (nr--) {
		enum memory_job what = order[(unsigned)rand() % ARRAY_SIZE(order)];
		size_t first = (size_t)rand() % PAGES, len = (size_t)rand() % (rand() % 5 ? 30 : 1500) + 1;

		if (huge && (what == UNMAP || what == DISCARD)) {
			first -= first % 512;
			len = ROUND_UP(len, 512);
		}
		memory_does(&c->child, what, first, first + len < PAGES ? len : PAGES - first);
	}
}

// The kinds of memory, each with increments of random orders; what the process was told to do is forgotten, what it sees counts.
START_TEST(increments)
{
	struct copy c = { 0 };

	if (!memory_start(&c.child, (enum memory)_i, LEN)) {
		memory_stop(&c.child);
		SKIP_CASE("no huge pages here");
	}
	srand((unsigned)_i + 1);
	some_orders(&c, 20);
	copy_start(&c);
	copy_increment(&c, true);
	copy_is_right(&c);
	for (int round = 0; round < 60; round++) {
		some_orders(&c, (unsigned)rand() % 12);
		copy_increment(&c, false);
		copy_is_right(&c);
	}
	copy_end(&c);
	memory_stop(&c.child);
}
END_TEST

// What was not written is not taken: pages that are there, and memory that never was.
START_TEST(nothing_but_written)
{
	struct copy c = { 0 };

	ck_assert(memory_start(&c.child, (enum memory)_i, LEN));
	memory_does(&c.child, WRITE, 0, 1024);
	copy_start(&c);
	copy_increment(&c, true);
	copy_increment(&c, false);
	ck_assert_uint_eq(c.taken, 0);
	memory_does(&c.child, READ, 0, 1024);
	memory_does(&c.child, WRITE, 100, 7);
	copy_increment(&c, false);
	ck_assert_uint_eq(c.taken, 7);
	memory_does(&c.child, WRITE, 3000, 1);
	copy_increment(&c, false);
	ck_assert_uint_ge(c.taken, 1);
	ck_assert_uint_le(c.taken, _i == HUGE ? 512 : 1);
	copy_is_right(&c);
	copy_end(&c);
	memory_stop(&c.child);
}
END_TEST

static uint64_t page_tables(pid_t pid)
{
	char path[32], line[256];
	uint64_t kib = 0;
	FILE *f;

	snprintf(path, sizeof path, "/proc/%d/status", pid);
	f = fopen(path, "r");
	ck_assert(f);
	while (fgets(line, sizeof line, f))
		if (sscanf(line, "VmPTE: %lu kB", &kib) == 1)
			break;
	fclose(f);
	return kib * KiB;
}

// Of anonymous memory that was never touched, not even page tables come into being.
START_TEST(untouched_memory_costs_nothing)
{
	const uint64_t len = 4 * GiB;
	struct memory_child c;
	struct mm_range r;
	uint64_t before;
	int tracker;

	ck_assert(memory_start(&c, ANON, len));
	before = page_tables(c.pid);
	r = (struct mm_range){ c.hva, len };
	ck_assert_int_eq(mm_track_begin(c.pid, -1, &r, 1, &tracker), 0);
	ck_assert_uint_lt(page_tables(c.pid), before + MiB);
	ck_assert_int_eq(mm_track_end(c.pid, tracker, &r, 1), 0);
	memory_stop(&c);
}
END_TEST

// Increments while the process writes; the last one when it rests.
START_TEST(while_it_writes)
{
	struct copy c = { 0 };

	ck_assert(memory_start(&c.child, (enum memory)_i, LEN));
	c.child.box->rate = 200000;
	copy_start(&c);
	memory_tell(&c.child, REWRITE, 0, PAGES);
	copy_increment(&c, true);
	for (int i = 0; i < 20; i++) {
		uint64_t stamp = c.child.box->stamp;

		while (c.child.box->stamp < stamp + 500)
			usleep(100);
		copy_increment(&c, false);
		ck_assert_uint_gt(c.taken, 0);
	}
	c.child.box->order = READ;
	ck_assert(memory_done(&c.child, PATIENCE_MS));
	copy_increment(&c, false);
	copy_is_right(&c);
	copy_end(&c);
	memory_stop(&c.child);
}
END_TEST

// The tracker goes while the process writes: no page changes, and it writes on. A new one begins anew.
START_TEST(end_while_it_writes)
{
	struct copy c = { 0 };

	ck_assert(memory_start(&c.child, (enum memory)_i, LEN));
	c.child.box->rate = 200000;
	memory_does(&c.child, WRITE, 0, PAGES);
	for (int i = 0; i < 5; i++) {
		uint64_t stamp;

		c.now = NULL;
		copy_start(&c);
		memory_tell(&c.child, REWRITE, 0, PAGES / 2);
		usleep(10000);
		stamp = c.child.box->stamp;
		copy_end(&c);
		while (c.child.box->stamp < stamp + PAGES)
			usleep(100);
		c.child.box->order = READ;
		ck_assert(memory_done(&c.child, PATIENCE_MS));
	}
	// Half of the pages have their first stamp, the others are full of newer ones.
	c.now = malloc(LEN);
	memory_copy(&c.child, 0, PAGES, c.now);
	for (size_t i = 0; i < PAGES; i++) {
		uint64_t stamp = *(uint64_t *)(c.now + i * PAGE_SIZE + 8);

		ck_assert(i < PAGES / 2 ? stamp > PAGES : stamp == i + 1);
	}
	free(c.now);
	memory_stop(&c.child);
}
END_TEST

START_TEST(errors)
{
	struct mm_plant_opts o = { .target_uffd_dev = -1 };
	struct memory_child c;
	struct mm_range r;
	struct mm_plant p;
	int tracker, other;

	ck_assert(memory_start(&c, ANON, LEN));
	r = (struct mm_range){ c.hva, LEN };
	ck_assert_int_eq(mm_plant(c.pid, &o, &p), 0);
	ck_assert_int_eq(p.ring_fd, -1);
	ck_assert_int_eq(p.target_ring, -1);
	ck_assert_int_eq(mm_uffd_api(p.uffd, UFFD_FEATURE_PAGEFAULT_FLAG_WP, NULL), 0);
	ck_assert_int_eq(mm_uffd_register_wp(p.uffd, c.hva + LEN / 2, PAGE_SIZE), 0);
	ck_assert_int_eq(mm_track_begin(c.pid, -1, &r, 1, &tracker), -EBUSY);
	ck_assert(!mm_track_id(c.pid, p.target_uffd + 1)); // nothing stays behind
	// Another descriptor than it was said to be is not closed.
	ck_assert_int_eq(mm_plant_remove(c.pid, 1, "anon_inode:[userfaultfd]"), -EBADF);
	ck_assert_int_eq(mm_plant_remove(c.pid, 99, "anon_inode:[userfaultfd]"), -EBADF);
	ck_assert_int_eq(mm_plant_remove(c.pid, p.target_uffd, "anon_inode:[userfaultfd]"), 0);
	mm_plant_fini(&p);
	ck_assert_int_eq(mm_track_begin(c.pid, -1, &r, 1, &tracker), 0);
	ck_assert_int_eq(mm_track_begin(c.pid, -1, &r, 1, &other), -EBUSY);
	kill(c.pid, SIGKILL);
	waitpid(c.pid, NULL, 0);
	ck_assert(!mm_track_id(c.pid, tracker));
	ck_assert_int_eq(mm_track_end(c.pid, tracker, &r, 1), 0);
	ck_assert_int_eq(mm_track_begin(c.pid, -1, &r, 1, &tracker), -ESRCH);
	munmap(c.box, sizeof *c.box);
}
END_TEST

int main(void)
{
	Suite *s = suite_create("track");
	TCase *t = tcase_create("increments"), *e = tcase_create("tracker");
	SRunner *r;
	int failed;

	log_init(-1, LOG_ERROR, NULL, false);
	tcase_set_timeout(t, 60);
	tcase_set_timeout(e, 60);
	tcase_add_unchecked_fixture(t, memory_more_hugepages, memory_same_hugepages);
	tcase_add_loop_test(t, increments, ANON, HUGETLB_SHARED + 1);
	tcase_add_loop_test(t, while_it_writes, ANON, PRIVATE_FILE + 1);
	tcase_add_loop_test(t, nothing_but_written, ANON, MEMFD + 1);
	tcase_add_loop_test(e, end_while_it_writes, ANON, PRIVATE_FILE + 1);
	tcase_add_test(e, untouched_memory_costs_nothing);
	tcase_add_test(e, errors);
	suite_add_tcase(s, t);
	suite_add_tcase(s, e);
	r = srunner_create(s);
	srunner_run_all(r, CK_NORMAL);
	failed = srunner_ntests_failed(r);
	srunner_free(r);
	return failed ? 1 : 0;
}
