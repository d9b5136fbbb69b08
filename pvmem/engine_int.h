// SPDX-License-Identifier: GPL-2.0-only
// Shared by the files of the paging engine only.
#pragma once
#include "mm/pagemap.h"
#include "mm/uffd.h"
#include "mm/zap.h"
#include "pvmem/engine.h"
#include "pvmem/folio.h"
#include "pvmem/snapshot.h"
#include "pvmem/streams.h"
#include "pvmem/tables.h"
#include "pvmem/warm.h"
#include "util/clock.h"
#include "util/loop.h"
#include "util/probe.h"

// A chunk on its way from the source into memory, or into the swap image.
struct pv_fill_copy {
	struct loop_op op;
	struct pv_source_read source; // its pages: what is copied; its dest: a buffer of ours
	struct pv_engine *e;
	uint64_t begun_ns;
	size_t first, nr; // the run of pages that is being written
	unsigned nr_again; // of its pages the guest has asked for so many meanwhile
	bool busy;
};

#define PV_FILL_COPIES 4
#define PV_FILL_IN_MEMORY 256 // chunks of any hotness that are in memory in part
#define PV_FILL_ANY (-1)

struct pv_fill {
	bool active;
	uint64_t behind, end; // no chunk before `behind`, nor from `end` on, needs the source
	uint64_t next;        // the search for another one to be filled
	uint64_t last;        // of the chunks that the last search has come by, behind the last one that needs the source
	int level;            // what it is for: a hotness, or one of those below
	uint64_t levels[BITMAP_WORDS(256)]; // of hotness, that there are
	unsigned nr_busy;
	struct pv_fill_copy copy[PV_FILL_COPIES];
	uint64_t not_before_ns, failing_since_ns; // after an error; 0: the last copy went well
	uint64_t search_ns;   // not before then, since a search has found nothing
	uint64_t answer_ns, last_answer_ns; // the shortest time in which the source has answered the guest: in this period, in one before
	struct loop_timer timer;
};

struct pv_snapping {
	struct pv_snapshot *s; // NULL: there is none
	int shadow_fd;
	uint64_t shadow_max;   // pages
	uint64_t shadow_pages; // in it; or more, if the reader has given some back
	uint64_t next;         // the search for a chunk that is mapped
	uint64_t mapped;       // in this pass; UINT64_MAX before the first
	uint64_t waiting_since_ns; // a mapping waits for the reader, and none has got on; 0: none waits
	bool saving;           // TAKEN
};

#define PV_SAMPLE_SHARE_MIN 1
#define PV_SAMPLE_SHARE_MAX 8

// MINOR sampling: how many pages may be in the stage IDLE, by what it costs (access_minor.c).
struct pv_sampling {
	unsigned share;         // one part in 2^share of the budget
	uint64_t touches, zaps; // in this period
	unsigned periods_left;  // in which it goes on without a page-out
};

#define PV_BOUNCES 8 // buffers of a chunk each: 8 MiB

// What is to come of a chunk, or a block, of which the touched page comes first.
struct pv_rest {
	uint64_t chunk;
	uint64_t pages[PV_WORDS], samples[PV_WORDS];
};
#define PV_RESTS 16

#define PV_AHEADS 16 // streams whose next pages are to be brought

// A window of a stream, on its way.
struct pv_bringing {
	struct pv_ahead whole, left; // what is to be brought; what of it has not been asked for yet
	bool marked;
};

#define PV_GENTLE_PAGES 32 // read or written at a time, see pv_goes_gently()
#define PV_GENTLE_NS (20 * NSEC_PER_MSEC)

struct pv_engine {
	struct pv_opts o;
	struct pv_block *blocks;
	struct pv_chunk *chunks;
	struct pv_maps *maps; // one a chunk
	uint64_t nr_chunks;
	struct pv_queues queues;
	struct list once;    // chunks that a scan went through, the oldest first
	uint64_t nr_once, nr_scanned; // of these; that were, and are being zapped, or IDLE
	bool active; // something was paged in this period

	struct pv_adapt adapt;
	struct pv_streams streams;
	struct pv_bringing ahead[PV_AHEADS];
	unsigned nr_ahead, aheads_busy; // waiting; reads in flight
	struct pv_rest rest[PV_RESTS];
	unsigned nr_rests, rests_busy; // waiting; being read
	struct pv_sampling sampling;
	struct pv_access_idle *access_idle; // NULL: another provider

	// Pages. charged: valid, or being read. low, target, reserve: see the drawing.
	// goal: what the budget is to be; it is larger while it shrinks.
	uint64_t ram, goal, budget, target, low, reserve, charged;
	uint64_t missing; // pages: of the home SOURCE, and not valid

