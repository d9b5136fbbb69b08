// SPDX-License-Identifier: GPL-2.0-only
// A connection in the clear, its preamble, and how it is made.
#include <dlfcn.h>
#include <netdb.h>

#include <netinet/tcp.h>

#include "tests/unit/wire_transfers.h"
#include "wire/conn_int.h"

static void make_pair(struct pair *p)
{
	pair_must_open(p);
}

START_TEST(preamble_round_trip)
{
	static const struct wire_preamble all[] = {
		{ .kind = WIRE_CONTROL, .tls = true, .token = "0123456789abcde" },
		{ .kind = WIRE_DATA, .channel = WIRE_MAX_CHANNELS - 1, .token = { 0xff, [15] = 0xfe } },
		{ .kind = WIRE_ASK },
		{ .kind = WIRE_LINE },
		{ .kind = WIRE_LINE, .channel = WIRE_MAX_CHANNELS - 1, .tls = true, .token = "0123456789abcde" },
		{ .kind = WIRE_IMAGES, .token = { 1 } },
		{ .kind = WIRE_IMAGE_LINE, .channel = 1 },
	};
	const struct wire_preamble *in = &all[_i];
	struct wire_preamble out;
	uint8_t buf[WIRE_PREAMBLE_LEN];

	wire_preamble_pack(in, buf);
	ck_assert_mem_eq(buf, "CRIUVMW1\1\0", 10);
	ck_assert_int_eq(wire_preamble_parse(buf, &out), 0);
	ck_assert_int_eq(out.kind, in->kind);
	ck_assert_int_eq(out.tls, in->tls);
	ck_assert_int_eq(out.channel, in->channel);
	ck_assert_mem_eq(out.token, in->token, WIRE_TOKEN_LEN);
}
END_TEST

// Each value of each byte: refused, or it means something else and is packed to the same again.
START_TEST(preamble_garbage)
{
	struct wire_preamble p = { .kind = WIRE_DATA, .channel = 3, .token = "0123456789abcde" }, out;
	uint8_t good[WIRE_PREAMBLE_LEN], bad[WIRE_PREAMBLE_LEN], again[WIRE_PREAMBLE_LEN];
	unsigned taken[WIRE_PREAMBLE_LEN] = { 0 };

	wire_preamble_pack(&p, good);
	for (size_t at = 0; at < WIRE_PREAMBLE_LEN; at++)
		for (unsigned flip = 1; flip < 256; flip++) {
			int r;

			memcpy(bad, good, sizeof bad);
			bad[at] ^= (uint8_t)flip;
			r = wire_preamble_parse(bad, &out);
			if (!r) {
				taken[at]++;
				wire_preamble_pack(&out, again);
				ck_assert_mem_eq(again, bad, sizeof bad);
			} else {
				ck_assert_int_eq(r, at == 8 || at == 9 ? -EPROTONOSUPPORT : -EBADMSG);
			}
		}
	for (size_t at = 0; at < WIRE_PREAMBLE_LEN; at++) // kind: LINE, IMAGE_LINE; flags: TLS; channel: the others; token: all
		ck_assert_uint_eq(taken[at], at == 10 ? 2 : at == 11 ? 1 : at == 12 ? WIRE_MAX_CHANNELS - 1 : at >= 16 ? 255 : 0);
}
END_TEST

// Each kind with each channel.
START_TEST(preamble_kinds)
{
	static const unsigned channels[256] = { [WIRE_CONTROL] = 1, [WIRE_DATA] = 32, [WIRE_ASK] = 1, [WIRE_LINE] = 32,
						[WIRE_IMAGES] = 1, [WIRE_IMAGE_LINE] = 32 };
	uint8_t buf[WIRE_PREAMBLE_LEN];
	struct wire_preamble p;

	for (unsigned kind = 0; kind < 256; kind++)
		for (unsigned channel = 0; channel < 256; channel++) {
			wire_preamble_pack(&(struct wire_preamble){ .kind = WIRE_ASK }, buf);
			buf[10] = (uint8_t)kind;
			buf[12] = (uint8_t)channel;
			ck_assert_msg(wire_preamble_parse(buf, &p) == (channel < channels[kind] ? 0 : -EBADMSG), "kind %u, %u", kind, channel);
		}
}
END_TEST

