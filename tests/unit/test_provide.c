// SPDX-License-Identifier: GPL-2.0-only
// The answering side of a page line: over TCP, who asks is the test.
#include <errno.h>
#include <stdatomic.h>

#include "criu-vm/provide.h"
#include "tests/unit/wire_pair.h"
#include "util/bitmap.h"
#include "util/clock.h"
#include "util/size.h"

#define NR WIRE_CHUNK_PAGES
#define FIRST_CHUNKS 4 // of block 0, the last of them short
#define SHORT 5        // pages
#define GARBAGE 0xee

static const uint64_t lens[] = { (FIRST_CHUNKS - 1) * WIRE_CHUNK_SIZE + SHORT * PAGE_SIZE, WIRE_CHUNK_SIZE };

static struct rig {
	struct pair pair;
	struct provider p;
	struct provided all;
	bool background;
	pthread_t thread;
	struct wire_pages *asker;
	char *taken; // a chunk
	// The provider's.
	atomic_uint reads, introductions;
	atomic_bool end;
	atomic_int read_error; // of block 1
	unsigned read_ms;      // that it takes
	uint64_t told;         // bytes, to wait_turn()
	// What came of it.
	int ret;
	enum wire_line_state state;
	enum wire_refusal why;
} rig;

static bool is_zero(unsigned page)
{
	return page % 7 == 3;
}

static void content_of(char *buf, uint32_t block, uint64_t chunk, unsigned page)
{
	uint32_t *word = (uint32_t *)buf, seed = block * 1000003 + (uint32_t)chunk * 4099 + page * 17 + 1;

	for (size_t i = 0; i < PAGE_SIZE / sizeof *word; i++)
		word[i] = is_zero(page) ? 0 : page % 2 ? seed : (seed = seed * 1664525 + 1013904223); // of some, little is left by zstd
}

static int read_pages(void *ctx, uint32_t block, uint64_t chunk, const uint64_t want[4], char *buf)
{
	struct rig *r = ctx;

	r->reads++;
	if (r->read_ms)
		usleep(r->read_ms * 1000);
	if (block == 1 && r->read_error)
		return r->read_error;
	memset(buf, GARBAGE, WIRE_CHUNK_SIZE); // what is not asked for may be anything
	for (unsigned page = 0; page < NR; page++)
		if (bitmap_test(want, page))
			content_of(buf + page * PAGE_SIZE, block, chunk, page);
	return 0;
}

static void wait_turn(void *ctx, uint64_t bytes)
{
	((struct rig *)ctx)->told += bytes;
}

static void introduced(void *ctx)
{
	((struct rig *)ctx)->introductions++;
}

static bool ending(void *ctx)
{
	return ((struct rig *)ctx)->end;
}

static void *serve(void *arg)
{
	struct rig *r = arg;

	r->state = 77;
	r->ret = provide(&r->p, r->pair.client, r->background, &r->all, &r->state, &r->why);
	wire_close(r->pair.client);
	r->pair.client = NULL;
	return NULL;
}

static void begin(void)
{
	pair_must_open(&rig.pair);
	ck_assert_int_eq(wire_pages_new(rig.pair.server, &rig.asker), 0);
	ck_assert_int_eq(pthread_create(&rig.thread, NULL, serve, &rig), 0);
}

// What provide() has returned.
static int finish(void)
{
	pthread_join(rig.thread, NULL);
	wire_pages_free(rig.asker);
	pair_close(&rig.pair);
	return rig.ret;
}

static void setup(void)
{
	log_init(getenv("VERBOSE") ? 2 : -1, LOG_WARN, NULL, false); // the messages are expected
	srandom(1);
	rig = (struct rig){ .p = { .ctx = &rig, .block_len = lens, .nr_blocks = ARRAY_SIZE(lens), .read = read_pages, .introduced = introduced } };
	for (unsigned i = 0; i < WIRE_LINE_ID_LEN; i++)
		rig.p.id[i] = (uint8_t)(0x80 + i);
	rig.taken = aligned_alloc(PAGE_SIZE, WIRE_CHUNK_SIZE);
}

