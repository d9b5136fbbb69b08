// SPDX-License-Identifier: GPL-2.0-only
#include "criu-vm/migrate.h"

#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "criu-vm/migrate_int.h"
#include "criu-vm/stages.h"
#include "qemu/devstate.h"
#include "qemu/disks.h"
#include "qemu/now.h"
#include "util/clock.h"
#include "util/log.h"
#include "util/size.h"

static int lay_out_chunks(struct migrate *m)
{
	m->first = calloc(m->src.nr_guest, sizeof *m->first);
	if (!m->first)
		return -ENOMEM;
	for (size_t i = 0; i < m->src.nr_guest; i++) {
		m->first[i] = m->nr_chunks;
		m->nr_chunks += DIV_ROUND_UP(m->src.blocks[i].len, CHUNK_SIZE);
	}
	m->chunks = calloc(m->nr_chunks, sizeof *m->chunks);
	m->hotness = calloc(m->nr_chunks, WIRE_HOTNESS_LEN);
	return m->chunks && m->hotness ? 0 : -ENOMEM;
}

static int attach(void *ctx)
{
	struct migrate *m = ctx;
	int r = source_attach(&m->src);

	m->result->pid = m->src.vm ? m->src.vm->pid : 0;
	m->result->ram = m->src.ram_len;
	return r ? r : lay_out_chunks(m);
}

int migrate_track_now(struct migrate *m)
{
	int r = source_track(&m->src);

	m->src.tracked.discards |= m->src.discards;
	m->tracking = !r;
	return r;
}

// Of a VM that is tracked for the next of its dumps that would be lost: so only when the destination has room for it.
static int track(void *ctx)
{
	struct migrate *m = ctx;

	return m->src.is_tracked && m->src.tracked.known ? 0 : migrate_track_now(m);
}

// Whatever happens after the commit must not touch the VM here.
static bool is_ours_still(const struct migrate *m)
{
	return !m->committed && !m->undecided;
}

static void track_undo(void *ctx)
{
	struct migrate *m = ctx;

	if (is_ours_still(m) && m->tracking)
		source_untrack(&m->src);
}

static int stop(void *ctx)
{
	struct migrate *m = ctx;
	int r = qemu_now_same(m->src.vm, m->src.mark);

	if (!r)
		r = source_stop(&m->src);
	if (r || m->src.was_running == m->offered_running)
		return r;
	log_err("somebody has %s the VM meanwhile; it was not moved, do it again", m->offered_running ? "stopped" : "let go on");
	source_go_on(&m->src);
	return -EAGAIN;
}

static void stop_undo(void *ctx)
{
	struct migrate *m = ctx;

	if (!is_ours_still(m))
		return;
	if (m->said_commit)
		syscall(SYS_pidfd_send_signal, m->src.vm->pidfd, SIGCONT, NULL, 0);
	source_go_on(&m->src);
}

// Once only: QEMU 7.2 aborts if it is asked a second time before `cont`. So a VM that was paused keeps its disks until it ends, and
// whoever says `cont` to it at the destination finds them free then.
static int give_up_disks(void *ctx)
{
	struct migrate *m = ctx;

	return qemu_devstate_save(m->src.vm->qmp, m->src.was_running, &m->src.state, &m->src.state_len);
}

static int freeze(void *ctx)
{
	return source_freeze(&((struct migrate *)ctx)->src);
}

static void thaw(void *ctx)
{
	struct migrate *m = ctx;

	if (is_ours_still(m))
		source_thaw(&m->src);
}

#define READY_MS 120000

static int wait_ready(void *ctx)
{
	struct migrate *m = ctx;
	WireMsg *answer;
	int r = migrate_expect(m, READY_MS, offsetof(WireMsg, ready), "it was to load the device state", &answer);

	if (!r)
		wire_msg__free_unpacked(answer, NULL);
	return r;
}

static const struct stage stages[] = {
	{ "attach", attach, NULL },
	{ "connect", migrate_connect, migrate_disconnect },
	{ "track", track, track_undo },
	{ "offer", migrate_offer, NULL },
	{ "hotness", migrate_send_hotness, NULL },
	{ "record", migrate_record, migrate_record_undo },
	{ "pre-copy", migrate_precopy, NULL },
	{ "later", migrate_later, NULL },
	{ "lines", migrate_open_lines, migrate_close_lines },
	{ "stop", stop, stop_undo },
	{ "disks", give_up_disks, NULL },
	{ "freeze", freeze, thaw },
	{ "last", migrate_last, migrate_hold_lines },
	{ "ready", wait_ready, NULL },
	{ "commit", migrate_commit, NULL },
};

static void migrate_fini(struct migrate *m)
{
	migrate_close_lines(m);
	migrate_disconnect(m);
	source_fini(&m->src);
	migrate_offer_fini(m);
	migration_source_fini(&m->record);
	free(m->first);
	free(m->chunks);
	free(m->hotness);
	free(m->hot);
	pthread_mutex_destroy(&m->lock);
	pthread_cond_destroy(&m->changed);
}

int migrate_run(const struct migrate_opts *o, struct migrate_result *result)
{
	struct migrate m = { .o = o, .result = result, .begun_ns = clock_now_ns(), .lock = PTHREAD_MUTEX_INITIALIZER,
			     .changed = PTHREAD_COND_INITIALIZER, .claim = -1,
			     .pace = { .rate = o->max_bandwidth, .lock = PTHREAD_MUTEX_INITIALIZER },
			     .src = { .spec = o->vm, .run_root = o->run_root, .taken = "migrated", .orphan = migrate_orphan, .ctx = &m,
				      .short_stop = true, SOURCE_NONE } };
	int r;

	*result = (struct migrate_result){ 0 };
	r = stages_run(stages, ARRAY_SIZE(stages), &m);
	if (r && !m.committed && source_has_ended(&m.src))
		log_err("QEMU %d has ended meanwhile; nothing was migrated", m.src.vm->pid);
	if (!r)
		r = migrate_end(&m);
	else if (m.src.stuck || m.undecided)
		r = -ESTALE;
	else if (r == -ESTALE)
		r = -EINVAL;
	result->ns = clock_now_ns() - m.begun_ns;
	migrate_fini(&m);
	return r;
}
