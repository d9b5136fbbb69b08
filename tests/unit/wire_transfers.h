// SPDX-License-Identifier: GPL-2.0-only
// What a connection has to stand, in the clear and in TLS alike. make_pair() is the test's.
#pragma once
#include <errno.h>
#include <stdatomic.h>

#include "tests/unit/wire_pair.h"
#include "util/clock.h"
#include "util/size.h"
#include "wire/pages.h"

#define BULK (100 * MiB)
#define STEP_MAX (MiB + 4096)

static void make_pair(struct pair *p);

static inline uint64_t elapsed_ms(uint64_t since_ns)
{
	return (clock_now_ns() - since_ns) / NSEC_PER_MSEC;
}

// The stream's bytes: of any place, and different from one stream to another.
static inline void pattern(uint8_t *buf, size_t len, uint64_t at, uint64_t seed)
{
	for (size_t i = 0; i < len; i++)
		buf[i] = (uint8_t)(((at + i) * 0x9e3779b97f4a7c15 + seed) >> 32);
}

// Pieces of all lengths around a record's and beyond.
static inline size_t step_len(uint64_t at, uint64_t left)
{
	static const size_t lens[] = { 1, 96, 4096, 16383, 16384, 16385, 65536, STEP_MAX, 7, 500000 };
	size_t len = lens[at / 3 % ARRAY_SIZE(lens)];

	return len < left ? len : left;
}

struct stream {
	struct wire_conn *c;
	uint64_t seed;
	int error;
	void (*at_times)(struct wire_conn *c); // the sender's; may be NULL
};

// Sends each piece as four, one of them empty.
static inline void *send_bulk(void *arg)
{
	struct stream *s = arg;
	uint8_t *buf = malloc(STEP_MAX);

	for (uint64_t at = 0, len; at < BULK && !s->error; at += len) {
		len = step_len(at, BULK - at);
		pattern(buf, len, at, s->seed);
		size_t a = len / 100, b = len / 3;
		struct iovec iov[] = { { buf, a }, { buf, 0 }, { buf + a, b }, { buf + a + b, len - a - b } };

		s->error = wire_writev(s->c, iov, ARRAY_SIZE(iov));
		if (s->at_times && at / (BULK / 4) != (at + len) / (BULK / 4))
			s->at_times(s->c);
	}
	free(buf);
	return NULL;
}

static inline void *receive_bulk(void *arg)
{
	struct stream *s = arg;
	uint8_t *buf = malloc(STEP_MAX), *want = malloc(STEP_MAX);

	for (uint64_t at = 0, len; at < BULK && !s->error; at += len) {
		len = step_len(at * 7 + 5, BULK - at);
		if (at % 5 == 0 && wire_poll(s->c, PATIENCE_MS) != 1)
			s->error = -ETIMEDOUT;
		if (!s->error)
			s->error = wire_read(s->c, buf, len);
		pattern(want, len, at, s->seed);
		if (!s->error && memcmp(buf, want, len))
			s->error = -EILSEQ;
	}
	if (s->error)
		wire_shutdown(s->c); // the others need not wait
	free(buf);
	free(want);
	return NULL;
}

// Each second one receives what the one before it sends.
static inline void stream_all(struct stream *s, size_t nr)
{
	pthread_t t[8];

	for (size_t i = 0; i < nr; i++)
		ck_assert_int_eq(pthread_create(&t[i], NULL, i % 2 ? receive_bulk : send_bulk, &s[i]), 0);
	for (size_t i = 0; i < nr; i++)
		pthread_join(t[i], NULL);
	for (size_t i = 0; i < nr; i++)
		ck_assert_msg(!s[i].error, "stream %zu: %s", i, strerror(-s[i].error));
}

