// SPDX-License-Identifier: GPL-2.0-only
// A data channel: pages arrive as they were sent, and a frame that is not exactly that is refused.
#include <endian.h>
#include <errno.h>
#include <pthread.h>
#include <xxhash.h>
#include <zstd.h>

#include "tests/unit/wire_rig.h"
#include "util/bitmap.h"
#include "util/clock.h"
#include "util/size.h"
#include "wire/pages_int.h"

#define ZSTD_LEVEL 1
#define NR WIRE_CHUNK_PAGES
#define UNTOUCHED 0xa5

static struct wire_pages *in, *out;
static struct wire_conn *other;
static uint8_t sent[WIRE_CHUNK_SIZE], taken[WIRE_CHUNK_SIZE];
static uint8_t raw[WIRE_FRAME_LEN + 2 * WIRE_CHUNK_SIZE]; // a frame made by hand

static void setup(void)
{
	rig_quiet();
	srandom(1);
	other = rig_other();
	ok(wire_pages_new(other, &out));
	ok(wire_pages_new(ours, &in));
}

static void teardown(void)
{
	wire_pages_free(in);
	wire_pages_free(out);
	wire_close(other);
	rig_close();
}

static void fill(size_t len, bool shrinks)
{
	for (size_t i = 0; i < len; i++)
		sent[i] = (uint8_t)(shrinks ? i / 100 % 251 : (size_t)random());
}

struct sending {
	struct wire_frame f;
	int level;
};

static void *send_frame(void *arg)
{
	struct sending *s = arg;

	ok(wire_pages_send(out, &s->f, sent, s->level));
	return NULL;
}

// Nothing was put to taken behind so many bytes.
static bool is_untouched(size_t from)
{
	while (from < sizeof taken && taken[from] == UNTOUCHED)
		from++;
	return from == sizeof taken;
}

// Sent, received, and the same.
static void pass(const struct wire_frame *f, int level)
{
	struct sending s = { .f = *f, .level = level };
	struct wire_frame got;
	pthread_t thread;

	memset(&got, 0, sizeof got); // compared with padding
	memset(taken, UNTOUCHED, sizeof taken);
	ok(pthread_create(&thread, NULL, send_frame, &s));
	ok(wire_pages_receive(in, &got, taken));
	pthread_join(thread, NULL);
	ck_assert_mem_eq(&s.f, &got, sizeof got);
	ck_assert_int_eq(memcmp(sent, taken, wire_frame_pages_len(f)), 0);
	ck_assert(is_untouched(wire_frame_pages_len(f)));
}

static struct wire_frame frame_of(unsigned nr_present)
{
	struct wire_frame f;

	memset(&f, 0, sizeof f); // compared with padding
	f.type = WIRE_PAGES;
	f.round = 0x1234;
	f.block = 0x56789abc;
	f.chunk = 0x123456789abcdef0;
	for (unsigned i = 0; i < nr_present; i++)
		bitmap_set(f.present, i);
	return f;
}

START_TEST(pages_arrive)
{
	static const unsigned nr[] = { 1, 2, 63, 64, 65, 255, 256 };

	for (size_t i = 0; i < ARRAY_SIZE(nr); i++) {
		struct wire_frame f = frame_of(nr[i]);

		fill(nr[i] * PAGE_SIZE, true);
		pass(&f, 0);
		pass(&f, ZSTD_LEVEL);
		f.flags = WIRE_FLAG_TO_RAM;
		pass(&f, ZSTD_LEVEL);
		fill(nr[i] * PAGE_SIZE, false);
		pass(&f, ZSTD_LEVEL);
	}
}
END_TEST

START_TEST(any_pages_arrive)
{
	for (unsigned i = 0; i < 100; i++) {
		struct wire_frame f = frame_of(0);

		for (unsigned page = 0; page < NR; page++)
			if (random() % 3)
				bitmap_set(random() % 2 ? f.present : f.zero, page);
		fill(wire_frame_pages_len(&f), random() % 2);
		pass(&f, (int)(random() % 4));
	}
}
END_TEST

START_TEST(zeros_and_ends_arrive)
{
	struct wire_frame f = frame_of(0);

	bitmap_set(f.zero, 200);
	pass(&f, 0);
	pass(&f, ZSTD_LEVEL);
	bitmap_set_range(f.zero, 0, NR);
	pass(&f, 0);
	f = frame_of(0);
	f.type = WIRE_ROUND_END;
	f.block = 0;
	f.chunk = UINT64_MAX;
	f.round = UINT16_MAX;
	pass(&f, ZSTD_LEVEL);
}
END_TEST