static void teardown(void)
{
	free(rig.taken);
}

static void say_left(enum wire_line_state state, uint64_t missing)
{
	ck_assert_int_eq(wire_line_left(rig.asker, state, missing, rig.p.id), 0);
}

// The next answer, and how often it was said before that somebody is there.
static unsigned answer(struct wire_frame *f)
{
	for (unsigned alive = 0;; alive++) {
		ck_assert_int_eq(wire_poll(rig.pair.server, PATIENCE_MS), 1);
		ck_assert_int_eq(wire_pages_receive(rig.asker, f, rig.taken), 0);
		if (f->type != WIRE_ALIVE)
			return alive;
	}
}

static struct wire_frame ask(uint32_t block, uint64_t chunk, unsigned first, unsigned nr)
{
	struct wire_frame want = { .block = block, .chunk = chunk };

	bitmap_set_range(want.present, first, nr);
	ck_assert_int_eq(wire_line_want(rig.asker, block, chunk, want.present), 0);
	return want;
}

// All that was asked for, nothing else, and right.
static void check_answer(const struct wire_frame *want)
{
	struct wire_frame f;
	char page[PAGE_SIZE];
	const char *at = rig.taken;

	answer(&f);
	ck_assert_int_eq(f.type, WIRE_PAGES);
	ck_assert_uint_eq(f.round, 0);
	ck_assert_uint_eq(f.flags & ~WIRE_FLAG_ZSTD, 0);
	ck_assert(f.block == want->block && f.chunk == want->chunk);
	for (unsigned i = 0; i < NR; i++) {
		bool asked = bitmap_test(want->present, i);

		ck_assert_msg(bitmap_test(f.zero, i) == (asked && is_zero(i)), "page %u", i);
		ck_assert_msg(bitmap_test(f.present, i) == (asked && !is_zero(i)), "page %u", i);
		if (!bitmap_test(f.present, i))
			continue;
		content_of(page, f.block, f.chunk, i);
		ck_assert_msg(!memcmp(at, page, sizeof page), "page %u", i);
		at += PAGE_SIZE;
	}
}

static struct wire_frame ask_any(void)
{
	uint32_t block = random() % 2;
	uint64_t chunk = block ? 0 : (uint64_t)random() % FIRST_CHUNKS;
	unsigned pages = !block && chunk == FIRST_CHUNKS - 1 ? SHORT : NR, some = 1 + (unsigned)random() % 9;
	struct wire_frame want = { .block = block, .chunk = chunk };

	bitmap_set(want.present, (unsigned)random() % pages);
	for (unsigned i = 0; i < pages; i++)
		if (!(random() % some))
			bitmap_set(want.present, i);
	ck_assert_int_eq(wire_line_want(rig.asker, block, chunk, want.present), 0);
	return want;
}

START_TEST(answers_in_order)
{
	struct wire_frame want[WIRE_LINE_WANTS_MAX];
	uint64_t pages = 0, zero = 0;

	rig.p.zstd = _i & 1;
	rig.background = _i & 2;
	rig.p.wait_turn = wait_turn;
	begin();
	say_left(WIRE_LINE_WANTS, 5);
	for (int round = 0; round < 4; round++) {
		for (size_t i = 0; i < ARRAY_SIZE(want); i++)
			want[i] = ask_any();
		for (size_t i = 0; i < ARRAY_SIZE(want); i++) {
			check_answer(&want[i]);
			for (unsigned page = 0; page < NR; page++)
				if (bitmap_test(want[i].present, page))
					++*(is_zero(page) ? &zero : &pages);
		}
		say_left(WIRE_LINE_WANTS, 4);
	}
	say_left(WIRE_LINE_COMPLETE, 0);
	ck_assert_int_eq(finish(), 0);
	ck_assert_int_eq(rig.state, WIRE_LINE_COMPLETE);
	ck_assert_uint_eq(rig.all.pages, pages);
	ck_assert_uint_eq(rig.all.zero_pages, zero);
	ck_assert_uint_eq(rig.all.failed, 0);
	ck_assert_uint_eq(rig.all.missing, 0);
	ck_assert_uint_eq(rig.introductions, 1);
	if (rig.p.zstd)
		ck_assert_uint_lt(rig.all.bytes, pages * PAGE_SIZE);
	else
		ck_assert_uint_eq(rig.all.bytes, pages * PAGE_SIZE + 4 * ARRAY_SIZE(want) * WIRE_FRAME_LEN);
	if (rig.background) { // all but the last answer
		ck_assert_uint_le(rig.told, rig.all.bytes - WIRE_FRAME_LEN);
		ck_assert_uint_ge(rig.told, rig.all.bytes - WIRE_FRAME_LEN - WIRE_CHUNK_SIZE);
	} else {
		ck_assert_uint_eq(rig.told, 0);
	}
}
END_TEST

