// SPDX-License-Identifier: GPL-2.0-only
// Pages of another host come as they are there, once each, whatever becomes of the lines and whoever answers.
#include "tests/unit/remote_suite.h"

START_TEST(pages_come)
{
	struct lp_remote_stats s;

	rig_open(&rig, (unsigned)_i, ANSWERS);
	for (unsigned i = 0; i < NR_QUESTIONS; i++)
		ask(&rig, &q[i], i % NR_CHUNKS, i % 3, i % 4 == 0);
	check_all(NR_QUESTIONS);
	s = rig_stats(&rig);
	ck_assert_uint_eq(s.lines, _i);
	ck_assert_uint_eq(s.waiting + s.alone_ns, 0);
	ck_assert_str_eq(s.trouble, "");
	ck_assert(s.zero_pages && s.zero_pages < s.pages && s.bytes > WIRE_FRAME_LEN * NR_QUESTIONS);
	rig_close(&rig);
}
END_TEST

// And a line of its own for what the guest waits for; the others have as much to do, one as the other.
START_TEST(each_has_its_lines)
{
	rig_open(&rig, 3, HOLDS);
	for (unsigned i = 0; i < 40; i++)
		ask(&rig, &q[i], i % NR_CHUNKS, i % 2, false);
	for (unsigned i = 0; i < 3; i++)
		rig.far[i].manner = ANSWERS;
	check_all(40);
	ck_assert_uint_eq(nr_wants_on(0), 20);
	ck_assert_uint_eq(nr_wants_on(1), 10);
	ck_assert_uint_eq(nr_wants_on(2), 10);
	rig_close(&rig);
}
END_TEST

// Over one line only: chunk 4 is what nobody waits for.
START_TEST(demand_goes_first)
{
	rig_open(&rig, 1, HOLDS);
	for (unsigned i = 0; i < 6; i++)
		ask(&rig, &q[i], 4, true, true);
	for (unsigned i = 6; i < 12; i++)
		ask(&rig, &q[i], 5, false, false);
	rig.far[0].manner = ANSWERS;
	check_all(12);
	for (unsigned i = 0; i < 12; i++)
		ck_assert_uint_eq(rig.wants[i].chunk, i < 2 || i >= 8 ? 0 : 1); // of block 1
	rig_close(&rig);
}
END_TEST

// Not more than a socket holds: else the loop might wait.
START_TEST(not_too_many_at_once)
{
	rig_open(&rig, 2, HOLDS);
	for (unsigned i = 0; i < NR_QUESTIONS; i++)
		ask(&rig, &q[i], i % NR_CHUNKS, false, false);
	rig_pass(&rig, 50);
	ck_assert_uint_eq(rig_stats(&rig).waiting, NR_QUESTIONS - WIRE_LINE_WANTS_MAX);
	rig.far[0].manner = ANSWERS;
	check_all(NR_QUESTIONS);
	ck_assert_uint_eq(nr_wants_on(1), 0);
	rig_close(&rig);
}
END_TEST

START_TEST(background_takes_line_0_when_alone)
{
	uint64_t begun;

	rig_open(&rig, 2, ANSWERS);
	begun = clock_now_ns();
	far_cut(&rig.far[1]);
	must_be(&rig, rig_stats(&rig).lines == 1);
	ask(&rig, &q[0], 0, true, false);
	ask(&rig, &q[1], 0, false, false);
	must_be(&rig, q[1].answered);
	ck_assert_uint_eq(q[0].answered, 0);
	check_all(2);
	ck_assert_uint_ge(clock_now_ns() - begun, NSEC_PER_SEC);
	rig_close(&rig);
}
END_TEST

START_TEST(demand_takes_another_line)
{
	rig_open(&rig, 3, HOLDS);
	ask(&rig, &q[0], 0, false, false);
	must_be(&rig, nr_wants_on(0) == 1);
	far_cut(&rig.far[0]);
	must_be(&rig, nr_wants_on(1) == 1);
	for (unsigned i = 1; i < 5; i++)
		ask(&rig, &q[i], i, true, false); // not over the one that the guest waits for
	rig.far[1].manner = rig.far[2].manner = ANSWERS;
	check_all(5);
	ck_assert_uint_eq(nr_wants_on(1), 1);
	ck_assert_uint_eq(nr_wants_on(2), 4);
	ck_assert_str_eq(rig_trouble(&rig), "");
	rig_close(&rig);
}
END_TEST

// A read that hangs at the other side keeps its line, and nothing else.
START_TEST(demand_goes_by_a_read_that_hangs)
{
	rig_open(&rig, 3, ANSWERS);
	rig.far[0].manner = HOLDS;
	ask(&rig, &q[0], 0, false, false);
	ask(&rig, &q[1], 1, false, false);
	must_be(&rig, nr_wants_on(0) >= 1);
	rig_pass(&rig, 1100);
	ask(&rig, &q[2], 2, false, false);
	ck_assert(rig_until(&rig, q[2].answered, 500));
	ck_assert_uint_eq(q[0].answered + q[1].answered, 0);
	rig.far[0].manner = ANSWERS;
	check_all(3);
	ask(&rig, &q[3], 3, false, false); // and then as before
	must_be(&rig, q[3].answered);
	check(&q[3]);
	ck_assert_uint_eq(nr_wants_on(0), 3);
	ck_assert_uint_eq(nr_wants_on(1), 1);
	ck_assert_uint_eq(rig_stats(&rig).lines, 3);
	rig_close(&rig);
}
END_TEST

