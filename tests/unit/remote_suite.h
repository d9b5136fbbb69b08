// SPDX-License-Identifier: GPL-2.0-only
// What the programs that test a remote page source have in common.
#pragma once
#include "tests/unit/remote_rig.h"

#define NR_QUESTIONS 100

static struct rig rig;
static struct question q[NR_QUESTIONS];

static inline unsigned nr_answered(unsigned nr)
{
	unsigned n = 0;

	for (unsigned i = 0; i < nr; i++)
		n += q[i].answered;
	return n;
}

static inline void check_all(unsigned nr)
{
	must_be(&rig, nr_answered(nr) == nr);
	for (unsigned i = 0; i < nr; i++)
		check(&q[i]);
}

static inline unsigned nr_wants_on(unsigned line)
{
	unsigned n = 0;

	for (unsigned i = 0; i < rig.nr_fars; i++)
		n += rig.far[i].line == line ? rig.far[i].nr_wants : 0;
	return n;
}

static inline int run_lines(TCase *t)
{
	Suite *s = suite_create("remote");
	SRunner *sr;
	int failed;

	tcase_set_timeout(t, 120);
	suite_add_tcase(s, t);
	sr = srunner_create(s);
	srunner_run_all(sr, CK_ENV);
	failed = srunner_ntests_failed(sr);
	srunner_free(sr);
	return failed ? 1 : 0;
}
