// SPDX-License-Identifier: GPL-2.0-only
//
// DOC: how many rounds
//
// A round sends what was written during the one before. While it is under way the guest writes again: if it writes less in that
// time than the line carries, each round is shorter than the one before. After each the standstill is foreseen that would
// follow if this were the last,
//
//	  what was written meanwhile, and what the VM will write before it stands (LAG_NS), over the rate
//	+ what an idle VM takes:
//	    device state, the disks, the freezer, the commit                       OVERHEAD_NS
//	    to find what was written                                               as it took this time
//	    round trips                                                            ROUND_TRIPS times that of a short round
//	    to look at all that was sent again, where memory may have been given back without a trace     over the rate of that, or of reading
//
// and if that is within --downtime-limit the VM is stopped. This is what every pre-copy does (Clark et al., "Live Migration of
// Virtual Machines", NSDI 2005). When STALLED rounds in a row did not make it shorter by a tenth, more of them will not either. Rates
// are of the VM's memory, before it is compressed. A second round is made anyway if it is short: it measures the round trip.
//
// What an idle VM takes is not made less by rounds: a limit below it is refused, without more of them. A paused VM needs none.
//
// Where it would be refused, --lazy=auto lets what is left come when the VM runs there; --lazy always does so, and makes as many rounds before
// as it is told to.
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "criu-vm/migrate_int.h"
#include "util/clock.h"
#include "util/log.h"
#include "util/size.h"

#define STALLED 4
#define OVERHEAD_NS (15 * NSEC_PER_MSEC)
#define FEW_PAGES 128 // the destination keeps room for twice as many, at least
#define LAG_NS (30 * NSEC_PER_MSEC) // from the last look to the standstill
#define ROUND_TRIPS 3		    // the round, the state, the commit
#define SMALL_ROUND (256 * KiB)	    // takes too short to measure a rate by
#define UNKNOWN_RATE (16 * MiB)	    // until one was measured

// Written pages are taken, then what the disks were writing to them has ended, then they are read (mm/track.h, ram.h).
static int take(struct migrate *m)
{
	int r = ram_take(m->src.ram, m->src.tracked.discards);

	return r || m->src.standing ? r : source_drain(&m->src);
}

static double rate_of(uint64_t bytes, uint64_t ns)
{
	return (double)bytes * 1e9 / (double)(ns ? ns : 1);
}

static uint64_t look_again_ns(const struct migrate *m)
{
	long cpus = sysconf(_SC_NPROCESSORS_ONLN), readers = m->nr_channels * m->nr_workers;
	double rate = m->nr_looked ? rate_of(m->nr_looked, m->look_ns) : rate_of(m->nr_read, m->read_ns);

	rate *= (double)(readers < cpus ? readers : cpus);
	return rate > 0 ? (uint64_t)((double)m->nr_again * 1e9 / rate) : 0;
}

static uint64_t idle_ns(const struct migrate *m)
{
	return OVERHEAD_NS + m->choosing_ns + ROUND_TRIPS * m->trip_ns + look_again_ns(m);
}

// The bytes that are to be sent while the VM stands.
static double foreseen_bytes(const struct migrate *m, uint64_t nr_pages)
{
	return (double)(nr_pages * PAGE_SIZE) + (double)m->dirty_rate * (double)LAG_NS / 1e9;
}

static uint64_t foreseen_ns(const struct migrate *m, uint64_t nr_pages)
{
	return idle_ns(m) + (uint64_t)(foreseen_bytes(m, nr_pages) * 1e9 / (double)(m->rate ? m->rate : UNKNOWN_RATE));
}

// Pages that are zero cost next to nothing, so they do not count; unless there is nothing else to measure by.
static void measure(struct migrate *m, uint64_t nr_pages, uint64_t round_ns, uint64_t trip_ns)
{
	uint64_t nr_sent = 0;

	for (unsigned i = 0; i < m->nr_channels; i++)
		nr_sent += m->channels[i].nr_pages;
	if (!m->rate && nr_sent * PAGE_SIZE < SMALL_ROUND)
		nr_sent = nr_pages;
	if (nr_sent * PAGE_SIZE >= SMALL_ROUND)
		m->rate = (uint64_t)rate_of(nr_sent * PAGE_SIZE, round_ns);
	else if (nr_pages * PAGE_SIZE < SMALL_ROUND)
		m->trip_ns = trip_ns;
}