START_TEST(what_does_not_shrink_goes_raw)
{
	struct wire_frame f = frame_of(3);

	fill(3 * PAGE_SIZE, false);
	ok(wire_pages_send(out, &f, sent, ZSTD_LEVEL));
	ck_assert_uint_eq(f.length, 3 * PAGE_SIZE);
	ck_assert_uint_eq(f.flags, 0);
	fill(3 * PAGE_SIZE, true);
	ok(wire_pages_send(out, &f, sent, ZSTD_LEVEL));
	ck_assert_uint_lt(f.length, PAGE_SIZE);
	ck_assert_uint_eq(f.flags, WIRE_FLAG_ZSTD);
	ok(wire_pages_send(out, &f, sent, 0)); // the same frame once more
	ck_assert_uint_eq(f.length, 3 * PAGE_SIZE);
	ck_assert_uint_eq(f.flags, 0);
}
END_TEST

// A frame by hand; its checksum is right.
static size_t make(const struct wire_frame *f, const void *payload, size_t len)
{
	wire_frame_pack(f, 0, raw);
	if (len)
		memcpy(raw + WIRE_FRAME_LEN, payload, len);
	wire_frame_pack(f, wire_frame_checksum(out, raw, payload, len), raw);
	return WIRE_FRAME_LEN + len;
}

// What comes of len bytes, after which the other side hangs up.
static int receive(const void *bytes, size_t len)
{
	struct wire_pages *p;
	struct wire_frame f;
	int ret;

	rig_feed(bytes, len);
	ok(wire_pages_new(ours, &p));
	ret = wire_pages_receive(p, &f, taken);
	wire_pages_free(p);
	return ret;
}

static size_t make_small(bool zstd)
{
	struct wire_frame f = frame_of(1);

	bitmap_set(f.zero, 9);
	fill(PAGE_SIZE, true);
	f.length = PAGE_SIZE;
	if (!zstd)
		return make(&f, sent, PAGE_SIZE);
	f.flags = WIRE_FLAG_ZSTD;
	f.length = (uint32_t)ZSTD_compress(taken, sizeof taken, sent, PAGE_SIZE, 1);
	ck_assert_uint_lt(f.length, PAGE_SIZE);
	return make(&f, taken, f.length);
}

// Of a header one by one, of a payload, which is read in one go, some.
static size_t next_byte(size_t i)
{
	return i + (i < WIRE_FRAME_LEN ? 1 : 17);
}

START_TEST(every_flipped_bit_is_found)
{
	size_t len = make_small(_i);

	ok(receive(raw, len));
	for (size_t i = 0; i < len; i = next_byte(i)) {
		uint8_t bit = (uint8_t)(1 << random() % 8);
		bool is_length = i >= 12 && i < 16; // a payload that should be longer ends in the middle
		int ret;

		raw[i] ^= bit;
		ret = receive(raw, len);
		ck_assert_msg(ret == -EBADMSG || (is_length && ret == -ECONNRESET), "byte %zu: %d", i, ret);
		raw[i] ^= bit;
	}
	for (size_t i = 0; i < 8 * len; i++) {
		raw[i / 8] ^= (uint8_t)(1 << i % 8);
		if (!wire_frame_unpack(in, raw, raw + WIRE_FRAME_LEN, taken))
			ck_abort_msg("bit %zu", i);
		raw[i / 8] ^= (uint8_t)(1 << i % 8);
	}
}
END_TEST

START_TEST(every_truncation_is_found)
{
	size_t len = make_small(_i);

	for (size_t n = 0; n < len; n = next_byte(n))
		ck_assert_int_eq(receive(raw, n), -ECONNRESET);
	ck_assert_int_eq(receive(raw, len - 1), -ECONNRESET);
	ok(receive(raw, len));
}
END_TEST

