// SPDX-License-Identifier: GPL-2.0-only
// Both ends of a connection in one process, over the loopback interface, and what they log.
#pragma once
#include <arpa/inet.h>
#include <check.h>
#include <netinet/in.h>
#include <poll.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "util/io.h"
#include "util/log.h"
#include "wire/conn.h"

#define PATIENCE_MS 20000 // on a busy host

struct pair {
	const struct wire_tls *client_tls, *server_tls;
	const char *host;    // NULL: 127.0.0.1
	unsigned timeout_ms; // 0: PATIENCE_MS
	// What came of it.
	int client_error, server_error;
	struct wire_conn *client, *server;
	int listen_fd;
};

// Error lines since said_clear(), of both ends.
static char said_text[4096];

static inline void said_hear(void *ctx, const char *text)
{
	size_t len = strlen(said_text);

	(void)ctx;
	snprintf(said_text + len, sizeof said_text - len, "%s\n", text);
}

static inline void said_clear(void)
{
	said_text[0] = '\0';
	log_listen(said_hear, NULL);
}

#define ck_said(text) ck_assert_msg(strstr(said_text, (text)) != NULL, "'%s' is not in:\n%s", (text), said_text)

static inline int pair_listen(int family, uint16_t *port)
{
	struct sockaddr_in6 six = { .sin6_family = AF_INET6, .sin6_addr = IN6ADDR_LOOPBACK_INIT };
	struct sockaddr_in four = { .sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK) };
	const struct sockaddr *a = family == AF_INET ? (const struct sockaddr *)&four : (const struct sockaddr *)&six;
	socklen_t len = family == AF_INET ? sizeof four : sizeof six;
	struct sockaddr_in6 got = { 0 }; // its port is where that of IPv4 is
	socklen_t got_len = sizeof got;
	int fd = socket(family, SOCK_STREAM | SOCK_CLOEXEC, 0);

	if (fd < 0 || bind(fd, a, len) || listen(fd, 8) || getsockname(fd, (struct sockaddr *)&got, &got_len)) {
		close(fd);
		return -1;
	}
	*port = ntohs(got.sin6_port);
	return fd;
}

// As the server does it: the preamble is read before the connection is made.
static inline void *pair_accept(void *arg)
{
	struct pair *p = arg;
	uint8_t buf[WIRE_PREAMBLE_LEN];
	struct wire_preamble preamble;
	int fd = accept4(p->listen_fd, NULL, NULL, SOCK_CLOEXEC);

	p->server_error = io_read_full(fd, buf, sizeof buf);
	if (!p->server_error)
		p->server_error = wire_preamble_parse(buf, &preamble);
	if (p->server_error) {
		close(fd);
		return NULL;
	}
	p->server_error = wire_accept(fd, p->server_tls, p->timeout_ms ? p->timeout_ms : PATIENCE_MS, &p->server);
	return NULL;
}

static inline void pair_open_to(struct pair *p, int family)
{
	struct wire_connect_opts o = { .host = p->host ? p->host : "127.0.0.1", .tls = p->client_tls,
		.timeout_ms = p->timeout_ms ? p->timeout_ms : PATIENCE_MS, .preamble = { .kind = WIRE_CONTROL } };
	pthread_t thread;

	p->listen_fd = pair_listen(family, &o.port);
	ck_assert_int_ge(p->listen_fd, 0);
	ck_assert_int_eq(pthread_create(&thread, NULL, pair_accept, p), 0);
	p->client_error = wire_connect(&o, &p->client);
	ck_assert_int_eq(pthread_join(thread, NULL), 0);
	close(p->listen_fd);
}

static inline void pair_open(struct pair *p)
{
	pair_open_to(p, AF_INET);
}

static inline void pair_must_open(struct pair *p)
{
	pair_open(p);
	ck_assert_int_eq(p->client_error, 0);
	ck_assert_int_eq(p->server_error, 0);
}

static inline void pair_close(struct pair *p)
{
	wire_close(p->client);
	wire_close(p->server);
	p->client = p->server = NULL;
}
