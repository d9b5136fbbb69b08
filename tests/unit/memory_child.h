// SPDX-License-Identifier: GPL-2.0-only
// A child with one block of memory of a kind, which does to it what its box tells.
#pragma once
#include <check.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/falloc.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <unistd.h>

#include "util/cleanup.h"
#include "util/clock.h"
#include "util/size.h"

enum memory { ANON, HUGE /* transparent huge pages */, MEMFD, PRIVATE_FILE, HUGETLB, HUGETLB_SHARED };

static const char *const memory_name[] = { "anonymous", "transparent huge pages", "memfd", "private file", "hugetlb", "shared hugetlb" };

#define PATIENCE_MS 20000 // on a busy host

enum memory_job {
	REST,
	READ,	 // a byte of each page
	WRITE,	 // a stamp into each page, never the same again, never zero
	UNMAP,	 // MADV_DONTNEED: the page tables forget
	DISCARD, // as QEMU does for a balloon: the file gives it back too
	REWRITE, // as WRITE, over and over, at `rate` pages a second, until told otherwise
};

struct memory_box {
	_Atomic enum memory_job order;
	uint64_t off, len, rate;
	_Atomic uint64_t churn; // bytes from the beginning that another thread does UNMAP to, over and over
	char *_Atomic at;
	_Atomic uint64_t stamp;	  // of the last page written
	_Atomic uint64_t slowest; // write of REWRITE, ns
};

struct memory_child {
	pid_t pid;
	enum memory kind;
	uint64_t hva, len;
	int fd;
	struct memory_box *box;
};

static inline void memory_write(struct memory_box *b, char *p, uint64_t nr)
{
	for (uint64_t i = 0; i < nr; i++)
		*(volatile uint64_t *)(p + i * PAGE_SIZE + 8) = ++b->stamp;
}

static inline void memory_rewrite(struct memory_box *b)
{
	const uint64_t begin = clock_now_ns(), nr = b->len / PAGE_SIZE, burst = 64;

	for (uint64_t done = 0; b->order == REWRITE; done += burst) {
		uint64_t now = clock_now_ns(), spent;

		memory_write(b, b->at + b->off + done % nr * PAGE_SIZE, burst);
		spent = clock_now_ns() - now;
		if (spent > b->slowest)
			b->slowest = spent;
		while (b->order == REWRITE && (done + burst) * NSEC_PER_SEC / b->rate > clock_now_ns() - begin)
			usleep(100);
	}
}

static inline void memory_do(struct memory_child *c, enum memory_job order)
{
	struct memory_box *b = c->box;
	char *p = b->at + b->off;

	if (order == READ)
		for (uint64_t i = 0; i < b->len; i += PAGE_SIZE)
			(void)*(volatile char *)(p + i);
	if (order == WRITE)
		memory_write(b, p, b->len / PAGE_SIZE);
	if (order == DISCARD && c->fd >= 0)
		fallocate(c->fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, (off_t)b->off, (off_t)b->len);
	if (order == UNMAP || order == DISCARD)
		madvise(p, b->len, MADV_DONTNEED);
	if (order == REWRITE)
		memory_rewrite(b);
}

static inline void *memory_churn(void *ctx)
{
	struct memory_box *b = ctx;

	for (;;)
		if (b->churn)
			madvise(b->at, b->churn, MADV_DONTNEED);
		else
			usleep(100);
	return NULL;
}

static inline void memory_loop(struct memory_child *c)
{
	const bool huge = c->kind == HUGETLB || c->kind == HUGETLB_SHARED, shared = c->kind == MEMFD || c->kind == HUGETLB_SHARED;
	int flags = (shared ? MAP_SHARED : MAP_PRIVATE) | (c->fd < 0 ? MAP_ANONYMOUS : 0) | (huge && c->fd < 0 ? MAP_HUGETLB : 0);
	uint64_t slack = huge ? 0 : 2 * MiB;
	pthread_t churn;
	char *p = mmap(NULL, c->len + slack, PROT_READ | PROT_WRITE, flags, c->fd, 0);

	prctl(PR_SET_PDEATHSIG, SIGKILL);
	if (p == MAP_FAILED)
		_exit(1);
	if (c->kind == HUGE)
		p = (char *)ROUND_UP((uintptr_t)p, 2 * MiB);
	if (c->kind == ANON || c->kind == HUGE)
		madvise(p, c->len, c->kind == HUGE ? MADV_HUGEPAGE : MADV_NOHUGEPAGE);
	c->box->at = p;
	pthread_create(&churn, NULL, memory_churn, c->box);
	for (;; usleep(20)) {
		enum memory_job order = c->box->order;

		if (order == REST)
			continue;
		memory_do(c, order);
		if (order != REWRITE)
			c->box->order = REST;
	}
}

