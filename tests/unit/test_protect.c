// SPDX-License-Identifier: GPL-2.0-only
// A process's memory is copied while the process writes to it, and is what it was at the instant.
#include <pthread.h>
#include <stdlib.h>

#include "mm/protect.h"
#include "mm/read.h"
#include "mm/uffd.h"
#include "tests/unit/memory_child.h"
#include "tests/unit/skip.h"
#include "util/bitmap.h"
#include "util/log.h"

#define CHUNK_PAGES (MM_PROTECT_CHUNK / PAGE_SIZE)
#define PAGES 8192UL // 32 chunks
#define LEN (PAGES * PAGE_SIZE)
#define BIG (512 * MiB)

static void stand_still(struct memory_child *c)
{
	int status;

	kill(c->pid, SIGSTOP);
	ck_assert_int_eq(waitpid(c->pid, &status, WUNTRACED), c->pid);
}

static void go_on(struct memory_child *c)
{
	kill(c->pid, SIGCONT);
}

// Of the whole of the child's memory.
struct snapshot {
	struct memory_child *child;
	struct mm_range range;
	struct mm_protect *p;
	struct mm_source *source;
	char *copy;
	bool *done; // a chunk
};

static void snapshot_prepare(struct snapshot *s, struct memory_child *c)
{
	*s = (struct snapshot){ .child = c, .range = { c->hva, c->len }, .copy = calloc(c->len / PAGE_SIZE, PAGE_SIZE),
				.done = calloc(DIV_ROUND_UP(c->len, MM_PROTECT_CHUNK), sizeof *s->done) };
	ck_assert(s->copy && s->done);
	ck_assert_int_eq(mm_source_open(c->pid, c->hva, c->len, &s->source), 0);
	ck_assert_int_eq(mm_protect_prepare(c->pid, -1, &s->range, 1, &s->p), 0);
}

static void snapshot_end(struct snapshot *s)
{
	mm_protect_end(s->p);
	mm_source_close(s->source);
	free(s->copy);
	free(s->done);
}

static void instant(struct snapshot *s)
{
	stand_still(s->child);
	ck_assert_int_eq(mm_protect_instant(s->p), 0);
}

static void copy_chunk(struct snapshot *s, uint64_t off)
{
	uint64_t present[CHUNK_PAGES / 64], len = s->child->len - off < MM_PROTECT_CHUNK ? s->child->len - off : MM_PROTECT_CHUNK;

	ck_assert_int_eq(mm_source_present(s->source, off, len, present), 0);
	ck_assert_int_eq(mm_source_read(s->source, off, present, len / PAGE_SIZE, s->copy + off), 0);
}

static int copy_and_release(struct snapshot *s, uint64_t off)
{
	if (s->done[off / MM_PROTECT_CHUNK])
		return 0;
	s->done[off / MM_PROTECT_CHUNK] = true;
	copy_chunk(s, off);
	return mm_protect_release(s->p, 0, off);
}

// Those that somebody waits for first.
static int copy_all(struct snapshot *s)
{
	uint64_t off;
	size_t range;
	int ret = 0;

	for (uint64_t next = 0; !ret && next < s->child->len; next += MM_PROTECT_CHUNK) {
		while ((ret = mm_protect_wanted(s->p, 0, &range, &off)) == 1) {
			ck_assert_uint_eq(range, 0);
			ret = copy_and_release(s, off);
			if (ret)
				return ret;
		}
		if (!ret)
			ret = copy_and_release(s, next);
		ck_assert_int_eq(mm_protect_release(s->p, 0, next), ret); // harmless
	}
	return ret;
}

// The child was rewriting pages [first, first + nr) in turn from stamp `from` on, until stamp `to`: the others are zero.
static void check_rewritten(const struct snapshot *s, uint64_t first, uint64_t nr, uint64_t from, uint64_t to)
{
	for (uint64_t i = 0; i < s->child->len / PAGE_SIZE; i++) {
		uint64_t stamp = *(uint64_t *)(s->copy + i * PAGE_SIZE + 8), rounds = (to - from) / nr, expected = 0;

		if (i >= first && i < first + nr && (rounds || i - first < (to - from) % nr))
			expected = from + 1 + (i - first) + (rounds - (i - first >= (to - from) % nr)) * nr;
		if (stamp != expected && expected == to && stamp + nr == to)
			continue; // it stood still between counting and writing
		ck_assert_msg(stamp == expected || (expected == to && to - from <= nr && !stamp), "%s: page %lu has stamp %lu, not %lu",
			      memory_name[s->child->kind], i, stamp, expected);
	}
}

