// SPDX-License-Identifier: GPL-2.0-only
#include "wire/conn_int.h"

#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netdb.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "util/cleanup.h"
#include "util/clock.h"
#include "util/log.h"

#define MAX_HOST 255

#define say(o, ...) log_at((o)->quiet ? LOG_DEBUG : LOG_ERROR, __VA_ARGS__)

static bool host_ok(const char *host, size_t len)
{
	static const char letters[] = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789.-_:%";

	return len && len <= MAX_HOST && host[0] != '-' && strspn(host, letters) >= len;
}

static int parse_port(const char *text, uint16_t *port)
{
	char *end;
	unsigned long n = strtoul(text, &end, 10);

	if (text[0] < '0' || text[0] > '9' || *end || !n || n > UINT16_MAX)
		return -EINVAL;
	*port = (uint16_t)n;
	return 0;
}

int wire_parse_address(const char *text, char **host, uint16_t *port)
{
	const char *begin = text, *colon = strchr(text, ':'), *rest = NULL;
	size_t len = strlen(text);
	uint16_t p = WIRE_PORT;

	if (text[0] == '[') {
		const char *close = strchr(text, ']');

		begin++;
		len = close ? (size_t)(close - begin) : 0;
		rest = close ? close + 1 : NULL;
	} else if (colon && !strchr(colon + 1, ':')) {
		len = (size_t)(colon - text);
		rest = colon;
	}
	if (!host_ok(begin, len) || (rest && *rest && (*rest != ':' || parse_port(rest + 1, &p)))) {
		log_err("'%s' is no address: give HOST, HOST:PORT or [IPV6]:PORT", text);
		return -EINVAL;
	}
	*host = strndup(begin, len);
	if (!*host)
		return -ENOMEM;
	*port = p;
	return 0;
}

static int resolve(const char *host, uint16_t port, struct addrinfo **list)
{
	struct addrinfo hints = { .ai_family = AF_UNSPEC, .ai_socktype = SOCK_STREAM };
	char service[8];

	snprintf(service, sizeof service, "%u", port);
	return getaddrinfo(host, service, &hints, list);
}

static bool is_loopback(const struct sockaddr *a)
{
	const struct in6_addr *six = &((const struct sockaddr_in6 *)a)->sin6_addr;

	if (a->sa_family == AF_INET)
		return ntohl(((const struct sockaddr_in *)a)->sin_addr.s_addr) >> 24 == 127;
	return a->sa_family == AF_INET6 && (IN6_IS_ADDR_LOOPBACK(six) || (IN6_IS_ADDR_V4MAPPED(six) && six->s6_addr[12] == 127));
}

bool wire_is_loopback(const char *host)
{
	struct addrinfo *list, *a;

	if (!host[0] || resolve(host, 0, &list))
		return false;
	for (a = list; a && is_loopback(a->ai_addr); a = a->ai_next)
		;
	freeaddrinfo(list);
	return !a;
}