START_TEST(zeros_are_bits)
{
	struct wire_frame want, f;

	begin();
	say_left(WIRE_LINE_WANTS, 5);
	want = ask(0, 1, 3, 1);
	answer(&f);
	ck_assert(f.type == WIRE_PAGES && !f.length && !memcmp(f.zero, want.present, sizeof f.zero));
	want = ask(0, 0, 0, NR);
	check_answer(&want);
	say_left(WIRE_LINE_ENDED, 5);
	ck_assert_int_eq(finish(), 0);
	ck_assert_int_eq(rig.state, WIRE_LINE_ENDED);
	ck_assert_uint_eq(rig.all.missing, 5);
}
END_TEST

START_TEST(what_cannot_be_read_is_said)
{
	struct wire_frame want[3], f;

	rig.read_error = -EIO;
	begin();
	say_left(WIRE_LINE_WANTS, 5);
	want[0] = ask(0, 0, 0, 9);
	want[1] = ask(1, 0, 0, 9);
	want[2] = ask(0, 1, 0, 9);
	check_answer(&want[0]);
	answer(&f);
	ck_assert(f.type == WIRE_CANNOT && f.block == 1 && f.chunk == 0 && !memcmp(f.present, want[1].present, sizeof f.present));
	check_answer(&want[2]);
	rig.read_error = 0; // it can be read again
	want[1] = ask(1, 0, 0, 9);
	check_answer(&want[1]);
	say_left(WIRE_LINE_COMPLETE, 0);
	ck_assert_int_eq(finish(), 0);
	ck_assert_uint_eq(rig.all.failed, 1);
}
END_TEST

static const struct {
	uint32_t block;
	uint64_t chunk;
	unsigned page;
} outside[] = {
	{ 2, 0, 0 }, { UINT32_MAX, 0, 0 }, { 0, FIRST_CHUNKS, 0 }, { 1, 1, 0 }, { 0, UINT64_MAX, 0 }, { 0, 1UL << 44, 0 },
	{ 0, (1UL << 44) + 1, 0 }, { 0, FIRST_CHUNKS - 1, SHORT }, { 0, FIRST_CHUNKS - 1, NR - 1 }, { 0, FIRST_CHUNKS - 1, 64 },
};

START_TEST(pages_outside_break_the_line)
{
	begin();
	say_left(WIRE_LINE_WANTS, 5);
	ask(outside[_i].block, outside[_i].chunk, outside[_i].page, 1);
	ck_assert_int_eq(finish(), -EBADMSG);
	ck_assert_uint_eq(rig.reads, 0);
	ck_assert_int_eq(rig.state, WIRE_LINE_WANTS);
}
END_TEST

START_TEST(last_page_is_inside)
{
	struct wire_frame want;

	begin();
	say_left(WIRE_LINE_WANTS, 5);
	want = ask(0, FIRST_CHUNKS - 1, 0, SHORT);
	check_answer(&want);
	want = ask(1, 0, NR - 1, 1);
	check_answer(&want);
	say_left(WIRE_LINE_COMPLETE, 0);
	ck_assert_int_eq(finish(), 0);
}
END_TEST