// A child that writes at full speed to a half of its memory; the rest was never touched, then to all of it.
START_TEST(as_it_was)
{
	struct memory_child c;
	struct snapshot s;
	uint64_t stamp, off;
	size_t range;
	int ret;

	if (_i == PRIVATE_FILE)
		return; // refused
	if (!memory_start(&c, (enum memory)_i, LEN)) {
		memory_stop(&c);
		SKIP_CASE("no huge pages here");
	}
	c.box->rate = 300000;
	memory_tell(&c, REWRITE, 0, PAGES / 2);
	while (c.box->stamp < PAGES)
		usleep(100);
	snapshot_prepare(&s, &c);
	for (stamp = c.box->stamp; c.box->stamp < stamp + PAGES;)
		usleep(100);
	instant(&s);
	stamp = c.box->stamp;
	go_on(&c);
	for (ret = 0; !ret;) // it will wait soon
		ret = mm_protect_wanted(s.p, 1000, &range, &off);
	ck_assert_int_eq(ret, 1);
	ck_assert_int_eq(copy_and_release(&s, off), 0);
	ck_assert_int_eq(copy_all(&s), 0);
	check_rewritten(&s, 0, PAGES / 2, 0, stamp);
	for (stamp = c.box->stamp; c.box->stamp < stamp + PAGES;)
		usleep(100);
	snapshot_end(&s);
	c.box->order = READ;
	ck_assert(memory_done(&c, PATIENCE_MS));
	memory_stop(&c);
}
END_TEST

static pthread_mutex_t copying = PTHREAD_MUTEX_INITIALIZER;
static _Atomic bool all_copied;

static void *serve_writers(void *ctx)
{
	struct snapshot *s = ctx;
	uint64_t off;
	size_t range;
	int ret;

	do {
		ret = mm_protect_wanted(s->p, 5, &range, &off);
		if (ret == 1) {
			pthread_mutex_lock(&copying);
			ret = copy_and_release(s, off);
			pthread_mutex_unlock(&copying);
		}
	} while (ret >= 0 && !all_copied);
	ck_assert_int_ge(ret, 0);
	return NULL;
}

// One thread serves those who wait, another one copies.
START_TEST(two_threads)
{
	struct memory_child c;
	struct snapshot s;
	pthread_t thread;
	uint64_t stamp;

	ck_assert(memory_start(&c, (enum memory)_i, LEN));
	c.box->rate = 300000;
	memory_tell(&c, REWRITE, 0, PAGES);
	while (c.box->stamp < PAGES)
		usleep(100);
	snapshot_prepare(&s, &c);
	instant(&s);
	stamp = c.box->stamp;
	go_on(&c);
	ck_assert_int_eq(pthread_create(&thread, NULL, serve_writers, &s), 0);
	for (uint64_t off = 0; off < LEN; off += MM_PROTECT_CHUNK) {
		usleep(500);
		pthread_mutex_lock(&copying);
		ck_assert_int_eq(copy_and_release(&s, off), 0);
		pthread_mutex_unlock(&copying);
	}
	all_copied = true;
	pthread_join(thread, NULL);
	check_rewritten(&s, 0, PAGES, 0, stamp);
	snapshot_end(&s);
	memory_stop(&c);
}
END_TEST

