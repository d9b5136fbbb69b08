// SPDX-License-Identifier: GPL-2.0-only
// Protecting everything for the first time, while the process runs.
#include <errno.h>
#include <linux/magic.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/pidfd.h>
#include <sys/vfs.h>
#include <unistd.h>

#include "mm/maps.h"
#include "mm/plant.h"
#include "mm/protect_int.h"
#include "mm/uapi.h"
#include "mm/uffd.h"
#include "util/bitmap.h"
#include "util/cleanup.h"
#include "util/log.h"

#define UFFD_KIND "anon_inode:[userfaultfd]"
#define FEATURES (UFFD_FEATURE_PAGEFAULT_FLAG_WP | UFFD_FEATURE_WP_HUGETLBFS_SHMEM | UFFD_FEATURE_WP_UNPOPULATED | UFFD_FEATURE_EVENT_REMOVE)
#define PIECE (64 * MiB) // protected by one call, which holds the process's mmap lock for a millisecond

static int page_size_at(pid_t pid, uint64_t hva, uint64_t *size)
{
	struct mm_maps maps;
	struct statfs fs;
	struct mm_vma v;
	char path[80];
	int ret = mm_maps_open(pid, &maps);

	if (ret)
		return ret;
	ret = mm_maps_at(&maps, hva, &v);
	mm_maps_close(&maps);
	if (ret)
		return ret;
	snprintf(path, sizeof path, "/proc/%d/map_files/%llx-%llx", pid, (unsigned long long)v.start, (unsigned long long)v.end);
	*size = v.ino && !statfs(path, &fs) && fs.f_type == HUGETLBFS_MAGIC ? (uint64_t)fs.f_bsize : PAGE_SIZE;
	return 0;
}

static int init_area(struct mm_protect *p, struct area *a, const struct mm_range *r)
{
	uint64_t page_size;
	int ret = page_size_at(p->pid, r->hva, &page_size);

	*a = (struct area){ .range = *r, .first = p->nr_chunks, .nr = DIV_ROUND_UP(r->len, MM_PROTECT_CHUNK) };
	if (!ret)
		ret = mm_source_open(p->pid, r->hva, r->len, &a->source);
	if (ret)
		return ret;
	a->unit = page_size > MM_PROTECT_CHUNK ? page_size / MM_PROTECT_CHUNK : 1;
	p->nr_chunks += a->nr;
	if (a->source->kind == MM_SRC_SHARED) {
		a->present = calloc(a->nr, CHUNK_PAGES / 8);
		return a->present ? 0 : -ENOMEM;
	}
	mm_source_close(steal_ptr(&a->source));
	return 0;
}

static int init(struct mm_protect *p, const struct mm_range *ranges, size_t nr)
{
	int ret = 0;

	pthread_mutex_init(&p->lock, NULL);
	p->areas = calloc(nr, sizeof *p->areas);
	p->pidfd = pidfd_open(p->pid, 0);
	p->kick_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	if (!p->areas)
		return -ENOMEM;
	if (p->pidfd < 0 || p->kick_fd < 0) {
		ret = -errno;
		log_err("process %d cannot be watched: %s", p->pid, strerror(-ret));
		return ret;
	}
	for (; !ret && p->nr_areas < nr; p->nr_areas++)
		ret = init_area(p, &p->areas[p->nr_areas], &ranges[p->nr_areas]);
	if (ret)
		return ret;
	p->wanted = calloc(4 * BITMAP_WORDS(p->nr_chunks), sizeof *p->wanted);
	if (!p->wanted)
		return -ENOMEM;
	p->open = p->wanted + BITMAP_WORDS(p->nr_chunks);
	p->gone = p->open + BITMAP_WORDS(p->nr_chunks);
	p->released = p->gone + BITMAP_WORDS(p->nr_chunks);
	ret = mm_pagemap_open(p->pid, &p->pagemap);
	return ret == -EOPNOTSUPP ? -ENOSYS : ret;
}

// The userfaultfd is made in the process, and stays there only until we have it.
static int plant(struct mm_protect *p, int target_uffd_dev)
{
	const struct mm_plant_opts o = { .target_uffd_dev = target_uffd_dev };
	struct mm_plant plant;
	int ret = mm_plant(p->pid, &o, &plant);

	if (ret)
		return ret;
	p->uffd = plant.uffd;
	ret = mm_plant_remove(p->pid, plant.target_uffd, UFFD_KIND);
	if (!ret)
		ret = mm_uffd_api(p->uffd, FEATURES, NULL);
	for (size_t i = 0; !ret && i < p->nr_areas; i++) {
		ret = mm_uffd_register_wp(p->uffd, p->areas[i].range.hva, p->areas[i].range.len);
		if (ret == -EINVAL) {
			log_err("process %d: memory that is a file's on a disk cannot be protected from writers", p->pid);
			ret = -EOPNOTSUPP;
		}
	}
	return ret;
}

// The arming thread reads the events of discards meanwhile.
static int protect_piece(struct mm_protect *p, const struct area *a, size_t chunk, size_t nr)
{
	const uint64_t end = clock_now_ns() + DISCARD_TIMEOUT_NS;
	int ret;

	while ((ret = mm_uffd_writeprotect(p->uffd, protect_hva(a, chunk), protect_len(a, chunk, nr), true)) == -EAGAIN && clock_now_ns() < end)
		sched_yield();
	if (ret == -EAGAIN)
		log_err("process %d: its memory is discarded all the time, and cannot be protected meanwhile; try again", p->pid);
	for (size_t i = chunk; !ret && i < chunk + nr && i < a->first + a->nr; i++) {
		pthread_mutex_lock(&p->lock);
		ret = protect_note_present(p, i, 1);
		pthread_mutex_unlock(&p->lock);
	}
	return ret;
}

// Everything, while the process runs and the arming thread lets writers through.
static int protect_all(struct mm_protect *p)
{
	int ret = 0;

	for (const struct area *a = p->areas; a < p->areas + p->nr_areas; a++) {
		size_t step = PIECE / MM_PROTECT_CHUNK > a->unit ? PIECE / MM_PROTECT_CHUNK : a->unit;

		for (size_t c = a->first; !ret && c < a->first + a->nr; c += step)
			ret = protect_piece(p, a, c, step);
	}
	return ret;
}

int mm_protect_prepare(pid_t pid, int target_uffd_dev, const struct mm_range *ranges, size_t nr, struct mm_protect **out)
{
	struct mm_protect *p = calloc(1, sizeof *p);
	int ret;

	if (!p)
		return -ENOMEM;
	*p = (struct mm_protect){ .pid = pid, .uffd = -1, .pidfd = -1, .kick_fd = -1 };
	ret = init(p, ranges, nr);
	if (!ret)
		ret = plant(p, target_uffd_dev);
	if (!ret)
		ret = protect_arm_start(p);
	if (!ret)
		ret = protect_all(p);
	if (ret) {
		mm_protect_end(p);
		return ret;
	}
	*out = p;
	return 0;
}
