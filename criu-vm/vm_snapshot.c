// SPDX-License-Identifier: GPL-2.0-only
#include "criu-vm/vm_snapshot.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "criu-vm/vm_pager_int.h"
#include "util/cleanup.h"
#include "util/clock.h"
#include "util/log.h"

#define FILE_NAME "snapshot"
#define SHADOW_MAX (64 * MiB)
#define LOOK_US 200

struct vm_snapshot {
	struct loop_op op; // waits for the end of who asked
	struct vm_pager *v; // NULL: it is over
	struct pv_snapshot *s;
	uint64_t nr_chunks;
	int pidfd;
};

static int map_file(const struct run_dir *rd, uint64_t nr_chunks, bool create, struct pv_snapshot **s)
{
	_cleanup_close_ int fd = openat(rd->fd, FILE_NAME, O_RDWR | O_CLOEXEC | (create ? O_CREAT | O_EXCL : 0), 0600);
	size_t len = pv_snapshot_size(nr_chunks);
	struct stat st;
	void *p;

	if (fd < 0 || (create && fallocate(fd, 0, 0, (off_t)len) < 0) || fstat(fd, &st) < 0)
		return -errno;
	if ((uint64_t)st.st_size != len)
		return -EBADMSG;
	p = mmap(NULL, len, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	if (p == MAP_FAILED)
		return -errno;
	*s = p;
	return 0;
}

// ---- the pager's side

static void snapshot_free(struct vm_snapshot *n)
{
	if (n->s)
		munmap(n->s, pv_snapshot_size(n->nr_chunks));
	if (n->pidfd >= 0)
		close(n->pidfd);
	free(n);
}

static void forget(struct vm_pager *v)
{
	struct vm_snapshot *n = v->snapshot;

	pv_snapshot_end(lp_pager_engine(v->lp));
	unlinkat(v->rd->fd, FILE_NAME, 0);
	v->snapshot = NULL;
	n->v = NULL;
}

static void asker_ended(struct loop_op *op, int res)
{
	struct vm_snapshot *n = list_entry(op, struct vm_snapshot, op);

	(void)res;
	if (n->v) {
		log_warn("the command that made a snapshot has ended; the snapshot, too");
		forget(n->v);
	}
	snapshot_free(n);
}

int vm_snapshot_begin(struct vm_pager *v, pid_t asker, int *shadow)
{
	struct vm_snapshot *n;
	int r;

	if (v->snapshot)
		return -EBUSY;
	n = calloc(1, sizeof *n);
	if (!n)
		return -ENOMEM;
	n->nr_chunks = v->state.nr_chunks;
	n->pidfd = (int)syscall(SYS_pidfd_open, asker, 0);
	r = n->pidfd < 0 ? -errno : map_file(v->rd, n->nr_chunks, true, &n->s);
	if (!r && (r = pv_snapshot_begin(lp_pager_engine(v->lp), n->s, SHADOW_MAX, shadow)))
		unlinkat(v->rd->fd, FILE_NAME, 0);
	if (r) {
		snapshot_free(n);
		return r;
	}
	n->v = v;
	n->op.done = asker_ended;
	v->snapshot = n;
	loop_poll_in(lp_pager_loop(v->lp), &n->op, n->pidfd);
	return 0;
}

bool vm_snapshot_end(struct vm_pager *v)
{
	struct vm_snapshot *n = v->snapshot;
	bool taken;

	if (!n)
		return false;
	taken = pv_snapshot_phase(n->s) == PV_SNAP_TAKEN;
	forget(v);
	loop_cancel(lp_pager_loop(v->lp), &n->op); // frees it
	return taken;
}

void vm_snapshot_fini(struct vm_pager *v)
{
	if (v->snapshot)
		snapshot_free(v->snapshot);
	v->snapshot = NULL;
}

void vm_snapshot_of_the_dead(const struct vm_pager *v)
{
	struct pv_snapshot *s = NULL;

	if (!map_file(v->rd, v->state.nr_chunks, false, &s)) {
		pv_snapshot_set_phase(s, PV_SNAP_FAILED);
		munmap(s, pv_snapshot_size(v->state.nr_chunks));
	}
	unlinkat(v->rd->fd, FILE_NAME, 0);
}

// ---- the command's side

int vm_snapshot_open(const struct run_dir *rd, uint64_t nr_chunks, pid_t pager, int shadow, struct pv_snapshot **s, int *shadow_fd)
{
	char path[48];
	int r = map_file(rd, nr_chunks, false, s);

	*shadow_fd = -1;
	snprintf(path, sizeof path, "/proc/%d/fd/%d", pager, shadow);
	if (!r && (*shadow_fd = open(path, O_RDWR | O_CLOEXEC)) < 0) {
		r = -errno;
		vm_snapshot_close(nr_chunks, *s, -1);
		*s = NULL;
	}
	if (r)
		log_err("the snapshot of VM '%s' cannot be opened: %s", rd->name, strerror(-r));
	return r;
}

void vm_snapshot_close(uint64_t nr_chunks, struct pv_snapshot *s, int shadow_fd)
{
	if (s)
		munmap(s, pv_snapshot_size(nr_chunks));
	if (shadow_fd >= 0)
		close(shadow_fd);
}

int vm_snapshot_wait(const struct pv_snapshot *s, enum pv_snapshot_phase phase, unsigned timeout_ms)
{
	uint64_t end = clock_now_ns() + timeout_ms * NSEC_PER_MSEC;

	for (;;) {
		enum pv_snapshot_phase now = pv_snapshot_phase(s);

		if (now >= PV_SNAP_FAILED)
			return -ECANCELED;
		if (now >= phase)
			return 0;
		if (clock_now_ns() > end)
			return -ETIMEDOUT;
		usleep(LOOK_US);
	}
}
