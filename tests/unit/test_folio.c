// SPDX-License-Identifier: GPL-2.0-only
// Folios of 1 MiB, on the kernel that is here: who gets one, what leaves when, and what it is when there is none.
#include <check.h>
#include <liburing.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/stat.h>

#include "pvmem/engine.h"
#include "pvmem/folio.h"
#include "pvmem/place.h"
#include "tests/unit/folio_setting.h"
#include "util/bitmap.h"
#include "util/size.h"

#define NR_CHUNKS 4

static struct pv_block block;
static struct pv_folio folio;

static void set_up(void)
{
	block = (struct pv_block){ .off = 2 * PV_CHUNK_SIZE, .len = NR_CHUNKS * PV_CHUNK_SIZE + 3 * PAGE_SIZE };
	block.memfd = memfd_create("folio", MFD_CLOEXEC);
	ck_assert(block.memfd >= 0 && !ftruncate(block.memfd, (off_t)block.len));
	ck_assert_int_eq(pv_block_map(&block, true), 0);
	pv_folio_init(&folio);
}

static void tear_down(void)
{
	pv_folio_fini(&folio);
	pv_block_unmap(&block);
	ck_assert(!block.map && !block.huge);
	close(block.memfd);
}

static size_t allocated(void)
{
	struct stat st;

	ck_assert_int_eq(fstat(block.memfd, &st), 0);
	return (size_t)st.st_blocks * 512 / PAGE_SIZE;
}

static void punch(uint64_t off, size_t first, size_t nr)
{
	ck_assert(!fallocate(block.memfd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, (off_t)(off + first * PAGE_SIZE),
			     (off_t)(nr * PAGE_SIZE)));
}

// A chunk comes in; what is read of its page i is i % 255 + 1.
static char *bring_in(uint64_t off)
{
	char *dest = pv_folio_dest(&folio, &block, off);

	ck_assert_ptr_eq(dest, block.huge + off);
	for (size_t i = 0; i < PV_CHUNK_PAGES; i++)
		memset(dest + i * PAGE_SIZE, (int)(i % 255) + 1, PAGE_SIZE);
	return dest;
}

START_TEST(two_mappings)
{
	char larger[96] = "x";

	ck_assert_int_eq(pv_folios_here(larger), PV_FOLIOS_YES);
	ck_assert_str_eq(larger, "");
	ck_assert_uint_eq((uintptr_t)block.huge % PV_CHUNK_SIZE, 0);
	block.map[PV_CHUNK_SIZE + 7 * PAGE_SIZE] = 1;
	ck_assert_uint_eq(allocated(), 1);
	bring_in(2 * PV_CHUNK_SIZE);
	ck_assert_uint_eq(allocated(), 1 + PV_CHUNK_PAGES);
	for (size_t i = 0; i < PV_CHUNK_PAGES; i++) // one memory, however it is looked at
		ck_assert_int_eq(block.map[2 * PV_CHUNK_SIZE + i * PAGE_SIZE + 17], (char)(i % 255 + 1));
	ck_assert_ptr_null(pv_folio_dest(&folio, &block, NR_CHUNKS * PV_CHUNK_SIZE)); // the end, of three pages
	ck_assert_uint_eq(allocated(), 1 + PV_CHUNK_PAGES);
	pv_block_unmap(&block);
	ck_assert_int_eq(pv_block_map(&block, false), 0);
	ck_assert(block.map && !block.huge);
	ck_assert_ptr_null(pv_folio_dest(&folio, &block, 0));
}
END_TEST

// No folio fits there since a page is there already. It is not asked for another one at once.
START_TEST(none_to_be_had)
{
	block.map[5 * PAGE_SIZE] = 1;
	ck_assert_ptr_null(pv_folio_dest(&folio, &block, 0));
	ck_assert_uint_eq(allocated(), 2);
	ck_assert_ptr_null(pv_folio_dest(&folio, &block, PV_CHUNK_SIZE));
	ck_assert_uint_eq(allocated(), 2);
	folio.not_before_ns = 0;
	bring_in(PV_CHUNK_SIZE);
}
END_TEST

START_TEST(some_pages_leave)
{
	uint64_t which[PV_WORDS] = { 0 };

	bring_in(0);
	bitmap_set_range(which, 10, 20);
	bitmap_set(which, 255);
	punch(0, 10, 20);
	punch(0, 255, 1);
	ck_assert_uint_eq(allocated(), PV_CHUNK_PAGES - 21);
	ck_assert_uint_eq(pv_folio_punched(&folio, &block, 0, which), 0);
	ck_assert_uint_eq(folio.nr_left, 0);
	ck_assert_int_eq(block.map[9 * PAGE_SIZE], 10);
	ck_assert_int_eq(block.map[30 * PAGE_SIZE], 31);
}
END_TEST