START_TEST(nobody_asks_before_saying_who)
{
	begin();
	ask(0, 0, 0, 1);
	ck_assert_int_eq(finish(), -EBADMSG);
	ck_assert_uint_eq(rig.reads, 0);
	ck_assert_uint_eq(rig.introductions, 0);
}
END_TEST

// Of each byte of the id; what another one says is nothing to us, first or later.
START_TEST(another_id_is_not_acted_on)
{
	static const enum wire_line_state said[] = { WIRE_LINE_WANTS, WIRE_LINE_COMPLETE, WIRE_LINE_ENDED };
	bool later = _i >= WIRE_LINE_ID_LEN;
	uint8_t id[WIRE_LINE_ID_LEN];

	begin();
	memcpy(id, rig.p.id, sizeof id);
	id[_i % WIRE_LINE_ID_LEN] ^= 0x10;
	if (later)
		say_left(WIRE_LINE_WANTS, 5);
	ck_assert_int_eq(wire_line_left(rig.asker, said[_i % 3], 0, id), 0);
	ck_assert_int_eq(finish(), -ESTALE);
	ck_assert_int_eq(rig.state, WIRE_LINE_WANTS);
	ck_assert_uint_eq(rig.introductions, later);
	ck_assert_uint_eq(rig.all.missing, later ? 5 : 0);
}
END_TEST

// Of a served checkpoint, the token is the asker's own, and nothing else.
START_TEST(any_token_is_right)
{
	uint8_t id[WIRE_LINE_ID_LEN];
	bool token = _i < WIRE_TOKEN_LEN;

	rig.p.any_token = true;
	begin();
	memcpy(id, rig.p.id, sizeof id);
	id[_i] ^= 0x10;
	ck_assert_int_eq(wire_line_left(rig.asker, WIRE_LINE_COMPLETE, 0, id), 0);
	ck_assert_int_eq(finish(), token ? 0 : -ESTALE);
	ck_assert_int_eq(rig.state, token ? WIRE_LINE_COMPLETE : WIRE_LINE_WANTS);
}
END_TEST

START_TEST(refusals_are_passed_on)
{
	begin();
	ck_assert_int_eq(wire_line_refuse(rig.asker, _i), 0);
	ck_assert_int_eq(finish(), -ECONNREFUSED);
	ck_assert_int_eq(rig.why, _i);
	ck_assert_int_eq(rig.state, WIRE_LINE_WANTS);
}
END_TEST

// Frames of others, and one that is none.
START_TEST(other_frames_break_the_line)
{
	struct wire_frame f = { .type = (uint8_t)_i, .present = { 1 } };
	uint8_t garbage[WIRE_FRAME_LEN] = { 0 };

	if (_i == WIRE_WANT || _i == WIRE_LEFT || _i == WIRE_REFUSED)
		return;
	if (_i == WIRE_ROUND_END || _i == WIRE_ALIVE || _i == WIRE_OVER)
		f.present[0] = 0;
	begin();
	say_left(WIRE_LINE_WANTS, 5);
	if (_i)
		ck_assert_int_eq(wire_pages_send(rig.asker, &f, rig.taken, 0), 0);
	else
		ck_assert_int_eq(wire_write(rig.pair.server, garbage, sizeof garbage), 0);
	ck_assert_int_eq(finish(), -EBADMSG);
	ck_assert_int_eq(rig.state, WIRE_LINE_WANTS);
}
END_TEST

// Between frames, within one, or while answers are on their way that nobody reads.
START_TEST(a_lost_line_ends)
{
	begin();
	say_left(WIRE_LINE_WANTS, 5);
	if (_i == 1)
		ck_assert_int_eq(wire_write(rig.pair.server, "CVPG", 4), 0);
	for (int i = 0; _i == 2 && i < WIRE_LINE_WANTS_MAX; i++)
		ask(1, 0, 0, NR);
	if (_i == 2)
		usleep(300000); // it fills the line
	wire_close(rig.pair.server);
	rig.pair.server = NULL;
	ck_assert_int_eq(finish(), -ECONNRESET);
	ck_assert_int_eq(rig.state, WIRE_LINE_WANTS);
}
END_TEST

