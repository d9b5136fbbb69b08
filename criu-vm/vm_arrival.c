// SPDX-License-Identifier: GPL-2.0-only
//
// DOC: a VM that comes from another host, as its pagers see it
//
//   attached    all is open; its pages arrive, and are nobody's but the receiver's
//   "arrived"   the page table is looked at, faults are served; QEMU loads the device state
//   "commit"    the record (migration_record.h) is made. Before that the VM ends with the line to the receiver, or with this pager; from
//               then on it is this host's, and this pager, or the next one, or the one after that, makes it run
//
// A pager that follows cannot know how far the one before it came: the mark "running" says that `cont` was, or was about to be, said; else the
// record decides. Between the two the VM has not run, and saying `cont` is all that is missing.
#include <errno.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "criu-vm/arrival.h"
#include "criu-vm/fault.h"
#include "criu-vm/launch.h"
#include "criu-vm/tap.h"
#include "criu-vm/vm_pager_int.h"
#include "util/cleanup.h"
#include "util/log.h"

#define AGAIN_US 100000

bool vm_arrival_is_pending(const struct vm_pager *v)
{
	return v->state.arriving && v->launch_fd >= 0 && !v->started && !v->committed;
}

int vm_arrival_recall(struct vm_pager *v)
{
	if (v->launch_fd >= 0 || !v->state.arriving || arrival_has_run(v->rd))
		return 0;
	v->committed = run_dir_has(v->rd, "running") || arrival_is_committed(v->rd);
	if (v->committed)
		return 0;
	log_err("its migration to this host was given up; ending the VM");
	return -ECANCELED;
}

static void give_up(struct vm_pager *v, const char *reason)
{
	char why[256]; // it may be the last message, and this will be one

	snprintf(why, sizeof why, "%s", reason);
	log_err("%s; ending the VM", why);
	v->given_up = true;
	launch_send(v->launch_fd, "error %s", why);
	lp_pager_stop(v->lp, -ECANCELED);
}

void vm_arrival_serve(struct vm_pager *v)
{
	if (!vm_arrival_is_pending(v) || lp_pager_serves(v->lp))
		return;
	if (v->state.paging && (vm_remote_arrived(v) || vm_pager_start_paging(v)))
		give_up(v, log_last_error());
	else
		launch_send(v->launch_fd, "serving");
}

// Why it cannot become this host's; NULL: it has. Once others may have seen the record there is no way back.
static const char *make_record(const struct vm_pager *v)
{
	enum migration_decision is;
	uint8_t token[WIRE_TOKEN_LEN];

	if (poll(&(struct pollfd){ .fd = v->qemu_pidfd, .events = POLLIN }, 1, 0))
		return "its QEMU has ended";
	if (fault_here("pager-commit") || arrival_token(v->rd, token))
		return log_last_error();
	while (migration_decide(token, MIGRATION_COMMITTED, v->rd->name, &is)) {
		if (is != MIGRATION_COMMITTED)
			return log_last_error();
		usleep(AGAIN_US);
	}
	return is == MIGRATION_COMMITTED ? NULL : "the source has asked before, and was told that the VM is its own";
}

static bool can_commit(const struct vm_pager *v)
{
	return !v->given_up && vm_arrival_is_pending(v) && (!v->state.paging || lp_pager_serves(v->lp));
}

void vm_arrival_commit(struct vm_pager *v)
{
	if (can_commit(v) && vm_monitor_ask_status(v))
		give_up(v, "its monitor is closed");
}

// The VM is the source's: if somebody had made it run here, it would have run twice.
static const char *runs_already(const struct vm_pager *v, const json_t *status)
{
	if (!status)
		return "QEMU does not say whether the VM stands";
	if (v->has_resumed || !json_is_false(json_object_get(status, "running")))
		return "somebody has made the VM run here before it was this host's";
	return NULL;
}

void vm_arrival_decide(struct vm_pager *v, const json_t *status)
{
	const char *why;

	if (!can_commit(v))
		return;
	why = runs_already(v, status);
	if (!why)
		why = make_record(v);
	if (why) {
		give_up(v, why);
		return;
	}
	v->committed = true;
	fault_here("pager-committed");
	launch_send(v->launch_fd, "committed");
	fault_here("pager-cont");
	vm_monitor_begin(v);
}

void vm_arrival_taps_up(const struct vm_pager *v)
{
	_cleanup_free_ char *taps = v->state.taps ? strdup(v->state.taps) : NULL;
	char *rest = taps;
	const char *name;

	while ((name = strsep(&rest, " ")))
		if (*name)
			tap_set_up(0, name, true);
}