static int send_round(struct migrate *m, uint64_t nr_pages)
{
	uint64_t begun = clock_now_ns(), sent;
	int r = migrate_send_round(m);

	sent = clock_now_ns();
	if (!r)
		r = migrate_round_taken(m);
	if (!r)
		measure(m, nr_pages, clock_now_ns() - begun, clock_now_ns() - sent);
	return r;
}

static int take_and_choose(struct migrate *m, bool first, uint64_t *nr_pages)
{
	uint64_t begun = clock_now_ns();
	int r = take(m);

	if (!r)
		r = migrate_choose(m, first, false, nr_pages);
	m->choosing_ns = clock_now_ns() - begun;
	return r;
}

static int refuse_limit(const struct migrate *m)
{
	log_err("--downtime-limit %u is less than even an idle VM takes: about %lu ms. It runs on here", m->o->downtime_ms,
		m->least_idle_ns / NSEC_PER_MSEC + 1);
	return -EAGAIN;
}

// What would have to be different for this VM to get away.
static int give_up(struct migrate *m, uint64_t nr_pages)
{
	char dirty[16], rate[16], left[16], need[16];
	uint64_t ns = foreseen_ns(m, nr_pages), within = (uint64_t)m->o->downtime_ms * NSEC_PER_MSEC;
	uint64_t for_pages = within > idle_ns(m) ? within - idle_ns(m) : NSEC_PER_MSEC;

	log_err("pre-copy does not get to an end: in %u rounds %s are left each time; the VM writes to about %s a second, the line carries %s a "
		"second. To move it this way takes --downtime-limit %lu, or a line of %s a second, or a VM that writes less; or --lazy: it runs there at "
		"once, and what is left follows. It runs on here",
		m->round, size_format(nr_pages * PAGE_SIZE, left), size_format(m->dirty_rate, dirty), size_format(m->rate, rate),
		ns / NSEC_PER_MSEC + 1, size_format((uint64_t)(foreseen_bytes(m, nr_pages) * 1e9 / (double)for_pages), need));
	return -EAGAIN;
}

static void tell(struct migrate *m, uint64_t nr_pages)
{
	char left[16], dirty[16], rate[16], text[160];

	snprintf(text, sizeof text, "round %u: %s/s; the VM writes to %s/s; %s are left, a standstill of %lu ms is foreseen", m->round,
		 size_format(m->rate, rate), size_format(m->dirty_rate, dirty), size_format(nr_pages * PAGE_SIZE, left),
		 foreseen_ns(m, nr_pages) / NSEC_PER_MSEC);
	log_info("%s", text);
	if (log_max() < LOG_INFO)
		progress_line(text);
}

static int go_lazy(struct migrate *m, uint64_t nr_pages)
{
	char dirty[16], rate[16], left[16];

	m->goes_lazy = true;
	if (m->o->lazy == MIGRATE_LAZY_AUTO)
		log_warn("it goes lazily, since pre-copy does not get to an end: after %u rounds %s are left, the VM writes to %s/s, the line carries %s/s, "
			 "which is a standstill of %lu ms; what is left comes when it runs there",
			 m->round, size_format(nr_pages * PAGE_SIZE, left), size_format(m->dirty_rate, dirty), size_format(m->rate, rate),
			 foreseen_ns(m, nr_pages) / NSEC_PER_MSEC + 1);
	return 0;
}

// Its standstill will not be as short as it is to be.
static int is_too_long(struct migrate *m, uint64_t nr_pages)
{
	if (!m->src.was_running)
		return 0;
	if (m->o->lazy != MIGRATE_WHOLE)
		return go_lazy(m, nr_pages);
	return m->round > 1 && m->least_idle_ns > (uint64_t)m->o->downtime_ms * NSEC_PER_MSEC ? refuse_limit(m) : give_up(m, nr_pages);
}