// As a DMA of QEMU does it: the kernel keeps the whole folio while a page of it is held.
START_TEST(held_by_a_pin)
{
	struct iovec held = { bring_in(PV_CHUNK_SIZE) + 200 * PAGE_SIZE, PAGE_SIZE };
	uint64_t which[PV_WORDS] = { 0 }, again[PV_WORDS] = { 0 };
	struct io_uring ring;

	ck_assert(!io_uring_queue_init(4, &ring, 0) && !io_uring_register_buffers(&ring, &held, 1));
	bitmap_set_range(which, 0, 64);
	punch(PV_CHUNK_SIZE, 0, 64);
	ck_assert_uint_eq(allocated(), PV_CHUNK_PAGES);
	ck_assert_uint_eq(pv_folio_punched(&folio, &block, PV_CHUNK_SIZE, which), 64);
	ck_assert_uint_eq(pv_folio_punched(&folio, &block, PV_CHUNK_SIZE, which), 0); // they count once
	ck_assert_uint_eq(pv_folio_retry(&folio), 0);
	bitmap_set_range(again, 60, 100); // of these four are still there
	ck_assert_uint_eq(pv_folio_reuse(&folio, &block, 0, again), 0);
	ck_assert_uint_eq(pv_folio_reuse(&folio, &block, PV_CHUNK_SIZE, again), 4);
	ck_assert_uint_eq(folio.nr_left, 60);
	block.map[PV_CHUNK_SIZE + 61 * PAGE_SIZE] = 'x';
	io_uring_unregister_buffers(&ring);
	ck_assert_uint_eq(pv_folio_retry(&folio), 60);
	ck_assert_uint_eq(allocated(), PV_CHUNK_PAGES - 60);
	ck_assert_int_eq(block.map[PV_CHUNK_SIZE + 61 * PAGE_SIZE], 'x');
	ck_assert_int_eq(block.map[PV_CHUNK_SIZE + 70 * PAGE_SIZE], 71);
	ck_assert(list_empty(&folio.left) && !folio.nr_left);
	io_uring_queue_exit(&ring);
}
END_TEST

// A page of it, which is held, keeps another one, which is zero then.
static bool is_folio(uint64_t off)
{
	struct iovec held = { block.map + off + 200 * PAGE_SIZE, PAGE_SIZE };
	size_t before = allocated();
	struct io_uring ring;

	ck_assert(!io_uring_queue_init(4, &ring, 0) && !io_uring_register_buffers(&ring, &held, 1));
	punch(off, 7, 1);
	io_uring_queue_exit(&ring);
	return allocated() == before;
}

static void was_placed(struct pv_placing *p, int err)
{
	ck_assert_int_eq(err, 0);
	p->chunk = UINT64_MAX;
}

static void place(struct pv_placer *pl, uint64_t chunk, size_t nr, char fill)
{
	char *packed = aligned_alloc(PAGE_SIZE, PV_CHUNK_SIZE);
	struct pv_placing p = { .chunk = chunk, .packed = packed, .done = was_placed };

	memset(packed, fill, PV_CHUNK_SIZE);
	bitmap_set_range(p.touched, 0, nr);
	bitmap_set_range(p.present, 0, nr);
	pv_place(pl, &p);
	ck_assert_uint_eq(p.chunk, UINT64_MAX);
	free(packed);
}

// What comes whole before the VM runs is one folio from the start; no other page takes more than itself.
START_TEST(placed)
{
	struct pv_swap swap = PV_SWAP_NONE;
	struct pv_pages pages[NR_CHUNKS + 1] = { 0 };
	struct pv_placement pm;
	struct pv_placer placer = { .placement = &pm };
	const uint64_t all[PV_WORDS] = { ~0ull, ~0ull, ~0ull, ~0ull };

	block.off = 0;
	for (size_t i = 0; i <= NR_CHUNKS; i++)
		pv_pages_set_home(&pages[i], all, PV_HOME_ZERO);
	ck_assert_int_eq(pv_placement_init(&pm, &swap, &block, 1, pages, NR_CHUNKS + 1, (NR_CHUNKS + 1) * PV_CHUNK_SIZE), 0);
	place(&placer, 1, PV_CHUNK_PAGES, 'a');
	place(&placer, 2, 3, 'b');
	place(&placer, NR_CHUNKS, 3, 'c');
	ck_assert_uint_eq(allocated(), PV_CHUNK_PAGES + 6);
	ck_assert(is_folio(PV_CHUNK_SIZE));
	ck_assert(block.map[2 * PV_CHUNK_SIZE - 1] == 'a' && block.map[2 * PV_CHUNK_SIZE] == 'b');
	ck_assert(block.map[NR_CHUNKS * PV_CHUNK_SIZE] == 'c');
	place(&placer, 2, PV_CHUNK_PAGES, 'd'); // again, and more of it
	ck_assert_uint_eq(allocated(), 2 * PV_CHUNK_PAGES + 3);
	ck_assert(!is_folio(2 * PV_CHUNK_SIZE));
	ck_assert(block.map[2 * PV_CHUNK_SIZE] == 'd' && block.map[3 * PV_CHUNK_SIZE - 1] == 'd');
	pv_placement_fini(&pm);
}
END_TEST

// Before anything is switched on.
START_TEST(switched_off)
{
	char larger[96];

	ck_assert_int_ne(pv_folios_here(larger), PV_FOLIOS_ALWAYS);
	block.map[0] = 1;
	ck_assert_uint_eq(allocated(), 1);
}
END_TEST

int main(void)
{
	Suite *s = suite_create("folio");
	TCase *off = tcase_create("off"), *on = tcase_create("on");
	SRunner *r = srunner_create(s);
	const char *why_not;
	int failed;

	tcase_add_checked_fixture(off, set_up, tear_down);
	tcase_add_test(off, switched_off);
	suite_add_tcase(s, off);
	srunner_run_all(r, CK_NORMAL);
	failed = srunner_ntests_failed(r);
	srunner_free(r);
	why_not = folio_setting_on();
	if (why_not)
		return failed ? 1 : (printf("skip: %s\n", why_not), 77);
	s = suite_create("folio");
	r = srunner_create(s);
	tcase_add_checked_fixture(on, set_up, tear_down);
	tcase_add_test(on, two_mappings);
	tcase_add_test(on, none_to_be_had);
	tcase_add_test(on, some_pages_leave);
	tcase_add_test(on, held_by_a_pin);
	tcase_add_test(on, placed);
	suite_add_tcase(s, on);
	srunner_run_all(r, CK_NORMAL);
	failed += srunner_ntests_failed(r);
	srunner_free(r);
	return failed ? 1 : 0;
}
