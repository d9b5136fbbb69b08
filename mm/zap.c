// SPDX-License-Identifier: GPL-2.0-only
#include "mm/zap.h"

#include <errno.h>
#include <fcntl.h>
#include <liburing.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/pidfd.h>
#include <sys/random.h>
#include <sys/uio.h>
#include <unistd.h>

#include "mm/pagemap.h"
#include "util/bitmap.h"
#include "util/cleanup.h"
#include "util/io.h"
#include "util/log.h"
#include "util/size.h"

#define PAGEOUT_SLOTS 64 // queued at most, there being no ring that says

// One zap from queue to reap.
struct slot {
	uint64_t hva, len, tag;
	int res;
};

struct mm_zapper {
	pid_t pid;
	enum mm_zap_method method;
	struct mm_region *regions;
	size_t nr_regions;
	struct mm_maps maps;
	struct mm_vma checked; // the mapping found good last in this batch, empty before the first

	struct slot *slots;
	unsigned *idle; // a stack of the numbers of slots not in use
	unsigned nr_slots, nr_idle;

	// MM_ZAP_RING. user_data is session << 32 | slot: a ring taken over may still complete another handler's zaps.
	struct io_uring ring;
	bool ring_mapped;
	uint32_t session;
	unsigned foreign_tail; // of the submission queue, when we came

	// MM_ZAP_PAGEOUT. fifo holds slots: reaped <= done <= queued count for ever, indexed modulo nr_slots.
	int pidfd, eventfd;
	struct mm_pagemap *pm;
	unsigned *fifo;
	unsigned reaped, done, queued;
};

static const struct mm_region *region_of(const struct mm_zapper *z, uint64_t hva, uint64_t len)
{
	for (size_t i = 0; i < z->nr_regions; i++) {
		const struct mm_region *r = &z->regions[i];

		if (hva >= r->hva && len <= r->len && hva - r->hva <= r->len - len)
			return r;
	}
	return NULL;
}

// Whether [hva, hva + len) is, now, what the region says: asks the kernel once for each mapping in each batch. The target could
// still map something else there before the zap; that it does so on its own within a batch is what we rely on not to happen.
static int check(struct mm_zapper *z, uint64_t hva, uint64_t len)
{
	const struct mm_region *r = region_of(z, hva, len);
	int ret = r ? 0 : -EPERM;

	for (uint64_t at = hva; !ret && at < hva + len; at = z->checked.end) {
		struct mm_vma *v = &z->checked;

		if (at < v->start || at >= v->end)
			ret = mm_maps_at(&z->maps, at, v);
		if (ret == -ENOENT || (!ret && (!v->shared || v->dev != r->dev || v->ino != r->ino ||
						v->off + (at - v->start) != r->file_off + (at - r->hva))))
			ret = -EPERM;
	}
	if (ret)
		z->checked = (struct mm_vma){ 0 };
	if (ret == -EPERM)
		log_err("process %d: 0x%llx-0x%llx is not%s the shared memory that may be zapped", z->pid, (unsigned long long)hva,
			(unsigned long long)(hva + len), r ? " (any more)" : " inside");
	return ret;
}

static int init_ring(struct mm_zapper *z, const struct mm_plant *p)
{
	struct io_uring_params params = p->ring;
	int ret;

	if (p->ring_fd < 0) {
		log_err("process %d has no ring to zap with", z->pid);
		return -EBADF;
	}
	ret = io_uring_queue_mmap(p->ring_fd, &params, &z->ring);
	z->ring_mapped = !ret;
	if (!ret && (*z->ring.sq.kring_entries != params.sq_entries || *z->ring.cq.kring_entries != params.cq_entries))
		ret = -EBADF;
	if (ret) {
		log_err("process %d: cannot map its ring of %u entries: %s", z->pid, params.sq_entries, strerror(-ret));
		return ret;
	}
	// liburing fills the index array only of rings that it made, and takes every ring for a fresh one.
	for (unsigned i = 0; i < params.sq_entries; i++)
		z->ring.sq.array[i] = i;
	z->ring.sq.sqe_head = z->ring.sq.sqe_tail = z->foreign_tail = *z->ring.sq.ktail;
	z->nr_slots = params.sq_entries;
	return getrandom(&z->session, sizeof z->session, 0) == sizeof z->session ? 0 : -EIO;
}

