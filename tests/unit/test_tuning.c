// SPDX-License-Identifier: GPL-2.0-only
// --paging: what is understood, what is not and how that is said, and that what is printed is understood.
#include <check.h>
#include <stdlib.h>
#include <string.h>

#include "pvmem/tuning.h"
#include "util/size.h"

#define DEFAULT "method=adaptive,access=auto,queue-bits=8,spin=auto,folios=auto"

static const struct {
	const char *text, *is;
} good[] = {
	{ "method=adaptive", DEFAULT },
	{ "method=1", "method=1,access=auto,queue-bits=8,spin=auto,folios=auto" },
	{ "method=2", "method=2,access=auto,queue-bits=8,spin=auto,folios=auto" },
	{ "access=idle", "method=adaptive,access=idle,queue-bits=8,spin=auto,folios=auto" },
	{ "access=minor", "method=adaptive,access=minor,queue-bits=8,spin=auto,folios=auto" },
	{ "access=none,access=auto", DEFAULT },
	{ "queue-bits=1", "method=adaptive,access=auto,queue-bits=1,spin=auto,folios=auto" },
	{ "queue-bits=12", "method=adaptive,access=auto,queue-bits=12,spin=auto,folios=auto" },
	{ "queue-bits=09", "method=adaptive,access=auto,queue-bits=9,spin=auto,folios=auto" },
	{ "spin=off", "method=adaptive,access=auto,queue-bits=8,spin=off,folios=auto" },
	{ "folios=off", "method=adaptive,access=auto,queue-bits=8,spin=auto,folios=off" },
	{ "folios=off,spin=off,queue-bits=3,access=none,method=2", "method=2,access=none,queue-bits=3,spin=off,folios=off" },
};

static const struct {
	const char *text, *why;
} bad[] = {
	{ "", "there is no '', only method, access, queue-bits, spin and folios" },
	{ ",", "there is no ''" },
	{ "method=1,", "there is no ''" },
	{ "method=1,,spin=off", "there is no ''" },
	{ "=1", "there is no ''" },
	{ "method", "method: method is adaptive, 1 or 2" },
	{ "method=", "method=: method is adaptive" },
	{ "method=3", "method=3: method is adaptive" },
	{ "method=11", "method=11: " },
	{ "method=ADAPTIVE", "method=ADAPTIVE: " },
	{ "method=adaptiv", "method=adaptiv: " },
	{ "method=1 ", "method=1 : " },
	{ " method=1", "there is no ' method'" },
	{ "methods=1", "there is no 'methods'" },
	{ "metho=1", "there is no 'metho'" },
	{ "access=kstaled", "access=kstaled: access is auto, idle, minor or none" },
	{ "access=auto=idle", "access=auto=idle: " },
	{ "queue-bits=0", "queue-bits=0: queue-bits is a number from 1 to 12" },
	{ "queue-bits=13", "queue-bits=13: " },
	{ "queue-bits=", "queue-bits=: " },
	{ "queue-bits=-1", "queue-bits=-1: " },
	{ "queue-bits=+8", "queue-bits=+8: " },
	{ "queue-bits=8x", "queue-bits=8x: " },
	{ "queue-bits=008", "queue-bits=008: " },
	{ "queue-bits=4294967304", "queue-bits=4294967304: " },
	{ "spin=on", "spin=on: spin is auto or off" },
	{ "folios=1", "folios=1: folios is auto or off" },
	{ "method=1,spin=never", "spin=never: spin is auto or off" },
	{ "a-key-that-is-much-longer-than-what-is-shown-of-it=1", "there is no 'a-key-that-is-much-longe'" },
	{ "queue-bits=1000000000000000000000000000000000000000", "queue-bits=1000000000000: queue-bits is a number from 1 to 12" },
};

static void is_text(const struct pv_tuning *t, const char *text)
{
	char buf[128];

	pv_tuning_print(t, buf, sizeof buf);
	ck_assert_str_eq(buf, text);
}

START_TEST(understood)
{
	struct pv_tuning t = PV_TUNING_DEFAULT, again = { .method = PV_METHOD_2, .access = PV_ACCESS_NONE, .queue_bits = 5 };
	char why[128] = "", printed[128];

	is_text(&t, DEFAULT);
	ck_assert(pv_tuning_parse(good[_i].text, &t, why));
	is_text(&t, good[_i].is);
	ck_assert_str_eq(why, "");
	pv_tuning_print(&t, printed, sizeof printed);
	ck_assert(pv_tuning_parse(printed, &again, why)); // says all
	is_text(&again, good[_i].is);
}
END_TEST

START_TEST(refused)
{
	struct pv_tuning t = PV_TUNING_DEFAULT;
	char why[128] = "";

	ck_assert(!pv_tuning_parse(bad[_i].text, &t, why));
	ck_assert_msg(strstr(why, bad[_i].why), "'%s' is refused with: %s", bad[_i].text, why);
}
END_TEST

START_TEST(rest_is_kept)
{
	struct pv_tuning t = { .method = PV_METHOD_1, .access = PV_ACCESS_IDLE, .queue_bits = 12 };
	char why[128], buf[128];

	ck_assert(pv_tuning_parse("access=minor", &t, why));
	is_text(&t, "method=1,access=minor,queue-bits=12,spin=off,folios=off");
	t = (struct pv_tuning){ .method = PV_METHOD_ADAPTIVE, .access = PV_ACCESS_MINOR, .queue_bits = 12, .spin = true, .folios = true };
	pv_tuning_print(&t, buf, sizeof buf); // the longest
	ck_assert_uint_lt(strlen(buf), 127);
	for (enum pv_method m = 0; m < PV_NR_METHODS; m++)
		ck_assert_ptr_nonnull(pv_method_name(m));
	ck_assert_str_eq(pv_method_name(PV_METHOD_2), "2");
	ck_assert_str_eq(pv_access_name(PV_ACCESS_IDLE), "idle");
}
END_TEST

int main(void)
{
	Suite *s = suite_create("tuning");
	TCase *tc = tcase_create("tuning");
	SRunner *sr = srunner_create(s);
	int failed;

	tcase_add_loop_test(tc, understood, 0, ARRAY_SIZE(good));
	tcase_add_loop_test(tc, refused, 0, ARRAY_SIZE(bad));
	tcase_add_test(tc, rest_is_kept);
	suite_add_tcase(s, tc);
	srunner_run_all(sr, CK_NORMAL);
	failed = srunner_ntests_failed(sr);
	srunner_free(sr);
	return failed > 0;
}
