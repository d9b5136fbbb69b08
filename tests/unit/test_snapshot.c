// SPDX-License-Identifier: GPL-2.0-only
// What is read of a snapshot is what the guest had at its instant, however it goes on; and whatever becomes of the reader, it does.
#include "reader_suite.h"

#define ROUNDS 6
#define SHADOW (64 * MiB)

struct shot {
	struct rig *r;
	struct pv_snapshot *s;
	struct pv_reader *reader;
	uint64_t (*todo)[PV_WORDS];
	uint64_t *seed; // of all pages, at the instant
	char *image;
	useconds_t slow; // for each chunk
	unsigned wanted;
	pthread_t thread;
	_Atomic bool reading;
	int err, shadow;
};

static void shot_init(struct shot *t, struct rig *r)
{
	*t = (struct shot){ .r = r, .todo = calloc(r->nr_chunks, sizeof *t->todo), .image = new_buffer(r->g->nr_pages) };
	t->seed = calloc(r->g->nr_pages, sizeof *t->seed);
}

static void shot_fini(struct shot *t)
{
	free(t->todo);
	free(t->image);
	free(t->seed);
}

static enum pv_snapshot_phase phase(const struct shot *t)
{
	return pv_snapshot_phase(t->s);
}

static void begin(struct shot *t, uint64_t shadow_max)
{
	struct pv_reader_opts o = { .pages = t->r->pages, .blocks = t->r->block, .nr_blocks = t->r->nr_blocks, .swap_fd = t->r->swap.fd, .ctx = t->r,
				    .source_read = read_source };

	t->s = mmap(NULL, pv_snapshot_size(t->r->nr_chunks), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	ck_assert(t->s != MAP_FAILED);
	ck_assert_int_eq(pv_snapshot_begin(t->r->e, t->s, shadow_max, &o.shadow_fd), 0);
	ck_assert_int_eq(pv_snapshot_begin(t->r->e, t->s, shadow_max, &o.shadow_fd), -EBUSY);
	o.shadow_fd = dup(o.shadow_fd); // as who opens it in /proc has it
	o.snapshot = t->s;
	ck_assert_int_eq(pv_reader_new(&o, &t->reader), 0);
	t->shadow = o.shadow_fd;
}

static void end(struct shot *t)
{
	pv_snapshot_end(t->r->e);
	pv_reader_free(t->reader);
	munmap(t->s, pv_snapshot_size(t->r->nr_chunks));
	close(t->shadow);
}

// The guest stands still.
static void instant(struct shot *t)
{
	uint64_t map[BITMAP_WORDS(GUEST_MAX_PAGES)];

	memcpy(t->seed, t->r->g->seed, t->r->g->nr_pages * sizeof *t->seed);
	pv_snapshot_instant(t->r->e);
	ck_assert_msg(rig_until(t->r, phase(t) == PV_SNAP_TAKEN, RIG_PATIENCE_MS), "phase %u", phase(t));
	for (size_t i = 0; i < t->r->nr_blocks; i++) {
		const struct pv_block *b = &t->r->block[i];

		ck_assert_int_eq(mm_pagemap_scan(t->r->pagemap, b->hva, b->len, MM_SCAN_PRESENT, map), 0);
		ck_assert(bitmap_empty(map, b->len / PAGE_SIZE));
	}
	for (uint64_t chunk = 0; chunk < t->r->nr_chunks; chunk++)
		pv_reader_take_dirty(t->reader, chunk, t->todo[chunk]);
}

static void save_chunk(struct shot *t, uint64_t chunk, char *buf)
{
	uint64_t present[PV_WORDS];
	int err;

	pv_reader_present(t->reader, chunk, present);
	err = pv_reader_read(t->reader, chunk, t->todo[chunk], buf);
	t->err = t->err ? t->err : err;
	for (size_t i = 0; i < PV_CHUNK_PAGES; i++)
		if (bitmap_test(t->todo[chunk], i) && rig_page(t->r, chunk * PV_CHUNK_PAGES + i)) {
			char *to = t->image + (chunk * PV_CHUNK_PAGES + i) * PAGE_SIZE;

			if (bitmap_test(present, i))
				memcpy(to, buf + i * PAGE_SIZE, PAGE_SIZE);
			else
				memset(to, 0, PAGE_SIZE);
		}
	pv_reader_done(t->reader, chunk);
}

static void *save(void *arg)
{
	struct shot *t = arg;
	char *buf = new_buffer(PV_CHUNK_PAGES);
	uint64_t wanted;

	for (uint64_t chunk = 0; chunk < t->r->nr_chunks; chunk++) {
		for (; pv_reader_wanted(t->reader, &wanted); t->wanted++)
			save_chunk(t, wanted, buf);
		if (!t->s->chunk[chunk].done)
			save_chunk(t, chunk, buf);
		usleep(t->slow);
	}
	free(buf);
	t->reading = false;
	return NULL;
}

static void read_all(struct shot *t)
{
	t->err = 0;
	t->reading = true;
	ck_assert_int_eq(pthread_create(&t->thread, NULL, save, t), 0);
	ck_assert(rig_until(t->r, !t->reading, RIG_PATIENCE_MS));
	pthread_join(t->thread, NULL);
	ck_assert_int_eq(t->err, 0);
	ck_assert_msg(phase(t) == PV_SNAP_TAKEN, "phase %u", phase(t));
}

static void compare(const struct shot *t)
{
	for (size_t i = 0; i < t->r->g->nr_pages; i++)
		if (rig_page(t->r, i) && !page_is(t->image + i * PAGE_SIZE, t->seed[i]))
			ck_abort_msg("page %zu of chunk %zu: was saved as %lx, was %lx, is %lx", i % PV_CHUNK_PAGES, i / PV_CHUNK_PAGES,
				     *(uint64_t *)(t->image + i * PAGE_SIZE), t->seed[i], t->r->g->seed[i]);
}

static const struct variant {
	enum mm_zap_method method;
	bool fill, dma;
	uint64_t shadow;
	useconds_t slow;
} variants[] = {
	{ MM_ZAP_RING, false, false, SHADOW, 0 }, { MM_ZAP_RING, false, true, SHADOW, 3000 }, { MM_ZAP_RING, true, true, SHADOW, 1000 },
	{ MM_ZAP_RING, false, true, MiB, 10000 }, { MM_ZAP_PAGEOUT, false, false, SHADOW, 1000 },
};

// The first one whole, the others increments.
START_TEST(snapshots)
{
	const struct variant *v = &variants[(size_t)_i % ARRAY_SIZE(variants)];
	struct shot t;
	struct rig r;

	SKIP_UNLESS_ZAP(v->method);
	init_mixed(&r);
	rig_page_by(&r, rig_way(_i));
	r.method = v->method;
	r.g->keeps = true;
	rig_start(&r);
	pv_engine_run(r.e);
	if (v->fill)
		pv_fill_begin(r.e);
	shot_init(&t, &r);
	t.slow = v->slow;
	begin_work(&r, v->dma);
	for (unsigned round = 0; round < ROUNDS; round++) {
		rig_pass(&r, 100);
		begin(&t, v->shadow);
		ck_assert(rig_until(&r, phase(&t) == PV_SNAP_READY, RIG_PATIENCE_MS));
		end_work(&r);
		instant(&t);
		if (!round)
			memset(t.todo, 0xff, r.nr_chunks * sizeof *t.todo);
		begin_work(&r, v->dma);
		ck_assert(rig_until(&r, t.s->shadow, RIG_PATIENCE_MS)); // the guest has written to what is to be saved
		read_all(&t);
		compare(&t);
		end(&t);
	}
	ck_assert(v->shadow == SHADOW ? !t.wanted : t.wanted);
	end_work(&r);
	rig_do(&r, 0, GUEST_VERIFY, 0, r.g->nr_pages);
	shot_fini(&t);
	rig_end(&r);
}
END_TEST

// ---- what goes wrong; the guest always goes on

static void start(struct rig *r, struct shot *t, uint64_t shadow_max)
{
	quiet();
	init_mixed(r);
	r->g->keeps = r->g->zeros = true;
	rig_start(r);
	pv_engine_run(r->e);
	rig_do(r, 0, GUEST_WRITE, 1000, 500);
	shot_init(t, r);
	begin(t, shadow_max);
}

static void take(struct rig *r, struct shot *t)
{
	ck_assert(rig_until(r, phase(t) == PV_SNAP_READY, RIG_PATIENCE_MS));
	instant(t);
}

static void finish(struct rig *r, struct shot *t)
{
	end(t);
	begin_work(r, true);
	rig_pass(r, 200);
	end_work(r);
	rig_do(r, 1, GUEST_VERIFY, 0, r->g->nr_pages);
	shot_fini(t);
	rig_end(r);
}

// Ended, or its reader gone, in each phase.
START_TEST(ended)
{
	struct shot t;
	struct rig r;

	start(&r, &t, SHADOW);
	if (_i >= 1)
		ck_assert(rig_until(&r, phase(&t) == PV_SNAP_READY, RIG_PATIENCE_MS));
	if (_i >= 2)
		pv_snapshot_instant(r.e);
	if (_i >= 3)
		ck_assert(rig_until(&r, phase(&t) == PV_SNAP_TAKEN, RIG_PATIENCE_MS));
	if (_i >= 4)
		rig_do(&r, 0, GUEST_WRITE, 0, 3000);
	pv_snapshot_end(r.e);
	ck_assert_int_eq(phase(&t), PV_SNAP_ENDED);
	finish(&r, &t);
}
END_TEST

// Nobody reads, and more is touched than may be saved.
START_TEST(reader_sleeps)
{
	uint64_t begun = clock_now_ns(), wanted = UINT64_MAX;
	struct shot t;
	struct rig r;

	start(&r, &t, MiB);
	take(&r, &t);
	rig_do(&r, 0, GUEST_WRITE, 1000, 300); // more than 1 MiB
	ck_assert_int_eq(phase(&t), PV_SNAP_FAILED);
	ck_assert_uint_ge(clock_now_ns() - begun, 4 * NSEC_PER_SEC);
	ck_assert(pv_reader_wanted(t.reader, &wanted) && wanted <= 1300 / PV_CHUNK_PAGES);
	finish(&r, &t);
}
END_TEST

// What the guest gives back: nothing is lost by it, or the snapshot fails.
static const struct {
	size_t first; // page
	bool written, read; // since the instant; by the reader
	enum pv_snapshot_phase becomes;
} discards[] = {
	{ 1000, false, false, PV_SNAP_FAILED }, // in memory
	{ 1000, true, false, PV_SNAP_TAKEN },
	{ 1000, false, true, PV_SNAP_TAKEN },
	{ PAGES / 2 - 20, false, false, PV_SNAP_FAILED }, // in the swap image
	{ PAGES / 2 - 20, false, true, PV_SNAP_TAKEN },
	{ 2100, false, false, PV_SNAP_TAKEN }, // empty
	{ 2100, true, false, PV_SNAP_TAKEN },
};

START_TEST(given_back)
{
	struct shot t;
	struct rig r;

	start(&r, &t, SHADOW);
	take(&r, &t);
	if (discards[_i].written)
		rig_do(&r, 1, GUEST_WRITE, discards[_i].first, 40);
	if (discards[_i].read) {
		memset(t.todo, 0xff, r.nr_chunks * sizeof *t.todo);
		read_all(&t);
	}
	rig_do(&r, 0, GUEST_DISCARD, discards[_i].first, 40);
	rig_pass(&r, 20);
	ck_assert_int_eq(phase(&t), discards[_i].becomes);
	if (phase(&t) == PV_SNAP_TAKEN && !discards[_i].read) {
		memset(t.todo, 0xff, r.nr_chunks * sizeof *t.todo);
		read_all(&t);
		compare(&t);
	}
	finish(&r, &t);
}
END_TEST

int main(void)
{
	Suite *s = suite_create("snapshot");

	add(s, ended, 5);
	add(s, reader_sleeps, 1);
	add(s, given_back, ARRAY_SIZE(discards));

	add(s, snapshots, rig_nr_ways() + 1);
	return run(s);
}