static int init_pageout(struct mm_zapper *z)
{
	_cleanup_free_ char *swaps = NULL;
	size_t len;

	// A headline, then one line for each.
	if (!io_read_file("/proc/swaps", MiB, &swaps, &len) && len && memchr(swaps, '\n', len - 1)) {
		log_err("this host has swap, which would be filled: zapping without an io_uring needs a host without (swapoff -a)");
		return -EOPNOTSUPP;
	}
	z->nr_slots = PAGEOUT_SLOTS;
	z->fifo = calloc(z->nr_slots, sizeof *z->fifo);
	z->pidfd = pidfd_open(z->pid, 0);
	z->eventfd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	if (!z->fifo)
		return -ENOMEM;
	if (z->pidfd < 0 || z->eventfd < 0) {
		int ret = -errno;

		log_err("process %d: %s", z->pid, strerror(-ret));
		return ret;
	}
	return mm_pagemap_open(z->pid, &z->pm);
}

static int init(struct mm_zapper *z, const struct mm_plant *p, const struct mm_region *regions, size_t nr)
{
	int ret = z->method == MM_ZAP_RING ? init_ring(z, p) : init_pageout(z);

	if (ret)
		return ret;
	z->slots = calloc(z->nr_slots, sizeof *z->slots);
	z->idle = calloc(z->nr_slots, sizeof *z->idle);
	z->regions = calloc(nr ? nr : 1, sizeof *regions);
	if (!z->slots || !z->idle || !z->regions)
		return -ENOMEM;
	while (z->nr_idle < z->nr_slots) {
		z->idle[z->nr_idle] = z->nr_idle;
		z->nr_idle++;
	}
	memcpy(z->regions, regions, nr * sizeof *regions);
	z->nr_regions = nr;
	ret = mm_maps_open(z->pid, &z->maps);
	for (size_t i = 0; !ret && i < nr; i++)
		ret = check(z, regions[i].hva, regions[i].len);
	return ret;
}

int mm_zapper_new(pid_t pid, const struct mm_plant *p, const struct mm_region *regions, size_t nr, enum mm_zap_method m,
		  struct mm_zapper **out)
{
	struct mm_zapper *z = calloc(1, sizeof *z);
	int ret;

	if (!z)
		return -ENOMEM;
	z->pid = pid;
	z->method = m;
	z->maps.fd = z->pidfd = z->eventfd = -1;
	ret = init(z, p, regions, nr);
	if (ret) {
		mm_zapper_free(z);
		return ret;
	}
	*out = z;
	return 0;
}

void mm_zapper_free(struct mm_zapper *z)
{
	if (!z)
		return;
	if (z->ring_mapped) { // io_uring_queue_exit() would close the plant's fd too
		munmap(z->ring.sq.sqes, z->ring.sq.ring_entries * sizeof(struct io_uring_sqe));
		munmap(z->ring.sq.ring_ptr, z->ring.sq.ring_sz);
		if (z->ring.cq.ring_ptr != z->ring.sq.ring_ptr)
			munmap(z->ring.cq.ring_ptr, z->ring.cq.ring_sz);
	}
	mm_maps_close(&z->maps);
	mm_pagemap_close(z->pm);
	if (z->pidfd >= 0)
		close(z->pidfd);
	if (z->eventfd >= 0)
		close(z->eventfd);
	free(z->fifo);
	free(z->regions);
	free(z->slots);
	free(z->idle);
	free(z);
}

int mm_zap_fd(const struct mm_zapper *z)
{
	return z->method == MM_ZAP_RING ? z->ring.ring_fd : z->eventfd;
}

size_t mm_zap_pending(const struct mm_zapper *z)
{
	return z->nr_slots - z->nr_idle;
}

int mm_zap_queue(struct mm_zapper *z, uint64_t hva, uint64_t len, uint64_t tag)
{
	struct io_uring_sqe *sqe;
	unsigned i;
	int ret;

	// The length of an io_uring madvise is 32 bits wide.
	if ((hva | len) % PAGE_SIZE || !len || len > UINT32_MAX || hva + len < hva)
		return -EINVAL;
	if (!z->nr_idle)
		return -EBUSY;
	ret = check(z, hva, len);
	if (ret)
		return ret;
	if (hva < z->checked.start || hva + len > z->checked.end) {
		log_err("process %d: 0x%llx-0x%llx lies in several mappings", z->pid, (unsigned long long)hva, (unsigned long long)(hva + len));
		return -EPERM;
	}
	i = z->idle[z->nr_idle - 1];
	if (z->method == MM_ZAP_RING) {
		sqe = io_uring_get_sqe(&z->ring);
		if (!sqe)
			return -EBUSY;
		io_uring_prep_madvise(sqe, (void *)(uintptr_t)hva, (off_t)len, MADV_DONTNEED);
		sqe->user_data = (uint64_t)z->session << 32 | i;
	} else {
		z->fifo[z->queued++ % z->nr_slots] = i;
	}
	z->nr_idle--;
	z->slots[i] = (struct slot){ .hva = hva, .len = len, .tag = tag };
	return 0;
}

