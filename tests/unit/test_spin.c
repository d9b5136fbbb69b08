// SPDX-License-Identifier: GPL-2.0-only
// What looking before sleeping is worth, and where it is not.
#include <check.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include "util/clock.h"
#include "util/io.h"
#include "util/spin.h"

#define KIND SPIN_REST

static struct spin s;

static void teach(unsigned nr, uint64_t ns, bool slept)
{
	for (unsigned i = 0; i < nr; i++)
		spin_learn(&s, KIND, ns, slept);
}

static uint64_t limit(void)
{
	uint64_t end;

	s.to_spare = true;
	s.looked_ns = 1;
	end = spin_until(&s, KIND, 2, 2);
	return end ? end - 2 : 0;
}

START_TEST(learns)
{
	spin_init(&s);
	ck_assert_uint_eq(limit(), 0); // nothing is known
	teach(100, 10000, false);
	ck_assert_uint_ge(limit(), 10000);
	ck_assert_uint_le(limit(), 20000);
	ck_assert_uint_eq(spin_until(&s, KIND, 2, 20002), 0); // it has lasted too long by now
	s.looked_ns = 1;
	ck_assert_uint_eq(spin_until(&s, SPIN_IO, 2, 2), 0); // of those nothing was learnt
	teach(200, 100000, true);
	ck_assert_uint_ge(limit(), 75000); // what a wake-up took was not waited for
	ck_assert_uint_le(limit(), SPIN_MAX_NS);
	teach(400, 10 * NSEC_PER_MSEC, false);
	ck_assert_uint_eq(limit(), 0);
	for (unsigned i = 0; i < 400; i++)
		teach(1, i & 1 ? 5000 : NSEC_PER_MSEC, false); // as long as the short ones last
	ck_assert_uint_gt(limit(), 5000);
	ck_assert_uint_le(limit(), 16000);
	for (unsigned i = 0; i < 400; i++)
		teach(1, i % 4 ? NSEC_PER_MSEC : 120000, false); // three of four for nothing
	ck_assert_uint_eq(limit(), 0);
	spin_fini(&s);
}
END_TEST

// A child that wants our CPU, too, and all of it.
static pid_t rival(void)
{
	int cpu = sched_getcpu();
	cpu_set_t one;
	pid_t pid;

	CPU_ZERO(&one);
	CPU_SET(cpu, &one);
	ck_assert_int_eq(sched_setaffinity(0, sizeof one, &one), 0);
	pid = fork();
	ck_assert_int_ge(pid, 0);
	for (; !pid;)
		;
	return pid;
}

// Looks until so long passes between two looks.
static uint64_t long_gap(void)
{
	uint64_t last = clock_now_ns(), now = last;

	do {
		last = now;
		now = clock_now_ns();
	} while (now - last < 500000);
	return now - last;
}

START_TEST(gives_way)
{
	pid_t pid;

	spin_init(&s);
	teach(100, 10000, false);
	ck_assert(!spin_lost_cpu(&s, 5000, 2));
	s.preempted++;
	ck_assert(spin_lost_cpu(&s, NSEC_PER_MSEC, NSEC_PER_SEC)); // as soon as the count is another one
	s.not_before_ns = 0;
	ck_assert(!spin_lost_cpu(&s, NSEC_PER_MSEC, NSEC_PER_SEC)); // an interrupt
	ck_assert_uint_gt(limit(), 0);
	pid = rival();
	ck_assert(spin_lost_cpu(&s, long_gap(), 2));
	kill(pid, SIGKILL);
	ck_assert_int_eq(waitpid(pid, NULL, 0), pid);
	ck_assert_uint_eq(limit(), 0);
	s.looked_ns = NSEC_PER_SEC;
	ck_assert_uint_gt(spin_until(&s, KIND, NSEC_PER_SEC + 1, NSEC_PER_SEC + 1), 0);
	spin_fini(&s);
	ck_assert_uint_eq(spin_until(&s, KIND, NSEC_PER_SEC + 1, NSEC_PER_SEC + 1), 0);
}
END_TEST

static void load_is(const char *text)
{
	int fd = memfd_create("load", MFD_CLOEXEC);

	ck_assert_int_eq(io_pwrite_full(fd, text, strlen(text), 0), 0);
	close(s.load_fd);
	s.load_fd = fd;
}

// As many threads as CPUs may run, and what cannot be read is a busy host's.
START_TEST(busy_hosts)
{
	unsigned cpus;
	cpu_set_t all;
	char text[64];

	ck_assert_int_eq(sched_getaffinity(0, sizeof all, &all), 0);
	cpus = (unsigned)CPU_COUNT(&all);
	spin_init(&s);
	teach(100, 10000, false);
	for (unsigned more = 0; more < 2; more++) {
		snprintf(text, sizeof text, "0.25 1.00 12.00 %u/1000 12345\n", cpus + more);
		load_is(text);
		s.looked_ns = 0;
		ck_assert_uint_eq(spin_until(&s, KIND, NSEC_PER_SEC, NSEC_PER_SEC) != 0, cpus > 1 && !more);
		load_is(""); // it is not looked at again so soon
		ck_assert_uint_eq(spin_until(&s, KIND, NSEC_PER_SEC + 1, NSEC_PER_SEC + 1) != 0, cpus > 1 && !more);
		ck_assert_uint_eq(spin_until(&s, KIND, 2 * NSEC_PER_SEC, 2 * NSEC_PER_SEC), 0);
	}
	spin_fini(&s);
}
END_TEST

// One CPU is never to spare.
START_TEST(one_cpu_only)
{
	cpu_set_t all, one;
	int cpu = 0;

	ck_assert_int_eq(sched_getaffinity(0, sizeof all, &all), 0);
	while (!CPU_ISSET(cpu, &all))
		cpu++;
	CPU_ZERO(&one);
	CPU_SET(cpu, &one);
	spin_init(&s);
	load_is("0.00 0.00 0.00 1/100 1\n");
	teach(100, 10000, false);
	ck_assert_uint_eq(spin_until(&s, KIND, 1000, 1000) != 0, CPU_COUNT(&all) > 1);
	ck_assert_int_eq(sched_setaffinity(0, sizeof one, &one), 0);
	ck_assert_uint_eq(spin_until(&s, KIND, NSEC_PER_SEC, NSEC_PER_SEC), 0);
	ck_assert_int_eq(sched_setaffinity(0, sizeof all, &all), 0);
	spin_fini(&s);
}
END_TEST

int main(void)
{
	Suite *suite = suite_create("spin");
	TCase *t = tcase_create("spin");
	SRunner *sr;
	int nr_failed;

	tcase_add_test(t, learns);
	tcase_add_test(t, gives_way);
	tcase_add_test(t, busy_hosts);
	tcase_add_test(t, one_cpu_only);
	suite_add_tcase(suite, t);
	sr = srunner_create(suite);
	srunner_run_all(sr, CK_ENV);
	nr_failed = srunner_ntests_failed(sr);
	srunner_free(sr);
	return nr_failed ? 1 : 0;
}