// The address space changes all the time: what was released is discarded again and again, before the instant and after it.
START_TEST(discards_all_the_time)
{
	struct memory_child c;
	struct snapshot s;
	uint64_t off;
	size_t range;
	int ret;

	ck_assert(memory_start(&c, (enum memory)_i, LEN));
	memory_does(&c, WRITE, 0, PAGES);
	c.box->churn = MM_PROTECT_CHUNK;
	snapshot_prepare(&s, &c);
	c.box->churn = 0;
	usleep(10000);
	instant(&s);
	go_on(&c);
	ck_assert_int_eq(copy_and_release(&s, 0), 0);
	c.box->churn = MM_PROTECT_CHUNK;
	for (uint64_t chunk = 1; chunk < PAGES / CHUNK_PAGES; chunk++) {
		memory_tell(&c, WRITE, chunk * CHUNK_PAGES, 1);
		while (!(ret = mm_protect_wanted(s.p, 1000, &range, &off)))
			; // it was an event
		ck_assert_int_eq(ret, 1);
		ck_assert_uint_eq(off, chunk * MM_PROTECT_CHUNK);
		ck_assert_int_eq(copy_and_release(&s, off), 0);
		for (int i = 0; i < PATIENCE_MS && !memory_done(&c, 1); i++)
			ck_assert_int_eq(mm_protect_wanted(s.p, 0, &range, &off), 0);
		ck_assert_msg(memory_done(&c, 0), "the child waits for a chunk that was released");
	}
	for (uint64_t i = CHUNK_PAGES; i < PAGES; i++)
		ck_assert_uint_eq(*(uint64_t *)(s.copy + i * PAGE_SIZE + 8), i + 1);
	snapshot_end(&s);
	memory_stop(&c);
}
END_TEST

// Memory that nobody touched before the instant is zero, and is written to only when it was released.
START_TEST(untouched)
{
	struct memory_child c;
	struct snapshot s;
	uint64_t off;
	size_t range;

	ck_assert(memory_start(&c, (enum memory)_i, LEN));
	snapshot_prepare(&s, &c);
	instant(&s);
	go_on(&c);
	memory_tell(&c, WRITE, 20 * CHUNK_PAGES + 3, 1);
	ck_assert_int_eq(mm_protect_wanted(s.p, 1000, &range, &off), 1);
	ck_assert_uint_eq(off, 20 * MM_PROTECT_CHUNK);
	ck_assert(!memory_done(&c, 20));
	ck_assert_int_eq(copy_and_release(&s, off), 0);
	ck_assert(memory_done(&c, PATIENCE_MS));
	ck_assert_int_eq(copy_all(&s), 0);
	check_rewritten(&s, 0, 1, 0, 0);
	memory_does(&c, WRITE, 0, PAGES);
	snapshot_end(&s);
	memory_stop(&c);
}
END_TEST

// What is discarded before the instant loses its protection, and has it again at the instant. One page of it was touched again.
START_TEST(discard_before)
{
	struct memory_child c;
	struct snapshot s;

	ck_assert(memory_start(&c, (enum memory)_i, LEN));
	memory_does(&c, WRITE, 0, PAGES);
	snapshot_prepare(&s, &c);
	memory_does(&c, DISCARD, 512, 3 * 512);
	memory_does(&c, WRITE, 600, 1);
	instant(&s);
	go_on(&c);
	memory_tell(&c, WRITE, 1024, 1);
	ck_assert(!memory_done(&c, 20));
	ck_assert_int_eq(copy_all(&s), 0);
	ck_assert_uint_eq(*(uint64_t *)(s.copy + 511 * PAGE_SIZE + 8), 512);
	ck_assert_uint_eq(*(uint64_t *)(s.copy + 600 * PAGE_SIZE + 8), PAGES + 1);
	for (size_t i = 512; i < 4 * 512; i++)
		ck_assert(i == 600 || !*(uint64_t *)(s.copy + i * PAGE_SIZE + 8));
	ck_assert(memory_done(&c, PATIENCE_MS));
	snapshot_end(&s);
	memory_stop(&c);
}
END_TEST

// What is discarded after the instant is lost, unless it was released. What the process had at the instant is never said to be zeros.
START_TEST(discard_after)
{
	struct memory_child c;
	struct snapshot s;
	uint64_t off;
	size_t range;
	int ret;

	ck_assert(memory_start(&c, (enum memory)_i, LEN));
	memory_does(&c, WRITE, 0, PAGES);
	snapshot_prepare(&s, &c);
	instant(&s);
	go_on(&c);
	for (off = 0; off < 2 * MM_PROTECT_CHUNK; off += MM_PROTECT_CHUNK)
		ck_assert_int_eq(copy_and_release(&s, off), 0);
	memory_tell(&c, DISCARD, 0, CHUNK_PAGES);
	for (int i = 0; i < PATIENCE_MS && !memory_done(&c, 1); i++)
		ck_assert_int_eq(mm_protect_wanted(s.p, 0, &range, &off), 0);
	ck_assert(memory_done(&c, 0));
	memory_tell(&c, DISCARD, 2 * CHUNK_PAGES + 9, 1);
	for (ret = 0; !ret;)
		ret = mm_protect_wanted(s.p, 1000, &range, &off);
	ck_assert_int_eq(ret, -ESTALE);
	ck_assert(memory_done(&c, PATIENCE_MS));
	ck_assert_int_eq(mm_protect_wanted(s.p, 0, &range, &off), -ESTALE);
	ck_assert_int_eq(mm_protect_release(s.p, 0, 5 * MM_PROTECT_CHUNK), -ESTALE);
	memory_tell(&c, WRITE, 9 * CHUNK_PAGES, 1);
	snapshot_end(&s);
	ck_assert(memory_done(&c, PATIENCE_MS));
	memory_stop(&c);
}
END_TEST

