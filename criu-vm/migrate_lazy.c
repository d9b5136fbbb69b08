// SPDX-License-Identifier: GPL-2.0-only
//
// DOC: pages that come when the VM runs there
//
//	later    while the VM runs: "these come later" for all that is not there, or is old there. Only their numbers are sent
//	lines    over which they will be asked for; nothing is answered as long as they may change
//	last     the VM stands: what it has written since comes later, too, but for what is touched first. Now lines are answered
//	end      it runs there. QEMU is stopped here (migrate_hold.h), for good; what is asked for is read out of its memory, or wherever it lies
//
// From the commit on the record (migration_source.h) has all that somebody else needs to go on with that.
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>

#include "criu-vm/fault.h"
#include "criu-vm/migrate_int.h"
#include "criu-vm/migrate_serve.h"
#include "criu-vm/migration_lazy.h"
#include "qemu/freeze.h"
#include "util/bitmap.h"
#include "util/cleanup.h"
#include "util/clock.h"
#include "util/log.h"

#define LINES_MS 15000

int migrate_later(void *ctx)
{
	struct migrate *m = ctx;
	int r;

	if (!m->goes_lazy)
		return 0;
	r = migrate_find_hot_pages(m);
	m->deferring = true;
	if (!r)
		r = migrate_send_round(m);
	if (!r)
		r = migrate_round_taken(m);
	return r ? r : migrate_look_up(m);
}

// ---- the lines

static int complete_record(struct migrate *m)
{
	struct migration_source *s = &m->record;

	s->lazy = true;
	s->lines = migration_lazy_lines(m->o->channels);
	s->zstd = m->zstd ? m->o->zstd_level : 0;
	s->bandwidth = m->o->max_bandwidth;
	s->there = strdup(m->result->name);
	s->blocks = malloc(m->src.nr_guest * sizeof *s->blocks);
	if (!s->there || !s->blocks)
		return -ENOMEM;
	memcpy(s->key, m->key, sizeof s->key);
	memcpy(s->blocks, m->src.blocks, m->src.nr_guest * sizeof *s->blocks);
	s->nr_blocks = m->src.nr_guest;
	return migration_source_save(s);
}

// Not by itself: who is asked for the VM's end by hand must not act beside us.
static int claim(struct migrate *m)
{
	int r = migration_source_claim(m->token, &m->claim);

	if (r)
		log_err("the record of the migration of QEMU %d cannot be locked: %s", m->src.vm->pid, strerror(-r));
	return r;
}

static int look_up(void *ctx)
{
	return migrate_look_up(ctx);
}

int migrate_open_lines(void *ctx)
{
	struct migrate *m = ctx;
	struct lines_opts o = { .token = m->token, .host_id = m->host_id, .key = m->key, .host = m->host, .port = m->port, .tls = m->tls,
				.nr = migration_lazy_lines(m->o->channels), .zstd = m->zstd ? m->o->zstd_level : 0, .bandwidth = m->o->max_bandwidth,
				.ram = m->src.ram, .blocks = m->src.blocks, .nr_blocks = m->src.nr_guest };
	int r;

	if (!m->goes_lazy)
		return 0;
	o.pidfd = m->src.vm->pidfd;
	r = complete_record(m);
	if (!r)
		r = claim(m);
	if (!r)
		r = lines_open(&o, &m->lines);
	if (!r)
		r = lines_wait(m->lines, LINES_MS, look_up, m);
	if (r)
		migrate_close_lines(m);
	return r;
}

void migrate_close_lines(void *ctx)
{
	struct migrate *m = ctx;

	lines_close(steal_ptr(&m->lines));
	if (m->claim >= 0)
		close(steal_fd(&m->claim));
}

void migrate_hold_lines(void *ctx)
{
	struct migrate *m = ctx;

	if (m->lines)
		lines_hold(m->lines, true);
}

// ---- it runs there

static void count_later(struct migrate *m)
{
	for (uint64_t i = 0; i < m->nr_chunks; i++)
		m->result->later_pages += bitmap_count(m->chunks[i].later, CHUNK_PAGES);
}

// The destination forgets what it decided when it is told so; from then on our record alone knows.
static void note_committed(struct migrate *m)
{
	m->record.committed = true;
	m->record.left_ns = clock_now_ns();
	m->record.ran_ns = qemu_ran_ns(m->record.pid);
	if (!migration_source_save(&m->record))
		wire_send_plain(m->control, offsetof(WireMsg, done));
}

static void note_served(struct migrate *m, const struct provided *all)
{
	m->result->served_pages = all->pages;
	m->result->served_zero_pages = all->zero_pages;
	m->result->served_bytes = all->bytes;
}

static int end_here(struct migrate *m)
{
	int r = source_end(&m->src);
	struct provided all;

	source_dismiss_guardian(&m->src);
	if (r)
		return r;
	migration_source_remove(m->token);
	tracked_remove(m->o->run_root, m->src.vm->pid);
	lines_over(steal_ptr(&m->lines), &all);
	note_served(m, &all);
	return 0;
}

int migrate_end_lazily(struct migrate *m, int ran)
{
	struct serve_opts o = { .source = &m->record, .lines = m->lines, .pidfd = m->src.vm->pidfd, .progress = true };
	struct serve_result served;
	int r;

	note_committed(m);
	migrate_disconnect(m);
	setpriority(PRIO_PROCESS, 0, m->src.nice); // nobody stands still any more
	count_later(m);
	lines_set_missing(m->lines, m->result->later_pages);
	fault_here("serving");
	r = migrate_serve(&o, &served);
	m->result->lazy = true;
	m->result->served = served.state;
	note_served(m, &served.provided);
	if (r == -EINTR)
		migrate_say_unfinished(&m->record, served.provided.missing);
	if (r)
		return -ESTALE;
	r = end_here(m);
	return ran ? ran : r;
}

void migrate_say_unfinished(const struct migration_source *s, uint64_t pages)
{
	char left[16];

	log_err("VM '%s' runs at %s, which needs %s from here yet: served on in the background (criu-vm stat); criu-vm migrate --resume %d says how far "
		"that is", s->there, s->host, size_format(pages * PAGE_SIZE, left), s->pid);
}
