// SPDX-License-Identifier: GPL-2.0-only
// A page line, and pages that come later: each type of frame arrives as it was sent, and has what is its own and nothing else.
#include <errno.h>
#include <pthread.h>

#include "tests/unit/wire_rig.h"
#include "util/bitmap.h"
#include "util/size.h"
#include "wire/pages_int.h"

#define MANY 2000 // frames

static struct wire_pages *near, *far; // the two ends
static struct wire_conn *other;
static uint8_t content[WIRE_CHUNK_SIZE], taken[WIRE_CHUNK_SIZE];

static void setup(void)
{
	rig_quiet();
	other = rig_other();
	ok(wire_pages_new(other, &far));
	ok(wire_pages_new(ours, &near));
}

static void teardown(void)
{
	wire_pages_free(near);
	wire_pages_free(far);
	wire_close(other);
	rig_close();
}

// One of each type, good.
static struct wire_frame frame_of(unsigned type)
{
	struct wire_frame f;

	memset(&f, 0, sizeof f); // compared with padding
	f.type = (uint8_t)type;
	if (type == WIRE_LATER)
		f.round = UINT16_MAX;
	if (type == WIRE_REFUSED)
		f.round = WIRE_REFUSED_CHECKPOINT;
	if (type == WIRE_LATER || type == WIRE_WANT || type == WIRE_CANNOT) {
		f.block = UINT32_MAX;
		f.chunk = UINT64_MAX;
		bitmap_set(f.present, 255);
	}
	if (type == WIRE_LEFT)
		f.chunk = UINT64_MAX;
	return f;
}

static int receive(struct wire_frame *f)
{
	memset(f, 0, sizeof *f);
	return wire_pages_receive(near, f, NULL);
}

static void arrives(struct wire_frame f)
{
	struct wire_frame got;

	ok(wire_pages_send(far, &f, NULL, 1));
	ok(receive(&got));
	ck_assert_mem_eq(&f, &got, sizeof got);
	ck_assert_int_eq(wire_poll(ours, 0), 0); // nothing behind it
}

static void is_refused(struct wire_frame f, const char *how)
{
	uint8_t head[WIRE_FRAME_LEN];
	struct wire_frame got = f;
	uint64_t sum;

	if (!f.length && !(f.flags & WIRE_FLAG_ZSTD)) // which sending sets
		ck_assert_msg(wire_pages_send(far, &got, NULL, 0) == -EINVAL, "sent: %s", how);
	wire_frame_pack(&f, 0, head);
	wire_frame_pack(&f, wire_frame_checksum(far, head, NULL, 0), head);
	ck_assert_msg(wire_frame_parse(head, &got, &sum) == -EBADMSG, "accepted: %s", how);
	ok(wire_write(other, head, sizeof head));
	ck_assert_int_eq(receive(&got), -EBADMSG);
}

#define arrives_with(type, change) \
	do { \
		struct wire_frame f = frame_of(type); \
		change; \
		arrives(f); \
	} while (0)
