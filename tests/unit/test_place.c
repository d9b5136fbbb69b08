// SPDX-License-Identifier: GPL-2.0-only
// Chunks that are placed directly: into memory while there is room, the rest into swap.
#include <check.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#include "pvmem/place.h"
#include "util/log.h"

#define CHUNKS 12
#define FIRST_BLOCK 7 // chunks; the last of them has SHORT pages only
#define SHORT 100
#define RAM_PAGES (4 * PV_CHUNK_PAGES + 10)
#define NR_PAGES (CHUNKS * PV_CHUNK_PAGES)

static char dir[] = "/var/tmp/criu-vm-test.XXXXXX"; // not in memory
static char swap_path[sizeof dir + 8];

// Once for all tests; each may find the file of one that failed.
static void make_dir(void)
{
	if (!mkdtemp(dir))
		abort();
	snprintf(swap_path, sizeof swap_path, "%s/swap", dir);
}

static void remove_file(void)
{
	unlink(swap_path);
}

static void remove_dir(void)
{
	remove_file();
	rmdir(dir);
}

// A VM's memory that comes from somewhere.
struct target {
	struct loop loop;
	struct pv_swap swap;
	struct pv_block block[2];
	struct pv_pages pages[CHUNKS];
	struct pv_placer placer;
	unsigned version[NR_PAGES]; // what was placed last; 0: nothing
};

static void target_init(struct target *t, uint64_t ram_pages, bool swap)
{
	*t = (struct target){ .swap = PV_SWAP_NONE };
	ck_assert_int_eq(loop_init(&t->loop, 16), 0);
	if (swap)
		ck_assert_int_eq(pv_swap_create(swap_path, CHUNKS * PV_CHUNK_SIZE, true, &t->swap), 0);
	for (size_t i = 0; i < 2; i++) {
		struct pv_block *b = &t->block[i];

		b->off = i * FIRST_BLOCK * PV_CHUNK_SIZE;
		b->len = i ? (CHUNKS - FIRST_BLOCK) * PV_CHUNK_SIZE : (FIRST_BLOCK - 1) * PV_CHUNK_SIZE + SHORT * PAGE_SIZE;
		b->memfd = memfd_create("target", MFD_CLOEXEC);
		ck_assert(b->memfd >= 0 && !ftruncate(b->memfd, (off_t)b->len));
		b->map = mmap(NULL, b->len, PROT_READ | PROT_WRITE, MAP_SHARED, b->memfd, 0);
		ck_assert_ptr_ne(b->map, MAP_FAILED);
	}
	for (size_t i = 0; i < NR_PAGES; i++)
		pv_page_set_home(&t->pages[i / PV_CHUNK_PAGES], i % PV_CHUNK_PAGES, PV_HOME_ZERO);
	ck_assert_int_eq(pv_placer_init(&t->placer, &t->loop, &t->swap, t->block, 2, t->pages, CHUNKS, ram_pages * PAGE_SIZE), 0);
}

static void target_fini(struct target *t)
{
	loop_fini(&t->loop);
	pv_placer_fini(&t->placer);
	pv_swap_destroy(&t->swap);
	for (size_t i = 0; i < 2; i++) {
		munmap(t->block[i].map, t->block[i].len);
		close(t->block[i].memfd);
	}
}

static uint64_t memory_pages(const struct target *t)
{
	uint64_t sum = 0;
	struct stat st;

	for (size_t i = 0; i < 2; i++) {
		ck_assert_int_eq(fstat(t->block[i].memfd, &st), 0);
		sum += (uint64_t)st.st_blocks * 512 / PAGE_SIZE;
	}
	return sum;
}

static unsigned chunk_pages(uint64_t chunk)
{
	return chunk == FIRST_BLOCK - 1 ? SHORT : PV_CHUNK_PAGES;
}

static void fill(void *at, size_t page, unsigned version)
{
	uint64_t *w = at;

	for (size_t i = 0; i < PAGE_SIZE / 8; i++)
		w[i] = version ? page << 32 | version << 16 | i : 0;
}

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