// The connected socket, not blocking, or -errno.
static int connect_one(const struct addrinfo *a, uint64_t end_ns, bool (*interrupted)(void))
{
	_cleanup_close_ int fd = socket(a->ai_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	socklen_t len = sizeof(int);
	int r, error = 0;

	if (fd < 0)
		return -errno;
	if (connect(fd, a->ai_addr, a->ai_addrlen) < 0) {
		if (errno != EINPROGRESS && errno != EINTR)
			return -errno;
		r = wire_wait(fd, POLLOUT, end_ns, interrupted);
		if (r <= 0)
			return r ? r : -ETIMEDOUT;
		if (getsockopt(fd, SOL_SOCKET, SO_ERROR, &error, &len) < 0 || error)
			return error ? -error : -errno;
	}
	return steal_fd(&fd);
}

static unsigned nr_addresses(const struct addrinfo *a)
{
	unsigned nr = 1;

	while ((a = a->ai_next))
		nr++;
	return nr;
}

static int connect_any(const struct wire_connect_opts *o, const char *peer, uint64_t end_ns)
{
	struct addrinfo *list;
	int fd = -EHOSTUNREACH, r = resolve(o->host, o->port, &list);

	if (r) {
		say(o, "cannot find host %s: %s", o->host, gai_strerror(r));
		return -EHOSTUNREACH;
	}
	// An address that does not answer leaves the others their share of the time.
	for (const struct addrinfo *a = list; a && fd < 0 && fd != -EINTR; a = a->ai_next) {
		uint64_t now = clock_now_ns();

		fd = connect_one(a, now < end_ns ? now + (end_ns - now) / nr_addresses(a) : now, o->interrupted);
	}
	freeaddrinfo(list);
	if (fd == -ECONNREFUSED)
		say(o, "nobody listens at %s: is 'criu-vm lazy-pages' running there?", peer);
	else if (fd == -ETIMEDOUT)
		say(o, "%s does not answer", peer);
	else if (fd < 0 && fd != -EINTR)
		say(o, "cannot connect to %s: %s", peer, strerror(-fd));
	return fd;
}

// A guest waits for what goes over it.
static bool is_urgent(const struct wire_preamble *p)
{
	return (p->kind == WIRE_LINE || p->kind == WIRE_IMAGE_LINE) && !p->channel;
}

static int begin(struct wire_conn *c, const struct wire_connect_opts *o, uint64_t end_ns)
{
	struct wire_preamble preamble = o->preamble;
	uint8_t buf[WIRE_PREAMBLE_LEN];
	int r;

	c->quiet = o->quiet;
	c->interrupted = o->interrupted;
	if (is_urgent(&o->preamble))
		wire_set_urgent(c);
	preamble.tls = o->tls;
	wire_preamble_pack(&preamble, buf);
	r = wire_write(c, buf, sizeof buf); // an empty socket takes it at once
	c->sent = 0;
	if (r) {
		say(o, "cannot send to %s: %s", c->peer, strerror(-r));
		return r;
	}
	return o->tls ? wire_tls_handshake(c, o->tls, o->host, end_ns) : 0;
}

int wire_connect(const struct wire_connect_opts *o, struct wire_conn **out)
{
	uint64_t end = clock_now_ns() + o->timeout_ms * NSEC_PER_MSEC;
	struct wire_conn *c;
	char *peer;
	int fd, r;

	if (asprintf(&peer, strchr(o->host, ':') ? "[%s]:%u" : "%s:%u", o->host, o->port) < 0)
		return -ENOMEM;
	fd = connect_any(o, peer, end);
	if (fd < 0) {
		free(peer);
		return fd;
	}
	r = wire_conn_new(fd, peer, &c);
	if (r)
		return r;
	r = begin(c, o, end);
	if (r)
		wire_close(c);
	else
		*out = c;
	return r;
}

// "192.0.2.1:4711", "[2001:db8::1]:4711", or NULL.
static char *name_of(int fd)
{
	struct sockaddr_storage a;
	socklen_t len = sizeof a;
	char host[NI_MAXHOST], port[NI_MAXSERV], *name;
	const char *h = host;

	if (getpeername(fd, (struct sockaddr *)&a, &len) < 0 ||
	    getnameinfo((struct sockaddr *)&a, len, host, sizeof host, port, sizeof port, NI_NUMERICHOST | NI_NUMERICSERV))
		return strdup("a peer");
	if (!strncmp(h, "::ffff:", 7) && strchr(h, '.'))
		h += 7;
	return asprintf(&name, strchr(h, ':') ? "[%s]:%s" : "%s:%s", h, port) < 0 ? NULL : name;
}

int wire_accept(int fd, const struct wire_tls *tls, unsigned timeout_ms, struct wire_conn **out)
{
	uint64_t end = clock_now_ns() + timeout_ms * NSEC_PER_MSEC;
	int flags = fcntl(fd, F_GETFL);
	struct wire_conn *c;
	int r = wire_conn_new(fd, name_of(fd), &c);

	if (r)
		return r;
	if (flags < 0 || fcntl(c->fd, F_SETFL, flags | O_NONBLOCK) < 0) {
		r = -errno;
		log_err("%s: %s", c->peer, strerror(errno));
	} else if (tls) {
		r = wire_tls_handshake(c, tls, NULL, end);
	}
	if (r)
		wire_close(c);
	else
		*out = c;
	return r;
}