// A discard of which no event has come yet: the file is punched first.
START_TEST(punched)
{
	struct memory_child c;
	struct snapshot s;

	ck_assert(memory_start(&c, MEMFD, LEN));
	memory_does(&c, WRITE, 0, PAGES);
	snapshot_prepare(&s, &c);
	instant(&s);
	go_on(&c);
	ck_assert_int_eq(fallocate(c.fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 7 * MM_PROTECT_CHUNK + PAGE_SIZE, PAGE_SIZE), 0);
	for (uint64_t off = 0; off < 7 * MM_PROTECT_CHUNK; off += MM_PROTECT_CHUNK)
		ck_assert_int_eq(copy_and_release(&s, off), 0);
	ck_assert_int_eq(copy_and_release(&s, 7 * MM_PROTECT_CHUNK), -ESTALE);
	snapshot_end(&s);
	memory_stop(&c);
}
END_TEST

// The descriptor that protects, which is nobody else's.
static int find_uffd(void)
{
	for (int fd = 3; fd < 100; fd++) {
		char path[32], link[64] = "";

		snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
		if (readlink(path, link, sizeof link - 1) > 0 && !strcmp(link, "anon_inode:[userfaultfd]"))
			return fd;
	}
	return -1;
}

// A page that has lost its protection, as happens when the kernel puts an equal one in its place.
START_TEST(protection_lost)
{
	struct memory_child c;
	struct snapshot s;

	ck_assert(memory_start(&c, (enum memory)_i, LEN));
	memory_does(&c, WRITE, 0, PAGES);
	snapshot_prepare(&s, &c);
	instant(&s);
	ck_assert_int_eq(mm_uffd_writeprotect(find_uffd(), c.hva + 3 * MM_PROTECT_CHUNK + PAGE_SIZE, PAGE_SIZE, false), 0);
	go_on(&c);
	memory_does(&c, WRITE, 3 * CHUNK_PAGES + 1, 1);
	ck_assert_int_eq(copy_all(&s), -ESTALE);
	snapshot_end(&s);
	memory_stop(&c);
}
END_TEST

// Whoever protects is killed, or ends: the process goes on, nothing is lost.
START_TEST(killed)
{
	struct memory_child c;
	uint64_t *page;
	pid_t pid;
	int to[2];
	char byte;

	ck_assert(memory_start(&c, (enum memory)_i, LEN));
	memory_does(&c, WRITE, 0, PAGES);
	for (int when = 0; when < 6; when++) {
		ck_assert_int_eq(pipe(to), 0);
		pid = fork();
		if (!pid) {
			struct mm_range range = { c.hva, LEN };
			struct mm_protect *p;

			if (!mm_protect_prepare(c.pid, -1, &range, 1, &p) && (when < 2 || !mm_protect_instant(p)) && write(to[1], "", 1) == 1)
				when % 2 ? mm_protect_end(p) : (void)pause();
			_exit(0);
		}
		close(to[1]);
		ck_assert_int_eq(read(to[0], &byte, 1), 1);
		memory_tell(&c, WRITE, 0, PAGES);
		usleep(when < 4 ? 5000 : 0);
		if (when % 2 == 0)
			kill(pid, SIGKILL);
		waitpid(pid, NULL, 0);
		close(to[0]);
		ck_assert_msg(memory_done(&c, PATIENCE_MS), "the process waits for ever");
	}
	page = malloc(PAGE_SIZE);
	for (uint64_t i = 0; i < PAGES; i++) {
		memory_copy(&c, i, 1, page);
		ck_assert_uint_eq(page[1], 6 * PAGES + i + 1);
	}
	free(page);
	memory_stop(&c);
}
END_TEST

