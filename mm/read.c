// SPDX-License-Identifier: GPL-2.0-only
#include "mm/read.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/magic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <sys/vfs.h>
#include <unistd.h>

#include "mm/uapi.h"
#include "util/bitmap.h"
#include "util/cleanup.h"
#include "util/log.h"
#include "util/size.h"
#include "util/zero.h"

#define READ_RUNS 64 // runs of pages a process_vm_readv() takes
#define READ_PAGES 256
#define ZERO_PAGES 64 // looked at together

static enum mm_source_kind kind_of(const struct mm_vma *v)
{
	if (v->shared)
		return MM_SRC_SHARED;
	// Private huge pages have a file of the kernel's own behind them, which holds nothing.
	return v->ino && strncmp(v->name, "/anon_hugepage", 14) ? MM_SRC_PRIVATE_FILE : MM_SRC_ANON;
}

static int open_file(struct mm_source *s, const struct mm_vma *v)
{
	char path[80];
	struct statfs fs = { 0 };
	struct stat st;
	int ret = 0;

	// The file itself, not what its path names today.
	snprintf(path, sizeof path, "/proc/%d/map_files/%llx-%llx", s->pid, (unsigned long long)v->start, (unsigned long long)v->end);
	s->fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
	if (s->fd < 0 || fstat(s->fd, &st) || fstatfs(s->fd, &fs))
		ret = -errno;
	else if (!S_ISREG(st.st_mode))
		ret = -EOPNOTSUPP;
	if (ret)
		log_err("process %d: cannot read the file mapped at 0x%llx (%s): %s", s->pid, (unsigned long long)v->start, v->name,
			ret == -EOPNOTSUPP ? "it is a device" : strerror(-ret));
	else
		s->tmpfs = fs.f_type == TMPFS_MAGIC;
	return ret;
}

// The mappings under the block have to be one thing cut in pieces.
static int find(struct mm_source *s)
{
	_cleanup_free_ struct mm_vma *v = NULL;
	const struct mm_vma *first = NULL;
	uint64_t at = s->hva, end = s->hva + s->len;
	size_t nr;
	int ret = mm_maps_read(s->pid, &v, &nr);

	if (ret)
		return ret;
	for (size_t i = 0; i < nr && at < end; i++) {
		if (at < v[i].start || at >= v[i].end)
			continue;
		if (!first) {
			first = &v[i];
			s->kind = kind_of(first);
			s->hugetlb = s->kind == MM_SRC_ANON && first->ino;
			s->file_off = first->off + (at - first->start);
		} else if (kind_of(&v[i]) != s->kind ||
			   (s->kind != MM_SRC_ANON && (v[i].dev != first->dev || v[i].ino != first->ino ||
						       v[i].off != s->file_off + (at - s->hva)))) {
			log_err("process %d: 0x%llx-0x%llx is not one block, at 0x%llx something else (%s) is mapped", s->pid,
				(unsigned long long)s->hva, (unsigned long long)end, (unsigned long long)at, v[i].name);
			return -EOPNOTSUPP;
		}
		at = v[i].end;
	}
	if (at < end) {
		log_err("process %d: nothing is mapped at 0x%llx", s->pid, (unsigned long long)at);
		return -EFAULT;
	}
	return s->kind == MM_SRC_ANON ? 0 : open_file(s, first);
}

int mm_source_open(pid_t pid, uint64_t hva, uint64_t len, struct mm_source **out)
{
	struct mm_source *s;
	int ret;

	if ((hva | len) % PAGE_SIZE || !len || hva + len < hva)
		return -EINVAL;
	s = calloc(1, sizeof *s);
	if (!s)
		return -ENOMEM;
	*s = (struct mm_source){ .pid = pid, .hva = hva, .len = len, .fd = -1 };
	ret = find(s);
	if (!ret && s->kind != MM_SRC_SHARED)
		ret = mm_pagemap_open(pid, &s->pm);
	if (ret) {
		mm_source_close(s);
		return ret;
	}
	*out = s;
	return 0;
}

void mm_source_close(struct mm_source *s)
{
	if (!s)
		return;
	if (s->fd >= 0)
		close(s->fd);
	mm_pagemap_close(s->pm);
	free(s);
}

static bool in_block(const struct mm_source *s, uint64_t off, uint64_t len)
{
	return !((off | len) % PAGE_SIZE) && len <= s->len && off <= s->len - len;
}