// A new version of the pages of a chunk for which coin() says so.
static void arrive(struct target *t, struct arrival *a, uint64_t chunk, bool (*coin)(unsigned page))
{
	static unsigned version;
	size_t n = 0;

	*a = (struct arrival){ .p = { .chunk = chunk, .packed = aligned_alloc(PAGE_SIZE, PV_CHUNK_SIZE), .done = arrived } };
	version++;
	for (unsigned i = 0; i < chunk_pages(chunk); i++) {
		size_t page = chunk * PV_CHUNK_PAGES + i;

		t->version[page] = coin(i) ? version : 0;
		if (!t->version[page])
			continue;
		bitmap_set(a->p.present, i);
		fill(a->p.packed + n++ * PAGE_SIZE, page, version);
	}
	pv_place(&t->placer, &a->p);
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

// Every page is where the table says, with the content that came last, the whole chunk in one place.
static void verify(const struct target *t)
{
	char *want = aligned_alloc(PAGE_SIZE, PAGE_SIZE), *got = aligned_alloc(PAGE_SIZE, PAGE_SIZE);
	uint64_t ram = 0, swap = 0;

	for (size_t i = 0; i < NR_PAGES; i++) {
		const struct pv_pages *p = &t->pages[i / PV_CHUNK_PAGES];
		unsigned page = i % PV_CHUNK_PAGES;
		enum pv_home home = pv_page_home(p, page);
		bool valid = bitmap_test(p->valid, page), in_ram = bitmap_test(t->placer.in_ram, i / PV_CHUNK_PAGES);
		const struct pv_block *b = &t->block[i >= FIRST_BLOCK * PV_CHUNK_PAGES];

		if (!t->version[i]) {
			ck_assert(!valid && home == PV_HOME_ZERO);
			continue;
		}
		fill(want, i, t->version[i]);
		if (in_ram) {
			ck_assert(valid && home == PV_HOME_NONE);
			memcpy(got, b->map + (i * PAGE_SIZE - b->off), PAGE_SIZE);
		} else {
			ck_assert(!valid && home == PV_HOME_SWAP);
			ck_assert_int_eq(pread(t->swap.fd, got, PAGE_SIZE, (off_t)(i * PAGE_SIZE)), PAGE_SIZE);
		}
		ck_assert_mem_eq(got, want, PAGE_SIZE);
		*(in_ram ? &ram : &swap) += 1;
	}
	for (size_t i = 0; i < CHUNKS; i++)
		ck_assert(pv_pages_sane(&t->pages[i]));
	ck_assert_uint_eq(t->placer.nr_ram, ram);
	ck_assert_uint_eq(t->placer.nr_swap, swap);
	free(want);
	free(got);
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
	ck_assert_uint_gt(t.placer.nr_ram, RAM_PAGES - PV_CHUNK_PAGES); // filled as far as whole chunks go
	ck_assert_uint_le(t.placer.nr_ram, RAM_PAGES);
	ck_assert_uint_eq(memory_pages(&t), t.placer.nr_ram);
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

// What comes again goes where the first copy went, and the limit holds, however the number of pages changes.
START_TEST(again)
{
	static bool (*const coin[])(unsigned page) = { often, all, one, none };
	static uint64_t in_ram[1];
	static struct arrival a;
	static struct target t;

	srand(6);
	target_init(&t, RAM_PAGES, true);
	for (uint64_t i = 0; i < CHUNKS; i++) {
		arrive(&t, &a, i, all);
		ck_assert_int_eq(finish(&t, &a), 0);
	}
	in_ram[0] = t.placer.in_ram[0];
	for (unsigned i = 0; i < 60; i++) {
		arrive(&t, &a, (uint64_t)rand() % CHUNKS, coin[rand() % 4]);
		ck_assert_int_eq(finish(&t, &a), 0);
		ck_assert_uint_eq(t.placer.in_ram[0], in_ram[0]);
	}
	for (uint64_t i = 0; i < CHUNKS; i++) {
		arrive(&t, &a, i, often);
		ck_assert_int_eq(finish(&t, &a), 0);
	}
	for (size_t i = 0; i < NR_PAGES; i++) {
		const struct pv_pages *p = &t.pages[i / PV_CHUNK_PAGES];

		if (t.version[i])
			ck_assert_int_eq(bitmap_test(p->valid, i % PV_CHUNK_PAGES), bitmap_test(in_ram, i / PV_CHUNK_PAGES));
	}
	ck_assert_uint_le(memory_pages(&t), RAM_PAGES);
	target_fini(&t);
}
END_TEST

// A chunk that grows when it comes again must not break the limit.
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
	ck_assert_uint_le(memory_pages(&t), RAM_PAGES);
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
	t.placer.nr_swap = 0; // the first three were placed twice
	for (size_t i = 0; i < NR_PAGES; i++)
		t.placer.nr_swap += t.version[i] != 0;
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
	tcase_add_test(t, again);
	tcase_add_test(t, growing);
	tcase_add_test(t, shrinking);
	tcase_add_test(t, without_swap);
	tcase_add_test(t, write_errors);
	suite_add_tcase(s, t);
	sr = srunner_create(s);
	srunner_run_all(sr, CK_ENV);
	failed = srunner_ntests_failed(sr);
	srunner_free(sr);
	return failed ? 1 : 0;
}
