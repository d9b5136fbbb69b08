// SPDX-License-Identifier: GPL-2.0-only
// The control channel: what was sent is received, and what is not exactly that is refused.
#include <endian.h>
#include <errno.h>
#include <pthread.h>
#include <xxhash.h>

#include "tests/unit/wire_rig.h"
#include "tests/unit/wire_sample.h"
#include "util/clock.h"
#include "wire/document_int.h"
#include "wire/messages_int.h"

#define HEAD_LEN 12

START_TEST(each_kind_arrives)
{
	struct wire_conn *c = rig_other();
	size_t kind = kinds[_i], len[2];
	uint8_t *packed[2];
	WireMsg *m;

	sample(KIND(keepalive));
	ok(wire_send(c, &s.m)); // not seen
	packed[0] = pack(sample(kind), &len[0]);
	ok(wire_send(c, &s.m));
	sample(KIND(commit));
	ok(wire_send(c, &s.m));
	if (kind == KIND(abort)) {
		ck_assert_int_eq(wire_receive(ours, 1000, &m), -ECONNABORTED);
		ck_assert_ptr_null(m);
		ck_assert_str_eq(log_last_error(), "peer: it hurts");
	} else if (kind != KIND(keepalive)) {
		ok(wire_expect(ours, 1000, kind, &m));
		ck_assert_uint_eq(wire_msg_kind(m), kind);
		packed[1] = pack(m, &len[1]);
		ck_assert_uint_eq(len[0], len[1]);
		ck_assert_mem_eq(packed[0], packed[1], len[0]);
		free(packed[1]);
		wire_msg__free_unpacked(m, NULL);
	}
	ok(wire_expect(ours, 1000, KIND(commit), &m));
	wire_msg__free_unpacked(m, NULL);
	free(packed[0]);
	wire_close(c);
}
END_TEST

// Of the message behind it, where there can be one of that length.
static void put_head(uint8_t *buf, uint32_t len)
{
	uint64_t checksum = len <= WIRE_MSG_MAX ? htole64(XXH3_64bits(buf + HEAD_LEN, len)) : 0;

	len = htole32(len);
	memcpy(buf, &len, 4);
	memcpy(buf + 4, &checksum, 8);
}

// What the other side is told by len bytes, after which it hangs up.
static int receive(const void *bytes, size_t len)
{
	WireMsg *m;
	int ret;

	rig_feed(bytes, len);
	ret = wire_receive(ours, 5000, &m);
	ck_assert_int_eq(!m, !!ret);
	if (m)
		wire_msg__free_unpacked(m, NULL);
	return ret;
}

START_TEST(every_truncation_and_change_is_found)
{
	size_t len;
	uint8_t *packed = pack(sample(KIND(offer)), &len), *framed = malloc(HEAD_LEN + len);

	memcpy(framed + HEAD_LEN, packed, len);
	put_head(framed, (uint32_t)len);
	ok(receive(framed, HEAD_LEN + len));
	for (size_t n = 0; n < HEAD_LEN + len; n++)
		ck_assert_int_eq(receive(framed, n), -ECONNRESET);
	for (size_t n = 4; n < HEAD_LEN + len; n++) {
		framed[n] ^= 0x10;
		ck_assert_int_eq(receive(framed, HEAD_LEN + len), -EBADMSG);
		framed[n] ^= 0x10;
	}
	free(framed);
	free(packed);
}
END_TEST

START_TEST(a_length_that_lies_is_found)
{
	uint8_t *buf = calloc(1, HEAD_LEN + WIRE_MSG_MAX + 1);
	size_t len;
	uint8_t *packed = pack(sample(KIND(commit)), &len);

	memcpy(buf + HEAD_LEN, packed, len);
	put_head(buf, UINT32_MAX);
	ck_assert_int_eq(receive(buf, HEAD_LEN + len), -EBADMSG);
	put_head(buf, WIRE_MSG_MAX + 1);
	ck_assert_int_eq(receive(buf, HEAD_LEN + len), -EBADMSG);
	put_head(buf, WIRE_MSG_MAX);
	ck_assert_int_eq(receive(buf, HEAD_LEN + len), -ECONNRESET);
	put_head(buf, (uint32_t)len + 1);
	ck_assert_int_eq(receive(buf, HEAD_LEN + len + 1), -EBADMSG);
	put_head(buf, (uint32_t)len - 1);
	ck_assert_int_eq(receive(buf, HEAD_LEN + len), -EBADMSG);
	put_head(buf, 0);
	ck_assert_int_eq(receive(buf, HEAD_LEN), -EPROTO);
	free(packed);
	free(buf);
}
END_TEST