	// Page-out, by stage. Pages: nr_idle in the stages to IDLE, nr_out from drain to write, nr_standby in standby.
	bool held;
	// Draining are: leaving, too late for the drain under way; draining, in it; drained, waiting to be written.
	struct list zapping, idle, leaving, draining, drained, writing, standby;
	struct list writes, writes_waiting; // write-outs in flight; and to come, which the chunk's nr_writes counts, too
	unsigned nr_writes, writing_pages; // in flight
	uint64_t nr_idle, nr_out, nr_standby;
	unsigned nr_zapping;
	bool drain_busy, drain_failing;
	uint64_t begun_ns, drain_begun_ns, next_drain_ns, out_not_before_ns;
	struct loop_timer drain_timer;
	struct loop_op zap_poll;

	uint64_t lock_next;           // the chunk whose pages in memory are locked next; nr_chunks: all are
	struct loop_timer lock_timer;

	struct list remap;            // mappings whose CONTINUE met an event in progress
	unsigned nr_fast_remaps;      // of these, to be tried at once
	struct loop_timer remap_timer;
	struct list delayed;          // faults that wait for memory
	struct loop_timer delay_timer;

	struct pv_stats stats;        // what is counted; the rest is filled in by pv_engine_stats()
	unsigned reads_waiting, swap_reads_waiting; // all of them; from swap
	bool drain_late;
	const char *trouble;
	int trouble_err;
	uint64_t out_failing_since_ns; // 0: page-outs go well

	struct pv_folio folio;
	char *bounce[PV_BOUNCES]; // allocated when needed first
	uint32_t bounces_busy;    // a bit each

	struct pv_fill fill;
	struct pv_warm warm;
	struct pv_tables tables;
	struct pv_snapping snapping;
	uint64_t last_page_in_ns;
	uint64_t page_awaited_ns, stream_awaited_ns; // when the guest had last to wait for a page; for one that comes ahead of it
};

// page-in: the reading of a run of pages of one chunk.
struct pv_request {
	struct loop_op op;       // swap
	struct loop_timer retry; // after an error
	struct pv_source_read source;
	struct pv_engine *e;
	struct pv_request *next; // of the chunk
	uint64_t chunk;
	enum pv_home from;
	uint64_t pages[PV_WORDS]; // still wanted: a page that the guest discards meanwhile is taken out
	uint64_t submitted[PV_WORDS]; // as being read into the memfd: nobody else may touch these there
	uint64_t asked[PV_WORDS]; // somebody waits for them
	uint64_t leave[PV_WORDS]; // not to be mapped when they have come, unless somebody asks
	char *dest;               // where page 0 of the chunk would be read to
	int bounce;               // the buffer that this is, from which it goes into the memfd; or -1
	uint64_t begun_ns;
	bool samples;             // what is left unmapped is to be looked at when the chunk goes
	unsigned *busy;           // it counts there; or NULL
	bool waiting;
};

static inline struct pv_pages *pv_pages_of(const struct pv_engine *e, uint64_t chunk)
{
	return &e->o.pages[chunk];
}

static inline struct pv_maps *pv_maps_of(const struct pv_engine *e, uint64_t chunk)
{
	return &e->maps[chunk];
}

static inline uint64_t pv_chunk_index(const struct pv_engine *e, const struct pv_chunk *c)
{
	return (uint64_t)(c - e->chunks);
}

static inline uint64_t pv_free_pages(const struct pv_engine *e)
{
	return e->budget > e->charged ? e->budget - e->charged : 0;
}

// Microseconds, in which nothing of it can be mapped, nor asked for.
static inline bool pv_is_unmapping(const struct pv_chunk *c)
{
	return c->state == PV_ZAPPING || c->state == PV_STRIPPING;
}

// engine.c
// pv_chunk_set_state(), for who traces it.
void pv_enter_state(const struct pv_engine *e, struct pv_chunk *c, enum pv_chunk_state to);
const struct pv_block *pv_block_of(const struct pv_engine *e, uint64_t chunk);
unsigned pv_chunk_nr_pages(const struct pv_engine *e, uint64_t chunk);
uint64_t pv_chunk_hva(const struct pv_engine *e, uint64_t chunk);
char *pv_chunk_map(const struct pv_engine *e, uint64_t chunk);
// After I/O of a chunk has ended or a page of it is gone: puts it where it belongs.
void pv_chunk_settle(struct pv_engine *e, uint64_t chunk);
// Takes a resident chunk off its queue, or the list of those used once. Harmless if it is on neither.
void pv_chunk_unlist(struct pv_engine *e, struct pv_chunk *c);
void *pv_alloc(size_t len);
// How many pages of a chunk only the source has. Whoever changes that counts before and after, for e->missing.
uint64_t pv_chunk_missing(const struct pv_engine *e, uint64_t chunk);

