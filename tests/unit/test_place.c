// SPDX-License-Identifier: GPL-2.0-only
// Chunks that are placed directly: into memory while there is room, or by plan, the rest into swap.
#include <check.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/resource.h>
#include <unistd.h>

#include "pvmem/place.h"
#include "util/log.h"

#define CHUNKS 12
#define FIRST_BLOCK 7 // chunks; the last of them has SHORT pages only
#define SHORT 100
#define RAM_PAGES (4 * PV_CHUNK_PAGES + 10)
#include "tests/unit/place_target.h"

struct arrival {
	struct pv_placing p;
	bool done;
	int err;
};

static void arrived(struct pv_placing *p, int err)
{
	struct arrival *a = list_entry(p, struct arrival, p);

	ck_assert(!a->done);
	a->done = true;
	a->err = err;
	free(p->packed);
}

static unsigned next_version(void)
{
	static _Atomic unsigned version;

	return ++version;
}

// A new version of those of the touched pages of a chunk for which present() says so; the others become empty. Of the pages that are
// not touched some come later.
static void arrive_and_later(struct target *t, struct pv_placer *pl, struct arrival *a, uint64_t chunk, bool to_ram,
			     bool (*touched)(unsigned page), bool (*present)(unsigned page), bool (*later)(unsigned page))
{
	unsigned version = next_version();
	size_t n = 0;

	*a = (struct arrival){ .p = { .chunk = chunk, .to_ram = to_ram, .packed = aligned_alloc(PAGE_SIZE, PV_CHUNK_SIZE), .done = arrived } };
	for (unsigned i = 0; i < chunk_pages(chunk); i++) {
		size_t page = chunk * PV_CHUNK_PAGES + i;

		if (!touched(i)) {
			if (later(i)) {
				bitmap_set(a->p.later, i);
				t->version[page] = LATER;
			}
			continue;
		}
		bitmap_set(a->p.touched, i);
		t->version[page] = present(i) ? version : 0;
		if (!t->version[page])
			continue;
		bitmap_set(a->p.present, i);
		fill(a->p.packed + n++ * PAGE_SIZE, page, version);
	}
	pv_place(pl, &a->p);
}

static bool all(unsigned page);
static bool none(unsigned page);

static void arrive_of(struct target *t, struct pv_placer *pl, struct arrival *a, uint64_t chunk, bool to_ram,
		      bool (*touched)(unsigned page), bool (*present)(unsigned page))
{
	arrive_and_later(t, pl, a, chunk, to_ram, touched, present, none);
}

static void arrive_later(struct target *t, struct arrival *a, uint64_t chunk, bool (*later)(unsigned page))
{
	arrive_and_later(t, &t->placer, a, chunk, false, none, all, later);
}

static void arrive(struct target *t, struct arrival *a, uint64_t chunk, bool (*present)(unsigned page))
{
	arrive_of(t, &t->placer, a, chunk, false, all, present);
}

static int finish(struct target *t, const struct arrival *a)
{
	while (!a->done)
		ck_assert_int_eq(loop_round(&t->loop, true), 0);
	return a->err;
}

static bool often(unsigned page)
{
	(void)page;
	return rand() % 5;
}

static bool all(unsigned page)
{
	(void)page;
	return true;
}

static bool one(unsigned page)
{
	return page == 50;
}

static bool none(unsigned page)
{
	(void)page;
	return false;
}

static bool half(unsigned page)
{
	return page & 1;
}

// All of what a chunk has is in one place.
static bool is_in_ram(const struct target *t, uint64_t chunk)
{
	uint64_t valid = bitmap_count(t->pages[chunk].valid, PV_CHUNK_PAGES), swapped[PV_WORDS];

	pv_pages_of_home(&t->pages[chunk], PV_HOME_SWAP, swapped);
	ck_assert(!valid || bitmap_empty(swapped, PV_CHUNK_PAGES));
	return valid;
}

START_TEST(placement)
{
	static struct arrival a[CHUNKS];
	static struct target t;

	srand(5);
	target_init(&t, RAM_PAGES, true);
	for (uint64_t i = 0; i < CHUNKS; i++) // all under way together
		arrive(&t, &a[i], i, i == 2 ? none : often);
	for (uint64_t i = 0; i < CHUNKS; i++)
		ck_assert_int_eq(finish(&t, &a[i]), 0);
	verify(&t);
	for (uint64_t i = 0; i < CHUNKS; i++)
		is_in_ram(&t, i);
	ck_assert_uint_gt(nr_valid(&t), RAM_PAGES - PV_CHUNK_PAGES); // filled as far as whole chunks go
	ck_assert_uint_eq(t.placement.nr_ram, nr_valid(&t));
	ck_assert_uint_eq(t.placement.nr_swap, nr_not_empty(&t) - nr_valid(&t));
	target_fini(&t);
}
END_TEST