static int receive_message(const void *message, size_t len)
{
	uint8_t framed[64];

	memcpy(framed + HEAD_LEN, message, len);
	put_head(framed, (uint32_t)len);
	return receive(framed, HEAD_LEN + len);
}

START_TEST(what_is_unknown_is_ignored_or_refused)
{
	static const uint8_t unknown_kind[] = { 0xfa, 0x07, 2, 0x08, 1 };		 // field 127
	static const uint8_t unknown_field[] = { 0x4a, 6, 0x0a, 0, 0xfa, 0x07, 1, 'x' }; // in commit
	static const uint8_t two_kinds[] = { 0x4a, 2, 0x0a, 0, 0x42, 2, 0x0a, 0 };	 // commit, ready
	static const uint8_t empty_kind[] = { 0x4a, 0 };				 // commit without its reason

	ck_assert_int_eq(receive_message(unknown_kind, sizeof unknown_kind), -EPROTO);
	ck_assert_int_eq(receive_message(unknown_field, sizeof unknown_field), 0);
	ck_assert_int_eq(receive_message(two_kinds, sizeof two_kinds), -EBADMSG);
	ck_assert_int_eq(receive_message(empty_kind, sizeof empty_kind), -EBADMSG);
}
END_TEST

START_TEST(another_message_is_not_expected)
{
	struct wire_conn *c = rig_other();
	WireMsg *m;

	ok(wire_send_plain(c, KIND(commit)));
	ck_assert_int_eq(wire_expect(ours, 1000, KIND(ready), &m), -EPROTO);
	ck_assert_ptr_null(m);
	ck_assert_str_eq(log_last_error(), "peer: sent the message 'commit' where 'ready' was expected");
	wire_close(c);
}
END_TEST

START_TEST(what_would_be_refused_is_not_sent)
{
	struct wire_conn *c = rig_other();

	sample(KIND(offer));
	s.offer.channels = 0;
	ck_assert_int_eq(wire_send(ours, &s.m), -EINVAL);
	ck_assert_ptr_nonnull(strstr(log_last_error(), "number of channels"));
	sample(KIND(commit));
	s.m.ready = &s.ready;
	ck_assert_int_eq(wire_send(ours, &s.m), -EINVAL);
	ck_assert_int_eq(wire_poll(c, 0), 0);
	wire_close(c);
}
END_TEST

START_TEST(a_reason_is_made_fit)
{
	struct wire_conn *c = rig_other();
	WireMsg *m;

	wire_send_abort(c, "%s", "two\nlines\x1b[1m");
	ck_assert_int_eq(wire_receive(ours, 1000, &m), -ECONNABORTED);
	ck_assert_str_eq(log_last_error(), "peer: two lines [1m");
	sample(KIND(abort));
	wire_send_abort(c, "%s", text(600));
	ck_assert_int_eq(wire_receive(ours, 1000, &m), -ECONNABORTED);
	ck_assert_uint_eq(strlen(log_last_error()), strlen("peer: ") + 512);
	wire_send_abort(c, "%s", "");
	ck_assert_int_eq(wire_receive(ours, 1000, &m), -ECONNABORTED);
	wire_close(c);
	rig_close();
	rig_open();
	rig_hang_up();
	wire_send_abort(ours, "nobody hears it");
}
END_TEST

struct chatter {
	struct wire_conn *c;
	unsigned nr, pause_ms;
};

static void *keep_alive(void *arg)
{
	struct chatter *ch = arg;

	for (unsigned i = 0; i < ch->nr; i++) {
		usleep(ch->pause_ms * 1000);
		ok(wire_send_plain(ch->c, KIND(keepalive)));
	}
	return NULL;
}

static uint64_t now_ms(void)
{
	return clock_now_ns() / NSEC_PER_MSEC;
}

