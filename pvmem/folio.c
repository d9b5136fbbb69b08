// SPDX-License-Identifier: GPL-2.0-only
#include "pvmem/folio.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "pvmem/engine_int.h"
#include "util/cleanup.h"
#include "util/clock.h"

#define SLOW_NS NSEC_PER_MSEC
#define PAUSE_NS NSEC_PER_SEC

// Of a chunk, pages that were punched and are there.
struct left {
	struct list link;
	const struct pv_block *b;
	uint64_t off;
	uint64_t pages[PV_WORDS];
};

// The setting of a size, "inherit" being replaced by the one for all sizes. False: there is no such size.
static bool read_setting(const char *size, char *buf, int len)
{
	_cleanup_fclose_ FILE *f = NULL;
	char path[320];

	snprintf(path, sizeof path, PV_FOLIOS_DIR "%s%sshmem_enabled", size, *size ? "/" : "");
	f = fopen(path, "re");
	if (!f || !fgets(buf, len, f))
		return false;
	return strstr(buf, "[inherit]") ? read_setting("", buf, len) : true;
}

static bool is_on(const char *size)
{
	char value[128];

	return read_setting(size, value, sizeof value) && !strstr(value, "[never]") && !strstr(value, "[deny]");
}

static void list_larger(char larger[96])
{
	DIR *dir = opendir(PV_FOLIOS_DIR);
	const struct dirent *d;
	unsigned kib;

	*larger = 0;
	while (dir && (d = readdir(dir)))
		if (sscanf(d->d_name, "hugepages-%ukB", &kib) == 1 && kib > PV_CHUNK_SIZE / KiB && is_on(d->d_name))
			snprintf(larger + strlen(larger), 96 - strlen(larger), "%s%ukB", *larger ? " " : "", kib);
	if (dir)
		closedir(dir);
}

// Pages that a touch takes, through either of the mappings; 0: cannot be told.
static size_t taken_by_touch(bool huge)
{
	struct pv_block b = { .len = 4 * PV_CHUNK_SIZE };
	_cleanup_close_ int fd = memfd_create("criu-vm folio", MFD_CLOEXEC);
	struct stat st = { 0 };

	if (fd < 0 || ftruncate(fd, (off_t)b.len))
		return 0;
	b.memfd = fd;
	if (pv_block_map(&b, huge))
		return 0;
	*(volatile char *)((b.huge ? b.huge : b.map) + 2 * PV_CHUNK_SIZE) = 1;
	if (fstat(fd, &st))
		st.st_blocks = 0;
	pv_block_unmap(&b);
	return (size_t)st.st_blocks * 512 / PAGE_SIZE;
}

enum pv_folios pv_folios_here(char *larger)
{
	char value[128], sizes[96];

	list_larger(sizes);
	if (larger)
		strcpy(larger, sizes);
	if (taken_by_touch(false) > 1)
		return PV_FOLIOS_ALWAYS;
	if (*sizes)
		return PV_FOLIOS_LARGER;
	if (!read_setting("hugepages-1024kB", value, sizeof value))
		return PV_FOLIOS_NONE;
	return is_on("hugepages-1024kB") ? PV_FOLIOS_YES : PV_FOLIOS_OFF;
}

bool pv_folio_is_free(void)
{
	return taken_by_touch(true) == PV_CHUNK_PAGES;
}

// At an address that is a multiple of 1 MiB, as its offset in the file is: 0. NULL: there is no room.
static char *map_aligned(int fd, uint64_t len)
{
	size_t room = len + PV_CHUNK_SIZE;
	char *whole = mmap(NULL, room, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0), *p;

	if (whole == MAP_FAILED)
		return NULL;
	p = whole + ROUND_UP((uintptr_t)whole, PV_CHUNK_SIZE) - (uintptr_t)whole;
	if (mmap(p, len, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, fd, 0) == MAP_FAILED) {
		munmap(whole, room);
		return NULL;
	}
	if (p > whole)
		munmap(whole, (size_t)(p - whole));
	munmap(p + len, (size_t)(whole + room - (p + len)));
	return p;
}

int pv_block_map(struct pv_block *b, bool folios)
{
	int err;

	b->huge = NULL;
	b->map = mmap(NULL, b->len, PROT_READ | PROT_WRITE, MAP_SHARED, b->memfd, 0);
	if (b->map == MAP_FAILED) {
		err = -errno;
		b->map = NULL;
		return err;
	}
	madvise(b->map, b->len, MADV_NOHUGEPAGE);
	madvise(b->map, b->len, MADV_DONTDUMP);
	if (folios)
		b->huge = map_aligned(b->memfd, b->len);
	if (!b->huge)
		return 0;
	madvise(b->huge, b->len, MADV_HUGEPAGE);
	madvise(b->huge, b->len, MADV_DONTDUMP);
	return 0;
}

void pv_block_unlock(const struct pv_block *b)
{
	munlock(b->map, b->len);
	if (b->huge)
		munlock(b->huge, b->len);
}

void pv_block_unmap(struct pv_block *b)
{
	if (b->map)
		munmap(b->map, b->len);
	if (b->huge)
		munmap(b->huge, b->len);
	b->map = b->huge = NULL;
}

void pv_folio_init(struct pv_folio *f)
{
	*f = (struct pv_folio){ 0 };
	list_init(&f->left);
}

