// SPDX-License-Identifier: GPL-2.0-only
// Swap images on a disk, and what a test does to them.
#pragma once
#include <check.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "pvmem/swap.h"
#include "util/io.h"
#include "util/log.h"

#define LEN (8 * MiB)

static char dir[] = "/var/tmp/criu-vm-test.XXXXXX"; // not in memory
static char image[sizeof dir + 8];

// A folder for all tests of a program. It is left by make_dir()'s caller with remove_dir().
static inline void make_dir(void)
{
	if (!mkdtemp(dir))
		abort();
	snprintf(image, sizeof image, "%s/image", dir);
}

static inline void remove_dir(void)
{
	char command[sizeof dir + 16];

	snprintf(command, sizeof command, "rm -rf %s", dir);
	if (system(command))
		abort();
}

static inline void put_page(const struct pv_swap *s, uint64_t off, int byte)
{
	static uint8_t page[PAGE_SIZE] __attribute__((aligned(PAGE_SIZE)));

	memset(page, byte, sizeof page);
	ck_assert_int_eq(io_pwrite_full(s->fd, page, sizeof page, off), 0);
}

static inline void expect_page(const struct pv_swap *s, uint64_t off, int byte)
{
	static uint8_t page[PAGE_SIZE] __attribute__((aligned(PAGE_SIZE)));

	ck_assert_int_eq(io_pread_full(s->fd, page, sizeof page, off), 0);
	for (size_t i = 0; i < sizeof page; i++)
		ck_assert_int_eq(page[i], byte);
}

// The trailer at byte off of the file or device becomes another valid one.
static inline void forge(const char *path, uint64_t off, void (*change)(struct pv_swap_trailer *t))
{
	struct pv_swap_trailer t;
	int fd = open(path, O_RDWR | O_CLOEXEC);

	ck_assert_int_ge(fd, 0);
	ck_assert_int_eq(pv_swap_trailer_read(fd, off, &t), 0);
	change(&t);
	ck_assert_int_eq(pv_swap_trailer_write(fd, off, &t), 0);
	close(fd);
}

static inline void of_another_boot(struct pv_swap_trailer *t)
{
	memcpy(t->boot_id, "00000000-1111-2222-3333-444444444444", sizeof t->boot_id);
}

static inline void expect_said(const char *a, const char *b)
{
	ck_assert_msg(strstr(log_last_error(), a) && strstr(log_last_error(), b), "%s", log_last_error());
}

static inline int run_suite(const char *name, TCase *t)
{
	Suite *s = suite_create(name);
	SRunner *sr;
	int failed;

	tcase_set_timeout(t, 60);
	suite_add_tcase(s, t);
	sr = srunner_create(s);
	srunner_run_all(sr, CK_ENV);
	failed = srunner_ntests_failed(sr);
	srunner_free(sr);
	return failed ? 1 : 0;
}
