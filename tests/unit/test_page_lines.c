// SPDX-License-Identifier: GPL-2.0-only
// Both ends of page lines, which are cut again and again: who asks gets each page once, and right; in the end both know that it is over.
#include <errno.h>
#include <fcntl.h>
#include <stdatomic.h>

#include "criu-vm/provide.h"
#include "lazy-pages/remote.h"
#include "tests/unit/wire_pair.h"
#include "util/bitmap.h"
#include "util/clock.h"
#include "util/loop.h"
#include "util/size.h"

#define ok(expr) ck_assert_int_eq(expr, 0)
#define NR_LINES 3
#define NR_CHUNKS 8
#define NR_READERS 24  // that wait at once
#define NR_READS 1000
#define CUT_NS (15 * NSEC_PER_MSEC)
#define PAUSE_US 5000  // before it connects again
#define FAILS 40       // one of so many reads there
#define UNTOUCHED 0x5a

#define LEN (NR_CHUNKS * WIRE_CHUNK_SIZE)

static const uint64_t len = LEN;
static const uint8_t key[WIRE_KEY_LEN] = "fifteen letters", id[WIRE_LINE_ID_LEN] = "of the token and of the host";

struct source {
	pthread_t thread;
	unsigned line;
	uint16_t port;
	enum wire_line_state state;
	bool failed;
	atomic_bool ended;
};

struct reader {
	struct pv_source_read rd;
	bool busy, again;
};

static struct lines {
	struct loop loop;
	struct loop_timer look;
	struct lp_remote *remote;
	int listen_fd, cut_fd[NR_LINES]; // the last connection of each, once more
	uint8_t *memory; // at the source
	struct source source[NR_LINES];
	struct reader reader[NR_READERS];
	unsigned nr_asked, nr_read, nr_failed, nr_cuts, overs;
	atomic_uint counter;
	atomic_bool gone; // nothing is held any more
	struct provided all;
} l;

// ---- who answers

static int read_pages(void *ctx, uint32_t block, uint64_t chunk, const uint64_t want[4], char *buf)
{
	ck_assert(!block && chunk < NR_CHUNKS && ctx == &l);
	if (++l.counter % FAILS == 0)
		return -EIO;
	memset(buf, 0xee, WIRE_CHUNK_SIZE);
	for (unsigned i = 0; i < WIRE_CHUNK_PAGES; i++)
		if (bitmap_test(want, i))
			memcpy(buf + i * PAGE_SIZE, l.memory + chunk * WIRE_CHUNK_SIZE + i * PAGE_SIZE, PAGE_SIZE);
	return 0;
}

static void say_over(struct wire_conn *c)
{
	struct wire_pages *pages;

	while (!l.gone)
		usleep(1000);
	ok(wire_pages_new(c, &pages));
	wire_line_say(pages, WIRE_OVER);
	wire_finish(c, 2000);
	wire_pages_free(pages);
}

static void *source(void *arg)
{
	struct source *s = arg;
	struct provider p = { .ctx = &l, .block_len = &len, .nr_blocks = 1, .read = read_pages, .zstd = s->line == 1 };
	struct wire_connect_opts o = { .host = "127.0.0.1", .port = s->port, .timeout_ms = PATIENCE_MS,
				       .preamble = { .kind = WIRE_LINE, .channel = (uint8_t)s->line } };

	memcpy(p.id, id, sizeof id);
	while (s->state == WIRE_LINE_WANTS) {
		enum wire_refusal why;
		struct wire_conn *c;
		int r;

		ok(wire_connect(&o, &c));
		r = wire_write(c, key, sizeof key);
		if (!r)
			r = provide(&p, c, s->line > 0, &l.all, &s->state, &why);
		s->failed |= r == -EBADMSG || r == -ESTALE || r == -ECONNREFUSED;
		if (s->state == WIRE_LINE_COMPLETE)
			say_over(c);
		wire_close(c);
		usleep(PAUSE_US);
	}
	s->ended = true;
	return NULL;
}

// ---- who asks

static void take_connections(void)
{
	struct pollfd p = { .fd = l.listen_fd, .events = POLLIN };

	while (poll(&p, 1, 0) > 0) {
		int fd = accept4(l.listen_fd, NULL, NULL, SOCK_CLOEXEC);
		uint8_t buf[WIRE_PREAMBLE_LEN];
		struct wire_preamble preamble;

		ok(io_read_full(fd, buf, sizeof buf));
		ok(wire_preamble_parse(buf, &preamble));
		ck_assert_uint_lt(preamble.channel, NR_LINES);
		close(l.cut_fd[preamble.channel]);
		l.cut_fd[preamble.channel] = fcntl(fd, F_DUPFD_CLOEXEC, 0);
		ok(lp_remote_accept(l.remote, preamble.channel, fd));
	}
}

static void check_pages(const struct pv_source_read *rd)
{
	const uint8_t *from = l.memory + rd->chunk * WIRE_CHUNK_SIZE, *at = (const uint8_t *)rd->dest;

	for (unsigned i = 0; i < WIRE_CHUNK_PAGES; i++, at += PAGE_SIZE, from += PAGE_SIZE)
		if (bitmap_test(rd->zero, i))
			ck_assert(bitmap_test(rd->pages, i) && !from[0] && !memcmp(from, from + 1, PAGE_SIZE - 1));
		else if (bitmap_test(rd->pages, i))
			ck_assert(!memcmp(at, from, PAGE_SIZE));
		else
			ck_assert(at[0] == UNTOUCHED && !memcmp(at, at + 1, PAGE_SIZE - 1));
}

