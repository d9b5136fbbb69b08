// SPDX-License-Identifier: GPL-2.0-only
// Sizes that people write, and bitmaps against one bool a bit.
#include <check.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "util/bitmap.h"
#include "util/size.h"

static const struct {
	const char *text;
	uint64_t bytes;
} good[] = {
	{ "0", 0 }, { "1", 1 }, { "4096", 4096 }, { "007", 7 }, { "1B", 1 },
	{ "1k", KiB }, { "1K", KiB }, { "256M", 256 * MiB }, { "256m", 256 * MiB }, { "4G", 4 * GiB }, { "2T", 2048 * GiB },
	{ "3KB", 3 * KiB }, { "3KiB", 3 * KiB }, { "3kib", 3 * KiB }, { "5GiB", 5 * GiB },
	{ "1.5G", GiB + GiB / 2 }, { "0.5K", 512 }, { "0.25M", 256 * KiB },
	{ "18446744073709551615", UINT64_MAX }, { "16777215T", 16777215ULL << 40 }, { "17179869183G", 17179869183ULL << 30 },
};

static const struct {
	const char *text;
	int err;
} bad[] = {
	{ "", -EINVAL }, { " ", -EINVAL }, { " 1", -EINVAL }, { "1 ", -EINVAL }, { "1 G", -EINVAL }, { "-1", -EINVAL }, { "+1", -EINVAL },
	{ "G", -EINVAL }, { ".5G", -EINVAL }, { "0x10", -EINVAL }, { "0X10", -EINVAL }, { "1X", -EINVAL }, { "1GG", -EINVAL },
	{ "1GiBs", -EINVAL }, { "1iB", -EINVAL }, { "1Gi", -EINVAL }, { "1G1", -EINVAL }, { "inf", -EINVAL }, { "nan", -EINVAL },
	{ "1,5G", -EINVAL }, { "1.5.5G", -EINVAL }, { "1P", -EINVAL }, { "12%", -EINVAL },
	{ "18446744073709551616", -ERANGE }, { "16777216T", -ERANGE }, { "99999999999999999999T", -ERANGE },
};

START_TEST(parse)
{
	uint64_t v;

	for (size_t i = 0; i < ARRAY_SIZE(good); i++) {
		v = ~good[i].bytes;
		ck_assert_msg(!size_parse(good[i].text, &v) && v == good[i].bytes, "%s became %lu", good[i].text, v);
	}
	for (size_t i = 0; i < ARRAY_SIZE(bad); i++) {
		v = 77;
		ck_assert_msg(size_parse(bad[i].text, &v) == bad[i].err, "\"%s\" became %lu", bad[i].text, v);
		ck_assert_uint_eq(v, 77);
	}
}
END_TEST

START_TEST(format)
{
	static const struct {
		uint64_t bytes;
		const char *text;
	} known[] = {
		{ 0, "0 B" }, { 1, "1 B" }, { 1023, "1023 B" }, { KiB, "1 KiB" }, { 12 * KiB, "12 KiB" }, { KiB + KiB / 2, "1.5 KiB" },
		{ 256 * MiB, "256 MiB" }, { GiB + GiB / 2, "1.5 GiB" }, { 1024 * GiB, "1 TiB" },
	};
	char buf[16];

	for (size_t i = 0; i < ARRAY_SIZE(known); i++)
		ck_assert_str_eq(size_format(known[i].bytes, buf), known[i].text);
	ck_assert_ptr_eq(size_format(7, buf), buf);
}
END_TEST

// The number is below 1024, and it says what was given, to a twentieth.
START_TEST(format_any)
{
	srand(3);
	for (unsigned i = 0; i < 50000; i++) {
		static const char units[] = "BKMGTPE";
		uint64_t v = ((uint64_t)rand() << 33 ^ (uint64_t)rand() << 11 ^ (uint64_t)rand()) >> rand() % 64;
		char buf[16], unit;
		double n, back;

		if (i < 64 * 3)
			v = (i / 3 ? 1ULL << i / 3 : 0) - 1 + i % 3; // around the powers of two
		size_format(v, buf);
		ck_assert_int_eq(sscanf(buf, "%lf %c", &n, &unit), 2);
		back = n;
		for (const char *u = units; *u != unit; u++)
			back *= 1024;
		ck_assert_msg(n < 1024 && back >= 0.95 * (double)v && back <= 1.05 * (double)v, "%lu became %s", v, buf);
	}
}
END_TEST

#define MAX_BITS 300

struct bits {
	size_t nr;
	uint64_t map[BITMAP_WORDS(MAX_BITS)];
	bool naive[MAX_BITS];
};

static bool same_bits(const struct bits *b)
{
	size_t count = 0;

	for (size_t i = 0; i < b->nr; i++) {
		if (bitmap_test(b->map, i) != b->naive[i])
			return false;
		count += b->naive[i];
	}
	return bitmap_count(b->map, b->nr) == count && bitmap_empty(b->map, b->nr) == !count;
}

static bool same_next(const struct bits *b, bool value)
{
	for (size_t i = 0; i <= b->nr; i++) {
		size_t next = i;

		while (next < b->nr && b->naive[next] != value)
			next++;
		if (bitmap_next(b->map, b->nr, i, value) != next)
			return false;
	}
	return true;
}

static bool same_runs(const struct bits *b)
{
	size_t at = 0;

	for (size_t i = 0, n; (n = bitmap_next_run(b->map, b->nr, &i)); i += n) {
		for (; at < i; at++)
			if (b->naive[at])
				return false; // left out
		for (; at < i + n; at++)
			if (at >= b->nr || !b->naive[at])
				return false; // too long
		if (at < b->nr && b->naive[at])
			return false; // too short
	}
	for (; at < b->nr; at++)
		if (b->naive[at])
			return false;
	return true;
}

START_TEST(bitmaps)
{
	static const size_t sizes[] = { 1, 63, 64, 65, 128, 200, 256, MAX_BITS };

	srand(4);
	for (unsigned i = 0; i < 4000; i++) {
		struct bits b = { .nr = sizes[i % ARRAY_SIZE(sizes)] };

		for (size_t k = b.nr; k < sizeof b.map * 8; k++) // what is beyond the last bit must not count
			if (rand() % 3 == 0)
				bitmap_set(b.map, k);
		for (int ops = rand() % 12; ops; ops--) {
			size_t first = (size_t)rand() % b.nr, nr = (size_t)rand() % (b.nr - first + 1);
			bool value = rand() % 3;

			if (rand() % 4 == 0) {
				(value ? bitmap_set : bitmap_clear)(b.map, first);
				b.naive[first] = value;
				continue;
			}
			(value ? bitmap_set_range : bitmap_clear_range)(b.map, first, nr);
			for (size_t k = first; k < first + nr; k++)
				b.naive[k] = value;
		}
		ck_assert(same_bits(&b));
		ck_assert(same_next(&b, true) && same_next(&b, false));
		ck_assert(same_runs(&b));
	}
}
END_TEST

int main(void)
{
	Suite *s = suite_create("size");
	TCase *t = tcase_create("size");
	SRunner *sr;
	int failed;

	tcase_add_test(t, parse);
	tcase_add_test(t, format);
	tcase_add_test(t, format_any);
	tcase_add_test(t, bitmaps);
	suite_add_tcase(s, t);
	sr = srunner_create(s);
	srunner_run_all(sr, CK_ENV);
	failed = srunner_ntests_failed(sr);
	srunner_free(sr);
	return failed ? 1 : 0;
}