START_TEST(no_room_at_all)
{
	static struct arrival a;
	static struct target t;

	target_init(&t, 0, true);
	arrive(&t, &a, 3, often);
	ck_assert_int_eq(finish(&t, &a), 0);
	verify(&t);
	ck_assert_uint_eq(memory_pages(&t), 0);
	target_fini(&t);
}
END_TEST

// What comes again, in whole or in part, goes where its last copy is, and the limit holds, however the number of pages changes.
START_TEST(again)
{
	static bool (*const coin[])(unsigned page) = { often, all, one, none, half };
	static bool before[NR_PAGES], swapped[NR_PAGES];
	static struct arrival a;
	static struct target t;

	srand(6);
	target_init(&t, RAM_PAGES, true);
	for (unsigned i = 0; i < 200; i++) {
		uint64_t chunk = (uint64_t)rand() % CHUNKS;

		for (size_t n = 0; n < NR_PAGES; n++) {
			before[n] = is_valid(&t, n);
			swapped[n] = t.version[n] && t.version[n] != LATER && !before[n];
		}
		arrive_and_later(&t, &t.placer, &a, chunk, false, coin[rand() % 5], coin[rand() % 5], _i ? coin[rand() % 5] : none);
		ck_assert_int_eq(finish(&t, &a), 0);
		for (size_t n = 0; n < NR_PAGES; n++) {
			if ((before[n] && t.version[n] && t.version[n] != LATER && !is_valid(&t, n)) || (swapped[n] && is_valid(&t, n)))
				ck_abort_msg("page %zu has moved", n);
		}
		verify_room(&t);
	}
	verify(&t);
	target_fini(&t);
}
END_TEST

// A chunk that grows when it comes again: only what does not fit goes to swap.
START_TEST(growing)
{
	static struct arrival a;
	static struct target t;

	target_init(&t, RAM_PAGES, true);
	for (unsigned round = 0; round < 2; round++)
		for (uint64_t i = 0; i < CHUNKS; i++) {
			arrive(&t, &a, i, round ? all : one);
			ck_assert_int_eq(finish(&t, &a), 0);
		}
	verify(&t);
	ck_assert_uint_eq(nr_valid(&t), RAM_PAGES);
	for (uint64_t i = 0; i < CHUNKS; i++)
		ck_assert(bitmap_test(t.pages[i].valid, 50)); // what was in memory is
	target_fini(&t);
}
END_TEST

// A chunk that shrinks: what is empty now takes no memory.
START_TEST(shrinking)
{
	static struct arrival a;
	static struct target t;

	target_init(&t, RAM_PAGES, true);
	arrive(&t, &a, 1, all);
	ck_assert_int_eq(finish(&t, &a), 0);
	arrive(&t, &a, 1, one);
	ck_assert_int_eq(finish(&t, &a), 0);
	ck_assert_uint_eq(memory_pages(&t), 1);
	target_fini(&t);
}
END_TEST

START_TEST(without_swap)
{
	static struct arrival a[CHUNKS];
	static struct target t;

	target_init(&t, RAM_PAGES, false);
	for (uint64_t i = 0; i < CHUNKS; i++) {
		arrive(&t, &a[i], i, all);
		ck_assert_int_eq(finish(&t, &a[i]), i < 4 ? 0 : -EBADF);
	}
	target_fini(&t);
}
END_TEST