#define refused(type, change) \
	do { \
		struct wire_frame f = frame_of(type); \
		change; \
		is_refused(f, #type ": " #change); \
	} while (0)

START_TEST(each_type_arrives)
{
	for (unsigned type = WIRE_LATER; type <= WIRE_OVER; type++)
		arrives(frame_of(type));
	arrives_with(WIRE_LATER, f.flags = WIRE_FLAG_IN_IMAGES);
	arrives_with(WIRE_LATER, f.round = 0; f.block = 0; f.chunk = 0);
	arrives_with(WIRE_LATER, bitmap_set_range(f.present, 0, WIRE_CHUNK_PAGES));
	arrives_with(WIRE_WANT, bitmap_set_range(f.present, 0, WIRE_CHUNK_PAGES));
	arrives_with(WIRE_CANNOT, f.block = 0; f.chunk = 0);
	arrives_with(WIRE_LEFT, f.block = WIRE_LINE_ENDED; f.present[3] = 1);
	arrives_with(WIRE_LEFT, f.block = WIRE_LINE_COMPLETE; f.chunk = 0);
	arrives_with(WIRE_LEFT, f.chunk = 0);
	arrives_with(WIRE_REFUSED, f.round = WIRE_REFUSED_NOW);
	arrives_with(WIRE_REFUSED, f.round = WIRE_REFUSED_FULL);
}
END_TEST

START_TEST(types_have_nothing_else)
{
	static const uint8_t flags[] = { WIRE_FLAG_ZSTD, WIRE_FLAG_TO_RAM, WIRE_FLAG_IN_IMAGES, 8, 0x80 };

	for (unsigned type = WIRE_LATER; type <= WIRE_OVER; type++) {
		bool pages = type == WIRE_LATER || type == WIRE_WANT || type == WIRE_CANNOT, left = type == WIRE_LEFT;

		for (size_t i = 0; i < ARRAY_SIZE(flags); i++)
			if (type != WIRE_LATER || flags[i] != WIRE_FLAG_IN_IMAGES)
				refused(type, f.flags = flags[i]);
		refused(type, f.length = 1);
		refused(type, f.length = PAGE_SIZE);
		for (unsigned page = 0; page < WIRE_CHUNK_PAGES; page += 51)
			refused(type, bitmap_set(f.zero, page));
		if (type != WIRE_LATER && type != WIRE_REFUSED)
			refused(type, f.round = 1);
		if (pages || left)
			continue;
		refused(type, f.block = 1);
		refused(type, f.chunk = 1);
		refused(type, bitmap_set(f.present, 0));
		refused(type, bitmap_set(f.present, 255));
	}
	refused(WIRE_PAGES, f.present[0] = 1; f.length = PAGE_SIZE; f.flags = WIRE_FLAG_IN_IMAGES);
	refused(WIRE_ROUND_END, f.flags = WIRE_FLAG_IN_IMAGES);
}
END_TEST

START_TEST(types_have_what_is_theirs)
{
	refused(WIRE_LATER, f.present[3] = 0);
	refused(WIRE_WANT, f.present[3] = 0);
	refused(WIRE_CANNOT, f.present[3] = 0);
	refused(WIRE_LEFT, f.block = WIRE_LINE_ENDED + 1);
	refused(WIRE_LEFT, f.block = UINT32_MAX);
	refused(WIRE_LEFT, f.block = WIRE_LINE_COMPLETE; f.chunk = 1);
	refused(WIRE_REFUSED, f.round = 0);
	refused(WIRE_REFUSED, f.round = WIRE_REFUSED_FULL + 1);
	refused(WIRE_REFUSED, f.round = UINT16_MAX);
	refused(WIRE_OVER, f.type++);
	refused(WIRE_OVER, f.type = 0);
	refused(WIRE_OVER, f.type = 0xff);
}
END_TEST

START_TEST(what_is_said_arrives)
{
	const uint64_t pages[4] = { 1, 0, 0x8000, 1UL << 63 };
	struct wire_frame f, want;
	uint8_t id[WIRE_LINE_ID_LEN], head[WIRE_FRAME_LEN];

	for (unsigned i = 0; i < sizeof id; i++)
		id[i] = (uint8_t)(0x80 + i);
	ok(wire_line_want(far, 2, 3, pages));
	ok(receive(&want));
	ck_assert(want.type == WIRE_WANT && want.block == 2 && want.chunk == 3 && !memcmp(want.present, pages, sizeof pages));
	ok(wire_line_cannot(far, &want));
	ok(receive(&f));
	ck_assert(f.type == WIRE_CANNOT && f.block == 2 && f.chunk == 3 && !memcmp(f.present, pages, sizeof pages));
	ok(wire_line_left(far, WIRE_LINE_WANTS, 77, id));
	ok(receive(&f));
	ck_assert(f.type == WIRE_LEFT && f.block == WIRE_LINE_WANTS && f.chunk == 77 && wire_line_id_is(&f, id));
	ok(wire_line_left(far, WIRE_LINE_ENDED, 77, id));
	ok(receive(&f));
	ck_assert(f.type == WIRE_LEFT && f.block == WIRE_LINE_ENDED);
	ok(wire_line_left(far, WIRE_LINE_COMPLETE, 0, id));
	ok(wire_read(ours, head, sizeof head));
	ck_assert_mem_eq(head + 24, id, sizeof id); // in its own order
	ok(wire_line_say(far, WIRE_ALIVE));
	ok(receive(&f));
	ck_assert_int_eq(f.type, WIRE_ALIVE);
	ok(wire_line_say(far, WIRE_OVER));
	ok(receive(&f));
	ck_assert_int_eq(f.type, WIRE_OVER);
	for (unsigned why = WIRE_REFUSED_NOW; why <= WIRE_REFUSED_FULL; why++) {
		ok(wire_line_refuse(far, why));
		ok(receive(&f));
		ck_assert(f.type == WIRE_REFUSED && f.round == why);
	}
	ck_assert_int_eq(wire_line_left(far, WIRE_LINE_COMPLETE, 1, id), -EINVAL);
	ck_assert_int_eq(wire_line_want(far, 0, 0, (uint64_t[4]){ 0 }), -EINVAL);
	ck_assert_int_eq(wire_line_say(far, WIRE_WANT), -EINVAL);
	ck_assert_int_eq(wire_line_refuse(far, 0), -EINVAL);
}
END_TEST

START_TEST(ids_are_compared)
{
	uint8_t id[WIRE_LINE_ID_LEN] = { 0 };
	struct wire_frame f;

	ok(wire_line_left(far, WIRE_LINE_WANTS, 0, id));
	ok(receive(&f));
	ck_assert(wire_line_id_is(&f, id));
	f.type = WIRE_WANT;
	ck_assert(!wire_line_id_is(&f, id));
	f.type = WIRE_LEFT;
	for (unsigned bit = 0; bit < 8 * sizeof id; bit++) {
		id[bit / 8] ^= (uint8_t)(1 << bit % 8);
		ck_assert_msg(!wire_line_id_is(&f, id), "bit %u", bit);
		id[bit / 8] ^= (uint8_t)(1 << bit % 8);
	}
}
END_TEST

START_TEST(refusals_have_words)
{
	for (int why = WIRE_REFUSED_NOW; why <= WIRE_REFUSED_FULL; why++)
		for (int before = -1; before < why; before++)
			ck_assert_str_ne(wire_refusal_text(before), wire_refusal_text(why));
	ck_assert_ptr_nonnull(wire_refusal_text(WIRE_REFUSED_FULL + 1));
}
END_TEST

// Who has no room for pages takes none.
START_TEST(pages_are_refused_without_room)
{
	struct wire_frame f = frame_of(WIRE_PAGES), got;

	if (_i == 2)
		f.zero[0] = 1;
	else
		f.present[0] = 1;
	ok(wire_pages_send(far, &f, content, _i));
	ck_assert_int_eq(receive(&got), -EBADMSG);
}
END_TEST

static void *send_many(void *arg)
{
	struct wire_frame f = frame_of(WIRE_PAGES);

	bitmap_set_range(f.present, 0, 4);
	for (int i = 0; i < MANY; i++)
		ok(wire_pages_send(arg, &f, content, i % 2));
	return NULL;
}

// What one thread sends and what another one receives have nothing in common.
START_TEST(both_ways_at_once)
{
	uint64_t pages[4] = { 1 };
	pthread_t thread[2];
	struct wire_frame f;

	for (size_t i = 0; i < sizeof content; i++)
		content[i] = (uint8_t)(i / 100);
	ok(pthread_create(&thread[0], NULL, send_many, far));
	ok(pthread_create(&thread[1], NULL, send_many, near));
	for (int i = 0; i < MANY; i++) {
		ok(wire_pages_receive(near, &f, taken));
		ck_assert_int_eq(memcmp(content, taken, 4 * PAGE_SIZE), 0);
		ok(wire_pages_receive(far, &f, taken));
		ck_assert_int_eq(memcmp(content, taken, 4 * PAGE_SIZE), 0);
	}
	for (int i = 0; i < 2; i++)
		pthread_join(thread[i], NULL);
	ok(wire_line_want(near, 0, 0, pages));
	ok(wire_pages_receive(far, &f, NULL));
}
END_TEST

int main(void)
{
	Suite *s = suite_create("wire_line");
	TCase *tc = tcase_create("frames");
	SRunner *sr;
	int failed;

	tcase_add_checked_fixture(tc, setup, teardown);
	tcase_set_timeout(tc, 60);
	tcase_add_test(tc, each_type_arrives);
	tcase_add_test(tc, types_have_nothing_else);
	tcase_add_test(tc, types_have_what_is_theirs);
	tcase_add_test(tc, what_is_said_arrives);
	tcase_add_test(tc, ids_are_compared);
	tcase_add_test(tc, refusals_have_words);
	tcase_add_loop_test(tc, pages_are_refused_without_room, 0, 3);
	tcase_add_test(tc, both_ways_at_once);
	suite_add_tcase(s, tc);
	sr = srunner_create(s);
	srunner_run_all(sr, CK_ENV);
	failed = srunner_ntests_failed(sr);
	srunner_free(sr);
	return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