void pv_folio_fini(struct pv_folio *f)
{
	if (!f->left.next)
		return;
	list_for_each(&f->left, node)
		free(list_entry(node, struct left, link));
	pv_folio_init(f);
}

// Of this thread: not what others took meanwhile.
static uint64_t cpu_time_ns(void)
{
	struct timespec t;

	clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
	return (uint64_t)t.tv_sec * NSEC_PER_SEC + (uint64_t)t.tv_nsec;
}

// The touch takes the folio and maps all of it; a read that finds no page does the same page by page, at twice the cost. To look for one
// may take the kernel milliseconds where memory is in small pieces (direct compaction); the guest would wait for that at every page-in.
char *pv_folio_dest(struct pv_folio *f, const struct pv_block *b, uint64_t off)
{
	uint64_t now = clock_now_ns(), begun;
	unsigned char last = 0;
	char *dest;

	if (!b->huge || b->len - off < PV_CHUNK_SIZE || now < f->not_before_ns)
		return NULL;
	dest = b->huge + off;
	begun = cpu_time_ns();
	*(volatile char *)dest = 0;
	mincore(dest + PV_CHUNK_SIZE - PAGE_SIZE, PAGE_SIZE, &last);
	if (!(last & 1) || cpu_time_ns() - begun > SLOW_NS)
		f->not_before_ns = now + PAUSE_NS;
	return last & 1 ? dest : NULL;
}

static struct left *find_left(const struct pv_folio *f, const struct pv_block *b, uint64_t off)
{
	for (struct list *node = f->left.next; node != &f->left; node = node->next) {
		struct left *l = list_entry(node, struct left, link);

		if (l->b == b && l->off == off)
			return l;
	}
	return NULL;
}

// Of these pages, those that are in the memfd.
static void keep_present(const struct pv_block *b, uint64_t off, const uint64_t which[PV_WORDS], uint64_t present[PV_WORDS])
{
	memset(present, 0, PV_WORDS * sizeof *present);
	for (size_t i = 0, n; (n = bitmap_next_run(which, PV_CHUNK_PAGES, &i)); i += n) {
		off_t end = (off_t)(off + (i + n) * PAGE_SIZE), from = lseek(b->memfd, (off_t)(off + i * PAGE_SIZE), SEEK_DATA), hole;

		for (; from >= 0 && from < end; from = lseek(b->memfd, hole, SEEK_DATA)) {
			hole = lseek(b->memfd, from, SEEK_HOLE);
			hole = hole > from && hole < end ? hole : end;
			bitmap_set_range(present, ((uint64_t)from - off) / PAGE_SIZE, (uint64_t)(hole - from) / PAGE_SIZE);
		}
	}
}

size_t pv_folio_punched(struct pv_folio *f, const struct pv_block *b, uint64_t off, const uint64_t which[PV_WORDS])
{
	uint64_t present[PV_WORDS];
	struct left *l;
	size_t nr;

	if (!b->huge)
		return 0;
	keep_present(b, off, which, present);
	if (bitmap_empty(present, PV_CHUNK_PAGES))
		return 0;
	l = find_left(f, b, off);
	if (!l) {
		l = pv_alloc(sizeof *l);
		*l = (struct left){ .b = b, .off = off };
		list_append(&f->left, &l->link);
	}
	for (unsigned w = 0; w < PV_WORDS; w++) {
		present[w] &= ~l->pages[w];
		l->pages[w] |= present[w];
	}
	nr = bitmap_count(present, PV_CHUNK_PAGES);
	f->nr_left += nr;
	return nr;
}

// Those pages are not left any more: they have gone, or are wanted.
static void take_off(struct pv_folio *f, struct left *l, const uint64_t pages[PV_WORDS])
{
	f->nr_left -= bitmap_count(pages, PV_CHUNK_PAGES);
	for (unsigned w = 0; w < PV_WORDS; w++)
		l->pages[w] &= ~pages[w];
	if (!bitmap_empty(l->pages, PV_CHUNK_PAGES))
		return;
	list_remove(&l->link);
	free(l);
}

size_t pv_folio_retry(struct pv_folio *f)
{
	size_t gone = 0;

	list_for_each(&f->left, node) {
		struct left *l = list_entry(node, struct left, link);
		uint64_t present[PV_WORDS];

		for (size_t i = 0, n; (n = bitmap_next_run(l->pages, PV_CHUNK_PAGES, &i)); i += n)
			fallocate(l->b->memfd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, (off_t)(l->off + i * PAGE_SIZE),
				  (off_t)(n * PAGE_SIZE));
		keep_present(l->b, l->off, l->pages, present);
		for (unsigned w = 0; w < PV_WORDS; w++)
			present[w] = l->pages[w] & ~present[w];
		gone += bitmap_count(present, PV_CHUNK_PAGES);
		take_off(f, l, present);
	}
	return gone;
}

size_t pv_folio_reuse(struct pv_folio *f, const struct pv_block *b, uint64_t off, const uint64_t which[PV_WORDS])
{
	struct left *l = f->nr_left ? find_left(f, b, off) : NULL;
	uint64_t wanted[PV_WORDS];
	size_t nr;

	if (!l)
		return 0;
	for (unsigned w = 0; w < PV_WORDS; w++)
		wanted[w] = l->pages[w] & which[w];
	nr = bitmap_count(wanted, PV_CHUNK_PAGES);
	take_off(f, l, wanted);
	return nr;
}