START_TEST(errors)
{
	struct memory_child c;
	struct snapshot s;
	struct mm_protect *p;
	uint64_t off;
	size_t range;

	ck_assert(memory_start(&c, PRIVATE_FILE, LEN));
	s.range = (struct mm_range){ c.hva, LEN };
	ck_assert_int_eq(mm_protect_prepare(c.pid, -1, &s.range, 1, &p), -EOPNOTSUPP);
	memory_stop(&c);

	ck_assert(memory_start(&c, ANON, LEN));
	snapshot_prepare(&s, &c);
	ck_assert_int_eq(mm_protect_prepare(c.pid, -1, &s.range, 1, &p), -EBUSY);
	instant(&s);
	ck_assert_int_eq(mm_protect_wanted(s.p, 1, &range, &off), 0);
	kill(c.pid, SIGKILL);
	ck_assert_int_eq(waitpid(c.pid, NULL, 0), c.pid);
	ck_assert_int_eq(mm_protect_wanted(s.p, 1000, &range, &off), -ESRCH);
	snapshot_end(&s);
	ck_assert_int_eq(mm_protect_prepare(c.pid, -1, &s.range, 1, &p), -ESRCH);
	munmap(c.box, sizeof *c.box);
}
END_TEST

// However much memory there is, and however fast it is written to, the instant is short.
START_TEST(short_instant)
{
	struct mm_protect_stats stats;
	struct memory_child c;
	struct snapshot s;
	uint64_t stamp;

	ck_assert(memory_start(&c, (enum memory)_i, BIG));
	memory_does(&c, WRITE, 0, BIG / PAGE_SIZE);
	c.box->rate = GiB / PAGE_SIZE; // a second
	memory_tell(&c, REWRITE, 0, BIG / PAGE_SIZE);
	usleep(100000);
	c.box->slowest = 0;
	snapshot_prepare(&s, &c);
	for (stamp = c.box->stamp; c.box->stamp < stamp + 150 * CHUNK_PAGES;)
		usleep(1000);
	instant(&s);
	mm_protect_stats(s.p, &stats);
	printf("%s: the instant took %.2f ms, %lu writers let through, the slowest waited %.2f ms\n", memory_name[c.kind],
	       (double)stats.instant_ns / NSEC_PER_MSEC, stats.let_through, (double)c.box->slowest / NSEC_PER_MSEC);
	ck_assert_uint_gt(stats.let_through, 100);
	ck_assert_uint_le(stats.protected_again, 64);
	go_on(&c);
	snapshot_end(&s);
	memory_stop(&c);
}
END_TEST

int main(void)
{
	Suite *s = suite_create("protect");
	TCase *t = tcase_create("instant"), *e = tcase_create("errors");
	SRunner *r;
	int failed;

	log_init(-1, LOG_ERROR, NULL, false);
	tcase_set_timeout(t, 60);
	tcase_set_timeout(e, 60);
	tcase_add_unchecked_fixture(t, memory_more_hugepages, memory_same_hugepages);
	tcase_add_loop_test(t, as_it_was, ANON, HUGETLB_SHARED + 1);
	tcase_add_loop_test(t, two_threads, ANON, MEMFD + 1);
	tcase_add_loop_test(t, discards_all_the_time, ANON, MEMFD + 1);
	tcase_add_loop_test(t, untouched, ANON, MEMFD + 1);
	tcase_add_loop_test(t, discard_before, ANON, MEMFD + 1);
	tcase_add_loop_test(t, discard_after, ANON, MEMFD + 1);
	tcase_add_test(t, punched);
	tcase_add_loop_test(t, protection_lost, ANON, MEMFD + 1);
	tcase_add_loop_test(t, killed, ANON, MEMFD + 1);
	tcase_add_loop_test(t, short_instant, ANON, MEMFD + 1);
	tcase_add_test(e, errors);
	suite_add_tcase(s, t);
	suite_add_tcase(s, e);
	r = srunner_create(s);
	srunner_run_all(r, CK_NORMAL);
	failed = srunner_ntests_failed(r);
	srunner_free(r);
	return failed ? 1 : 0;
}