START_TEST(tokens)
{
	static const char *const bad[] = { "", "0", "0123456789abcdef0123456789abcde", "0123456789abcdef0123456789abcdef0",
		"0123456789abcdef0123456789abcdeg", "0123456789ABCDEF0123456789ABCDEF", "0123456789abcdef/../456789abcdef" };
	uint8_t a[WIRE_TOKEN_LEN], b[WIRE_TOKEN_LEN];
	char text[WIRE_TOKEN_TEXT];

	ck_assert_int_eq(wire_token_new(a), 0);
	ck_assert_int_eq(wire_token_new(b), 0);
	ck_assert_mem_ne(a, b, sizeof a);
	ck_assert_int_eq(wire_token_parse(wire_token_format(a, text), b), 0);
	ck_assert_mem_eq(a, b, sizeof a);
	ck_assert_int_eq(wire_token_parse("0123456789abcdef0123456789abcdef", b), 0);
	ck_assert_str_eq(wire_token_format(b, text), "0123456789abcdef0123456789abcdef");
	for (size_t i = 0; i < ARRAY_SIZE(bad); i++)
		ck_assert_int_eq(wire_token_parse(bad[i], a), -EINVAL);
}
END_TEST

static const struct { const char *text, *host; uint16_t port; } addresses[] = {
	{ "host", "host", WIRE_PORT }, { "host.example:1", "host.example", 1 }, { "192.0.2.1:65535", "192.0.2.1", 65535 },
	{ "2001:db8::1", "2001:db8::1", WIRE_PORT }, { "[2001:db8::1]:80", "2001:db8::1", 80 }, { "[::1]", "::1", WIRE_PORT },
	{ "fe80::1%eth0", "fe80::1%eth0", WIRE_PORT },
	{ "", NULL, 0 }, { ":80", NULL, 0 }, { "host:", NULL, 0 }, { "host:0", NULL, 0 }, { "host:65536", NULL, 0 },
	{ "host:80x", NULL, 0 }, { "host:-1", NULL, 0 }, { "host: 1", NULL, 0 }, { "host:99999999999999999999", NULL, 0 },
	{ "[::1", NULL, 0 }, { "[]:80", NULL, 0 }, { "[::1]80", NULL, 0 }, { "[::1]:", NULL, 0 }, { "a b", NULL, 0 },
	{ "-host", NULL, 0 }, { "user@host", NULL, 0 }, { "a/b", NULL, 0 },
};

START_TEST(address)
{
	char *host = NULL;
	uint16_t port;
	int r = wire_parse_address(addresses[_i].text, &host, &port);

	ck_assert_int_eq(r, addresses[_i].host ? 0 : -EINVAL);
	if (!r) {
		ck_assert_str_eq(host, addresses[_i].host);
		ck_assert_uint_eq(port, addresses[_i].port);
	}
	free(host);
}
END_TEST

START_TEST(loopback)
{
	static const char *const yes[] = { "127.0.0.1", "127.1.2.3", "::1", "localhost", "::ffff:127.0.0.1" },
				 *const no[] = { "", "0.0.0.0", "::", "192.0.2.1", "2001:db8::1", "::ffff:192.0.2.1", "no such host" };

	for (size_t i = 0; i < ARRAY_SIZE(yes); i++)
		ck_assert_msg(wire_is_loopback(yes[i]), "%s", yes[i]);
	for (size_t i = 0; i < ARRAY_SIZE(no); i++)
		ck_assert_msg(!wire_is_loopback(no[i]), "%s", no[i]);
}
END_TEST