static void answered(struct pv_source_read *rd, int err, const char *what)
{
	struct reader *r = list_entry(rd, struct reader, rd);

	(void)what;
	ck_assert(r->busy);
	ck_assert(!err || err == -EIO);
	r->busy = false;
	r->again = err;
	l.nr_failed += !!err;
	l.nr_read += !err;
	if (!err)
		check_pages(rd);
}

static void ask(struct reader *r)
{
	char *dest = r->rd.dest;

	if (!r->again) {
		r->rd = (struct pv_source_read){ .chunk = (uint64_t)random() % NR_CHUNKS, .dest = dest, .unasked = random() % 2, .done = answered };
		for (long i = 1 + random() % 32; i; i--)
			bitmap_set(r->rd.pages, (size_t)random() % WIRE_CHUNK_PAGES);
		l.nr_asked++;
	}
	memset(dest, UNTOUCHED, WIRE_CHUNK_SIZE);
	r->busy = true;
	lp_remote_read(l.remote, &r->rd);
}

static void cut_one(void)
{
	static uint64_t next_ns;

	if (clock_now_ns() < next_ns)
		return;
	next_ns = clock_now_ns() + CUT_NS + (uint64_t)random() % CUT_NS;
	shutdown(l.cut_fd[random() % NR_LINES], SHUT_RDWR);
	l.nr_cuts++;
}

static void looked(struct loop_op *op, int res)
{
	(void)op, (void)res;
	loop_timer(&l.loop, &l.look, NSEC_PER_MSEC);
	take_connections();
}

static uint64_t missing(void *ctx)
{
	(void)ctx;
	return 1;
}

static void over(void *ctx)
{
	(void)ctx;
	l.overs++;
}

static void setup(void)
{
	static const struct pv_block block = { .len = LEN };
	struct lp_remote_opts o = { .loop = &l.loop, .blocks = &block, .nr_blocks = 1, .nr_lines = NR_LINES, .missing = missing, .over = over };
	uint16_t port = 0;

	log_init(getenv("VERBOSE") ? 2 : -1, LOG_WARN, NULL, false);
	srandom(1);
	memset(&l, 0, sizeof l);
	l.memory = malloc(len);
	for (uint64_t at = 0; at < len; at += PAGE_SIZE)
		memset(l.memory + at, random() % 4 ? (int)(1 + random() % 255) : 0, PAGE_SIZE);
	for (uint64_t at = 0; at < len; at += PAGE_SIZE)
		if (l.memory[at])
			memcpy(l.memory + at, &at, sizeof at); // each is another one
	l.listen_fd = pair_listen(AF_INET, &port);
	memcpy(o.id, id, sizeof id);
	memcpy(o.key, key, sizeof key);
	ok(loop_init(&l.loop, 64));
	l.look.op.done = looked;
	loop_timer(&l.loop, &l.look, NSEC_PER_MSEC);
	ok(lp_remote_new(&o, &l.remote));
	for (unsigned i = 0; i < NR_READERS; i++)
		l.reader[i].rd.dest = malloc(WIRE_CHUNK_SIZE);
	for (unsigned i = 0; i < NR_LINES; i++) {
		l.cut_fd[i] = -1;
		l.source[i].line = i;
		l.source[i].port = port;
		ok(pthread_create(&l.source[i].thread, NULL, source, &l.source[i]));
	}
}

static void teardown(void)
{
	lp_remote_stop(l.remote);
	loop_fini(&l.loop);
	lp_remote_free(l.remote);
	for (unsigned i = 0; i < NR_LINES; i++)
		close(l.cut_fd[i]);
	for (unsigned i = 0; i < NR_READERS; i++)
		free(l.reader[i].rd.dest);
	close(l.listen_fd);
	free(l.memory);
}

static void read_all(uint64_t end_ns)
{
	while (l.nr_read < NR_READS) {
		ck_assert_msg(clock_now_ns() < end_ns, "%u of %u reads have come, over %u cuts", l.nr_read, NR_READS, l.nr_cuts);
		for (unsigned i = 0; i < NR_READERS; i++)
			if (!l.reader[i].busy && (l.reader[i].again || l.nr_asked < NR_READS))
				ask(&l.reader[i]);
		ok(loop_round(&l.loop, true));
		cut_one();
	}
}

static bool all_have_ended(void)
{
	unsigned i = 0;

	while (i < NR_LINES && l.source[i].ended)
		i++;
	return i == NR_LINES && l.overs;
}

START_TEST(all_comes_and_ends)
{
	uint64_t end_ns = clock_now_ns() + 120 * NSEC_PER_SEC;

	read_all(end_ns);
	lp_remote_complete(l.remote);
	l.gone = true;
	while (!all_have_ended() && clock_now_ns() < end_ns) // lines that are down now are told, too
		ok(loop_round(&l.loop, true));
	for (unsigned i = 0; i < NR_LINES; i++) {
		pthread_join(l.source[i].thread, NULL);
		ck_assert_int_eq(l.source[i].state, WIRE_LINE_COMPLETE);
		ck_assert(!l.source[i].failed);
	}
	ck_assert_uint_eq(l.overs, 1);
	ck_assert_uint_gt(l.nr_failed, 0);
	ck_assert_uint_ge(l.all.failed, l.nr_failed);
	ck_assert_uint_gt(l.nr_cuts, 3);
	ck_assert_uint_gt(l.all.zero_pages, 0);
}
END_TEST

int main(void)
{
	Suite *s = suite_create("page_lines");
	TCase *tc = tcase_create("cuts");
	SRunner *sr;
	int failed;

	tcase_add_checked_fixture(tc, setup, teardown);
	tcase_set_timeout(tc, 150);
	tcase_add_test(tc, all_comes_and_ends);
	suite_add_tcase(s, tc);
	sr = srunner_create(s);
	srunner_run_all(sr, CK_ENV);
	failed = srunner_ntests_failed(sr);
	srunner_free(sr);
	return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
