// SPDX-License-Identifier: GPL-2.0-only
// For the programs of this folder: each shows one thing that the engine relies on the kernel (or mm/) for.
// Exit 0: so it is; 1: not so; 77: cannot be looked at here, stdout says why.
//
// The subject is a victim: a child with a shared memfd mapped, which does to it what its box tells.
#pragma once
#include <errno.h>
#include <fcntl.h>
#include <linux/falloc.h>
#include <poll.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "mm/pagemap.h"
#include "mm/plant.h"
#include "mm/uapi.h"
#include "mm/uffd.h"
#include "mm/zap.h"
#include "util/bitmap.h"
#include "util/clock.h"
#include "util/size.h"

#define CHECK(cond) \
	do { \
		if (!(cond)) { \
			printf("%s:%d: not so: %s (errno %d, %s)\n", __FILE__, __LINE__, #cond, errno, strerror(errno)); \
			exit(1); \
		} \
	} while (0)

#define SKIP(why) (puts("skip: " why), exit(77))

#define PAGING_FEATURES (UFFD_FEATURE_PAGEFAULT_FLAG_WP | UFFD_FEATURE_MISSING_SHMEM | UFFD_FEATURE_MINOR_SHMEM | \
			 UFFD_FEATURE_WP_HUGETLBFS_SHMEM | UFFD_FEATURE_WP_UNPOPULATED | UFFD_FEATURE_WP_ASYNC)

enum order { NOTHING, READ, WRITE, REMOVE /* MADV_REMOVE */, REPLACE /* by private memory, full of 'P' */ };

struct victim {
	pid_t pid;
	int memfd;
	size_t len;
	char *ours;   // our mapping of the memfd
	uint64_t hva; // the victim's
	struct box {
		_Atomic enum order order;
		size_t page, nr;
		_Atomic(char *) mapping;
		unsigned char seen; // first byte of the page read last
	} *box;
	struct mm_plant plant;
	struct mm_zapper *zapper;
	struct mm_pagemap *pagemap;
};

static inline void victim_loop(struct victim *v)
{
	char *p = mmap(NULL, v->len, PROT_READ | PROT_WRITE, MAP_SHARED, v->memfd, 0);

	munmap(v->ours, v->len);
	prctl(PR_SET_PDEATHSIG, SIGKILL);
	for (v->box->mapping = p;; usleep(100)) {
		enum order order = v->box->order; // first: what it is about was there before it
		char *first = p + v->box->page * PAGE_SIZE;
		volatile char *at = first;
		size_t len = v->box->nr * PAGE_SIZE;

		if (order == NOTHING)
			continue;
		if (order == REMOVE)
			madvise(first, len, MADV_REMOVE);
		if (order == REPLACE)
			memset(mmap(first, len, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0), 'P', len);
		for (size_t i = 0; i < v->box->nr; i++, at += PAGE_SIZE) {
			if (order == WRITE)
				at[1]++;
			if (order == READ)
				v->box->seen = (unsigned char)*at;
		}
		v->box->order = NOTHING;
	}
}

