// SPDX-License-Identifier: GPL-2.0-only
#include <errno.h>
#include <unistd.h>

#include "criu-vm/ram_int.h"
#include "criu-vm/vm_snapshot.h"
#include "util/cleanup.h"
#include "util/log.h"

#define READY_TIMEOUT_MS 60000
#define INSTANT_TIMEOUT_MS 10000

static int open_snapshot(struct ram *r, const json_t *answer)
{
	int shadow = (int)json_integer_value(json_object_get(answer, "shadow"));
	pid_t pager = (pid_t)json_integer_value(json_object_get(answer, "pager_pid"));
	int err = vm_snapshot_open(&r->rd, r->state.nr_chunks, pager, shadow, &r->snapshot, &r->shadow_fd);

	if (err)
		return err;
	pv_reader_free(steal_ptr(&r->reader));
	r->reader_opts.snapshot = r->snapshot;
	r->reader_opts.shadow_fd = r->shadow_fd;
	return pv_reader_new(&r->reader_opts, &r->reader);
}

static int wait_for(struct ram *r, enum pv_snapshot_phase phase, unsigned timeout_ms)
{
	int err = vm_snapshot_wait(r->snapshot, phase, timeout_ms);

	if (err == -ECANCELED)
		log_err("the pager of VM '%s' has given the snapshot up; its log says why", r->o.name);
	else if (err)
		log_err("the pager of VM '%s' cannot unmap the VM's memory in time; is it busy paging? Try again, or dump without --background",
			r->o.name);
	return err;
}

int ram_snapshot_prepare(struct ram *r)
{
	json_t *answer;
	int err = ram_ask_pager(r, json_pack("{s:s s:i}", "execute", "snapshot-begin", "pid", getpid()), &answer);

	if (err)
		return err;
	r->has_snapshot = true;
	err = open_snapshot(r, answer);
	json_decref(answer);
	if (!err)
		err = wait_for(r, PV_SNAP_READY, READY_TIMEOUT_MS);
	if (err)
		ram_snapshot_end(r);
	return err;
}

int ram_snapshot_instant(struct ram *r)
{
	int err = ram_ask_pager(r, json_pack("{s:s}", "execute", "snapshot-instant"), NULL);

	return err ? err : wait_for(r, PV_SNAP_TAKEN, INSTANT_TIMEOUT_MS);
}

bool ram_snapshot_wanted(struct ram *r, uint32_t *block, uint64_t *chunk)
{
	uint64_t all;

	if (!pv_reader_wanted(r->reader, &all))
		return false;
	for (uint32_t i = 0; i < r->o.nr_blocks; i++) {
		*block = i;
		*chunk = all - r->blocks[i].first;
		if (all >= r->blocks[i].first && *chunk * PV_CHUNK_SIZE < r->o.blocks[i].len)
			return true;
	}
	return false;
}

void ram_snapshot_done(struct ram *r, uint32_t block, uint64_t chunk)
{
	pv_reader_done(r->reader, r->blocks[block].first + chunk);
}

int ram_snapshot_finish(struct ram *r)
{
	json_t *answer = NULL;
	int err;

	r->has_snapshot = false;
	err = ram_ask_pager(r, json_pack("{s:s}", "execute", "snapshot-end"), &answer);
	if (!err && !json_is_true(json_object_get(answer, "taken"))) {
		log_err("the pager of VM '%s' has given the snapshot up; its log says why", r->o.name);
		err = -ESTALE;
	}
	json_decref(answer);
	vm_snapshot_close(r->state.nr_chunks, steal_ptr(&r->snapshot), steal_fd(&r->shadow_fd));
	return err;
}

void ram_snapshot_end(struct ram *r)
{
	if (!r->has_snapshot)
		return;
	r->has_snapshot = false;
	ram_ask_pager(r, json_pack("{s:s}", "execute", "snapshot-end"), NULL);
	vm_snapshot_close(r->state.nr_chunks, steal_ptr(&r->snapshot), steal_fd(&r->shadow_fd));
}
