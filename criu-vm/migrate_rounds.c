// SPDX-License-Identifier: GPL-2.0-only
//
// DOC: how many rounds
//
// A round sends what was written during the one before. While it is under way the guest writes again: if it writes less in that
// time than the line carries, each round is shorter than the one before. After each the standstill is foreseen that would
// follow if this were the last,
//
//	what was written meanwhile / bytes a second, as measured  +  what a standstill takes beside (device state, the disks, the commit)
//
// and if that is within --downtime-limit the VM is stopped. This is what every pre-copy does (Clark et al., "Live Migration of
// Virtual Machines", NSDI 2005). When STALLED rounds in a row did not make it shorter by a tenth, more of them will not either.
#include <errno.h>
#include <string.h>

#include "criu-vm/migrate_int.h"
#include "util/clock.h"
#include "util/log.h"
#include "util/size.h"

#define STALLED 4
#define MAX_ROUNDS 100
#define OVERHEAD_NS (15 * NSEC_PER_MSEC)
#define FEW_PAGES 128 // the destination keeps room for twice as many, at least
#define SMALL_ROUND (256 * KiB) // takes too short to measure a rate by

// Written pages are taken, then what the disks were writing to them has ended, then they are read (mm/track.h, ram.h).
static int take(struct migrate *m)
{
	int r = ram_take(m->src.ram, m->src.tracked.discards);

	return r || m->src.standing ? r : source_drain(&m->src);
}

static uint64_t foreseen_ns(const struct migrate *m, uint64_t nr_pages)
{
	return OVERHEAD_NS + (m->rate ? (uint64_t)((double)(nr_pages * PAGE_SIZE) * 1e9 / (double)m->rate) : 0);
}

static int send_round(struct migrate *m)
{
	uint64_t begun = clock_now_ns(), ns;
	int r = migrate_send_round(m);

	if (!r)
		r = migrate_round_taken(m);
	ns = clock_now_ns() - begun;
	if (!r && (m->bytes >= SMALL_ROUND || !m->rate))
		m->rate = (uint64_t)((double)(m->bytes ? m->bytes : 1) * 1e9 / (double)(ns ? ns : 1));
	return r;
}

// What would have to be different for this VM to get away.
static int give_up(struct migrate *m, uint64_t nr_pages)
{
	char dirty[16], rate[16], left[16], need[16];
	uint64_t ns = foreseen_ns(m, nr_pages), within = (uint64_t)m->o->downtime_ms * NSEC_PER_MSEC;
	uint64_t for_pages = within > OVERHEAD_NS ? within - OVERHEAD_NS : NSEC_PER_MSEC;

	log_err("pre-copy does not get to an end: in %u rounds %s are left each time; the VM writes to about %s a second, the line carries %s a "
		"second. To move it this way takes --downtime-limit %lu, or a line of %s a second, or a VM that writes less. It runs on here",
		m->round, size_format(nr_pages * PAGE_SIZE, left), size_format(m->dirty_rate, dirty), size_format(m->rate, rate),
		ns / NSEC_PER_MSEC + 1, size_format((uint64_t)((double)(nr_pages * PAGE_SIZE) * 1e9 / (double)for_pages), need));
	return -EAGAIN;
}

static void tell(struct migrate *m, uint64_t nr_pages)
{
	char left[16], dirty[16], rate[16];

	log_info("round %u: %s/s; the VM writes to %s/s; %s are left, a standstill of %lu ms is foreseen", m->round, size_format(m->rate, rate),
		 size_format(m->dirty_rate, dirty), size_format(nr_pages * PAGE_SIZE, left), foreseen_ns(m, nr_pages) / NSEC_PER_MSEC);
}

static void begin_progress(struct migrate *m, uint64_t nr_pages)
{
	static const char *const what[] = { "round 1: all of memory", "round 2: what was written since", "round 3: what was written since",
					    "further rounds: what was written since" };

	progress_begin(&m->progress, what[m->round < ARRAY_SIZE(what) ? m->round : ARRAY_SIZE(what) - 1], nr_pages * PAGE_SIZE);
}

// Leaves due what a further round would send.
int migrate_precopy(void *ctx)
{
	struct migrate *m = ctx;
	uint64_t limit = (uint64_t)m->o->downtime_ms * NSEC_PER_MSEC, nr_pages, least = UINT64_MAX, taken_ns = clock_now_ns();
	unsigned stalled = 0;
	int r = take(m);

	if (!r)
		r = migrate_choose(m, true, false, &nr_pages);
	while (!r) {
		uint64_t now, written;

		begin_progress(m, nr_pages);
		r = send_round(m);
		progress_end(&m->progress);
		if (!r)
			r = migrate_look_up(m);
		if (!r)
			r = take(m);
		if (!r)
			r = migrate_choose(m, false, false, &nr_pages);
		if (r)
			break;
		now = clock_now_ns();
		written = nr_pages * PAGE_SIZE;
		m->dirty_rate = (uint64_t)((double)written * 1e9 / (double)(now - taken_ns));
		taken_ns = now;
		tell(m, nr_pages);
		if (foreseen_ns(m, nr_pages) <= limit)
			break;
		stalled = written < least - least / 10 ? 0 : stalled + 1;
		least = written < least ? written : least;
		if (stalled >= STALLED || m->round >= MAX_ROUNDS)
			r = give_up(m, nr_pages);
	}
	return r ? r : migrate_find_hot_pages(m);
}

// The VM stands: what it has written since the last choice, and what was chosen then.
int migrate_last(void *ctx)
{
	struct migrate *m = ctx;
	uint64_t nr_pages;
	int r = take(m);

	m->last = true;
	for (size_t i = 0; i < m->nr_hot; i++)
		for (unsigned w = 0; w < CHUNK_WORDS; w++)
			m->chunks[m->hot[i].chunk].due[w] |= m->hot[i].pages[w];
	if (!r)
		r = migrate_choose(m, false, true, &nr_pages);
	m->few = !r && nr_pages <= FEW_PAGES;
	if (!r)
		r = migrate_send_round(m);
	if (!r)
		r = migrate_send_state(m);
	return r ? r : migrate_round_taken(m);
}
