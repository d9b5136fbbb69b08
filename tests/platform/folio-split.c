// SPDX-License-Identifier: GPL-2.0-only
// Some pages of a 1 MiB folio are punched: it is split, and just these pages are free. All of it is out of the page tables then, and what
// was written is known as exactly as before. While another of its pages is held, by DMA for instance, nothing is freed, and nobody is told;
// punched as a whole it always is.
#include "tests/platform/platform.h"

#include <liburing.h>

#include "tests/unit/folio_setting.h"

#define CHUNK 256 // pages

static char *large;

// A chunk that came as a folio, and was mapped clean.
static void bring(struct victim *v, size_t chunk)
{
	size_t before = allocated_pages(v->memfd);

	for (size_t i = 0; i < CHUNK; i++)
		large[(chunk * CHUNK + i) * PAGE_SIZE] = (char)(i + 1);
	CHECK(allocated_pages(v->memfd) == before + CHUNK);
	map_pages(v, chunk * CHUNK, CHUNK, true);
}

static bool is_written(struct victim *v, size_t page)
{
	uint64_t map[BITMAP_WORDS(4 * CHUNK)] = { 0 };

	scan(v, MM_SCAN_WRITTEN, map);
	return bitmap_test(map, page);
}

static void split(struct victim *v)
{
	bring(v, 0);
	victim_does(v, WRITE, 100, 10);
	punch(v, 7, 2);
	CHECK(allocated_pages(v->memfd) == CHUNK - 2);
	CHECK(large[6 * PAGE_SIZE] == 7 && large[9 * PAGE_SIZE] == 10);
	for (size_t i = 10; i < CHUNK; i++)
		CHECK(is_written(v, i) == (i >= 100 && i < 110));
	victim_order(v, READ, 50, 1); // never punched
	CHECK(next_fault(v, 1000, NULL) == MINOR);
	map_pages(v, 50, 1, true);
	CHECK(victim_done(v, 1000) && v->box->seen == 51);
	CHECK(!is_written(v, 50));
}

static void held(struct victim *v)
{
	struct iovec page = { large + (CHUNK + 200) * PAGE_SIZE, PAGE_SIZE };
	size_t before = allocated_pages(v->memfd);
	struct io_uring ring;

	bring(v, 1);
	CHECK(!io_uring_queue_init(4, &ring, 0) && !io_uring_register_buffers(&ring, &page, 1));
	punch(v, CHUNK + 7, 1);
	CHECK(allocated_pages(v->memfd) == before + CHUNK);
	CHECK(large[(CHUNK + 7) * PAGE_SIZE] == 0 && large[(CHUNK + 8) * PAGE_SIZE] == 9);
	victim_order(v, READ, CHUNK + 7, 1); // out of the page table, and still there
	CHECK(next_fault(v, 1000, NULL) == MINOR);
	map_pages(v, CHUNK + 7, 1, true);
	CHECK(victim_done(v, 1000) && v->box->seen == 0);
	punch(v, CHUNK, CHUNK);
	CHECK(allocated_pages(v->memfd) == before);
	io_uring_queue_exit(&ring);

	bring(v, 2);
	page.iov_base = large + (2 * CHUNK + 200) * PAGE_SIZE;
	CHECK(!io_uring_queue_init(4, &ring, 0) && !io_uring_register_buffers(&ring, &page, 1));
	punch(v, 2 * CHUNK, 100);
	CHECK(allocated_pages(v->memfd) == before + CHUNK);
	io_uring_unregister_buffers(&ring);
	punch(v, 2 * CHUNK, 100);
	CHECK(allocated_pages(v->memfd) == before + CHUNK - 100);
	io_uring_queue_exit(&ring);
}

int main(void)
{
	const char *why_not = folio_setting_on();
	struct victim v;

	if (why_not)
		return printf("skip: %s\n", why_not), 77;
	victim_start(&v, 4 * CHUNK * PAGE_SIZE, false);
	victim_plant(&v, PAGING_FEATURES);
	large = mmap(NULL, v.len + MiB, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	large = (char *)ROUND_UP((uintptr_t)large, MiB);
	CHECK(mmap(large, v.len, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, v.memfd, 0) == large);
	CHECK(!madvise(large, v.len, MADV_HUGEPAGE));
	split(&v);
	held(&v);
	victim_end(&v);
	return 0;
}
