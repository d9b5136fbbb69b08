// SPDX-License-Identifier: GPL-2.0-only
// The device-state stream against one that QEMU 7.2 wrote: -M pc-i440fx-7.2 -nodefaults, TCG, one IDE disk.
#include "qemu/devstate.h"

#include <check.h>
#include <endian.h>
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>

#include "util/io.h"
#include "util/log.h"

#define RECORDED "tests/unit/data/devstate-pc-7.2.bin"

static uint8_t *saved;
static size_t saved_len;

static void setup(void)
{
	char *buf;

	ck_assert_int_eq(io_read_file(RECORDED, 1 << 20, &buf, &saved_len), 0);
	saved = malloc(saved_len); // exactly as long, so that asan sees a read behind its end
	memcpy(saved, buf, saved_len);
	free(buf);
}

static void teardown(void)
{
	free(saved);
}

// A copy of the first len bytes with an end that asan watches.
static int check_copy(const uint8_t *p, size_t len)
{
	uint8_t *copy = malloc(len ?: 1);
	int err;

	memcpy(copy, p, len);
	err = qemu_devstate_check(copy, len);
	free(copy);
	return err;
}

static size_t find(const uint8_t *p, size_t len, const void *what, size_t what_len)
{
	const uint8_t *at = memmem(p, len, what, what_len);

	ck_assert_ptr_nonnull(at);
	return (size_t)(at - p);
}

START_TEST(recorded_is_good)
{
	ck_assert_int_eq(check_copy(saved, saved_len), 0);
}
END_TEST

START_TEST(every_truncation_is_found)
{
	for (size_t len = 0; len < saved_len; len++)
		ck_assert_msg(check_copy(saved, len) == -EBADMSG, "truncated to %zu bytes", len);
}
END_TEST

START_TEST(something_behind_the_end)
{
	uint8_t *longer = calloc(1, saved_len + 1);

	memcpy(longer, saved, saved_len);
	ck_assert_int_eq(check_copy(longer, saved_len + 1), -EBADMSG);
	longer[saved_len] = 0x06;
	ck_assert_int_eq(check_copy(longer, saved_len + 1), -EBADMSG);
	free(longer);
}
END_TEST

START_TEST(magic_and_version)
{
	saved[0] ^= 1;
	ck_assert_int_eq(qemu_devstate_check(saved, saved_len), -EBADMSG);
	saved[0] ^= 1;
	saved[7] = 2;
	ck_assert_int_eq(qemu_devstate_check(saved, saved_len), -EBADMSG);
}
END_TEST

// The first section, "timer", and one in the middle: no other type, no unprintable or empty name, no other id in the footer.
START_TEST(damaged_borders)
{
	const size_t headers[] = { 8, find(saved, saved_len, "\x07PCIHost", 8) - 5 };

	for (size_t i = 0; i < 2; i++) {
		uint8_t *h = saved + headers[i];

		ck_assert_int_eq(h[0], 0x04);
		for (uint8_t type = 0; type < 8; type++) { // START, PART, END, SUBSECTION, CONFIGURATION ...
			h[0] = type;
			ck_assert_int_eq(qemu_devstate_check(saved, saved_len), type == 0x04 ? 0 : -EBADMSG);
		}
		h[0] = 0x04;
		h[7] ^= 0x80;
		ck_assert_int_eq(qemu_devstate_check(saved, saved_len), -EBADMSG);
		h[7] ^= 0x80;
		h[1] ^= 0x80; // section id, out of all bounds
		ck_assert_int_eq(qemu_devstate_check(saved, saved_len), -EBADMSG);
		h[1] ^= 0x80;
		h[4] ^= 0x40; // section id: its footer does not answer
		ck_assert_int_eq(qemu_devstate_check(saved, saved_len), -EBADMSG);
		h[4] ^= 0x40;
	}
	ck_assert_int_eq(qemu_devstate_check(saved, saved_len), 0);
	saved[saved_len - 5] ^= 0x80; // id in the last footer
	ck_assert_int_eq(qemu_devstate_check(saved, saved_len), -EBADMSG);
	saved[saved_len - 5] ^= 0x80;
	saved[saved_len - 2] ^= 1;
	ck_assert_int_eq(qemu_devstate_check(saved, saved_len), -EBADMSG);
}
END_TEST

// What a guest can put into a device's memory does not make its own good state look bad.
START_TEST(borders_inside_a_body)
{
	static const uint8_t section[] = "\x04\0\0\0\x63\x01x\0\0\0\0\0\0\0\1" // header, id 0x63
					 "\x7e\0\0\0\x63\x04\0\0\0\x64\x01y\0\0\0\0\0\0\0\1" // a border to a section that never ends
					 "\x7e\0\0\0\x63\0" // footer and EOF, but not the end
					 "body"
					 "\x7e\0\0\0\x63"; // the true footer
	uint8_t buf[8 + sizeof section] = "QEVM\0\0\0\3";

	memcpy(buf + 8, section, sizeof section); // with the terminating 0, which is EOF
	ck_assert_int_eq(check_copy(buf, sizeof buf), 0);
	ck_assert_int_eq(check_copy(buf, sizeof buf - 1), -EBADMSG);
}
END_TEST

