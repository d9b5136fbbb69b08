// SPDX-License-Identifier: GPL-2.0-only
/*
 * DOC: what could lose the instant
 *
 * A discard (MADV_DONTNEED, MADV_REMOVE) is told by an event before it happens, but goes on as soon as the event is read. One that
 * goes through the file (as QEMU discards a memfd: punches it, then MADV_DONTNEED) is told of when it is over. Hence a chunk is
 * released, after it was read, only if
 *
 *   no event said that it is discarded		else the page may have been touched again, and look well
 *   no page has lost its write-protection	as anonymous memory does that is discarded, and pages that the kernel merges (KSM)
 *   no page has become a hole in the file	as shared memory does whose discard has not been told of yet
 *
 * else the copy may not be of the instant. What the pages of the file were is noted whenever a chunk is protected.
 */
#include "mm/protect.h"

#include <errno.h>
#include <poll.h>
#include <sched.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "mm/protect_int.h"
#include "mm/uapi.h"
#include "mm/uffd.h"
#include "util/bitmap.h"
#include "util/clock.h"
#include "util/log.h"

#define LIFT_TIMEOUT_NS NSEC_PER_MSEC // for discards to leave a gap

static const struct area *area_of(const struct mm_protect *p, size_t chunk)
{
	const struct area *a = p->areas;

	while (chunk >= a->first + a->nr)
		a++;
	return a;
}

size_t protect_unit(const struct mm_protect *p, size_t chunk, size_t *nr)
{
	const struct area *a = area_of(p, chunk);
	const size_t unit = chunk - (chunk - a->first) % a->unit, left = a->first + a->nr - unit;

	*nr = a->unit < left ? a->unit : left;
	return unit;
}

uint64_t protect_len(const struct area *a, size_t chunk, size_t nr)
{
	uint64_t left = a->range.len - (chunk - a->first) * MM_PROTECT_CHUNK;

	return left < nr * MM_PROTECT_CHUNK ? left : nr * MM_PROTECT_CHUNK;
}

uint64_t protect_hva(const struct area *a, size_t chunk)
{
	return a->range.hva + (chunk - a->first) * MM_PROTECT_CHUNK;
}

static size_t chunk_at(const struct area *a, uint64_t hva)
{
	return a->first + (hva - a->range.hva) / MM_PROTECT_CHUNK;
}

// hugetlbfs calls all of itself data, and never takes a page away by itself: what is mapped tells.
static int look_present(const struct mm_protect *p, const struct area *a, size_t chunk, uint64_t *bitmap)
{
	const uint64_t len = protect_len(a, chunk, 1);

	if (a->unit > 1)
		return mm_pagemap_scan(p->pagemap, protect_hva(a, chunk), len, MM_SCAN_PRESENT, bitmap);
	return mm_source_present(a->source, (chunk - a->first) * MM_PROTECT_CHUNK, len, bitmap);
}

int protect_note_present(struct mm_protect *p, size_t chunk, size_t nr)
{
	const struct area *a = area_of(p, chunk);
	int ret = 0;

	for (size_t i = chunk; !ret && a->present && i < chunk + nr && i < a->first + a->nr; i++)
		ret = look_present(p, a, i, a->present + (i - a->first) * (CHUNK_PAGES / 64));
	return ret;
}

int protect_set(struct mm_protect *p, size_t unit, bool protect)
{
	const struct area *a = area_of(p, unit);
	int ret = mm_uffd_writeprotect(p->uffd, protect_hva(a, unit), protect_len(a, unit, a->unit), protect);

	return ret || !protect ? ret : protect_note_present(p, unit, a->unit);
}

// A write waits: for the whole unit. One that has been released since goes on.
static void note_fault(struct mm_protect *p, uint64_t addr)
{
	for (const struct area *a = p->areas; a < p->areas + p->nr_areas; a++) {
		size_t unit, nr;

		if (addr < a->range.hva || addr - a->range.hva >= a->range.len)
			continue;
		unit = protect_unit(p, chunk_at(a, addr), &nr);
		bitmap_set_range(p->wanted, unit, nr);
		p->stats.waited += p->instant;
		p->stats.let_through += !p->instant;
	}
}

static int lost(const struct mm_protect *p, const char *why)
{
	if (p->err != -ESTALE)
		log_err("process %d: %s before it was copied: what it was at the instant is lost", p->pid, why);
	return -ESTALE;
}