// The disk fills up, or cannot be written: whoever places is told, for each chunk that did not get there.
START_TEST(write_errors)
{
	struct rlimit limit = { .rlim_cur = 3 * PV_CHUNK_SIZE + 8 * PAGE_SIZE, .rlim_max = RLIM_INFINITY };
	static struct arrival a[CHUNKS];
	static struct target t;
	char path[32];
	int good;

	target_init(&t, 0, true);
	signal(SIGXFSZ, SIG_IGN);
	ck_assert_int_eq(setrlimit(RLIMIT_FSIZE, &limit), 0);
	for (uint64_t i = 0; i < CHUNKS; i++)
		arrive(&t, &a[i], i, all);
	limit.rlim_cur = RLIM_INFINITY;
	for (uint64_t i = 0; i < CHUNKS; i++) {
		int err = finish(&t, &a[i]);

		ck_assert_int_eq(err, i < 3 ? 0 : i == 3 ? -EIO : -EFBIG); // of the fourth, a part is written
	}
	ck_assert_int_eq(setrlimit(RLIMIT_FSIZE, &limit), 0);
	snprintf(path, sizeof path, "/proc/self/fd/%d", t.swap.fd);
	good = t.swap.fd;
	t.swap.fd = open(path, O_RDONLY | O_DIRECT | O_CLOEXEC);
	arrive(&t, &a[0], 4, often);
	ck_assert_int_eq(finish(&t, &a[0]), -EBADF);
	close(t.swap.fd);
	t.swap.fd = good;
	for (uint64_t i = 0; i < CHUNKS; i++) { // and all is well when it works again
		arrive(&t, &a[i], i, often);
		ck_assert_int_eq(finish(&t, &a[i]), 0);
	}
	verify(&t);
	target_fini(&t);
}
END_TEST

struct heat {
	uint8_t hot;
	unsigned pages;
};

static int plan(struct target *t, const struct heat heat[CHUNKS], uint64_t nr)
{
	uint8_t text[(CHUNKS + 1) * 3] = { 0 };

	for (size_t i = 0; i < CHUNKS; i++) {
		text[3 * i] = heat[i].hot;
		text[3 * i + 1] = (uint8_t)heat[i].pages;
		text[3 * i + 2] = (uint8_t)(heat[i].pages >> 8);
	}
	return pv_placement_plan(&t->placement, text, nr);
}

static bool first_hundred(unsigned page)
{
	return page < 100;
}

// RAM_PAGES less the reserve is three chunks and 10 pages.
static const struct heat some[CHUNKS] = { [0] = { 7, 256 },  [1] = { 7, 256 }, [2] = { 0, 256 }, [3] = { 255, 100 }, [4] = { 0, 0 },
					  [5] = { 7, 256 },  [6] = { 7, 100 }, [7] = { 6, 5 },	 [8] = { 8, 256 },   [9] = { 255, 0 },
					  [10] = { 0, 256 }, [11] = { 1, 256 } };
#define BY_PLAN (1U << 0 | 1U << 3 | 1U << 6 | 1U << 8) // 256 + 100 + 100 + 256 = 712; another 256 do not fit

// The hottest go to memory, of the equally hot ones the first that fit, in whatever order they come, and whatever comes besides.
START_TEST(by_plan)
{
	static const uint64_t order[] = { 11, 4, 9, 10, 2, 7, 1, 5, 8, 6, 3, 0 };
	static struct arrival a[CHUNKS];
	static struct target t;

	target_init(&t, RAM_PAGES, true);
	ck_assert_int_eq(plan(&t, some, CHUNKS), 0);
	ck_assert_uint_eq(t.placement.reserve_left, MiB / PAGE_SIZE);
	verify_room(&t);
	for (size_t i = 0; i < CHUNKS; i++) // 4 and 9 were said to be empty: they take what is left, 10 + 56 pages
		arrive(&t, &a[i], order[i], order[i] == 4 || order[i] == 9 ? one : some[order[i]].pages == 256 ? all : first_hundred);
	for (size_t i = 0; i < CHUNKS; i++)
		ck_assert_int_eq(finish(&t, &a[i]), 0);
	verify(&t);
	for (uint64_t i = 0; i < CHUNKS; i++)
		ck_assert_int_eq(is_in_ram(&t, i), i == 4 || i == 9 || BY_PLAN >> i & 1);
	target_fini(&t);
}
END_TEST

// Chunks in memory that have more pages than they said: that much goes to swap, and none of what was promised to others is taken.
START_TEST(more_than_said)
{
	static const struct heat heat[CHUNKS] = { [0] = { 1, 1 }, [1] = { 1, 1 }, [2] = { 1, 255 }, [3] = { 1, 255 }, [4] = { 1, 255 } };
	static struct arrival a;
	static struct target t;

	target_init(&t, RAM_PAGES, true);
	ck_assert_int_eq(plan(&t, heat, CHUNKS), 0);
	for (uint64_t i = 0; i < 5; i++) {
		arrive(&t, &a, i, all);
		ck_assert_int_eq(finish(&t, &a), 0);
		verify_room(&t);
	}
	verify(&t);
	ck_assert_uint_eq(bitmap_count(t.pages[0].valid, PV_CHUNK_PAGES), 1 + 11); // 778 - 767 are left for all
	ck_assert_uint_eq(bitmap_count(t.pages[1].valid, PV_CHUNK_PAGES), 1);
	for (uint64_t i = 2; i < 5; i++)
		ck_assert_uint_eq(bitmap_count(t.pages[i].valid, PV_CHUNK_PAGES), 255);
	ck_assert_uint_eq(nr_valid(&t), RAM_PAGES - MiB / PAGE_SIZE);
	target_fini(&t);
}
END_TEST

