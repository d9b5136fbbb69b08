// SPDX-License-Identifier: GPL-2.0-only
#include "util/io_ring.h"

#include <errno.h>
#include <string.h>
#include <sys/mman.h>

#include "util/cleanup.h"

// A completion queue so large that it does not overflow while a busy loop is elsewhere.
static struct io_uring_params params_for(unsigned entries)
{
	return (struct io_uring_params){ .flags = IORING_SETUP_CQSIZE | IORING_SETUP_COOP_TASKRUN | IORING_SETUP_TASKRUN_FLAG,
					 .cq_entries = entries * 8 };
}

int io_ring_new(unsigned entries)
{
	struct io_uring_params p = params_for(entries);

	return io_uring_setup(entries, &p);
}

int io_ring_map(int fd, unsigned entries, struct io_uring *ring)
{
	// Where things lie depends on the kernel and these parameters only: a short-lived ring tells.
	struct io_uring_params p = params_for(entries);
	_cleanup_close_ int like = io_uring_setup(entries, &p);
	int r = like < 0 ? like : io_uring_queue_mmap(fd, &p, ring);

	if (r)
		return r;
	if (*ring->sq.kring_entries != p.sq_entries || *ring->cq.kring_entries != p.cq_entries) {
		io_ring_unmap(ring);
		return -EBADF;
	}
	// liburing fills the index array only of rings that it made, and takes every ring for a fresh one.
	for (unsigned i = 0; i < p.sq_entries; i++)
		ring->sq.array[i] = i;
	ring->sq.sqe_head = ring->sq.sqe_tail = *ring->sq.khead;
	__atomic_store_n(ring->sq.ktail, *ring->sq.khead, __ATOMIC_RELEASE);
	// A process that died was to post completions: the kernel has posted them for it, and left the flag that says so.
	__atomic_and_fetch(ring->sq.kflags, ~IORING_SQ_TASKRUN, __ATOMIC_RELAXED);
	return 0;
}

void io_ring_unmap(struct io_uring *ring)
{
	munmap(ring->sq.sqes, ring->sq.ring_entries * sizeof(struct io_uring_sqe));
	munmap(ring->sq.ring_ptr, ring->sq.ring_sz);
	if (ring->cq.ring_ptr && ring->cq.ring_ptr != ring->sq.ring_ptr)
		munmap(ring->cq.ring_ptr, ring->cq.ring_sz);
	memset(ring, 0, sizeof *ring);
}

unsigned io_ring_abandoned(struct io_uring *ring)
{
	unsigned taken = __atomic_load_n(ring->sq.khead, __ATOMIC_ACQUIRE) - *ring->sq.kdropped, posted;

	// Whom the completions were for is gone; those for which the queue had no room are posted then.
	__atomic_store_n(ring->cq.khead, __atomic_load_n(ring->cq.ktail, __ATOMIC_ACQUIRE), __ATOMIC_RELEASE);
	io_uring_get_events(ring);
	posted = __atomic_load_n(ring->cq.ktail, __ATOMIC_ACQUIRE);
	__atomic_store_n(ring->cq.khead, posted, __ATOMIC_RELEASE);
	return taken - posted - __atomic_load_n(ring->cq.koverflow, __ATOMIC_ACQUIRE); // those were lost for want of memory
}