// All that is wrong ends the line, changes nothing here, and is asked for again over the next.
START_TEST(wrong_answers)
{
	bool after = _i == TWICE;
	struct lp_remote_stats s;

	rig_open(&rig, 1, (enum manner)_i);
	for (unsigned i = 0; i < 3; i++)
		ask(&rig, &q[i], i, i == 2, false);
	must_be(&rig, !rig_stats(&rig).lines);
	s = rig_stats(&rig);
	ck_assert_ptr_nonnull(strstr(s.trouble, "the line is lost"));
	ck_assert(s.alone_ns);
	if (_i != CUTS)
		ck_assert_ptr_nonnull(strstr(said_text, _i == CORRUPTS ? "is not accepted" : "the line is given up"));
	rig_pass(&rig, 20);
	for (unsigned i = after; i < 3; i++) {
		ck_assert_uint_eq(q[i].answered, 0);
		check_untouched(&q[i]);
	}
	ck_assert_uint_eq(rig_stats(&rig).waiting, 3 - after);
	far_new(&rig, 0, ANSWERS);
	check_all(3);
	rig_close(&rig);
}
END_TEST

static void check_answered(unsigned nr)
{
	for (unsigned i = 0; i < nr; i++)
		if (q[i].rd.dest && q[i].answered)
			check(&q[i]);
}

// Cut at any moment, by either side, while pages come; another one comes at once, or some time after.
START_TEST(lines_come_and_go)
{
	unsigned asked = 0, next = 5, alive[3] = { 0, 1, 2 };
	uint64_t stalled = 0;

	srandom((unsigned)_i);
	rig_open(&rig, 3, ANSWERS);
	while (rig.nr_fars < NR_FARS - 3) {
		for (unsigned i = 0; i < 12; i++)
			if (!q[i].rd.dest) {
				ask(&rig, &q[i], asked++ % NR_CHUNKS, i % 2, i % 3 == 0);
				stalled = clock_now_ns() + NSEC_PER_SEC / 2;
			}
		if (asked >= next || clock_now_ns() > stalled) {
			unsigned i = (unsigned)random() % 3;

			next = asked + 1 + (unsigned)random() % 20;
			if (random() % 2)
				far_cut(&rig.far[alive[i]]);
			if (random() % 2)
				rig_pass(&rig, random() % 20);
			alive[i] = rig.nr_fars;
			far_new(&rig, i, random() % 4 ? ANSWERS : CUTS);
		}
		ok(loop_round(&rig.loop, true));
		check_answered(12);
	}
	for (unsigned i = 0; i < 3; i++)
		far_new(&rig, i, ANSWERS);
	for (unsigned i = 0; i < 12; i++)
		must_be(&rig, !q[i].rd.dest || q[i].answered);
	check_answered(12);
	ck_assert_uint_gt(asked, 100);
	rig_close(&rig);
}
END_TEST

START_TEST(cannot)
{
	rig_open(&rig, 1, CANNOT);
	ask(&rig, &q[0], 5, false, false);
	must_be(&rig, q[0].answered);
	ck_assert_int_eq(q[0].err, -EIO);
	ck_assert_str_eq(q[0].what, "the source cannot read the page");
	ck_assert_str_eq(rig_trouble(&rig), "the source cannot read a page");
	ck_assert_uint_eq(rig_stats(&rig).lines, 1);
	check_untouched(&q[0]);
	free(q[0].rd.dest);
	rig.far[0].manner = ANSWERS;
	ask(&rig, &q[0], 5, false, false);
	check_all(1);
	rig_close(&rig);
}
END_TEST

START_TEST(silence)
{
	uint64_t begun = clock_now_ns(), took_ms;

	rig_start(&rig, 1);
	far_new(&rig, 0, IS_SILENT);
	ask(&rig, &q[0], 0, false, false);
	must_be(&rig, rig.far[0].nr_wants);
	ck_assert_uint_eq(rig_stats(&rig).lines, 0); // who says nothing is none
	ck_assert_uint_eq(rig_stats(&rig).waiting, 1);
	ck_assert_uint_gt(rig_stats(&rig).alone_ns, 0);
	must_be(&rig, rig.far[0].ended);
	ck_assert_uint_ge(clock_now_ns() - begun, WIRE_LINE_LOST_MS * NSEC_PER_MSEC);
	took_ms = (clock_now_ns() - begun) / NSEC_PER_MSEC;
	ck_assert_uint_lt(took_ms, 2 * WIRE_LINE_LOST_MS);
	ck_assert_uint_ge(rig.far[0].nr_lefts, 5); // at once, and every 2 s
	ck_assert_uint_le(rig.far[0].nr_lefts, took_ms / WIRE_LINE_ALIVE_MS + 2);
	ck_assert_ptr_nonnull(strstr(rig_trouble(&rig), "nothing comes any more"));
	far_new(&rig, 0, ANSWERS);
	check_all(1);
	rig_close(&rig);
}
END_TEST

int main(void)
{
	TCase *t = tcase_create("lines");

	tcase_add_loop_test(t, pages_come, 1, 4);
	tcase_add_test(t, each_has_its_lines);
	tcase_add_test(t, demand_goes_first);
	tcase_add_test(t, not_too_many_at_once);
	tcase_add_test(t, background_takes_line_0_when_alone);
	tcase_add_test(t, demand_takes_another_line);
	tcase_add_test(t, demand_goes_by_a_read_that_hangs);
	tcase_add_loop_test(t, wrong_answers, FIRST_WRONG, NR_MANNERS);
	tcase_add_loop_test(t, lines_come_and_go, 0, 2);
	tcase_add_test(t, cannot);
	tcase_add_test(t, silence);
	return run_lines(t);
}