// What was promised to pages that turn out to be zero is free for others.
START_TEST(less_than_said)
{
	static const struct heat heat[CHUNKS] = { [0] = { 1, 256 }, [1] = { 1, 256 }, [2] = { 1, 256 } };
	static struct arrival a;
	static struct target t;

	target_init(&t, RAM_PAGES, true);
	ck_assert_int_eq(plan(&t, heat, CHUNKS), 0);
	ck_assert_uint_eq(t.placement.ram_left, 10);
	arrive_of(&t, &t.placer, &a, 0, false, first_hundred, half);
	ck_assert_int_eq(finish(&t, &a), 0);
	ck_assert_uint_eq(t.placement.ram_left, 60);
	verify(&t);
	arrive(&t, &a, 5, first_hundred); // said to be empty; not all of it fits
	ck_assert_int_eq(finish(&t, &a), 0);
	ck_assert(!is_in_ram(&t, 5));
	ck_assert_uint_eq(t.placement.ram_left, 60);
	arrive_of(&t, &t.placer, &a, 6, false, first_hundred, half);
	ck_assert_int_eq(finish(&t, &a), 0);
	ck_assert(is_in_ram(&t, 6));
	verify(&t);
	ck_assert_uint_eq(t.placement.ram_left, 10); // all but what was promised to the three, of which 156 and 512 are left
	pv_placement_settle(&t.placement);
	ck_assert_uint_eq(t.placement.ram_left, 10 + 156 + 512);
	verify(&t);
	arrive(&t, &a, 4, all);
	ck_assert_int_eq(finish(&t, &a), 0);
	ck_assert(is_in_ram(&t, 4));
	verify(&t);
	target_fini(&t);
}
END_TEST

START_TEST(bad_plan)
{
	struct heat heat[CHUNKS];
	static struct target t;

	target_init(&t, RAM_PAGES, true);
	memcpy(heat, some, sizeof heat);
	ck_assert_int_eq(plan(&t, heat, CHUNKS - 1), -EBADMSG);
	ck_assert_int_eq(plan(&t, heat, CHUNKS + 1), -EBADMSG);
	heat[5].pages = 257;
	ck_assert_int_eq(plan(&t, heat, CHUNKS), -EBADMSG);
	heat[5].pages = 256;
	heat[FIRST_BLOCK - 1].pages = SHORT + 1;
	ck_assert_int_eq(plan(&t, heat, CHUNKS), -EBADMSG);
	ck_assert_uint_eq(t.placement.ram_left, RAM_PAGES);
	verify_room(&t);
	target_fini(&t);
}
END_TEST

// A plan does not keep anything back, then.
START_TEST(all_fits)
{
	static struct arrival a;
	static struct target t;
	struct heat heat[CHUNKS];

	for (uint64_t i = 0; i < CHUNKS; i++)
		heat[i] = (struct heat){ 1, chunk_pages(i) };
	target_init(&t, NR_PAGES, false);
	ck_assert_int_eq(plan(&t, heat, CHUNKS), 0);
	for (uint64_t i = 0; i < CHUNKS; i++) {
		arrive_of(&t, &t.placer, &a, i, !(i & 1), all, all);
		ck_assert_int_eq(finish(&t, &a), 0);
	}
	verify(&t);
	ck_assert_uint_eq(nr_valid(&t), nr_not_empty(&t));
	target_fini(&t);
}
END_TEST