START_TEST(keepalives_keep_the_line_not_the_wait)
{
	struct chatter ch = { rig_other(), 10, 50 };
	uint64_t begin = now_ms();
	pthread_t thread;
	WireMsg *m;

	wire_set_timeout(ours, 600);
	ok(pthread_create(&thread, NULL, keep_alive, &ch));
	ck_assert_int_eq(wire_receive(ours, 200, &m), -ETIMEDOUT);
	ck_assert_uint_ge(now_ms() - begin, 200);
	ck_assert_uint_lt(now_ms() - begin, 500); // with keepalives until then
	ck_assert_int_eq(wire_receive(ours, 1, &m), -ETIMEDOUT);
	// 500 ms of keepalives, then 600 of silence, asked for in short calls or in a long one.
	if (_i)
		while (wire_receive(ours, 20, &m) == -ETIMEDOUT)
			;
	else
		ck_assert_int_eq(wire_receive(ours, 0, &m), -ECONNRESET);
	ck_assert_uint_ge(now_ms() - begin, 1000);
	ck_assert_uint_lt(now_ms() - begin, 5000);
	pthread_join(thread, NULL);
	wire_close(ch.c);
}
END_TEST

START_TEST(a_wait_that_timed_out_goes_on)
{
	struct wire_conn *c = rig_other();
	WireMsg *m;

	ck_assert_int_eq(wire_receive(ours, 10, &m), -ETIMEDOUT);
	ok(wire_send_plain(c, KIND(ready)));
	ok(wire_expect(ours, 10, KIND(ready), &m));
	wire_msg__free_unpacked(m, NULL);
	wire_close(c);
}
END_TEST

START_TEST(a_line_is_lost_before_the_wait_ends)
{
	WireMsg *m;

	wire_set_timeout(ours, 100);
	ck_assert_int_eq(wire_receive(ours, 5000, &m), -ECONNRESET);
}
END_TEST

START_TEST(half_a_message_is_a_lost_line)
{
	static const uint8_t half[] = { 4, 0, 0, 0, 0x4a };
	uint64_t begin = now_ms();
	WireMsg *m;

	wire_set_timeout(ours, 200);
	ok(io_write_full(theirs, half, sizeof half));
	ck_assert_int_eq(wire_receive(ours, 50, &m), -ECONNRESET);
	ck_assert_uint_ge(now_ms() - begin, 190);
	ck_assert_uint_lt(now_ms() - begin, 5000);
}
END_TEST

// A byte now and then is no message, and the line is not waited for longer than it is given.
static void *drip(void *arg)
{
	static const uint8_t byte = 0;

	(void)arg;
	while (send(theirs, &byte, 1, MSG_NOSIGNAL) == 1)
		usleep(20000);
	return NULL;
}

START_TEST(dripping_ends)
{
	uint64_t begin = now_ms();
	pthread_t thread;
	char buf[1000];

	ok(pthread_create(&thread, NULL, drip, NULL));
	wire_set_timeout(ours, 5000);
	wire_set_deadline(ours, clock_now_ns() + 500 * NSEC_PER_MSEC);
	ck_assert_int_eq(wire_read(ours, buf, sizeof buf), -ETIMEDOUT);
	ck_assert_uint_ge(now_ms() - begin, 490);
	ck_assert_uint_lt(now_ms() - begin, 4000);
	wire_shutdown(ours);
	pthread_join(thread, NULL);
}
END_TEST

static void *send_short(void *arg)
{
	struct chatter *ch = arg;

	for (unsigned i = 0; i < ch->nr; i++)
		ok(wire_send_plain(ch->c, KIND(ready)));
	return NULL;
}

static void *send_long(void *arg)
{
	static uint8_t data[4 * WIRE_PIECE_MAX];
	struct chatter *ch = arg;

	for (unsigned i = 0; i < ch->nr / 100; i++)
		ok(wire_send_document(ch->c, WIRE_DOCUMENT_KIND__WIRE_DOC_VM, data, sizeof data));
	return NULL;
}

START_TEST(messages_of_several_threads_are_whole)
{
	struct chatter ch = { rig_other(), 1000, 0 };
	struct wire_keepalive *k;
	pthread_t thread[2];
	uint64_t begin;
	WireMsg *m;

	ok(wire_keepalive_start(ch.c, &k));
	ok(pthread_create(&thread[0], NULL, send_short, &ch));
	ok(pthread_create(&thread[1], NULL, send_long, &ch));
	for (unsigned i = 0; i < ch.nr + ch.nr / 100 * 4; i++) {
		ok(wire_receive(ours, 10000, &m));
		ck_assert(m->ready || m->piece);
		wire_msg__free_unpacked(m, NULL);
	}
	for (int i = 0; i < 2; i++)
		pthread_join(thread[i], NULL);
	begin = now_ms();
	ck_assert_int_eq(wire_poll(ours, 2 * WIRE_KEEPALIVE_MS), 1); // one comes by itself
	wire_keepalive_stop(k);
	ck_assert_uint_lt(now_ms() - begin, 2 * WIRE_KEEPALIVE_MS);
	wire_close(ch.c);
}
END_TEST