// The VM can be stopped now; or -EAGAIN: its standstill will never be as short as it is to be; or -EALREADY: another round.
static int may_stop(struct migrate *m, uint64_t nr_pages)
{
	uint64_t limit = (uint64_t)m->o->downtime_ms * NSEC_PER_MSEC, idle = idle_ns(m);

	if (!m->src.was_running && !nr_pages)
		return 0;
	if (m->round == 1 || idle < m->least_idle_ns)
		m->least_idle_ns = idle;
	if (m->round > 1 && m->least_idle_ns > limit) // one look may have waited for a slow disk
		return -EAGAIN;
	if (!m->trip_ns && m->round == 1 && nr_pages * PAGE_SIZE < SMALL_ROUND)
		return -EALREADY;
	return foreseen_ns(m, nr_pages) <= limit ? 0 : -EALREADY;
}

static void begin_progress(struct migrate *m, uint64_t nr_pages)
{
	static const char *const what[] = { "round 1: all of memory", "round 2: what was written since", "round 3: what was written since",
					    "further rounds: what was written since" };

	progress_begin(&m->progress, what[m->round < ARRAY_SIZE(what) ? m->round : ARRAY_SIZE(what) - 1], nr_pages * PAGE_SIZE);
}

// After an error some may be sending still.
static void end_progress(struct migrate *m)
{
	pthread_mutex_lock(&m->lock);
	progress_end(&m->progress);
	pthread_mutex_unlock(&m->lock);
}

// One round, and the choice of what a further one would send.
static int make_round(struct migrate *m, uint64_t *nr_pages)
{
	int r;

	begin_progress(m, *nr_pages);
	r = send_round(m, *nr_pages);
	end_progress(m);
	if (!r)
		r = migrate_look_up(m);
	if (!r && m->round == 1) // not later: it takes a while, in which the VM writes
		r = migrate_find_hot_pages(m);
	return r ? r : take_and_choose(m, false, nr_pages);
}

// A paused VM's disks are its QEMU's until that ends (give_up_disks()), and who says `cont` to it there is not to wait for its last page.
static bool goes_whole(const struct migrate *m)
{
	bool whole = m->o->lazy == MIGRATE_LAZY && !m->src.was_running && m->src.nr_disks;

	if (whole)
		log_warn("the VM is paused, and its disks are free for the other host only when it has ended here: so all its memory is sent "
			 "first, not lazily");
	return whole;
}

// Leaves due what a further round would send.
int migrate_precopy(void *ctx)
{
	struct migrate *m = ctx;
	bool whole = goes_whole(m);
	uint64_t nr_pages, least = UINT64_MAX, taken_ns = clock_now_ns();
	unsigned stalled = 0;
	int r, may = -EALREADY;

	m->least_idle_ns = OVERHEAD_NS;
	if (m->src.was_running && OVERHEAD_NS > (uint64_t)m->o->downtime_ms * NSEC_PER_MSEC)
		return refuse_limit(m);
	r = take_and_choose(m, true, &nr_pages);
	while (!r && may == -EALREADY && stalled < STALLED && (whole || m->round < m->o->max_rounds)) {
		uint64_t now, written;

		r = make_round(m, &nr_pages);
		if (r)
			break;
		now = clock_now_ns();
		written = nr_pages * PAGE_SIZE;
		m->dirty_rate = (uint64_t)rate_of(written, now - taken_ns);
		taken_ns = now;
		tell(m, nr_pages);
		may = may_stop(m, nr_pages);
		stalled = written < least - least / 10 ? 0 : stalled + 1;
		least = written < least ? written : least;
	}
	if (r)
		return r;
	if (m->o->lazy == MIGRATE_LAZY && !whole && (m->src.was_running || nr_pages))
		return go_lazy(m, nr_pages);
	return may ? is_too_long(m, nr_pages) : 0;
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
	if (!r)
		r = migrate_round_taken(m);
	if (!r && m->lines) // its memory changes no more, and they know there what comes later
		lines_hold(m->lines, false);
	return r;
}
