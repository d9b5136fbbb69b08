// SPDX-License-Identifier: GPL-2.0-only
// What the programs that test the engine have in common: what they expect of it, and their main().
#pragma once
#include "engine_rig.h"
#include "lazy-pages/take_over.h"
#include "util/log.h"

static inline void quiet(void)
{
	log_init(-1, LOG_ERROR, NULL, false); // to nobody
}

// What stat says of it, once it does: for so long or longer.
static inline void expect_trouble(struct rig *r, const char *what, int err, uint64_t ms)
{
	struct pv_stats s;

	ck_assert(rig_until(r, rig_stats(r).trouble, RIG_PATIENCE_MS));
	s = rig_stats(r);
	ck_assert_str_eq(s.trouble, what);
	ck_assert_int_eq(s.trouble_err, err);
	ck_assert_uint_ge(s.trouble_ns, ms * NSEC_PER_MSEC);
	ck_assert_uint_lt(s.trouble_ns, RIG_PATIENCE_MS * NSEC_PER_MSEC);
}

// Everything is pushed out and read back in.
static inline void verify_all(struct rig *r)
{
	for (unsigned i = 0; i < 2; i++)
		rig_do(r, i, GUEST_VERIFY, 0, r->g->nr_pages);
}

// The swap file through a descriptor that fails either way.
static inline int broken_swap(const struct rig *r, int flags)
{
	char path[32];
	int fd;

	quiet();
	snprintf(path, sizeof path, "/proc/self/fd/%d", r->swap.fd);
	fd = open(path, flags | O_DIRECT | O_CLOEXEC);
	ck_assert_int_ge(fd, 0);
	return fd;
}

// Another engine goes on from the page table alone. What the one before was reading from the source never comes.
static inline void replace_engine(struct rig *r)
{
	int pidfd = (int)syscall(SYS_pidfd_open, r->pid, 0);

	r->deaf = true;
	loop_fini(&r->loop);
	pv_engine_free(r->e);
	rig_new_loop(r);
	r->source_gone = false;
	r->deaf = r->watch.poll.busy = r->look.op.busy = r->drain_timer.op.busy = r->source_timer.op.busy = false;
	mm_zapper_free(r->zapper);
	rig_new_zapper(r);
	ck_assert_int_eq(lp_settle(&r->plant, r->zapper, r->pagemap, r->block, r->nr_blocks, r->pages, pidfd), 0);
	close(pidfd);
	rig_new_engine(r);
	pv_engine_run(r->e);
	for (size_t i = 0; i < r->nr_blocks; i++) // what was read and not answered
		mm_uffd_wake(r->plant.uffd, r->block[i].hva, r->block[i].len);
}

static inline const char *missing_here(void)
{
	struct mm_pagemap *pm;
	struct loop l;
	int uffd;

	if (geteuid())
		return "only root may reach into another process";
	uffd = (int)syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK);
	if (uffd < 0 || mm_uffd_api(uffd, RIG_FEATURES, NULL))
		return "the kernel's userfaultfd lacks something";
	close(uffd);
	if (mm_pagemap_open(getpid(), &pm))
		return "the kernel cannot scan page maps";
	mm_pagemap_close(pm);
	if (loop_init(&l, 8))
		return "there is no io_uring";
	loop_fini(&l);
	return NULL;
}

// Each a case of its own, so that CK_RUN_CASE=name runs it alone.
static inline void add(Suite *s, const TTest *test, size_t times)
{
	TCase *t = tcase_create(test->name);

	tcase_set_timeout(t, 120);
	tcase_add_loop_test(t, test, 0, (int)times);
	suite_add_tcase(s, t);
}

// Exit status of the program.
static inline int run(Suite *s)
{
	const char *missing = missing_here();
	SRunner *sr = srunner_create(s);
	int failed = 0;

	if (missing) {
		printf("skipped: %s\n", missing);
	} else {
		srunner_run_all(sr, CK_ENV);
		failed = srunner_ntests_failed(sr);
	}
	srunner_free(sr);
	return missing ? 77 : failed ? 1 : 0;
}