// Pages wanted in memory, whose chunk is in swap: from the reserve; there they stay, until they are empty.
START_TEST(to_ram)
{
	static struct arrival a;
	static struct target t;

	target_init(&t, RAM_PAGES, true);
	ck_assert_int_eq(plan(&t, some, CHUNKS), 0);
	arrive_of(&t, &t.placer, &a, 2, true, half, all); // before the rest of its chunk
	ck_assert_int_eq(finish(&t, &a), 0);
	ck_assert_uint_eq(nr_valid(&t), PV_CHUNK_PAGES / 2);
	arrive(&t, &a, 2, none);
	ck_assert_int_eq(finish(&t, &a), 0);
	t.placement.reserve_left += PV_CHUNK_PAGES / 2; // as if that had not been
	t.placement.ram_left -= PV_CHUNK_PAGES / 2;
	for (uint64_t i = 0; i < CHUNKS; i++) {
		arrive(&t, &a, i, all);
		ck_assert_int_eq(finish(&t, &a), 0);
	}
	ck_assert(!is_in_ram(&t, 11));
	arrive_of(&t, &t.placer, &a, 11, true, half, often);
	ck_assert_int_eq(finish(&t, &a), 0);
	verify(&t);
	for (unsigned i = 0; i < PV_CHUNK_PAGES; i++)
		ck_assert(is_valid(&t, 11 * PV_CHUNK_PAGES + i) == (half(i) && t.version[11 * PV_CHUNK_PAGES + i]));
	arrive(&t, &a, 11, all);
	ck_assert_int_eq(finish(&t, &a), 0);
	verify(&t);
	ck_assert_uint_gt(bitmap_count(t.pages[11].valid, PV_CHUNK_PAGES), 50);
	ck_assert_uint_lt(bitmap_count(t.pages[11].valid, PV_CHUNK_PAGES), 129);
	for (uint64_t i = 0; i < CHUNKS; i++) { // more than there is room for
		arrive_of(&t, &t.placer, &a, i, true, all, all);
		ck_assert_int_eq(finish(&t, &a), 0);
		verify_room(&t);
	}
	verify(&t);
	ck_assert_uint_eq(nr_valid(&t), RAM_PAGES);
	ck_assert_uint_eq(t.placement.reserve_left, 0);
	arrive(&t, &a, 11, none);
	ck_assert_int_eq(finish(&t, &a), 0);
	arrive(&t, &a, 11, all);
	ck_assert_int_eq(finish(&t, &a), 0);
	ck_assert(!is_in_ram(&t, 11));
	verify(&t);
	target_fini(&t);
}
END_TEST

// What was placed is given up, be it in memory, in swap or empty; when it comes after all it is placed like what was empty.
START_TEST(comes_later)
{
	static struct arrival a;
	static struct target t;

	target_init(&t, RAM_PAGES, true);
	for (uint64_t i = 0; i < CHUNKS; i++) {
		arrive(&t, &a, i, i == 2 ? none : all);
		ck_assert_int_eq(finish(&t, &a), 0);
	}
	ck_assert(is_in_ram(&t, 1) && !is_in_ram(&t, 8));
	for (uint64_t i = 0; i < CHUNKS; i++) {
		arrive_later(&t, &a, i, half);
		ck_assert(a.done); // nothing to wait for
		ck_assert_int_eq(a.err, 0);
		verify(&t);
	}
	ck_assert_uint_eq(t.placement.ram_left, RAM_PAGES - nr_valid(&t));
	arrive_of(&t, &t.placer, &a, 1, false, half, one);
	ck_assert_int_eq(finish(&t, &a), 0);
	verify(&t);
	arrive(&t, &a, 1, all); // back to memory
	ck_assert_int_eq(finish(&t, &a), 0);
	ck_assert_uint_eq(bitmap_count(t.pages[1].valid, PV_CHUNK_PAGES), PV_CHUNK_PAGES);
	arrive_of(&t, &t.placer, &a, 8, false, half, half); // back to swap
	ck_assert_int_eq(finish(&t, &a), 0);
	ck_assert(!is_in_ram(&t, 8));
	arrive_of(&t, &t.placer, &a, 9, true, half, half); // wanted in memory
	ck_assert_int_eq(finish(&t, &a), 0);
	ck_assert_uint_eq(bitmap_count(t.pages[9].valid, PV_CHUNK_PAGES), PV_CHUNK_PAGES / 2);
	verify(&t);
	target_fini(&t);
}
END_TEST