START_TEST(both_ways_at_once)
{
	struct pair p = { 0 };
	make_pair(&p);
	struct stream s[] = { { p.client, 1, 0, NULL }, { p.server, 1, 0, NULL }, { p.server, 2, 0, NULL }, { p.client, 2, 0, NULL } };

	stream_all(s, ARRAY_SIZE(s));
	ck_assert_uint_eq(wire_bytes_sent(p.client), BULK);
	ck_assert_uint_eq(wire_bytes_received(p.server), BULK);
	ck_assert_uint_eq(wire_bytes_sent(p.server), BULK);
	ck_assert_uint_eq(wire_bytes_received(p.client), BULK);
	pair_close(&p);
}
END_TEST

START_TEST(polls)
{
	struct pair p = { 0 };
	char buf[5];
	uint64_t since;

	make_pair(&p);
	since = clock_now_ns();
	ck_assert_int_eq(wire_poll(p.server, 0), 0);
	ck_assert_int_eq(wire_poll(p.server, 100), 0);
	ck_assert_uint_ge(elapsed_ms(since), 100);
	ck_assert_int_eq(wire_write(p.client, "12345", 5), 0);
	ck_assert_int_eq(wire_poll(p.server, PATIENCE_MS), 1);
	ck_assert_int_eq(wire_poll(p.server, 0), 1); // and it takes nothing away
	ck_assert_int_eq(wire_read(p.server, buf, 2), 0);
	ck_assert_int_eq(wire_poll(p.server, 0), 1); // of TLS, the rest is in the session
	ck_assert_int_eq(wire_read(p.server, buf + 2, 3), 0);
	ck_assert_mem_eq(buf, "12345", 5);
	ck_assert_int_eq(wire_poll(p.server, 0), 0);
	ck_assert_uint_eq(wire_bytes_received(p.server), 5);
	wire_close(p.client);
	p.client = NULL;
	ck_assert_int_eq(wire_poll(p.server, PATIENCE_MS), 1);
	ck_assert_int_eq(wire_read(p.server, buf, 1), -ECONNRESET);
	pair_close(&p);
}
END_TEST

// Frames that came together, of TLS in one record, are seen one by one.
START_TEST(polls_frames)
{
	struct wire_pages *w;
	struct wire_frame f;
	struct pair p = { 0 };
	uint8_t two[2 * WIRE_FRAME_LEN];

	make_pair(&p);
	ck_assert_int_eq(wire_pages_new(p.server, &w), 0);
	ck_assert_int_eq(wire_line_say(w, WIRE_ALIVE), 0);
	ck_assert_int_eq(wire_read(p.client, two, WIRE_FRAME_LEN), 0);
	memcpy(two + WIRE_FRAME_LEN, two, WIRE_FRAME_LEN);
	ck_assert_int_eq(wire_write(p.client, two, sizeof two), 0);
	for (int i = 0; i < 2; i++) {
		ck_assert_int_eq(wire_poll(p.server, PATIENCE_MS), 1);
		ck_assert_int_eq(wire_pages_receive(w, &f, NULL), 0);
	}
	ck_assert_int_eq(wire_poll(p.server, 50), 0);
	wire_pages_free(w);
	pair_close(&p);
}
END_TEST

// So many questions fit into a line that nobody reads, with what else is said until it is lost.
START_TEST(asking_never_blocks)
{
	uint64_t all[4] = { UINT64_MAX, UINT64_MAX, UINT64_MAX, UINT64_MAX };
	uint8_t id[WIRE_LINE_ID_LEN] = { 0 };
	struct wire_pages *w;
	struct pair p = { 0 };

	make_pair(&p);
	wire_set_timeout(p.client, 1);
	ck_assert_int_eq(wire_pages_new(p.client, &w), 0);
	for (unsigned i = 0; i < WIRE_LINE_WANTS_MAX; i++)
		ck_assert_int_eq(wire_line_want(w, 0, i, all), 0);
	for (unsigned i = 0; i <= WIRE_LINE_LOST_MS / WIRE_LINE_ALIVE_MS; i++)
		ck_assert_int_eq(wire_line_left(w, WIRE_LINE_WANTS, i, id), 0);
	wire_pages_free(w);
	pair_close(&p);
}
END_TEST