static void note_discard(struct mm_protect *p, uint64_t start, uint64_t end)
{
	for (const struct area *a = p->areas; a < p->areas + p->nr_areas; a++) {
		uint64_t from = start > a->range.hva ? start : a->range.hva;
		uint64_t to = end < a->range.hva + a->range.len ? end : a->range.hva + a->range.len;

		if (from >= to)
			continue;
		for (size_t nr, c = chunk_at(a, from); c <= chunk_at(a, to - 1); c++) {
			if (!p->instant)
				bitmap_set(p->gone, protect_unit(p, c, &nr));
			else if (!bitmap_test(p->released, c))
				p->err = lost(p, "its memory was discarded (by a balloon or free page reporting?)");
		}
	}
}

int protect_read_events(struct mm_protect *p)
{
	struct uffd_msg m[16];

	for (;;) {
		ssize_t n = read(p->uffd, m, sizeof m);

		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0)
			return errno == EAGAIN ? 0 : -errno;
		for (size_t i = 0; i < (size_t)n / sizeof *m; i++) {
			if (m[i].event == UFFD_EVENT_PAGEFAULT)
				note_fault(p, m[i].arg.pagefault.address);
			if (m[i].event == UFFD_EVENT_REMOVE)
				note_discard(p, m[i].arg.remove.start, m[i].arg.remove.end);
		}
	}
}

// A discard that was told of holds everything up until it has gone on, and one may follow the other: tried without a pause.
// Another thread may be waiting for the events that are read here.
static int set_waiting(struct mm_protect *p, size_t unit, bool protect, uint64_t timeout_ns)
{
	const uint64_t end = clock_now_ns() + timeout_ns;
	int err, ret;

	for (bool waited = false; (ret = protect_set(p, unit, protect)) == -EAGAIN && clock_now_ns() < end; waited = true) {
		err = protect_read_events(p);
		if (err)
			return err;
		if (!waited)
			eventfd_write(p->kick_fd, 1);
		sched_yield();
	}
	return ret;
}

// What writers were let through to, and what was discarded, which lost its protection with that.
static int protect_again(struct mm_protect *p)
{
	int ret = protect_read_events(p);
	bool found;

	do {
		found = false;
		for (size_t c = 0; !ret && c < p->nr_chunks; c++) {
			if (!bitmap_test(p->open, c) && !bitmap_test(p->gone, c))
				continue;
			found = true;
			p->stats.protected_again++;
			bitmap_clear(p->open, c);
			bitmap_clear(p->gone, c);
			ret = set_waiting(p, c, true, DISCARD_TIMEOUT_NS);
		}
	} while (!ret && found);
	return ret;
}

int mm_protect_instant(struct mm_protect *p)
{
	const uint64_t begin = clock_now_ns();
	int ret;

	protect_arm_stop(p);
	pthread_mutex_lock(&p->lock);
	ret = p->err ? p->err : protect_again(p);
	p->instant = true;
	p->stats.instant_ns = clock_now_ns() - begin;
	pthread_mutex_unlock(&p->lock);
	return ret;
}

// The last chunk of a unit lifts its protection: now, or when mm_protect_wanted() tries again.
static int lift_if_released(struct mm_protect *p, size_t chunk)
{
	size_t nr, unit = protect_unit(p, chunk, &nr);
	int ret = bitmap_next(p->released, unit + nr, unit, false) == unit + nr ? set_waiting(p, unit, false, LIFT_TIMEOUT_NS) : 0;

	if (ret != -EAGAIN)
		return ret;
	bitmap_set(p->wanted, unit);
	eventfd_write(p->kick_fd, 1);
	return 0;
}

// A chunk that somebody waits for. Who waits for one that was released meanwhile goes on.
static int find_wanted(struct mm_protect *p, size_t *chunk)
{
	int ret = 0;

	for (size_t c = 0; !ret && (c = bitmap_next(p->wanted, p->nr_chunks, c, true)) < p->nr_chunks; c++) {
		bitmap_clear(p->wanted, c);
		if (!bitmap_test(p->released, c)) {
			*chunk = c;
			return 1;
		}
		ret = lift_if_released(p, c);
	}
	return ret;
}