static int pageout(struct mm_zapper *z, uint64_t hva, uint64_t len)
{
	uint64_t map[128];
	int ret;

	for (uint64_t off = 0; off < len;) {
		struct iovec iov = { (void *)(uintptr_t)(hva + off), len - off };
		ssize_t n = process_madvise(z->pidfd, &iov, 1, MADV_PAGEOUT, 0);

		if (n <= 0)
			return n ? -errno : -EAGAIN;
		off += (uint64_t)n;
	}
	for (uint64_t off = 0; off < len; off += sizeof map * 8 * PAGE_SIZE) {
		uint64_t part = len - off < sizeof map * 8 * PAGE_SIZE ? len - off : sizeof map * 8 * PAGE_SIZE;

		ret = mm_pagemap_scan(z->pm, hva + off, part, MM_SCAN_PRESENT, map);
		if (ret)
			return ret;
		if (!bitmap_empty(map, part / PAGE_SIZE))
			return -EAGAIN;
	}
	return 0;
}

static int submit_pageout(struct mm_zapper *z)
{
	bool any = z->done != z->queued;

	for (; z->done != z->queued; z->done++) {
		struct slot *s = &z->slots[z->fifo[z->done % z->nr_slots]];

		s->res = pageout(z, s->hva, s->len);
		if (s->res == -ESRCH)
			return -ESRCH;
	}
	if (any)
		eventfd_write(z->eventfd, 1);
	return 0;
}

int mm_zap_submit(struct mm_zapper *z)
{
	int ret;

	z->checked = (struct mm_vma){ 0 };
	if (z->method == MM_ZAP_PAGEOUT)
		return submit_pageout(z);
	do
		ret = io_uring_submit(&z->ring);
	while (ret == -EINTR);
	if (ret == -EOWNERDEAD)
		return -ESRCH;
	if (ret < 0)
		log_err("process %d: waking its ring: %s", z->pid, strerror(-ret));
	return ret < 0 ? ret : 0;
}

static bool reap_ring(struct mm_zapper *z, unsigned *slot, int *res)
{
	struct io_uring_cqe *cqe;

	while (!io_uring_peek_cqe(&z->ring, &cqe)) {
		uint64_t data = cqe->user_data;

		*res = cqe->res;
		io_uring_cqe_seen(&z->ring, cqe);
		*slot = (unsigned)data;
		if (data >> 32 == z->session && *slot < z->nr_slots)
			return true;
	}
	return false;
}

static bool reap_pageout(struct mm_zapper *z, unsigned *slot, int *res)
{
	eventfd_t count;

	if (z->reaped == z->done) {
		eventfd_read(z->eventfd, &count);
		return false;
	}
	*slot = z->fifo[z->reaped++ % z->nr_slots];
	*res = z->slots[*slot].res;
	return true;
}

size_t mm_zap_foreign(struct mm_zapper *z)
{
	unsigned done;

	if (z->method != MM_ZAP_RING)
		return 0;
	done = __atomic_load_n(z->ring.cq.ktail, __ATOMIC_ACQUIRE); // one completion for each, and none of ours yet
	if ((int)(z->foreign_tail - done) <= 0)
		return 0;
	io_uring_enter((unsigned)z->ring.ring_fd, 0, 0, IORING_ENTER_SQ_WAKEUP, NULL);
	return z->foreign_tail - done;
}

bool mm_zap_reap(struct mm_zapper *z, uint64_t *tag, int *res)
{
	unsigned slot;

	if (!(z->method == MM_ZAP_RING ? reap_ring(z, &slot, res) : reap_pageout(z, &slot, res)))
		return false;
	*tag = z->slots[slot].tag;
	z->idle[z->nr_idle++] = slot;
	return true;
}