START_TEST(ends_when_told)
{
	uint64_t since;
	struct wire_frame want;

	rig.p.ending = ending;
	begin();
	say_left(WIRE_LINE_WANTS, 5);
	want = ask(0, 0, 0, 1);
	check_answer(&want);
	since = clock_now_ns();
	rig.end = true;
	ck_assert_int_eq(finish(), -ECANCELED);
	ck_assert_uint_lt(clock_now_ns() - since, 2 * NSEC_PER_SEC);
}
END_TEST

// Who asks is told that somebody is there, all the time; who says nothing itself is lost.
START_TEST(silence_is_a_loss)
{
	uint64_t since = clock_now_ns(), ms;
	struct wire_frame f;
	unsigned alive = 0;

	begin();
	say_left(WIRE_LINE_WANTS, 5);
	while (wire_poll(rig.pair.server, PATIENCE_MS) == 1 && !wire_pages_receive(rig.asker, &f, rig.taken)) {
		ck_assert_int_eq(f.type, WIRE_ALIVE);
		alive++;
	}
	ck_assert_int_eq(finish(), -ETIMEDOUT);
	ms = (clock_now_ns() - since) / NSEC_PER_MSEC;
	ck_assert_uint_ge(ms, WIRE_LINE_LOST_MS - 100);
	ck_assert_uint_ge(alive, 3);
	ck_assert_uint_le(alive, ms / WIRE_LINE_ALIVE_MS + 1);
}
END_TEST

// Also while it reads from a slow disk.
START_TEST(a_slow_read_is_no_loss)
{
	struct wire_frame f;

	rig.read_ms = 2 * WIRE_LINE_ALIVE_MS + 500;
	begin();
	say_left(WIRE_LINE_WANTS, 5);
	ask(0, 0, 0, 9);
	ck_assert_uint_ge(answer(&f), 2);
	ck_assert_int_eq(f.type, WIRE_PAGES);
	say_left(WIRE_LINE_COMPLETE, 0);
	ck_assert_int_eq(finish(), 0);
}
END_TEST

int main(void)
{
	Suite *s = suite_create("provide");
	TCase *tc = tcase_create("line");
	SRunner *sr;
	int failed;

	tcase_add_checked_fixture(tc, setup, teardown);
	tcase_set_timeout(tc, 60);
	tcase_add_loop_test(tc, answers_in_order, 0, 4);
	tcase_add_test(tc, zeros_are_bits);
	tcase_add_test(tc, what_cannot_be_read_is_said);
	tcase_add_loop_test(tc, pages_outside_break_the_line, 0, ARRAY_SIZE(outside));
	tcase_add_test(tc, last_page_is_inside);
	tcase_add_test(tc, nobody_asks_before_saying_who);
	tcase_add_loop_test(tc, another_id_is_not_acted_on, 0, 2 * WIRE_LINE_ID_LEN);
	tcase_add_loop_test(tc, any_token_is_right, 0, WIRE_LINE_ID_LEN);
	tcase_add_loop_test(tc, refusals_are_passed_on, WIRE_REFUSED_NOW, WIRE_REFUSED_FULL + 1);
	tcase_add_loop_test(tc, other_frames_break_the_line, 0, WIRE_OVER + 1);
	tcase_add_loop_test(tc, a_lost_line_ends, 0, 3);
	tcase_add_test(tc, ends_when_told);
	tcase_add_test(tc, silence_is_a_loss);
	tcase_add_test(tc, a_slow_read_is_no_loss);
	suite_add_tcase(s, tc);
	sr = srunner_create(s);
	srunner_run_all(sr, CK_ENV);
	failed = srunner_ntests_failed(sr);
	srunner_free(sr);
	return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