// Of these pages, those that only the source has, and on the images' side of it; or on the other one.
void pv_keep_side(const struct pv_engine *e, uint64_t chunk, bool images, uint64_t map[PV_WORDS]);

// What pv_fault() does, and does again for a fault that was delayed.
void pv_serve(struct pv_engine *e, uint64_t off, bool vcpu, bool overdue);

// drop.c
// Gives memory of the memfd back.
void pv_punch_pages(struct pv_engine *e, uint64_t chunk, const uint64_t which[PV_WORDS]);
// The same of a chunk of which nothing is valid, nor being read.
void pv_punch_chunk(struct pv_engine *e, uint64_t chunk);
// Punches pages that are valid, or were being read. They are charged no longer, and valid no longer.
void pv_drop_pages(struct pv_engine *e, uint64_t chunk, const uint64_t which[PV_WORDS]);

// map.c
// Maps valid pages into QEMU and wakes who waits for them. Never fails: what can't be done now is done later.
void pv_map_pages(struct pv_engine *e, uint64_t chunk, const uint64_t which[PV_WORDS]);
// The same of a page that is valid and was touched, and of what goes with it; they are taken back if they are on their way out.
void pv_map_touched(struct pv_engine *e, uint64_t chunk, unsigned page);
// These are not in memory any more, and so neither mapped nor on their way out.
void pv_forget_pages(struct pv_engine *e, uint64_t chunk, const uint64_t which[PV_WORDS]);
// Nothing of the chunk is mapped into QEMU.
void pv_forget_mappings(struct pv_engine *e, uint64_t chunk);
// Nor into us.
void pv_unmap_own(const struct pv_engine *e, uint64_t chunk);
// What could not be done before, if it is time.
void pv_retry_maps(struct pv_engine *e);
void pv_remap_timer_done(struct loop_op *op, int res);

// page_read.c
// The pages of a chunk that are being read into the memfd.
void pv_pages_in_flight(const struct pv_chunk *c, uint64_t map[PV_WORDS]);
// Books pages that are about to be in the memfd, and keeps the chunk from being a victim until pv_chunk_settle().
void pv_expect_pages(struct pv_engine *e, uint64_t chunk, const uint64_t pages[PV_WORDS]);
void pv_requests_drop_page(struct pv_chunk *c, unsigned page);
// Somebody waits for a page. True: it is on its way, and he goes on when it has come.
bool pv_requests_ask(struct pv_chunk *c, unsigned page);
// Begins to read pages that are neither valid nor in flight, each from its home. There is room for them.
struct pv_reading {
	uint64_t chunk;
	const uint64_t *asked; // somebody waits for these; PV_WORDS each
	const uint64_t *leave; // these are not mapped when they have come, unless somebody asks
	bool samples;          // what is left so is to be looked at when the chunk goes
	unsigned *busy;        // the reads count there, until they end; or NULL
	uint64_t now;
	char *dest;            // its own
};
void pv_read_pages(struct pv_engine *e, struct pv_reading *rd, const uint64_t want[PV_WORDS]);

// page_in.c
// Brings in the page, and what goes with it while there is room; overdue: the fault was delayed, and may overdraw now.
void pv_page_in(struct pv_engine *e, uint64_t chunk, unsigned page, bool vcpu, bool overdue);
// Serves delayed faults for which there is memory now.
void pv_serve_delayed(struct pv_engine *e);
void pv_delay_timer_done(struct loop_op *op, int res);

// page_ahead.c
// The page was touched, and was not mapped; it is in memory now, or on its way there.
void pv_look_ahead(struct pv_engine *e, uint64_t chunk, unsigned page);
// What streams will touch, as far as there is room.
void pv_bring_ahead(struct pv_engine *e);
// Reads these pages of a chunk that is not being unmapped, whatever their home, though nobody asked for them. They stay unmapped, what is
// in memory, or on its way there, is left out. The caller has made room.
void pv_bring(struct pv_engine *e, uint64_t chunk, const uint64_t pages[PV_WORDS]);