// All pages of this part of a memory file are there, swapped ones too. False also where the kernel cannot tell.
static bool all_there(const struct mm_source *s, uint64_t begin, uint64_t end)
{
	struct cachestat_range r = { begin, end - begin };
	struct cachestat c;

	return s->tmpfs && !syscall(SYS_cachestat, s->fd, &r, &c, 0) && c.nr_cache + c.nr_evicted >= DIV_ROUND_UP(end - begin, PAGE_SIZE);
}

// Sets bits for what the file has allocated in [off, off + len) of the block. hugetlbfs calls all of itself data.
static int add_file_data(const struct mm_source *s, uint64_t off, uint64_t len, uint64_t *bitmap)
{
	const uint64_t begin = s->file_off + off, end = begin + len;

	for (uint64_t at = begin; at < end;) {
		off_t data = lseek(s->fd, (off_t)at, SEEK_DATA), hole = -1;

		if ((data < 0 && errno == ENXIO) || (data >= 0 && (uint64_t)data >= end)) // no more data
			return 0;
		// A memory file looks for a hole page by page, gigabytes behind `end`: only where there is one before.
		if (data >= 0)
			hole = all_there(s, (uint64_t)data, end) ? (off_t)end : lseek(s->fd, data, SEEK_HOLE);
		if (hole < 0) {
			int ret = -errno;

			log_err("process %d: looking for holes in the memory file at 0x%llx: %s", s->pid, (unsigned long long)s->hva,
				strerror(-ret));
			return ret;
		}
		at = (uint64_t)hole < end ? (uint64_t)hole : end;
		bitmap_set_range(bitmap, ((uint64_t)data - begin) / PAGE_SIZE,
				 DIV_ROUND_UP(at - begin, PAGE_SIZE) - ((uint64_t)data - begin) / PAGE_SIZE);
	}
	return 0;
}

int mm_source_present(struct mm_source *s, uint64_t off, uint64_t len, uint64_t *bitmap)
{
	int ret = 0;

	if (!in_block(s, off, len))
		return -EINVAL;
	if (s->kind == MM_SRC_SHARED)
		memset(bitmap, 0, BITMAP_WORDS(len / PAGE_SIZE) * sizeof *bitmap);
	else
		ret = mm_pagemap_scan(s->pm, s->hva + off, len, s->kind == MM_SRC_ANON ? MM_SCAN_NONZERO : MM_SCAN_COPIED, bitmap);
	return ret || s->kind == MM_SRC_ANON ? ret : add_file_data(s, off, len, bitmap);
}

// A run of pages from the file; what lies beyond its end reads as zeros.
static int read_file(const struct mm_source *s, uint64_t off, char *buf, size_t len)
{
	while (len) {
		ssize_t n = pread(s->fd, buf, len, (off_t)(s->file_off + off));

		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0) {
			int ret = -errno;

			log_err("process %d: reading its memory file at 0x%llx: %s", s->pid, (unsigned long long)(s->hva + off), strerror(-ret));
			return ret;
		}
		if (!n) {
			memset(buf, 0, len);
			return 0;
		}
		buf += n;
		off += (uint64_t)n;
		len -= (size_t)n;
	}
	return 0;
}

// Runs of pages from the page tables. The kernel stops at the first page that it cannot read.
static int read_vm(const struct mm_source *s, const struct iovec *ours, const struct iovec *theirs, size_t nr, size_t want)
{
	ssize_t n = process_vm_readv(s->pid, ours, nr, theirs, nr, 0);
	int ret = n < 0 ? -errno : -EFAULT;
	size_t i, done = n < 0 ? 0 : (size_t)n;

	if (done == want)
		return 0;
	for (i = 0; i + 1 < nr && done >= theirs[i].iov_len; i++)
		done -= theirs[i].iov_len;
	if (ret == -EFAULT)
		ret = -EIO;
	log_err("process %d: its memory at 0x%llx cannot be read: %s", s->pid,
		(unsigned long long)((uintptr_t)theirs[i].iov_base + done), ret == -EIO ? "poisoned, or not mapped" : strerror(-ret));
	return ret;
}