static void expect(const uint8_t **p, const void *bytes, size_t len)
{
	ck_assert_mem_eq(*p, bytes, len);
	*p += len;
}

static void expect64(const uint8_t **p, uint64_t v)
{
	v = htobe64(v);
	expect(p, &v, sizeof v);
}

START_TEST(built_stream)
{
	static uint8_t rom[3 * 4096], vga[4096];
	const struct qemu_small_block small[] = { { "pc.rom", sizeof rom, rom }, { "vga.vram", sizeof vga, vga } };
	uint8_t *out;
	const uint8_t *p;
	size_t len;

	rom[2 * 4096 - 1] = 7; // the second page's last byte
	ck_assert_int_eq(qemu_devstate_build(saved, saved_len, "pc-i440fx-7.2", small, 2, &out, &len), 0);
	p = out;
	expect(&p, "QEVM\0\0\0\3", 8);
	expect(&p, "\x07\0\0\0\x0dpc-i440fx-7.2", 18);
	expect(&p, "\x01\0\xff\xff\0\x03ram\0\0\0\0\0\0\0\4", 17);
	expect64(&p, 4 * 4096 | 0x04);
	expect(&p, "\x06pc.rom", 7);
	expect64(&p, sizeof rom);
	expect(&p, "\x08vga.vram", 9);
	expect64(&p, sizeof vga);
	expect64(&p, 0x10);
	expect(&p, "\x7e\0\xff\xff\0", 5);
	expect(&p, "\x03\0\xff\xff\0", 5);
	expect64(&p, 0x02); // zero page, names its block
	expect(&p, "\x06pc.rom\0", 8);
	expect64(&p, 4096 | 0x08 | 0x20);
	expect(&p, rom + 4096, 4096);
	expect64(&p, 2 * 4096 | 0x02 | 0x20);
	expect(&p, "\0", 1);
	expect64(&p, 0x02);
	expect(&p, "\x08vga.vram\0", 10);
	expect64(&p, 0x10);
	expect(&p, "\x7e\0\xff\xff\0", 5);
	expect(&p, saved + 8, saved_len - 8);
	expect(&p, "\x06\0\0\0\x22{\"page_size\": 4096, \"devices\": []}", 5 + 0x22);
	ck_assert_uint_eq((size_t)(p - out), len);
	free(out);
}
END_TEST

START_TEST(nothing_is_built_from_bad_input)
{
	static const uint8_t page[4096];
	char long_name[300] = "";
	struct qemu_small_block b = { "pc.rom", 4095, page };
	uint8_t *out;
	size_t len;

	ck_assert_int_eq(qemu_devstate_build(saved, saved_len, "pc", &b, 1, &out, &len), -EINVAL);
	b.len = 0;
	ck_assert_int_eq(qemu_devstate_build(saved, saved_len, "pc", &b, 1, &out, &len), -EINVAL);
	memset(long_name, 'x', 256);
	b = (struct qemu_small_block){ long_name, 4096, page };
	ck_assert_int_eq(qemu_devstate_build(saved, saved_len, "pc", &b, 1, &out, &len), -EINVAL);
	ck_assert_int_eq(qemu_devstate_build(saved, saved_len, long_name, NULL, 0, &out, &len), -EINVAL);
	ck_assert_int_eq(qemu_devstate_build(saved, saved_len, "", NULL, 0, &out, &len), -EINVAL);
	ck_assert_int_eq(qemu_devstate_build(saved, saved_len - 1, "pc", NULL, 0, &out, &len), -EBADMSG);
	long_name[255] = 0;
	ck_assert_int_eq(qemu_devstate_build(saved, saved_len, "pc", &b, 1, &out, &len), 0);
	free(out);
}
END_TEST

int main(void)
{
	Suite *s = suite_create("devstate");
	TCase *tc = tcase_create("devstate");
	SRunner *sr;
	int failed;

	log_init(getenv("VERBOSE") ? 2 : open("/dev/null", O_WRONLY | O_CLOEXEC), LOG_WARN, NULL, false);
	tcase_add_checked_fixture(tc, setup, teardown);
	tcase_set_timeout(tc, 60);
	tcase_add_test(tc, recorded_is_good);
	tcase_add_test(tc, every_truncation_is_found);
	tcase_add_test(tc, something_behind_the_end);
	tcase_add_test(tc, magic_and_version);
	tcase_add_test(tc, damaged_borders);
	tcase_add_test(tc, borders_inside_a_body);
	tcase_add_test(tc, built_stream);
	tcase_add_test(tc, nothing_is_built_from_bad_input);
	suite_add_tcase(s, tc);
	sr = srunner_create(s);
	srunner_run_all(sr, CK_ENV);
	failed = srunner_ntests_failed(sr);
	srunner_free(sr);
	return failed ? 1 : 0;
}