// A promise to pages that come later is none any more; one to others of the chunk is kept.
START_TEST(later_by_plan)
{
	static const struct heat heat[CHUNKS] = { [0] = { 1, 256 }, [1] = { 1, 256 }, [2] = { 1, 256 } };
	static struct arrival a;
	static struct target t;

	target_init(&t, RAM_PAGES, true);
	ck_assert_int_eq(plan(&t, heat, CHUNKS), 0);
	ck_assert_uint_eq(t.placement.ram_left, 10);
	arrive_later(&t, &a, 0, half);
	ck_assert_uint_eq(t.placement.chunks[0].promised, 128);
	ck_assert_uint_eq(t.placement.ram_left, 10 + 128);
	arrive(&t, &a, 1, all);
	ck_assert_int_eq(finish(&t, &a), 0);
	arrive_later(&t, &a, 1, all); // it was kept; what that was for is in memory no more
	ck_assert_uint_eq(t.placement.ram_left, 10 + 128 + 256);
	verify(&t);
	arrive_of(&t, &t.placer, &a, 2, true, all, all);
	ck_assert_int_eq(finish(&t, &a), 0);
	ck_assert_uint_eq(t.placement.ram_left, 10 + 128 + 256);
	arrive_later(&t, &a, 2, all); // and once more, what is later already
	arrive_later(&t, &a, 2, all);
	ck_assert_uint_eq(t.placement.ram_left, 10 + 128 + 512);
	verify(&t);
	target_fini(&t);
}
END_TEST

struct worker {
	struct target *t;
	struct loop loop;
	struct pv_placer placer;
	unsigned index;
	pthread_t thread;
};

#define WORKERS 3

static void *work(void *ctx)
{
	static bool (*const coin[])(unsigned page) = { often, all, one, none, half };
	struct worker *w = ctx;
	unsigned seed = w->index;

	if (loop_init(&w->loop, 16))
		abort();
	w->placer = (struct pv_placer){ .placement = &w->t->placement, .loop = &w->loop };
	for (unsigned i = 0; i < 300; i++) {
		uint64_t chunk = (uint64_t)rand_r(&seed) % (CHUNKS / WORKERS) * WORKERS + w->index;
		struct arrival a;

		arrive_and_later(w->t, &w->placer, &a, chunk, rand_r(&seed) % 4 == 0, coin[rand_r(&seed) % 5], coin[rand_r(&seed) % 5],
				 coin[rand_r(&seed) % 5]);
		while (!a.done)
			if (loop_round(&w->loop, true))
				abort();
		if (a.err)
			abort();
	}
	loop_fini(&w->loop);
	return NULL;
}

// Each thread has chunks of its own; the budget is everybody's.
START_TEST(threads)
{
	static struct worker w[WORKERS];
	static struct target t;

	target_init(&t, RAM_PAGES, true);
	ck_assert_int_eq(plan(&t, some, CHUNKS), 0);
	for (unsigned i = 0; i < WORKERS; i++) {
		w[i].t = &t;
		w[i].index = i;
		ck_assert_int_eq(pthread_create(&w[i].thread, NULL, work, &w[i]), 0);
	}
	for (unsigned i = 0; i < 1000; i++) // meanwhile
		pv_placement_settle(&t.placement);
	for (unsigned i = 0; i < WORKERS; i++)
		ck_assert_int_eq(pthread_join(w[i].thread, NULL), 0);
	verify(&t);
	target_fini(&t);
}
END_TEST

int main(void)
{
	Suite *s = suite_create("place");
	TCase *t = tcase_create("place");
	SRunner *sr;
	int failed;

	log_init(-1, LOG_ERROR, NULL, false); // to nobody
	tcase_set_timeout(t, 60);
	tcase_add_unchecked_fixture(t, make_dir, remove_dir);
	tcase_add_checked_fixture(t, remove_file, NULL);
	tcase_add_test(t, placement);
	tcase_add_test(t, no_room_at_all);
	tcase_add_loop_test(t, again, 0, 2);
	tcase_add_test(t, growing);
	tcase_add_test(t, shrinking);
	tcase_add_test(t, without_swap);
	tcase_add_test(t, write_errors);
	tcase_add_test(t, by_plan);
	tcase_add_test(t, more_than_said);
	tcase_add_test(t, less_than_said);
	tcase_add_test(t, bad_plan);
	tcase_add_test(t, all_fits);
	tcase_add_test(t, to_ram);
	tcase_add_test(t, comes_later);
	tcase_add_test(t, later_by_plan);
	tcase_add_test(t, threads);
	suite_add_tcase(s, t);
	sr = srunner_create(s);
	srunner_run_all(sr, CK_ENV);
	failed = srunner_ntests_failed(sr);
	srunner_free(sr);
	return failed ? 1 : 0;
}
