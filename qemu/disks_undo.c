// SPDX-License-Identifier: GPL-2.0-only
// Snapshots undone: what the VM wrote since goes into the files below, and the new ones are deleted.
#include <errno.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "qemu/disks_int.h"
#include "qemu/qmp.h"
#include "qemu/vm.h"
#include "qemu/vm_int.h"
#include "util/cleanup.h"
#include "util/clock.h"
#include "util/log.h"

#define JOB_TIMEOUT_NS (60 * NSEC_PER_SEC)
#define CANCEL_TIMEOUT_NS (20 * NSEC_PER_SEC)
#define JOB_NAP_NS (2 * NSEC_PER_MSEC)

bool disk_overlay_is_open(const struct qemu_vm *vm, const char *path)
{
	char reach[PATH_MAX];
	struct stat st;

	return !qemu_vm_path(vm, path, reach, sizeof reach) && !stat(reach, &st) && disk_is_open(vm->pid, &st);
}

void disk_overlay_delete(const struct qemu_vm *vm, const char *path)
{
	struct disk_user u = disk_user_of(vm);

	disk_file_delete(&u, path);
}

void disk_overlay_forget(VmDiskEntry *e)
{
	free(e->snapshot);
	free(e->format);
	e->snapshot = e->format = NULL;
}

// The state of a job and, when it has failed, why; "" if there is no such job.
static int job_state(struct qemu_vm *vm, const char *id, char *state, size_t size, char *why, size_t why_size)
{
	json_t *jobs, *job;
	int r = qmp_call(vm->qmp, "query-jobs", NULL, &jobs);
	size_t i;

	*state = *why = 0;
	json_array_foreach(r ? NULL : jobs, i, job) {
		if (strcmp(disk_text(job, "id"), id))
			continue;
		snprintf(state, size, "%s", disk_text(job, "status"));
		snprintf(why, why_size, "%s", disk_text(job, "error"));
	}
	if (!r)
		json_decref(jobs);
	return r;
}

// Until the job is in this state. A job that is concluded goes on to no other.
static int wait_job(struct qemu_vm *vm, const char *id, const char *until)
{
	uint64_t end = clock_now_ns() + JOB_TIMEOUT_NS;
	char state[32], why[256];

	for (;;) {
		int r = job_state(vm, id, state, sizeof state, why, sizeof why);

		if (r)
			return r;
		if (*why || !*state || (!strcmp(state, "concluded") && strcmp(until, state))) {
			log_err("QEMU %d: the block job %s failed: %s", vm->pid, id, *why ? why : "it is gone");
			return -EIO;
		}
		if (!strcmp(state, until))
			return 0;
		if (clock_now_ns() > end) {
			log_err("QEMU %d: the block job %s is not done in time", vm->pid, id);
			return -ETIMEDOUT;
		}
		nanosleep(&(struct timespec){ .tv_nsec = JOB_NAP_NS }, NULL);
	}
}

// A job that was begun and not ended would be in the way of every later one.
static void cancel(struct qemu_vm *vm, const char *id)
{
	uint64_t end = clock_now_ns() + CANCEL_TIMEOUT_NS;
	char state[32], why[256];

	qmp_try(vm->qmp, "job-cancel", json_pack("{s:s}", "id", id), NULL);
	while (!job_state(vm, id, state, sizeof state, why, sizeof why) && *state && strcmp(state, "concluded")) {
		if (clock_now_ns() > end) {
			log_err("QEMU %d: the block job %s cannot be cancelled in time; say 'job-cancel' and 'job-dismiss' for it to its monitor",
				vm->pid, id);
			return;
		}
		nanosleep(&(struct timespec){ .tv_nsec = JOB_NAP_NS }, NULL);
	}
}

// The node of the qcow2 file that is over a disk; NULL if QEMU has none such.
static const char *find_overlay(const struct qemu_vm *vm, const struct disk_graph *g, const char *file)
{
	const char *found = NULL;
	json_t *info;
	size_t i;

	json_array_foreach(g->infos, i, info) {
		_cleanup_free_ char *path = disk_path(vm->cwd, disk_text(info, "file"));

		if (path && !strcmp(path, file) && !strcmp(disk_text(info, "drv"), "file"))
			found = disk_graph_above(g, disk_text(info, "node-name"));
	}
	return found;
}

// What was written to it since goes into the file below; then it is out of use.
static int commit(struct qemu_vm *vm, const struct disk_graph *g, const char *overlay)
{
	const char *base = disk_graph_below(g, overlay, "backing");
	char id[64];
	int r;

	if (!base) {
		log_err("QEMU %d: the block node '%s' has no file below it any more", vm->pid, overlay);
		return -ENOENT;
	}
	snprintf(id, sizeof id, "criu-vm-commit-%s", overlay);
	r = qmp_call(vm->qmp, "block-commit",
		     json_pack("{s:s, s:s, s:s, s:s, s:b}", "job-id", id, "device", disk_graph_root(g, overlay), "top-node", overlay, "base-node",
			       base, "auto-dismiss", 0),
		     NULL);
	if (r)
		return r;
	r = wait_job(vm, id, "ready");
	if (!r)
		r = qmp_call(vm->qmp, "job-complete", json_pack("{s:s}", "id", id), NULL);
	if (!r)
		r = wait_job(vm, id, "concluded");
	if (r)
		cancel(vm, id);
	qmp_try(vm->qmp, "job-dismiss", json_pack("{s:s}", "id", id), NULL);
	return r;
}

static int undo(struct qemu_vm *vm, const struct disk_graph *g, VmDiskEntry *e)
{
	const char *overlay = find_overlay(vm, g, e->snapshot);
	int r = overlay ? commit(vm, g, overlay) : 0;

	if (!r && disk_overlay_is_open(vm, e->snapshot))
		r = -EBUSY;
	if (r) {
		log_err("QEMU %d: the disk %s goes on in %s, which therefore belongs to it now; to undo this say 'block-commit' for the node '%s' "
			"and, when that is ready, 'job-complete' to its monitor, and delete the file then",
			vm->pid, e->path, e->snapshot, overlay ?: "?");
		return r;
	}
	disk_overlay_delete(vm, e->snapshot);
	disk_overlay_forget(e);
	return 0;
}

int qemu_disks_snapshot_undo(struct qemu_vm *vm, VmDiskEntry **disks, size_t nr)
{
	struct disk_graph g = { 0 };
	int first = disk_graph_read(vm->qmp, &g);

	for (size_t i = 0; i < nr; i++) {
		int r;

		if (!disks[i]->snapshot)
			continue;
		if (!g.graph) {
			log_err("QEMU %d: the disk %s goes on in %s, which therefore belongs to it now", vm->pid, disks[i]->path, disks[i]->snapshot);
			continue;
		}
		r = undo(vm, &g, disks[i]);
		first = first ?: r;
	}
	disk_graph_fini(&g);
	return first;
}