#define refused(change) \
	do { \
		struct wire_frame f = frame_of(2); \
		uint64_t sum; \
		f.length = 2 * PAGE_SIZE; \
		change; \
		make(&f, sent, f.length < sizeof sent ? f.length : sizeof sent); \
		ck_assert_msg(wire_frame_parse(raw, &f, &sum) == -EBADMSG, "accepted: %s", #change); \
		ck_assert_int_eq(receive(raw, WIRE_FRAME_LEN), -EBADMSG); /* without a look at the payload */ \
	} while (0)

START_TEST(what_cannot_be_is_refused)
{
	refused(f.type = 0);
	refused(f.type = 3);
	refused(f.flags = 4);
	refused(f.flags = 0x80);
	refused(f.length--);
	refused(f.length++);
	refused(f.length = 0);
	refused(f.length = UINT32_MAX);
	refused(f.length = 3 * PAGE_SIZE);
	refused(f.flags = WIRE_FLAG_ZSTD);
	refused(f.flags = WIRE_FLAG_ZSTD; f.length = 0);
	refused(f.flags = WIRE_FLAG_ZSTD; f.length++);
	refused(bitmap_set(f.zero, 1));
	refused(bitmap_set_range(f.present, 0, NR); bitmap_set(f.zero, 255); f.length = WIRE_CHUNK_SIZE);
	refused(f.present[0] = 0; f.length = 0);
	refused(f.present[0] = 0; f.zero[0] = 1; f.flags = WIRE_FLAG_ZSTD; f.length = 0);
	refused(f.type = WIRE_ROUND_END);
	refused(f = frame_of(0); f.type = WIRE_ROUND_END);
	refused(f = frame_of(0); f.type = WIRE_ROUND_END; f.block = 0; f.flags = WIRE_FLAG_TO_RAM);
	refused(f = frame_of(0); f.type = WIRE_ROUND_END; f.block = 0; f.length = 1);
	refused(f = frame_of(0); f.type = WIRE_ROUND_END; f.block = 0; f.zero[3] = 1);
	refused(f = frame_of(1); f.type = WIRE_ROUND_END; f.block = 0);
}
END_TEST

START_TEST(what_cannot_be_is_not_sent)
{
	struct wire_frame f = frame_of(1);

	bitmap_set(f.zero, 0);
	ck_assert_int_eq(wire_pages_send(out, &f, sent, 0), -EINVAL);
	f = frame_of(0);
	ck_assert_int_eq(wire_pages_send(out, &f, NULL, 0), -EINVAL);
	f.type = WIRE_ROUND_END;
	ck_assert_int_eq(wire_pages_send(out, &f, NULL, 0), -EINVAL);
	ck_assert_int_eq(wire_poll(ours, 0), 0);
}
END_TEST

// A payload of four pages whose checksum is right, and whose frame is not.
static int receive_packed(const void *payload, size_t len)
{
	struct wire_frame f = frame_of(4);

	f.flags = WIRE_FLAG_ZSTD;
	f.length = (uint32_t)len;
	return receive(raw, make(&f, payload, len));
}

static size_t compress(uint8_t *to, size_t len, bool with_size)
{
	ZSTD_CCtx *z = ZSTD_createCCtx();
	size_t n;

	ok(ZSTD_isError(ZSTD_CCtx_setParameter(z, ZSTD_c_contentSizeFlag, with_size)));
	n = ZSTD_compress2(z, to, 2 * WIRE_CHUNK_SIZE, sent, len);
	ck_assert(!ZSTD_isError(n));
	ZSTD_freeCCtx(z);
	return n;
}

START_TEST(frames_that_are_not_the_pages_are_refused)
{
	static const uint8_t skippable[] = { 0x50, 0x2a, 0x4d, 0x18, 4, 0, 0, 0, 1, 2, 3, 4 };
	static uint8_t packed[2 * WIRE_CHUNK_SIZE];
	size_t n;

	fill(8 * PAGE_SIZE, true);
	n = compress(packed, 4 * PAGE_SIZE, true);
	ok(receive_packed(packed, n));
	ck_assert_int_eq(receive_packed(packed, n - 1), -EBADMSG);
	ck_assert_int_eq(receive_packed(packed, n + 1), -EBADMSG); // a byte behind it
	memcpy(packed + n, skippable, sizeof skippable);
	ck_assert_int_eq(receive_packed(packed, n + sizeof skippable), -EBADMSG);
	ck_assert_int_eq(receive_packed(skippable, sizeof skippable), -EBADMSG);
	n = compress(packed, 4 * PAGE_SIZE, false);
	ck_assert_int_eq(receive_packed(packed, n), -EBADMSG);
	n = compress(packed, 4 * PAGE_SIZE + 1, true);
	ck_assert_int_eq(receive_packed(packed, n), -EBADMSG);
	n = compress(packed, 4 * PAGE_SIZE - 1, true);
	ck_assert_int_eq(receive_packed(packed, n), -EBADMSG);
	n = compress(packed, 2 * PAGE_SIZE, true); // two frames of half the pages
	n += compress(packed + n, 2 * PAGE_SIZE, true);
	ck_assert_int_eq(receive_packed(packed, n), -EBADMSG);
	n = compress(packed, 4 * PAGE_SIZE, true);
	for (size_t i = 0; i < n; i++) { // never beyond the pages
		packed[i] ^= 0x55;
		memset(taken, UNTOUCHED, sizeof taken);
		receive_packed(packed, n);
		ck_assert(is_untouched(4 * PAGE_SIZE));
		packed[i] ^= 0x55;
	}
}
END_TEST

static void *shut_down(void *arg)
{
	usleep(400000);
	wire_shutdown(arg);
	return NULL;
}

// Between frames for ever, within one not.
START_TEST(waits_for_a_frame_and_not_within)
{
	uint64_t begin = clock_now_ns(), waited;
	struct wire_frame f;
	pthread_t thread;

	wire_set_timeout(ours, 100);
	ok(pthread_create(&thread, NULL, shut_down, ours));
	ck_assert_int_eq(wire_pages_receive(in, &f, taken), -ECONNRESET);
	waited = clock_now_ns() - begin;
	ck_assert_uint_ge(waited, 390 * NSEC_PER_MSEC);
	pthread_join(thread, NULL);

	teardown();
	setup();
	wire_set_timeout(ours, 100);
	ok(wire_write(other, raw, make_small(false) - 1));
	ck_assert_int_eq(wire_pages_receive(in, &f, taken), -ETIMEDOUT);
}
END_TEST

START_TEST(a_chunk_keeps_its_channel)
{
	unsigned nr[3] = { 0 };

	for (uint64_t i = 0; i < 16 * 3 * 5; i++) {
		nr[wire_channel_of(i, 3)]++;
		ck_assert_uint_eq(wire_channel_of(i, 3), wire_channel_of(i / 16 * 16, 3));
		ck_assert_uint_eq(wire_channel_of(i, 1), 0);
	}
	for (int i = 0; i < 3; i++)
		ck_assert_uint_eq(nr[i], 16 * 5);
}
END_TEST

// docs/wire-protocol.md, byte by byte.
START_TEST(headers_are_as_documented)
{
	static const uint8_t begin[24] = { 'C', 'V', 'P', 'G', 1, 2, 0x34, 0x12, 0xbc, 0x9a, 0x78, 0x56, 0, 0x10, 0, 0,
					   0xf0, 0xde, 0xbc, 0x9a, 0x78, 0x56, 0x34, 0x12 };
	struct wire_frame f = frame_of(0), back;
	uint64_t sum;

	f.flags = WIRE_FLAG_TO_RAM;
	f.length = PAGE_SIZE;
	bitmap_set(f.present, 65);
	bitmap_set(f.zero, 255);
	wire_frame_pack(&f, 0x1122334455667788, raw);
	ck_assert_mem_eq(raw, begin, sizeof begin);
	for (unsigned i = 24; i < 88; i++)
		ck_assert_int_eq(raw[i], i == 32 ? 2 : i == 87 ? 0x80 : 0);
	ck_assert_int_eq(raw[88], 0x88);
	ck_assert_int_eq(raw[95], 0x11);
	memset(&back, 0, sizeof back);
	ok(wire_frame_parse(raw, &back, &sum));
	ck_assert_mem_eq(&f, &back, sizeof f);
	ck_assert_uint_eq(sum, 0x1122334455667788);

	fill(PAGE_SIZE, false);
	ok(wire_pages_send(out, &f, sent, 0));
	ok(wire_read(ours, raw, WIRE_FRAME_LEN + PAGE_SIZE));
	memcpy(&sum, raw + 88, sizeof sum);
	memset(raw + 88, 0, sizeof sum);
	ck_assert_uint_eq(le64toh(sum), XXH3_64bits(raw, WIRE_FRAME_LEN + PAGE_SIZE));
}
END_TEST

int main(void)
{
	Suite *s = suite_create("wire_pages");
	TCase *tc = tcase_create("frames");
	SRunner *sr;
	int failed;

	tcase_add_checked_fixture(tc, setup, teardown);
	tcase_set_timeout(tc, 60);
	tcase_add_test(tc, pages_arrive);
	tcase_add_test(tc, any_pages_arrive);
	tcase_add_test(tc, zeros_and_ends_arrive);
	tcase_add_test(tc, what_does_not_shrink_goes_raw);
	tcase_add_loop_test(tc, every_flipped_bit_is_found, 0, 2);
	tcase_add_loop_test(tc, every_truncation_is_found, 0, 2);
	tcase_add_test(tc, what_cannot_be_is_refused);
	tcase_add_test(tc, what_cannot_be_is_not_sent);
	tcase_add_test(tc, frames_that_are_not_the_pages_are_refused);
	tcase_add_test(tc, waits_for_a_frame_and_not_within);
	tcase_add_test(tc, a_chunk_keeps_its_channel);
	tcase_add_test(tc, headers_are_as_documented);
	suite_add_tcase(s, tc);
	sr = srunner_create(s);
	srunner_run_all(sr, CK_ENV);
	failed = srunner_ntests_failed(sr);
	srunner_free(sr);
	return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