START_TEST(peers)
{
	struct pair p = { 0 };

	make_pair(&p);
	ck_assert_int_eq(strncmp(wire_peer(p.client), "127.0.0.1:", 10), 0);
	ck_assert_int_eq(strncmp(wire_peer(p.server), "127.0.0.1:", 10), 0);
	ck_assert_uint_eq(wire_bytes_sent(p.client), 0); // the preamble is not the caller's
	pair_close(&p);
}
END_TEST

static int option_of(const struct wire_conn *c, int level, int name)
{
	socklen_t len = sizeof(int);
	int value = 0;

	ck_assert_int_eq(getsockopt(c->fd, level, name, &value, &len), 0);
	return value;
}

// Nothing waits to be sent with more; what a guest waits for goes first.
START_TEST(line_0_is_urgent)
{
	static const struct wire_preamble all[] = { { .kind = WIRE_LINE }, { .kind = WIRE_IMAGE_LINE }, { .kind = WIRE_LINE, .channel = 1 },
						    { .kind = WIRE_DATA }, { .kind = WIRE_CONTROL } };

	for (size_t i = 0; i < ARRAY_SIZE(all); i++) {
		struct wire_connect_opts o = { .host = "127.0.0.1", .timeout_ms = 2000, .preamble = all[i] };
		int fd = pair_listen(AF_INET, &o.port);
		struct wire_conn *c;

		ck_assert_int_eq(wire_connect(&o, &c), 0);
		ck_assert_int_eq(option_of(c, IPPROTO_TCP, TCP_NODELAY), 1);
		ck_assert_int_eq(option_of(c, SOL_SOCKET, SO_PRIORITY), i < 2 ? 6 : 0);
		ck_assert_int_eq(option_of(c, IPPROTO_IP, IP_TOS), i < 2 ? 0x48 : 0);
		wire_close(c);
		close(fd);
	}
}
END_TEST

// In the resolver's place: a host of this name has two addresses.
#define TWO_ADDRESSES "two-addresses.invalid"

int getaddrinfo(const char *host, const char *service, const struct addrinfo *hints, struct addrinfo **list)
{
	static int (*real)(const char *, const char *, const struct addrinfo *, struct addrinfo **);
	int r;

	if (!real)
		*(void **)&real = dlsym(RTLD_NEXT, "getaddrinfo");
	if (!host || strcmp(host, TWO_ADDRESSES))
		return real(host, service, hints, list);
	r = real("127.0.0.2", service, hints, list);
	return r ? r : real("127.0.0.1", service, hints, &(*list)->ai_next);
}

// A listener that answers nobody: its backlog is full.
struct stuck {
	int listen_fd, client[8];
};

static void stuck_open(struct stuck *s, const char *at, uint16_t port)
{
	struct sockaddr_in a = { .sin_family = AF_INET, .sin_addr.s_addr = inet_addr(at), .sin_port = htons(port) };

	s->listen_fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
	ck_assert_int_eq(bind(s->listen_fd, (const struct sockaddr *)&a, sizeof a), 0);
	ck_assert_int_eq(listen(s->listen_fd, 0), 0);
	for (size_t i = 0; i < ARRAY_SIZE(s->client); i++) {
		s->client[i] = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
		(void)connect(s->client[i], (const struct sockaddr *)&a, sizeof a);
	}
	usleep(50000);
}

static void stuck_close(struct stuck *s)
{
	for (size_t i = 0; i < ARRAY_SIZE(s->client); i++)
		close(s->client[i]);
	close(s->listen_fd);
}