START_TEST(keepalives_end_with_the_line)
{
	struct wire_keepalive *k;
	uint64_t begin = now_ms();

	ok(wire_keepalive_start(ours, &k));
	rig_hang_up();
	wire_keepalive_stop(k);
	ck_assert_uint_lt(now_ms() - begin, WIRE_KEEPALIVE_MS);
	wire_keepalive_stop(NULL);
}
END_TEST

static const size_t doc_lens[] = { 1, WIRE_PIECE_MAX - 1, WIRE_PIECE_MAX, WIRE_PIECE_MAX + 1, 3 * WIRE_PIECE_MAX + 5 };

struct document {
	struct wire_conn *c;
	uint8_t *data;
	size_t len;
	int ret;
};

static void *send_document(void *arg)
{
	struct document *d = arg;

	d->ret = wire_send_document(d->c, WIRE_DOCUMENT_KIND__WIRE_DOC_VM, d->data, d->len);
	return NULL;
}

static struct document document_of(size_t len)
{
	struct document d = { rig_other(), malloc(len), len, 0 };

	srandom(1);
	for (size_t i = 0; i < len; i++)
		d.data[i] = (uint8_t)random();
	return d;
}

START_TEST(documents_arrive)
{
	struct document d = document_of(doc_lens[_i]);
	WireMsg *first;
	pthread_t thread;
	void *data;
	size_t len;

	for (int from_first = 0; from_first < 2; from_first++) {
		ok(pthread_create(&thread, NULL, send_document, &d));
		if (from_first) {
			ok(wire_receive(ours, 1000, &first));
			ok(wire_receive_document_from(ours, first, WIRE_DOCUMENT_KIND__WIRE_DOC_VM, d.len, &data, &len));
			wire_msg__free_unpacked(first, NULL);
		} else {
			ok(wire_receive_document(ours, WIRE_DOCUMENT_KIND__WIRE_DOC_VM, d.len, &data, &len));
		}
		pthread_join(thread, NULL);
		ok(d.ret);
		ck_assert_uint_eq(len, d.len);
		ck_assert_int_eq(memcmp(data, d.data, len), 0);
		free(data);
	}
	free(d.data);
	wire_close(d.c);
}
END_TEST

START_TEST(documents_have_bounds)
{
	struct document d = document_of(1000);
	void *data;
	size_t len;

	send_document(&d);
	ck_assert_int_eq(wire_receive_document(ours, WIRE_DOCUMENT_KIND__WIRE_DOC_VM, 999, &data, &len), -EFBIG);
	send_document(&d);
	ck_assert_int_eq(wire_receive_document(ours, WIRE_DOCUMENT_KIND__WIRE_DOC_SMALL, 1000, &data, &len), -EBADMSG);
	ck_assert_int_eq(wire_send_document(d.c, WIRE_DOCUMENT_KIND__WIRE_DOC_VM, d.data, 0), -EFBIG);
	ck_assert_int_eq(wire_send_document(d.c, WIRE_DOCUMENT_KIND__WIRE_DOC_VM, d.data, WIRE_DOC_MAX + 1), -EFBIG);
	ok(wire_send_plain(d.c, KIND(commit)));
	ck_assert_int_eq(wire_receive_document(ours, WIRE_DOCUMENT_KIND__WIRE_DOC_VM, 1000, &data, &len), -EPROTO);
	wire_send_abort(d.c, "no more");
	ck_assert_int_eq(wire_receive_document(ours, WIRE_DOCUMENT_KIND__WIRE_DOC_VM, 1000, &data, &len), -ECONNABORTED);
	rig_close();
	ck_assert_int_eq(send_document(&d) ? 0 : d.ret, -ECONNRESET);
	free(d.data);
	wire_close(d.c);
}
END_TEST

#define PIECES 3
#define DOC_LEN (2 * (size_t)WIRE_PIECE_MAX + 7)

static uint8_t doc_bytes[DOC_LEN];