// A victim with len bytes of memfd, in which the page i (all of them filled if fill) begins with i + 1.
static inline void victim_start(struct victim *v, size_t len, bool fill)
{
	*v = (struct victim){ .len = len, .memfd = memfd_create("victim", MFD_CLOEXEC), .plant = { .uffd = -1, .ring_fd = -1 } };
	CHECK(v->memfd >= 0 && !ftruncate(v->memfd, (off_t)len));
	v->ours = mmap(NULL, len, PROT_READ | PROT_WRITE, MAP_SHARED, v->memfd, 0);
	v->box = mmap(NULL, PAGE_SIZE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	CHECK(v->ours != MAP_FAILED && v->box != MAP_FAILED);
	for (size_t i = 0; fill && i < len / PAGE_SIZE; i++)
		v->ours[i * PAGE_SIZE] = (char)(i + 1);
	fflush(stdout);
	v->pid = fork();
	CHECK(v->pid >= 0);
	if (!v->pid)
		victim_loop(v);
	while (!v->box->mapping)
		usleep(100);
	v->hva = (uint64_t)(uintptr_t)v->box->mapping;
}

static inline void victim_order(struct victim *v, enum order order, size_t page, size_t nr)
{
	v->box->page = page;
	v->box->nr = nr;
	v->box->order = order;
}

// Whether the victim is through with its order within ms.
static inline bool victim_done(struct victim *v, unsigned ms)
{
	for (unsigned i = 0; i < ms * 5 && v->box->order != NOTHING; i++)
		usleep(200);
	return v->box->order == NOTHING;
}

static inline void victim_does(struct victim *v, enum order order, size_t page, size_t nr)
{
	victim_order(v, order, page, nr);
	CHECK(victim_done(v, 5000));
}

// Plants, registers and write-protects all of it.
static inline void victim_plant(struct victim *v, uint64_t features)
{
	struct mm_plant_opts o = { .ring_entries = 64, .sq_idle_ms = 1, .target_uffd_dev = -1 };
	struct mm_region *r;
	struct stat st;
	size_t nr;

	CHECK(!mm_plant(v->pid, &o, &v->plant));
	if (v->plant.ring_fd < 0)
		SKIP("io_uring is switched off here (kernel.io_uring_disabled)");
	CHECK(!mm_uffd_api(v->plant.uffd, features, NULL));
	CHECK(!mm_uffd_register(v->plant.uffd, v->hva, v->len));
	CHECK(!mm_uffd_writeprotect(v->plant.uffd, v->hva, v->len, true));
	CHECK(!fstat(v->memfd, &st) && !mm_find_mappings(v->pid, st.st_dev, st.st_ino, &r, &nr));
	CHECK(nr == 1 && r->hva == v->hva && r->len == v->len && r->file_off == 0);
	CHECK(!mm_zapper_new(v->pid, &v->plant, r, nr, MM_ZAP_RING, &v->zapper));
	CHECK(!mm_pagemap_open(v->pid, &v->pagemap));
	free(r);
}

static inline void victim_end(struct victim *v)
{
	int status;

	kill(v->pid, SIGKILL);
	waitpid(v->pid, &status, 0);
	mm_zapper_free(v->zapper);
	mm_pagemap_close(v->pagemap);
	mm_plant_fini(&v->plant);
	munmap(v->ours, v->len);
	munmap(v->box, PAGE_SIZE);
	close(v->memfd);
}

// The result of the one zap under way; fails if it takes longer than ms.
static inline bool zap_finished(struct mm_zapper *z, unsigned ms, int *res)
{
	struct pollfd p = { mm_zap_fd(z), POLLIN, 0 };
	uint64_t tag;

	return poll(&p, 1, (int)ms) == 1 && mm_zap_reap(z, &tag, res);
}

static inline void zap(struct victim *v, size_t page, size_t nr)
{
	int res;

	CHECK(!mm_zap_queue(v->zapper, v->hva + page * PAGE_SIZE, nr * PAGE_SIZE, 0) && !mm_zap_submit(v->zapper));
	CHECK(zap_finished(v->zapper, 5000, &res) && !res);
}

// Whether an event comes within ms; *m is it.
static inline bool next_event(int uffd, unsigned ms, struct uffd_msg *m)
{
	struct pollfd p = { uffd, POLLIN, 0 };

	return poll(&p, 1, (int)ms) == 1 && read(uffd, m, sizeof *m) == sizeof *m;
}

enum fault { NO_FAULT, MISSING, MINOR };

// What kind of fault the victim reports within ms; *page (may be NULL) is where.
static inline enum fault next_fault(struct victim *v, unsigned ms, size_t *page)
{
	struct uffd_msg m;

	if (!next_event(v->plant.uffd, ms, &m) || m.event != UFFD_EVENT_PAGEFAULT)
		return NO_FAULT;
	if (page)
		*page = (m.arg.pagefault.address - v->hva) / PAGE_SIZE;
	return m.arg.pagefault.flags & UFFD_PAGEFAULT_FLAG_MINOR ? MINOR : MISSING;
}

// Maps pages that are in the memfd, clean or as written, and wakes.
static inline void map_pages(struct victim *v, size_t page, size_t nr, bool clean)
{
	uint64_t done;

	CHECK(!mm_uffd_continue(v->plant.uffd, v->hva + page * PAGE_SIZE, nr * PAGE_SIZE, clean, true, &done) && done == nr * PAGE_SIZE);
}

static inline void punch(struct victim *v, size_t page, size_t nr)
{
	CHECK(!fallocate(v->memfd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, (off_t)(page * PAGE_SIZE), (off_t)(nr * PAGE_SIZE)));
}

static inline void scan(struct victim *v, enum mm_scan what, uint64_t *bitmap)
{
	CHECK(!mm_pagemap_scan(v->pagemap, v->hva, v->len, what, bitmap));
}

static inline size_t allocated_pages(int fd)
{
	struct stat st;

	CHECK(!fstat(fd, &st));
	return (size_t)st.st_blocks / 8;
}