static int read_vm_pages(const struct mm_source *s, uint64_t off, const uint64_t *bitmap, size_t nr_pages, char *buf)
{
	struct iovec ours[READ_RUNS], theirs[READ_RUNS];
	size_t nr = 0, want = 0;
	int ret;

	for (size_t i = 0, n; (n = bitmap_next_run(bitmap, nr_pages, &i)); i += n) {
		ours[nr] = (struct iovec){ buf + i * PAGE_SIZE, n * PAGE_SIZE };
		theirs[nr] = (struct iovec){ (void *)(uintptr_t)(s->hva + off + i * PAGE_SIZE), n * PAGE_SIZE };
		want += n * PAGE_SIZE;
		if (++nr < READ_RUNS)
			continue;
		ret = read_vm(s, ours, theirs, nr, want);
		if (ret)
			return ret;
		nr = want = 0;
	}
	return nr ? read_vm(s, ours, theirs, nr, want) : 0;
}

static int read_file_pages(const struct mm_source *s, uint64_t off, const uint64_t *bitmap, size_t nr_pages, char *buf)
{
	int ret = 0;

	for (size_t i = 0, n; !ret && (n = bitmap_next_run(bitmap, nr_pages, &i)); i += n)
		ret = read_file(s, off + i * PAGE_SIZE, buf + i * PAGE_SIZE, n * PAGE_SIZE);
	return ret;
}

// Each page of a private file mapping from where it is: reading through the page table would map the file's pages there.
static int read_private_file(struct mm_source *s, uint64_t off, const uint64_t *bitmap, size_t nr_pages, char *buf)
{
	for (size_t i = 0; i < nr_pages; i += READ_PAGES) {
		size_t n = nr_pages - i < READ_PAGES ? nr_pages - i : READ_PAGES;
		uint64_t copied[BITMAP_WORDS(READ_PAGES)] = { 0 }, file[BITMAP_WORDS(READ_PAGES)] = { 0 };
		int ret = mm_pagemap_scan(s->pm, s->hva + off + i * PAGE_SIZE, n * PAGE_SIZE, MM_SCAN_COPIED, copied);

		if (ret)
			return ret;
		for (size_t w = 0; w < BITMAP_WORDS(n); w++) {
			file[w] = bitmap[i / 64 + w] & ~copied[w];
			copied[w] &= bitmap[i / 64 + w];
		}
		ret = read_vm_pages(s, off + i * PAGE_SIZE, copied, n, buf + i * PAGE_SIZE);
		if (!ret)
			ret = read_file_pages(s, off + i * PAGE_SIZE, file, n, buf + i * PAGE_SIZE);
		if (ret)
			return ret;
	}
	return 0;
}

int mm_source_read(struct mm_source *s, uint64_t off, const uint64_t *bitmap, size_t nr_pages, void *buf)
{
	if (nr_pages > s->len / PAGE_SIZE || !in_block(s, off, nr_pages * PAGE_SIZE))
		return -EINVAL;
	switch (s->kind) {
	case MM_SRC_ANON:
		return read_vm_pages(s, off, bitmap, nr_pages, buf);
	case MM_SRC_SHARED:
		return read_file_pages(s, off, bitmap, nr_pages, buf);
	case MM_SRC_PRIVATE_FILE:
		return read_private_file(s, off, bitmap, nr_pages, buf);
	}
	return -EINVAL;
}

bool mm_source_hides_discards(const struct mm_source *s)
{
	return s->kind == MM_SRC_SHARED || s->hugetlb;
}

int mm_source_zero(struct mm_source *s, uint64_t off, const uint64_t *candidates, size_t nr_pages, uint64_t *zero)
{
	_cleanup_free_ char *buf = calloc(ZERO_PAGES, PAGE_SIZE);

	if (!buf)
		return -ENOMEM;
	memset(zero, 0, BITMAP_WORDS(nr_pages) * sizeof *zero);
	for (size_t i = 0; i < nr_pages; i += ZERO_PAGES) {
		const size_t n = nr_pages - i < ZERO_PAGES ? nr_pages - i : ZERO_PAGES;
		int ret = mm_source_read(s, off + i * PAGE_SIZE, candidates + i / 64, n, buf);

		if (ret)
			return ret;
		for (size_t page = 0; page < n; page++)
			if (bitmap_test(candidates, i + page) && mem_is_zero(buf + page * PAGE_SIZE, PAGE_SIZE))
				bitmap_set(zero, i + page);
	}
	return 0;
}
