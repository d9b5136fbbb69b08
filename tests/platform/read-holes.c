// SPDX-License-Identifier: GPL-2.0-only
// Reading another process's memory for a dump finds every page that is not zero, of any kind of memory, and allocates nothing.
// The process is stopped by ptrace meanwhile.
#include <sys/ptrace.h>

#include "mm/read.h"
#include "tests/platform/platform.h"

#define PAGES 2048
#define LEN (PAGES * PAGE_SIZE)

struct subject {
	pid_t pid;
	_Atomic(char *) at;
	int fd;
};

// Writes one word to each page, page numbers counted as in the bitmaps.
static void fill(char *p, size_t first, size_t nr, uint32_t what)
{
	for (size_t i = first; i < first + nr; i++)
		*(volatile uint32_t *)(p + i * PAGE_SIZE + 64) = what + (uint32_t)i;
}

// A child with a mapping: pages 3-7 and 1000 written by it, page 20 only looked at; in a file, 30-39 written by others.
static void start(struct subject *s, int flags, int fd)
{
	pid_t pid;

	s->at = NULL;
	s->fd = fd;
	if (fd >= 0) {
		char *p = mmap(NULL, LEN, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);

		fill(p, 30, 10, 5000);
		munmap(p, LEN);
	}
	pid = fork();
	if (!pid) {
		char *p = mmap(NULL, LEN, PROT_READ | PROT_WRITE, flags, fd, 0);

		prctl(PR_SET_PDEATHSIG, SIGKILL);
		fill(p, 3, 5, 7000);
		fill(p, 1000, 1, 7000);
		if (!(flags & MAP_SHARED) && fd >= 0)
			fill(p, 35, 1, 7000); // its own copy
		if (fd < 0 && !(flags & MAP_SHARED)) // the read of a shared hole would allocate
			(void)*(volatile char *)(p + 20 * PAGE_SIZE);
		for (s->at = p;;)
			pause();
	}
	s->pid = pid;
	while (!s->at)
		usleep(100);
	CHECK(!ptrace(PTRACE_SEIZE, s->pid, 0, 0) && !ptrace(PTRACE_INTERRUPT, s->pid, 0, 0));
	waitpid(s->pid, NULL, __WALL);
}

static uint64_t rss(pid_t pid)
{
	char path[32];
	uint64_t size, pages = 0;
	FILE *f;

	snprintf(path, sizeof path, "/proc/%d/statm", pid);
	f = fopen(path, "r");
	CHECK(f && fscanf(f, "%lu %lu", &size, &pages) == 2);
	fclose(f);
	return pages;
}

static uint32_t expected(const struct subject *s, size_t page, bool private)
{
	if ((page >= 3 && page < 8) || page == 1000 || (page == 35 && private && s->fd >= 0))
		return 7000 + (uint32_t)page;
	return page >= 30 && page < 40 && s->fd >= 0 ? 5000 + (uint32_t)page : 0;
}

static void check(struct subject *s, enum mm_source_kind kind, bool sparse)
{
	uint64_t present[PAGES / 64], before = rss(s->pid), hva = (uint64_t)(uintptr_t)s->at;
	size_t blocks = s->fd >= 0 ? allocated_pages(s->fd) : 0;
	char *buf = calloc(PAGES, PAGE_SIZE);
	struct mm_source *src;

	CHECK(!mm_source_open(s->pid, hva, LEN, &src) && src->kind == kind);
	CHECK(!mm_source_present(src, 0, LEN, present));
	CHECK(!sparse || bitmap_count(present, PAGES) == (s->fd >= 0 ? 16 : 6));
	CHECK(!mm_source_read(src, 0, present, PAGES, buf));
	for (size_t i = 0; i < PAGES; i++)
		CHECK(*(uint32_t *)(buf + i * PAGE_SIZE + 64) == expected(s, i, kind != MM_SRC_SHARED));
	CHECK(!mm_source_present(src, 32 * PAGE_SIZE, 4 * PAGE_SIZE, present));
	CHECK(!sparse || (present[0] & 15) == (s->fd >= 0 ? 15 : 0));
	CHECK(rss(s->pid) == before && (s->fd < 0 || allocated_pages(s->fd) == blocks));
	CHECK(mm_source_present(src, LEN, PAGE_SIZE, present) == -EINVAL);
	mm_source_close(src);
	CHECK(mm_source_open(s->pid, 16 * PAGE_SIZE, LEN, &src) == -EFAULT);
	kill(s->pid, SIGKILL);
	waitpid(s->pid, NULL, __WALL);
	if (s->fd >= 0)
		close(s->fd);
	free(buf);
}

static int sized(int fd)
{
	CHECK(fd >= 0 && !ftruncate(fd, LEN));
	return fd;
}

int main(void)
{
	char dir[] = "/var/tmp/read-holes-XXXXXX";
	struct subject *s = mmap(NULL, PAGE_SIZE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	int fd;

	start(s, MAP_PRIVATE | MAP_ANONYMOUS, -1);
	check(s, MM_SRC_ANON, true);
	start(s, MAP_SHARED | MAP_ANONYMOUS, -1);
	check(s, MM_SRC_SHARED, true);
	start(s, MAP_SHARED, sized(memfd_create("ram", MFD_CLOEXEC)));
	check(s, MM_SRC_SHARED, true);
	start(s, MAP_PRIVATE, sized(memfd_create("ram", MFD_CLOEXEC)));
	check(s, MM_SRC_PRIVATE_FILE, true);
	fd = mkostemp(dir, O_CLOEXEC);
	CHECK(!unlink(dir));
	start(s, MAP_PRIVATE, sized(fd));
	check(s, MM_SRC_PRIVATE_FILE, true);

	fd = sized(memfd_create("ram", MFD_CLOEXEC | MFD_HUGETLB));
	if (mmap(NULL, LEN, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0) == MAP_FAILED) {
		puts("part skipped: no huge pages (vm.nr_hugepages)");
		return 0;
	}
	start(s, MAP_SHARED, fd);
	check(s, MM_SRC_SHARED, false);
	start(s, MAP_PRIVATE | MAP_ANONYMOUS | MAP_HUGETLB, -1);
	check(s, MM_SRC_ANON, false);
	return 0;
}
