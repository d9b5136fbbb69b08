// SPDX-License-Identifier: GPL-2.0-only
// Connections until their preamble is there, which says whose they are. What stands behind it is left for those.
#include <errno.h>
#include <netdb.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "criu-vm/server_int.h"
#include "util/cleanup.h"
#include "util/clock.h"
#include "util/log.h"
#include "wire/preamble.h"

#define PREAMBLE_NS (10 * NSEC_PER_SEC)
#define PAUSE_NS NSEC_PER_SEC
#define WARN_NS (60 * NSEC_PER_SEC)
#define WARN_MOST 10

// Takes c off the list. Its descriptor is closed unless it was taken out.
static void conn_free(struct server *s, struct server_conn *c)
{
	list_remove(&c->node);
	s->nr_conns--;
	if (c->fd >= 0)
		close(c->fd);
	free(c);
}

// Port scans and the like are not worth a line each.
void server_warn(struct server *s, const char *peer, const char *what)
{
	uint64_t now = clock_now_ns();

	if (now - s->warned_since > WARN_NS) {
		if (s->nr_warned > WARN_MOST)
			log_warn("%u more connections were closed or refused meanwhile", s->nr_warned - WARN_MOST);
		s->warned_since = now;
		s->nr_warned = 0;
	}
	if (++s->nr_warned <= WARN_MOST)
		log_warn("%s: %s", peer, what);
}

void server_accept(struct server *s, int listener)
{
	struct sockaddr_storage at;
	socklen_t len = sizeof at;
	_cleanup_close_ int fd = accept4(listener, (struct sockaddr *)&at, &len, SOCK_CLOEXEC | SOCK_NONBLOCK);
	struct server_conn *c = fd < 0 ? NULL : calloc(1, sizeof *c);

	if (!c && fd < 0 && errno != EMFILE && errno != ENFILE && errno != ENOBUFS && errno != ENOMEM)
		return; // who wanted to connect has gone
	if (!c) {
		log_err("cannot accept a connection: %s", strerror(errno));
		s->accept_after = clock_now_ns() + PAUSE_NS;
		return;
	}
	if (getnameinfo((struct sockaddr *)&at, len, c->peer, sizeof c->peer, NULL, 0, NI_NUMERICHOST))
		strcpy(c->peer, "?");
	c->fd = steal_fd(&fd);
	c->slot = -1;
	c->deadline = clock_now_ns() + PREAMBLE_NS;
	list_append(&s->conns, &c->node);
	if (++s->nr_conns > SERVER_CONNS) {
		struct server_conn *oldest = list_first(&s->conns, struct server_conn, node);

		server_warn(s, oldest->peer, "closed, since too many connections say nothing");
		conn_free(s, oldest);
	}
}

static void control(struct server *s, struct server_conn *c, const struct wire_preamble *p)
{
	const char *why = NULL;

	if (s->o->once && server_nr_arriving(s))
		why = "the server takes one VM only (--once), and that is arriving";
	else if (s->awaits_ask || s->awaits_pages)
		why = "the server takes one VM only (--once), and that has been";
	else if (server_receiver_of(s, p->token))
		why = "this migration is under way already";
	server_spawn(s, why ? SERVER_REFUSER : SERVER_RECEIVER, p, c, why);
}

static void data(struct server *s, struct server_conn *c, const struct wire_preamble *p)
{
	struct server_child *receiver = server_receiver_of(s, p->token);

	if (!receiver || !receiver->promised)
		server_warn(s, c->peer, "closed a data channel of a migration that is not under way here");
	else
		server_pass(receiver, p->channel, steal_fd(&c->fd));
}

// Frames, not messages: a reason would not be understood.
static bool has_frames(const struct wire_preamble *p)
{
	return p->kind == WIRE_DATA || p->kind == WIRE_LINE || p->kind == WIRE_IMAGE_LINE;
}

static void refuse_user(struct server *s, struct server_conn *c, const struct wire_preamble *p)
{
	static const char why[] = "without --tls-creds only root, and the user that the server runs as, may use it from its own host";

	if (has_frames(p))
		server_warn(s, c->peer, why);
	else
		server_spawn(s, SERVER_REFUSER, p, c, why);
}

// The server has --images.
static void of_images(struct server *s, struct server_conn *c, const struct wire_preamble *p)
{
	if (p->kind == WIRE_DATA)
		server_warn(s, c->peer, "closed a data channel: no VM arrives at a server that has --images");
	else if (p->kind == WIRE_IMAGES || p->kind == WIRE_IMAGE_LINE)
		server_spawn(s, p->kind == WIRE_IMAGES ? SERVER_DESCRIBER : SERVER_READER, p, c, NULL);
	else
		server_spawn(s, SERVER_REFUSER, p, c, "this server serves a checkpoint (--images), and takes no VMs");
}

static void dispatch(struct server *s, struct server_conn *c)
{
	struct wire_preamble p = { .tls = false };
	int r = wire_preamble_parse(c->preamble, &p);

	if (r == -EPROTONOSUPPORT)
		server_spawn(s, SERVER_REFUSER, &p, c, "this server's criu-vm begins migrations in another way; use the same version");
	else if (r)
		server_warn(s, c->peer, "closed, since it does not speak the migration protocol");
	else if (!s->tls && !s->o->insecure && !server_peer_is_trusted(c->fd))
		refuse_user(s, c, &p);
	else if (p.tls && !s->tls)
		server_warn(s, c->peer, "closed, since it wants TLS, and this server has no --tls-creds");
	else if (!p.tls && s->tls && has_frames(&p))
		server_warn(s, c->peer, "closed a data channel, or a page line, without TLS");
	else if (!p.tls && s->tls)
		server_spawn(s, SERVER_REFUSER, &p, c, "this server demands TLS; give --tls-creds DIR");
	else if (s->images)
		of_images(s, c, &p);
	else if (p.kind == WIRE_IMAGES || p.kind == WIRE_IMAGE_LINE)
		server_spawn(s, SERVER_REFUSER, &p, c, "this server serves no checkpoint: it was not started with --images");
	else if (p.kind == WIRE_CONTROL)
		control(s, c, &p);
	else if (p.kind == WIRE_DATA)
		data(s, c, &p);
	else
		server_spawn(s, p.kind == WIRE_LINE ? SERVER_PASSER : SERVER_ANSWERER, &p, c, NULL);
}

void server_conn_ready(struct server *s, struct server_conn *c)
{
	ssize_t n = recv(c->fd, c->preamble + c->len, sizeof c->preamble - c->len, MSG_DONTWAIT);

	if (n < 0 && (errno == EAGAIN || errno == EINTR))
		return;
	if (n > 0) {
		c->len += (size_t)n;
		if (c->len < sizeof c->preamble)
			return;
		dispatch(s, c);
	}
	conn_free(s, c);
}

void server_conns_expire(struct server *s, uint64_t now)
{
	list_for_each(&s->conns, node) {
		struct server_conn *c = list_entry(node, struct server_conn, node);

		if (c->deadline > now)
			return;
		server_warn(s, c->peer, "closed a connection that says nothing");
		conn_free(s, c);
	}
}

void server_conns_close(struct server *s)
{
	list_for_each(&s->conns, node)
		conn_free(s, list_entry(node, struct server_conn, node));
}