int mm_protect_wanted(struct mm_protect *p, int timeout_ms, size_t *range, uint64_t *off)
{
	struct pollfd fds[] = { { p->uffd, POLLIN, 0 }, { p->kick_fd, POLLIN, 0 }, { p->pidfd, POLLIN, 0 } };
	eventfd_t kicks;
	int ret;

	for (int tries = 0; tries < 2; tries++) {
		size_t chunk = 0;

		pthread_mutex_lock(&p->lock);
		ret = protect_read_events(p);
		if (!ret)
			ret = p->err ? p->err : find_wanted(p, &chunk);
		pthread_mutex_unlock(&p->lock);
		if (ret == 1) {
			const struct area *a = area_of(p, chunk);

			*range = (size_t)(a - p->areas);
			*off = (chunk - a->first) * MM_PROTECT_CHUNK;
		}
		if (ret || tries || !timeout_ms)
			break;
		if (poll(fds, 3, timeout_ms) < 0 && errno != EINTR)
			return -errno;
		if (fds[2].revents)
			return -ESRCH;
		if (fds[1].revents)
			eventfd_read(p->kick_fd, &kicks);
	}
	return ret;
}

// Nothing may have happened to the chunk: see above.
static int check_kept(struct mm_protect *p, const struct area *a, size_t chunk)
{
	uint64_t bare[CHUNK_PAGES / 64], now[CHUNK_PAGES / 64];
	const uint64_t *before = a->present + (chunk - a->first) * (CHUNK_PAGES / 64);
	int ret = mm_pagemap_scan(p->pagemap, protect_hva(a, chunk), protect_len(a, chunk, 1), MM_SCAN_UNPROTECTED, bare);

	if (ret)
		return ret;
	if (!bitmap_empty(bare, protect_len(a, chunk, 1) / PAGE_SIZE))
		return lost(p, "a page was replaced (by KSM: see /sys/kernel/mm/ksm/run) or discarded");
	if (!a->present)
		return 0;
	ret = look_present(p, a, chunk, now);
	for (size_t w = 0; !ret && w < BITMAP_WORDS(protect_len(a, chunk, 1) / PAGE_SIZE); w++)
		if (before[w] & ~now[w])
			ret = lost(p, "a page was discarded (by a balloon or free page reporting?)");
	return ret;
}

static int release(struct mm_protect *p, const struct area *a, size_t chunk)
{
	if (bitmap_test(p->released, chunk))
		return 0;
	if (!p->err)
		p->err = check_kept(p, a, chunk);
	if (p->err)
		return p->err;
	bitmap_set(p->released, chunk);
	return lift_if_released(p, chunk);
}

int mm_protect_release(struct mm_protect *p, size_t range, uint64_t off)
{
	const struct area *a = &p->areas[range];
	int ret;

	pthread_mutex_lock(&p->lock);
	ret = release(p, a, a->first + off / MM_PROTECT_CHUNK);
	pthread_mutex_unlock(&p->lock);
	return ret;
}

void mm_protect_stats(struct mm_protect *p, struct mm_protect_stats *s)
{
	pthread_mutex_lock(&p->lock);
	*s = p->stats;
	pthread_mutex_unlock(&p->lock);
}

// Piece by piece, so that who waits goes on early: the last close lifts everything in one go, and nobody goes on before it is over.
static void lift(struct mm_protect *p)
{
	for (size_t nr, c = 0; c < p->nr_chunks; c += nr) {
		protect_unit(p, c, &nr);
		if (bitmap_next(p->released, c + nr, c, false) < c + nr && set_waiting(p, c, false, DISCARD_TIMEOUT_NS))
			return;
	}
}

void mm_protect_give_up(struct mm_protect *p)
{
	pthread_mutex_lock(&p->lock);
	if (!p->err)
		p->err = -ETIMEDOUT;
	lift(p);
	pthread_mutex_unlock(&p->lock);
}

void mm_protect_end(struct mm_protect *p)
{
	if (!p)
		return;
	protect_arm_stop(p);
	if (p->armed)
		lift(p);
	for (size_t i = 0; i < p->nr_areas; i++) {
		mm_source_close(p->areas[i].source);
		free(p->areas[i].present);
	}
	if (p->uffd >= 0)
		close(p->uffd);
	if (p->pidfd >= 0)
		close(p->pidfd);
	if (p->kick_fd >= 0)
		close(p->kick_fd);
	mm_pagemap_close(p->pagemap);
	pthread_mutex_destroy(&p->lock);
	free(p->areas);
	free(p->wanted);
	free(p);
}