static WirePiece doc_piece(unsigned i)
{
	WirePiece p = WIRE_PIECE__INIT;

	p.kind = WIRE_DOCUMENT_KIND__WIRE_DOC_DEVICE_STATE;
	p.len = DOC_LEN;
	p.off = i * (uint64_t)WIRE_PIECE_MAX;
	p.data.data = doc_bytes + p.off;
	p.data.len = i < PIECES - 1 ? WIRE_PIECE_MAX : DOC_LEN - p.off;
	p.has_checksum = i == PIECES - 1;
	p.checksum = p.has_checksum ? XXH3_64bits(doc_bytes, DOC_LEN) : 0;
	return p;
}

// Each change of the n-th piece is found when it comes.
static int add_changed(unsigned n, const WirePiece *changed)
{
	struct wire_document d = { .kind = WIRE_DOCUMENT_KIND__WIRE_DOC_DEVICE_STATE, .max = DOC_LEN };
	const char *fault;
	bool whole = false;
	int ret = 0;

	for (unsigned i = 0; i < PIECES && !ret && !whole; i++) {
		WirePiece p = i == n ? *changed : doc_piece(i);

		ret = wire_document_add(&d, &p, &whole, &fault);
		if (ret && i != n)
			ck_abort_msg("piece %u of a document: %s", i, fault);
		ck_assert_uint_le(d.room, 2 * d.have + WIRE_PIECE_MAX);
	}
	ck_assert(whole || ret);
	if (!ret)
		ck_assert_mem_eq(d.data, doc_bytes, DOC_LEN);
	free(d.data);
	return ret;
}

START_TEST(pieces_that_do_not_fit_are_found)
{
	for (size_t i = 0; i < DOC_LEN; i++)
		doc_bytes[i] = (uint8_t)(i * 31 >> 3);
	for (unsigned n = 0; n < PIECES; n++) {
		WirePiece p = doc_piece(n);

		ok(add_changed(n, &p));
		for (unsigned other = 0; other < PIECES; other++) {
			p = doc_piece(other);
			if (other != n)
				ck_assert_int_eq(add_changed(n, &p), -EBADMSG);
		}
		p = doc_piece(n);
		p.kind = WIRE_DOCUMENT_KIND__WIRE_DOC_SMALL;
		ck_assert_int_eq(add_changed(n, &p), -EBADMSG);
		p = doc_piece(n);
		p.len++;
		ck_assert_int_eq(add_changed(n, &p), n ? -EBADMSG : -EFBIG);
	}
	WirePiece last = doc_piece(PIECES - 1);

	last.checksum ^= 1;
	ck_assert_int_eq(add_changed(PIECES - 1, &last), -EBADMSG);
	last = doc_piece(PIECES - 1);
	last.data.data = doc_bytes + 1;
	ck_assert_int_eq(add_changed(PIECES - 1, &last), -EBADMSG);
}
END_TEST

static TCase *channel_case(void)
{
	TCase *tc = tcase_create("channel");

	tcase_add_checked_fixture(tc, rig_quiet, rig_close);
	tcase_set_timeout(tc, 60);
	tcase_add_loop_test(tc, each_kind_arrives, 0, (int)ARRAY_SIZE(kinds));
	tcase_add_test(tc, every_truncation_and_change_is_found);
	tcase_add_test(tc, a_length_that_lies_is_found);
	tcase_add_test(tc, what_is_unknown_is_ignored_or_refused);
	tcase_add_test(tc, another_message_is_not_expected);
	tcase_add_test(tc, what_would_be_refused_is_not_sent);
	tcase_add_test(tc, a_reason_is_made_fit);
	tcase_add_loop_test(tc, keepalives_keep_the_line_not_the_wait, 0, 2);
	tcase_add_test(tc, a_wait_that_timed_out_goes_on);
	tcase_add_test(tc, a_line_is_lost_before_the_wait_ends);
	tcase_add_test(tc, half_a_message_is_a_lost_line);
	tcase_add_test(tc, dripping_ends);
	tcase_add_test(tc, messages_of_several_threads_are_whole);
	tcase_add_test(tc, keepalives_end_with_the_line);
	tcase_add_loop_test(tc, documents_arrive, 0, (int)ARRAY_SIZE(doc_lens));
	tcase_add_test(tc, documents_have_bounds);
	tcase_add_test(tc, pieces_that_do_not_fit_are_found);
	return tc;
}

int main(void)
{
	Suite *suite = suite_create("wire_control");
	SRunner *sr;
	int failed;

	suite_add_tcase(suite, channel_case());
	sr = srunner_create(suite);
	srunner_run_all(sr, CK_ENV);
	failed = srunner_ntests_failed(sr);
	srunner_free(sr);
	return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