// False: huge pages are not to be had here.
static inline bool memory_start(struct memory_child *c, enum memory kind, uint64_t len)
{
	*c = (struct memory_child){ .kind = kind, .len = len, .fd = -1 };
	if (kind == MEMFD || kind == PRIVATE_FILE || kind == HUGETLB_SHARED)
		c->fd = memfd_create("memory", MFD_CLOEXEC | (kind == HUGETLB_SHARED ? MFD_HUGETLB : 0));
	if (kind == PRIVATE_FILE) { // a real file: a private memfd is another thing to the kernel
		close(c->fd);
		c->fd = open("/var/tmp", O_TMPFILE | O_RDWR | O_CLOEXEC, 0600);
	}
	ck_assert(c->fd < 0 || !ftruncate(c->fd, (off_t)(len + 2 * MiB)));
	c->box = mmap(NULL, sizeof *c->box, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	ck_assert(c->box != MAP_FAILED);
	c->pid = fork();
	ck_assert_int_ge(c->pid, 0);
	if (!c->pid)
		memory_loop(c);
	while (!c->box->at)
		if (waitpid(c->pid, NULL, WNOHANG))
			return false;
	c->hva = (uint64_t)(uintptr_t)c->box->at;
	return true;
}

static inline void memory_tell(struct memory_child *c, enum memory_job order, uint64_t first_page, uint64_t nr)
{
	c->box->off = first_page * PAGE_SIZE;
	c->box->len = nr * PAGE_SIZE;
	c->box->order = order;
}

static inline bool memory_done(struct memory_child *c, unsigned ms)
{
	for (uint64_t end = clock_now_ns() + ms * NSEC_PER_MSEC; c->box->order != REST && clock_now_ns() < end;)
		usleep(20);
	return c->box->order == REST;
}

static inline void memory_does(struct memory_child *c, enum memory_job order, uint64_t first_page, uint64_t nr)
{
	memory_tell(c, order, first_page, nr);
	ck_assert_msg(memory_done(c, PATIENCE_MS), "the child waits at a page from %llu on", (unsigned long long)first_page);
}

static inline void memory_stop(struct memory_child *c)
{
	int status;

	if (waitpid(c->pid, &status, WNOHANG) == 0) {
		kill(c->pid, SIGKILL);
		waitpid(c->pid, &status, 0);
	}
	if (c->fd >= 0)
		close(c->fd);
	munmap(c->box, sizeof *c->box);
}

// Its memory as the child itself would read it now.
static inline void memory_copy(const struct memory_child *c, uint64_t first_page, uint64_t nr, void *buf)
{
	struct iovec ours = { buf, nr * PAGE_SIZE }, theirs = { (void *)(uintptr_t)(c->hva + first_page * PAGE_SIZE), nr * PAGE_SIZE };

	ck_assert_int_eq(process_vm_readv(c->pid, &ours, 1, &theirs, 1, 0), (ssize_t)(nr * PAGE_SIZE));
}

#define MEMORY_HUGEPAGES "/proc/sys/vm/nr_hugepages"

static unsigned memory_hugepages_before;

static inline void memory_set_hugepages(unsigned nr)
{
	_cleanup_fclose_ FILE *f = fopen(MEMORY_HUGEPAGES, "w");

	if (f)
		fprintf(f, "%u\n", nr);
}

// As fixtures of the tests of HUGETLB.
static inline void memory_more_hugepages(void)
{
	_cleanup_fclose_ FILE *f = fopen(MEMORY_HUGEPAGES, "r");

	if (f && fscanf(f, "%u", &memory_hugepages_before) == 1)
		memory_set_hugepages(memory_hugepages_before + 40);
}

static inline void memory_same_hugepages(void)
{
	memory_set_hugepages(memory_hugepages_before);
}