// Writes until an error.
static inline int fill(struct wire_conn *c)
{
	static const char zeros[64 * KiB];
	int r = 0;

	for (size_t sent = 0; !r && sent < GiB; sent += sizeof zeros)
		r = wire_write(c, zeros, sizeof zeros);
	return r;
}

START_TEST(stops_reading)
{
	struct pair p = { 0 };
	uint64_t since;

	make_pair(&p);
	wire_set_timeout(p.client, 500);
	since = clock_now_ns();
	ck_assert_int_eq(fill(p.client), -ETIMEDOUT);
	ck_assert_uint_ge(elapsed_ms(since), 400);
	ck_assert_uint_lt(elapsed_ms(since), PATIENCE_MS);
	ck_assert_int_eq(wire_write(p.client, "x", 1), -ETIMEDOUT); // nothing follows a part
	pair_close(&p);
}
END_TEST

START_TEST(stops_sending)
{
	struct pair p = { 0 };
	char buf[5];
	uint64_t since;

	make_pair(&p);
	wire_set_timeout(p.server, 300);
	ck_assert_int_eq(wire_write(p.client, "1234", 4), 0);
	since = clock_now_ns();
	ck_assert_int_eq(wire_read(p.server, buf, 5), -ETIMEDOUT);
	ck_assert_uint_ge(elapsed_ms(since), 250);
	ck_assert_int_eq(wire_write(p.client, "5", 1), 0);
	ck_assert_int_eq(wire_read(p.server, buf, 1), -ETIMEDOUT); // it is not taken for the beginning
	ck_assert_int_eq(wire_write(p.server, "bye", 3), 0);       // the other direction is good
	ck_assert_int_eq(wire_read(p.client, buf, 3), 0);
	pair_close(&p);
}
END_TEST

// Slow is not lost.
static inline void *trickle(void *arg)
{
	struct pair *p = arg;

	for (int i = 0; i < 8; i++) {
		usleep(100000);
		wire_write(p->client, "x", 1);
	}
	return NULL;
}

START_TEST(slow_is_not_lost)
{
	struct pair p = { 0 };
	pthread_t thread;
	char buf[8];

	make_pair(&p);
	wire_set_timeout(p.server, 600);
	ck_assert_int_eq(pthread_create(&thread, NULL, trickle, &p), 0);
	ck_assert_int_eq(wire_read(p.server, buf, sizeof buf), 0);
	pthread_join(thread, NULL);
	pair_close(&p);
}
END_TEST

START_TEST(closes_in_the_middle)
{
	struct pair p = { 0 };
	char buf[100];

	make_pair(&p);
	ck_assert_int_eq(wire_write(p.client, "half", 4), 0);
	wire_close(p.client);
	p.client = NULL;
	ck_assert_int_eq(wire_read(p.server, buf, sizeof buf), -ECONNRESET);
	ck_assert_int_eq(wire_read(p.server, buf, 1), -ECONNRESET);
	ck_assert_int_eq(fill(p.server), -ECONNRESET);
	pair_close(&p);
}
END_TEST

struct waiter {
	struct wire_conn *c;
	bool writes;
	int error;
};

static inline void *wait_in_it(void *arg)
{
	struct waiter *w = arg;
	char byte;

	w->error = w->writes ? fill(w->c) : wire_read(w->c, &byte, 1);
	return NULL;
}

START_TEST(shutdown_wakes)
{
	struct pair p = { 0 };
	make_pair(&p);
	struct waiter w[] = { { p.client, false, 0 }, { p.client, true, 0 } };
	pthread_t t[2];
	uint64_t since;
	char *big = malloc(MiB);

	for (size_t i = 0; i < 2; i++)
		ck_assert_int_eq(pthread_create(&t[i], NULL, wait_in_it, &w[i]), 0);
	usleep(500000); // both wait
	since = clock_now_ns();
	wire_shutdown(p.client);
	for (size_t i = 0; i < 2; i++)
		pthread_join(t[i], NULL);
	ck_assert_uint_lt(elapsed_ms(since), 5000);
	ck_assert_int_eq(w[0].error, -ECONNRESET);
	ck_assert_int_eq(w[1].error, -ECONNRESET);
	while (!wire_read(p.server, big, MiB)) // what had been written, then the end
		;
	ck_assert_int_eq(wire_read(p.server, big, 1), -ECONNRESET);
	free(big);
	pair_close(&p);
}
END_TEST

