// SPDX-License-Identifier: GPL-2.0-only
// Where the server listens: on every address that its --address has, at one port.
#include <errno.h>
#include <netdb.h>
#include <netinet/in.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "criu-vm/cmd.h"
#include "criu-vm/server_int.h"
#include "util/cleanup.h"
#include "util/log.h"
#include "wire/conn.h"

#define BACKLOG 64
#define PORT_TRIES 20 // of port 0

void server_listener_name(int fd, char address[SERVER_PEER], uint16_t *port)
{
	struct sockaddr_storage at = { .ss_family = AF_UNSPEC };
	socklen_t len = sizeof at;

	*port = 0;
	if (getsockname(fd, (struct sockaddr *)&at, &len) ||
	    getnameinfo((struct sockaddr *)&at, len, address, SERVER_PEER, NULL, 0, NI_NUMERICHOST))
		strcpy(address, "?");
	if (at.ss_family == AF_INET)
		*port = ntohs(((const struct sockaddr_in *)&at)->sin_port);
	else if (at.ss_family == AF_INET6)
		*port = ntohs(((const struct sockaddr_in6 *)&at)->sin6_port);
}

static void set_port(struct sockaddr *at, uint16_t port)
{
	if (at->sa_family == AF_INET)
		((struct sockaddr_in *)at)->sin_port = htons(port);
	else
		((struct sockaddr_in6 *)at)->sin6_port = htons(port);
}

// A descriptor, or -errno.
static int listen_at(const struct addrinfo *a)
{
	_cleanup_close_ int fd = socket(a->ai_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	int on = 1;

	// After a restart there may be connections of the server before.
	if (fd < 0 || setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on) || bind(fd, a->ai_addr, a->ai_addrlen) || listen(fd, BACKLOG))
		return -errno;
	return steal_fd(&fd);
}

// A host may have an address without having its protocol: localhost where there is no IPv6.
static bool is_absent(int error)
{
	return error == -EADDRNOTAVAIL || error == -EAFNOSUPPORT;
}

static int listen_at_all(struct server *s, struct addrinfo *all)
{
	uint16_t port = s->o->port;
	char address[SERVER_PEER];
	int absent = -EADDRNOTAVAIL;

	for (struct addrinfo *a = all; a && s->nr_listeners < SERVER_LISTENERS; a = a->ai_next) {
		int fd;

		if (a->ai_family != AF_INET && a->ai_family != AF_INET6)
			continue;
		set_port(a->ai_addr, port);
		fd = listen_at(a);
		if (is_absent(fd)) {
			absent = fd;
			continue;
		}
		if (fd < 0)
			return fd;
		s->listeners[s->nr_listeners++] = fd;
		server_listener_name(fd, address, &port); // of port 0, the one that was free, for the others, too
	}
	return s->nr_listeners ? 0 : absent;
}

int server_listen(struct server *s)
{
	const char *host = s->o->address ? s->o->address : "localhost";
	struct addrinfo hints = { .ai_socktype = SOCK_STREAM }, *all;
	int r = getaddrinfo(s->o->address, "0", &hints, &all); // NULL: loopback

	if (r) {
		log_err("--address %s: %s", host, r == EAI_SYSTEM ? strerror(errno) : gai_strerror(r));
		return CMD_USAGE;
	}
	if (s->o->address && !s->tls && !s->o->insecure && !wire_is_loopback(host)) {
		log_err("--address %s can be reached from elsewhere, where anybody could send a VM and read what is sent: give --tls-creds DIR, or "
			"say --insecure", host);
		freeaddrinfo(all);
		return CMD_USAGE;
	}
	for (unsigned i = 0; i < PORT_TRIES; i++) {
		r = listen_at_all(s, all);
		if (r != -EADDRINUSE || s->o->port) // a port that is free at one address may be taken at another
			break;
		server_listen_close(s);
	}
	freeaddrinfo(all);
	if (!r)
		return CMD_GO_ON;
	log_err("cannot listen on %s, port %u: %s%s", host, s->o->port, strerror(-r),
		r == -EADDRINUSE ? "; another server is there, or give another --port" : "");
	server_listen_close(s);
	return CMD_FAILED;
}

void server_listen_close(struct server *s)
{
	while (s->nr_listeners)
		close(s->listeners[--s->nr_listeners]);
}
