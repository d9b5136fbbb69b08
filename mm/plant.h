// SPDX-License-Identifier: GPL-2.0-only
// Planting: a userfaultfd and an SQPOLL io_uring are created inside another process, by system calls injected into it, and
// copies of them brought out. Those inside stay open for as long as the process lives: the last close of a userfaultfd turns
// the faults that follow into zero pages, and a new handler fetches its own copies when the first one has died.
#pragma once
#include <linux/io_uring.h>
#include <stdint.h>
#include <sys/types.h>

struct mm_plant_opts {
	unsigned ring_entries; // of the submission queue, 1-32768; rounded up to a power of two by the kernel. 0: no ring
	unsigned sq_idle_ms;   // how long the ring's thread spins after work before it sleeps, >= 1 (to the kernel, 0 means a second)
	int target_uffd_dev;   // fd number *in the target* of an opened /dev/userfaultfd, or -1: userfaultfd(2)
};

struct mm_plant {
	int uffd, ring_fd;		// our copies; ring_fd is -1 if the target cannot have a ring
	int target_uffd, target_ring;	// fd numbers inside the target
	struct io_uring_params ring;	// to map the ring with
	uint64_t window_ns;		// how long the target's main thread stood still
};

// Injects, by a short-lived child of ours that survives us: once the target is touched, it is always put right again. Only the
// target's main thread is stopped, for about a millisecond on an idle host; blocks a few milliseconds, at most 10 s if the main
// thread cannot be stopped. On failure nothing stays behind in the target (but when we ourselves cannot open another descriptor).
// No ring (a warning says why) is no failure: p->ring_fd = -1.
// -EPERM not allowed, or the target may not call userfaultfd(2): use target_uffd_dev; -EBUSY it is being traced; -ESRCH no such
// process; -ETIMEDOUT; -EINVAL bad options; -ENOEXEC not a process of this architecture. Logs.
int mm_plant(pid_t pid, const struct mm_plant_opts *o, struct mm_plant *p);

// For another handler of a planted process: fresh copies of what is in there. target_ring may be -1. ring_entries is what
// mm_plant() returned as p->ring.sq_entries. -EBADF: these numbers are not what was planted; -ESRCH; -EPERM. Logs.
int mm_plant_fetch(pid_t pid, int target_uffd, int target_ring, unsigned ring_entries, struct mm_plant *p);

// A copy of any descriptor of another process, close-on-exec. kind: what readlink() of it must give. As mm_plant_fetch().
int mm_fetch_fd(pid_t pid, int target_fd, const char *kind, int *fd);

// Closes a descriptor inside another process, by injection as above. kind: what readlink() of it must give, else -EBADF. Logs.
int mm_plant_remove(pid_t pid, int target_fd, const char *kind);

// Closes our copies only.
void mm_plant_fini(struct mm_plant *p);
