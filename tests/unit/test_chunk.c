// SPDX-License-Identifier: GPL-2.0-only
// States of chunks, and where pages have their homes.
#include <check.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "pvmem/chunk.h"
#include "util/size.h"

// The drawing in chunk.h, arrow by arrow.
static bool drawn(enum pv_chunk_state from, enum pv_chunk_state to)
{
	switch (from) {
	case PV_ABSENT:
		return to == PV_RESIDENT || to == PV_STRIPPING;
	case PV_RESIDENT:
		return to == PV_ABSENT || to == PV_ZAPPING;
	case PV_ZAPPING:
		return to == PV_IDLE || to == PV_RESIDENT;
	case PV_IDLE:
		return to == PV_DRAINING || to == PV_RESIDENT;
	case PV_DRAINING:
		return to == PV_WRITING || to == PV_RESIDENT;
	case PV_WRITING:
		return to == PV_STANDBY || to == PV_RESIDENT;
	case PV_STANDBY:
		return to == PV_ABSENT || to == PV_RESIDENT;
	case PV_STRIPPING:
		return to == PV_ABSENT;
	default:
		return false;
	}
}

// How a process ends that takes the step: 0, or the signal.
static int step(unsigned from, unsigned to)
{
	pid_t pid = fork();
	int status;

	ck_assert_int_ge(pid, 0);
	if (!pid) {
		struct pv_chunk c = { .state = (uint8_t)from };

		close(STDERR_FILENO);
		pv_chunk_set_state(&c, (enum pv_chunk_state)to);
		_exit(c.state == to ? 0 : 1);
	}
	ck_assert_int_eq(waitpid(pid, &status, 0), pid);
	return WIFSIGNALED(status) ? WTERMSIG(status) : WEXITSTATUS(status);
}

START_TEST(states)
{
	for (unsigned from = 0; from < PV_NR_CHUNK_STATES; from++)
		for (unsigned to = 0; to <= PV_NR_CHUNK_STATES; to++) {
			bool ok = drawn((enum pv_chunk_state)from, (enum pv_chunk_state)to);

			ck_assert_int_eq(pv_chunk_may_become((enum pv_chunk_state)from, (enum pv_chunk_state)to), ok);
			ck_assert_msg(step(from, to) == (ok ? 0 : SIGABRT), "%s to %s", pv_chunk_state_name((enum pv_chunk_state)from),
				      pv_chunk_state_name((enum pv_chunk_state)to));
		}
	// A state that memory corruption made.
	ck_assert_int_eq(step(PV_NR_CHUNK_STATES, PV_RESIDENT), SIGABRT);
	ck_assert_int_eq(step(0xff, PV_RESIDENT), SIGABRT);
}
END_TEST

START_TEST(names)
{
	for (unsigned i = 0; i < PV_NR_CHUNK_STATES; i++)
		for (unsigned j = 0; j < i; j++)
			ck_assert_str_ne(pv_chunk_state_name((enum pv_chunk_state)i), pv_chunk_state_name((enum pv_chunk_state)j));
	ck_assert_ptr_nonnull(pv_chunk_state_name((enum pv_chunk_state)0xff));
}
END_TEST

static void random_map(uint64_t map[PV_WORDS])
{
	for (unsigned i = 0; i < PV_CHUNK_PAGES; i++)
		if (rand() % 2)
			bitmap_set(map, i);
		else
			bitmap_clear(map, i);
}

static void compare(const struct pv_pages *p, const enum pv_home want[PV_CHUNK_PAGES])
{
	uint64_t map[PV_WORDS];

	for (unsigned i = 0; i < PV_CHUNK_PAGES; i++)
		ck_assert_int_eq(pv_page_home(p, i), want[i]);
	for (enum pv_home h = PV_HOME_NONE; h <= PV_HOME_SOURCE; h++) {
		memset(map, 0xa5, sizeof map);
		pv_pages_of_home(p, h, map);
		for (unsigned i = 0; i < PV_CHUNK_PAGES; i++)
			ck_assert_int_eq(bitmap_test(map, i), want[i] == h);
	}
}

START_TEST(homes)
{
	enum pv_home want[PV_CHUNK_PAGES] = { PV_HOME_NONE };
	struct pv_pages p = { 0 };
	uint64_t valid[PV_WORDS];

	srand(2);
	random_map(p.valid);
	memcpy(valid, p.valid, sizeof valid);
	compare(&p, want);
	for (unsigned step_nr = 0; step_nr < 500; step_nr++) {
		enum pv_home h = (enum pv_home)(rand() % 4);
		uint64_t which[PV_WORDS];

		if (rand() % 2) {
			unsigned page = (unsigned)rand() % PV_CHUNK_PAGES;

			pv_page_set_home(&p, page, h);
			want[page] = h;
		} else {
			random_map(which);
			pv_pages_set_home(&p, which, h);
			for (unsigned i = 0; i < PV_CHUNK_PAGES; i++)
				want[i] = bitmap_test(which, i) ? h : want[i];
		}
		compare(&p, want);
		ck_assert_mem_eq(p.valid, valid, sizeof valid);
	}
}
END_TEST

START_TEST(sane)
{
	struct pv_pages p = { 0 };
	uint64_t all[PV_WORDS];

	ck_assert(!pv_pages_sane(&p)); // nowhere, all of them
	memset(all, 0xff, sizeof all);
	for (enum pv_home h = PV_HOME_ZERO; h <= PV_HOME_SOURCE; h++) {
		memset(&p, 0, sizeof p);
		pv_pages_set_home(&p, all, h);
		ck_assert(pv_pages_sane(&p));
		for (unsigned i = 0; i < PV_CHUNK_PAGES; i++) {
			pv_page_set_home(&p, i, PV_HOME_NONE);
			ck_assert(!pv_pages_sane(&p)); // lost
			bitmap_set(p.valid, i);
			ck_assert(pv_pages_sane(&p)); // stale
			pv_page_set_home(&p, i, h);
			ck_assert(pv_pages_sane(&p)); // clean
			bitmap_clear(p.valid, i);
			ck_assert(pv_pages_sane(&p)); // dropped
		}
	}
}
END_TEST

int main(void)
{
	Suite *s = suite_create("chunk");
	TCase *t = tcase_create("chunk");
	SRunner *sr;
	int failed;

	tcase_add_test(t, states);
	tcase_add_test(t, names);
	tcase_add_test(t, homes);
	tcase_add_test(t, sane);
	suite_add_tcase(s, t);
	sr = srunner_create(s);
	srunner_run_all(sr, CK_ENV);
	failed = srunner_ntests_failed(sr);
	srunner_free(sr);
	return failed ? 1 : 0;
}