// page_out.c
// One step of keeping pages free.
void pv_page_out(struct pv_engine *e);
bool pv_is_out(const struct pv_chunk *c);
// There are chunks to be punched ahead of need.
bool pv_may_punch(const struct pv_engine *e);
// The chunk, somewhere on its way out but not being zapped, is resident again, with what of it is in memory.
void pv_rescue(struct pv_engine *e, uint64_t chunk);
// An idle chunk is resident again, unmapped and where it was on the queues.
void pv_leave_idle(struct pv_engine *e, uint64_t chunk);
// Pages of a chunk on its way out that go no further: touched, or not in memory any more. Others have no effect.
void pv_stay(struct pv_engine *e, uint64_t chunk, const uint64_t which[PV_WORDS]);
void pv_drain_timer_done(struct loop_op *op, int res);
// Punches standby chunks, at most so many, until so many pages are free. False: there are not enough.
bool pv_make_free(struct pv_engine *e, uint64_t pages, unsigned max);
void pv_zap_poll_done(struct loop_op *op, int res);
// What came unasked, was left unmapped to see, and still is: it was of no use.
void pv_learn_unused(struct pv_engine *e, uint64_t chunk);
// Begins to unmap a resident chunk; only: and nothing else. To be followed by mm_zap_submit(). 0, -EBUSY: not now, or why this one
// cannot be zapped.
int pv_zap(struct pv_engine *e, struct pv_chunk *c, bool only);
// The chunk goes on to a stage: on its list, and counted there.
void pv_enter_stage(struct pv_engine *e, struct pv_chunk *c, enum pv_chunk_state s, struct list *l);
// Page-out does not get on: why (what: static), for stat; nothing more goes out for a while.
void pv_out_failed(struct pv_engine *e, const char *what, int err);

// write_out.c
// Nothing can change what is on its way out of the chunk: QEMU has no mapping of it, and all I/O that knew its pages has ended. Goes on
// to standby when it is written.
void pv_write_out(struct pv_engine *e, uint64_t chunk);
// The guest waits for single pages now and then, and memory is not short: what nobody waits for is read and written by little and little.
bool pv_goes_gently(const struct pv_engine *e, uint64_t now);
// Begins writes that wait, as many as there may be at a time.
void pv_write_on(struct pv_engine *e);
// Of write-outs in flight: what these pages hold has changed meanwhile.
void pv_writes_are_old(struct pv_engine *e, uint64_t chunk, const uint64_t written[PV_WORDS]);

// snapshot.c
// Chunks lose their mappings for it, and get few pages at a time mapped again.
bool pv_snapshot_is_on(const struct pv_engine *e);
// Of nr pages that are valid and to be mapped, how many may be, the first ones: what has to be saved of them is.
unsigned pv_snapshot_save(struct pv_engine *e, uint64_t chunk, unsigned first, unsigned nr);
// The guest has given the page back; its home is still what it was.
void pv_snapshot_discard(struct pv_engine *e, uint64_t chunk, unsigned page);
// One step. True: do another round now.
bool pv_snapshot_step(struct pv_engine *e);

// access_minor.c
// How many pages are to be idle now, in all.
uint64_t pv_sampling_goal(const struct pv_engine *e);
void pv_sampling_tick(struct pv_engine *e);

// harvest.c
// What QEMU wrote to since the chunk was brought in, or harvested. Nothing of it is mapped any more.
void pv_harvest_zapped(struct pv_engine *e, uint64_t chunk);
// The same of one chunk as pv_engine_harvest().
void pv_harvest_chunk(struct pv_engine *e, uint64_t chunk);

// fill.c
// One step, if it is time for one. True: the search goes on, do another round now.
bool pv_fill(struct pv_engine *e);
// A copy has ended, or could not be read or written (-errno, what: as for pv_source_done()).
void pv_fill_done(struct pv_engine *e, int err, const char *what);
// It took the source so long to answer a fault.
void pv_fill_answered(struct pv_engine *e, uint64_t ns);
void pv_fill_tick(struct pv_engine *e);
void pv_fill_init(struct pv_engine *e);
void pv_fill_fini(struct pv_engine *e);

// fill_copy.c
// Begins to bring pages of the home SOURCE here, to where there is room when they come. There is a copy that is not busy, the chunk
// has no I/O in flight, and is not on its way out, or in standby. Ends in pv_fill_done().
void pv_fill_copy_begin(struct pv_engine *e, uint64_t chunk, const uint64_t pages[PV_WORDS]);
bool pv_fill_is_copied(const struct pv_engine *e, uint64_t chunk);
// The pages that a copy brings, and that do not come along with a page that was touched.
void pv_fill_not_again(const struct pv_engine *e, uint64_t chunk, unsigned page, uint64_t map[PV_WORDS]);
// These are asked for by the guest: they come twice, if a copy brings them.
void pv_fill_asked_again(struct pv_engine *e, uint64_t chunk, const uint64_t pages[PV_WORDS]);
void pv_fill_copies_fini(struct pv_engine *e);