static atomic_bool stop_it;

static inline bool stopped(void)
{
	return stop_it;
}

static inline void *stop_soon(void *arg)
{
	usleep(300000);
	stop_it = true;
	return arg;
}

START_TEST(interrupted_wakes)
{
	struct pair p = { 0 }, q = { 0 };
	make_pair(&p);
	make_pair(&q);
	struct waiter w[] = { { p.server, true, 0 }, { q.client, false, 0 } };
	pthread_t t[2];

	stop_it = false;
	wire_set_interrupted(p.server, stopped);
	wire_set_interrupted(q.client, stopped);
	for (size_t i = 0; i < 2; i++)
		ck_assert_int_eq(pthread_create(&t[i], NULL, wait_in_it, &w[i]), 0);
	stop_soon(NULL);
	for (size_t i = 0; i < 2; i++)
		pthread_join(t[i], NULL);
	ck_assert_int_eq(w[0].error, -EINTR);
	ck_assert_int_eq(w[1].error, -EINTR);
	ck_assert_int_eq(wire_poll(p.server, PATIENCE_MS), -EINTR);
	ck_assert_int_eq(wire_write(q.client, "abort", 5), 0); // who was interrupted can say so
	pair_close(&p);
	pair_close(&q);
}
END_TEST

#define WORDS "no room"

// Has much to say before it listens.
static inline void *say_and_hear(void *arg)
{
	struct stream *s = arg;
	char *zeros = calloc(1, MiB), buf[sizeof WORDS];

	for (int i = 0; i < 16 && !s->error; i++)
		s->error = wire_write(s->c, zeros, MiB);
	if (!s->error)
		s->error = wire_read(s->c, buf, sizeof buf);
	if (!s->error && strcmp(buf, WORDS))
		s->error = -EILSEQ;
	wire_close(s->c);
	free(zeros);
	return NULL;
}

// The last words of a side that reads nothing get to one that is still sending.
START_TEST(last_words)
{
	struct pair p = { 0 };
	struct stream s = { 0 };
	pthread_t thread;

	make_pair(&p);
	s.c = p.client;
	ck_assert_int_eq(pthread_create(&thread, NULL, say_and_hear, &s), 0);
	ck_assert_int_eq(wire_write(p.server, WORDS, sizeof WORDS), 0);
	wire_finish(p.server, PATIENCE_MS);
	wire_close(p.server);
	pthread_join(thread, NULL);
	ck_assert_msg(!s.error, "%s", strerror(-s.error));
}
END_TEST

// Nor does it wait for ever for a side that goes on.
START_TEST(finish_ends)
{
	struct pair p = { 0 };
	uint64_t since;

	make_pair(&p);
	since = clock_now_ns();
	wire_finish(p.server, 200);
	ck_assert_uint_ge(elapsed_ms(since), 190);
	ck_assert_uint_lt(elapsed_ms(since), 5000);
	pair_close(&p);
}
END_TEST

static inline void add_transfers(TCase *t)
{
	tcase_add_test(t, both_ways_at_once);
	tcase_add_test(t, polls);
	tcase_add_test(t, polls_frames);
	tcase_add_test(t, asking_never_blocks);
	tcase_add_test(t, stops_reading);
	tcase_add_test(t, stops_sending);
	tcase_add_test(t, slow_is_not_lost);
	tcase_add_test(t, closes_in_the_middle);
	tcase_add_test(t, shutdown_wakes);
	tcase_add_test(t, interrupted_wakes);
	tcase_add_test(t, last_words);
	tcase_add_test(t, finish_ends);
}