// The first one refuses, or does not answer; the second one takes it.
START_TEST(second_address)
{
	struct wire_connect_opts o = { .host = TWO_ADDRESSES, .timeout_ms = 8000, .preamble = { .kind = WIRE_ASK } };
	int fd = pair_listen(AF_INET, &o.port);
	struct wire_conn *c;
	struct stuck s;
	uint64_t since;

	ck_assert_int_eq(wire_connect(&o, &c), 0);
	ck_assert_int_eq(strncmp(wire_peer(c), TWO_ADDRESSES ":", sizeof TWO_ADDRESSES), 0);
	wire_close(c);
	ck_assert(wire_is_loopback(TWO_ADDRESSES));
	stuck_open(&s, "127.0.0.2", o.port);
	since = clock_now_ns();
	ck_assert_int_eq(wire_connect(&o, &c), 0);
	ck_assert_uint_lt(elapsed_ms(since), 7000); // the first one has half the time
	wire_close(c);
	stuck_close(&s);
	close(fd);
}
END_TEST

START_TEST(by_name)
{
	struct pair p = { .host = "localhost" };

	make_pair(&p);
	pair_close(&p);
}
END_TEST

START_TEST(by_ipv6)
{
	struct pair p = { .host = "::1" };
	uint16_t port;
	int fd = pair_listen(AF_INET6, &port);

	if (fd < 0)
		return; // a host without IPv6
	close(fd);
	pair_open_to(&p, AF_INET6);
	ck_assert_int_eq(p.client_error | p.server_error, 0);
	ck_assert_int_eq(strncmp(wire_peer(p.client), "[::1]:", 6), 0);
	ck_assert_int_eq(strncmp(wire_peer(p.server), "[::1]:", 6), 0);
	pair_close(&p);
}
END_TEST

static bool at_once(void)
{
	return true;
}

START_TEST(nobody_there)
{
	struct wire_connect_opts o = { .host = "127.0.0.1", .timeout_ms = 300, .preamble = { .kind = WIRE_ASK } };
	struct wire_conn *c;
	struct stuck s;
	uint64_t since;

	close(pair_listen(AF_INET, &o.port));
	stuck_open(&s, "127.0.0.1", o.port);
	said_clear();
	since = clock_now_ns();
	ck_assert_int_eq(wire_connect(&o, &c), -ETIMEDOUT);
	ck_assert_uint_ge(elapsed_ms(since), 290);
	ck_assert_uint_lt(elapsed_ms(since), 5000);
	ck_said("does not answer");
	o.interrupted = at_once;
	ck_assert_int_eq(wire_connect(&o, &c), -EINTR);
	o.interrupted = NULL;
	stuck_close(&s);

	ck_assert_int_eq(wire_connect(&o, &c), -ECONNREFUSED);
	ck_said("nobody listens at 127.0.0.1:");
	said_clear();
	o.quiet = true;
	ck_assert_int_eq(wire_connect(&o, &c), -ECONNREFUSED);
	ck_assert_str_eq(said_text, "");
	o.quiet = false;
	o.host = "no-such-host.invalid";
	ck_assert_int_eq(wire_connect(&o, &c), -EHOSTUNREACH);
	ck_said("cannot find host no-such-host.invalid");
}
END_TEST

int main(void)
{
	Suite *s = suite_create("wire_conn");
	TCase *t = tcase_create("preamble"), *u = tcase_create("connection");
	SRunner *sr;
	int failed;

	tcase_add_loop_test(t, preamble_round_trip, 0, 7);
	tcase_add_test(t, preamble_garbage);
	tcase_add_test(t, preamble_kinds);
	tcase_add_test(t, tokens);
	tcase_add_loop_test(t, address, 0, ARRAY_SIZE(addresses));
	tcase_add_test(t, loopback);
	suite_add_tcase(s, t);
	tcase_set_timeout(u, 120);
	tcase_add_test(u, peers);
	tcase_add_test(u, line_0_is_urgent);
	tcase_add_test(u, by_name);
	tcase_add_test(u, second_address);
	tcase_add_test(u, by_ipv6);
	tcase_add_test(u, nobody_there);
	add_transfers(u);
	suite_add_tcase(s, u);
	sr = srunner_create(s);
	srunner_run_all(sr, CK_ENV);
	failed = srunner_ntests_failed(sr);
	srunner_free(sr);
	return failed ? 1 : 0;
}
