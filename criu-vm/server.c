// SPDX-License-Identifier: GPL-2.0-only
#include "criu-vm/server.h"

#include <errno.h>
#include <inttypes.h>
#include <jansson.h>
#include <limits.h>
#include <stdio.h>
#include <string.h>
#include <sys/signalfd.h>
#include <systemd/sd-daemon.h>
#include <unistd.h>

#include "criu-vm/cmd.h"
#include "criu-vm/image_server.h"
#include "criu-vm/map_file.h"
#include "criu-vm/server_int.h"
#include "util/clock.h"
#include "util/log.h"
#include "util/size.h"
#include "wire/conn.h"

#define STOP_NS (30 * NSEC_PER_SEC)
#define SLOTS (1 + SERVER_LISTENERS + SERVER_CONNS + SERVER_RECEIVERS + SERVER_HELPERS + SERVER_READERS)

void server_say(const struct server *s, const char *event, const char *name, const char *peer, const char *text)
{
	if (s->o->json) {
		json_t *j = json_pack("{s:{s:s s:s s:s}}", event, "name", name, "from", peer, "message", text);

		json_dumpf(j, stdout, JSON_COMPACT);
		putchar('\n');
		json_decref(j);
	} else {
		printf("%s (from %s): %s\n", *name ? name : "a VM", peer, text);
	}
	fflush(stdout);
}

// What is served: name is "" if it has none.
static json_t *describe_images(const struct image_server *images)
{
	char id[17];

	snprintf(id, sizeof id, "%016" PRIx64, image_server_id(images));
	return json_pack("{s:s s:s s:s s:I}", "dir", image_server_dir(images), "id", id, "name", image_server_vm_name(images), "pages",
			 (json_int_t)image_server_pages(images));
}

static void say_where(const struct server *s)
{
	char address[SERVER_PEER], status[160 + PATH_MAX], size[16];
	uint16_t port;
	int len;

	server_listener_name(s->listeners[0], address, &port);
	len = snprintf(status, sizeof status, "listening on %s, port %u, %s", address, port, s->tls ? "with TLS" : "in the clear");
	if (s->images)
		snprintf(status + len, sizeof status - (size_t)len, ", serving %s: %s of pages", image_server_dir(s->images),
			 size_format(image_server_pages(s->images) * PAGE_SIZE, size));
	if (s->o->json) {
		json_t *j = json_pack("{s:{s:s s:i s:b s:o*}}", "listening", "address", address, "port", port, "tls", s->tls != NULL, "images",
				      s->images ? describe_images(s->images) : NULL);

		json_dumpf(j, stdout, JSON_COMPACT);
		putchar('\n');
		json_decref(j);
	} else {
		printf("%s\n", status);
	}
	fflush(stdout);
	sd_notifyf(0, "READY=1\nSTATUS=%s", status);
}

// What the options name; at a later time, what cannot be read stays as it was. Logged.
static int load(struct server *s)
{
	struct wire_tls *tls = NULL;
	struct map_file *map = NULL;
	int r = s->o->map ? map_file_load(s->o->map, &map) : 0;

	if (!r && s->o->tls_creds)
		r = wire_tls_load(s->o->tls_creds, true, &tls);
	if (r) {
		map_file_free(map);
		return r;
	}
	map_file_free(s->map);
	wire_tls_free(s->tls);
	s->map = map;
	s->tls = tls;
	return 0;
}

static void reload(struct server *s)
{
	sd_notify(0, "RELOADING=1");
	if (load(s))
		log_warn("the server goes on with what it had read before");
	sd_notify(0, "READY=1");
}

static void stop(struct server *s)
{
	if (s->stopping) { // they have been told
		s->over = true;
		return;
	}
	s->stopping = true;
	s->stop_by = clock_now_ns() + STOP_NS;
	if (!s->awaits_ask && !s->awaits_pages)
		s->status = s->o->once ? CMD_FAILED : CMD_OK;
	sd_notify(0, "STOPPING=1");
	server_listen_close(s);
	server_conns_close(s);
	server_signal_receivers(s, SIGTERM);
}

static void take_signals(struct server *s)
{
	struct signalfd_siginfo info;

	while (read(s->signals, &info, sizeof info) == sizeof info)
		switch (info.ssi_signo) {
		case SIGCHLD:
			server_reap(s);
			break;
		case SIGHUP:
			reload(s);
			break;
		default:
			stop(s);
		}
}

static int catch_signals(struct server *s)
{
	static const int ours[] = { SIGTERM, SIGINT, SIGQUIT, SIGHUP, SIGCHLD };
	sigset_t set;

	signal(SIGPIPE, SIG_IGN);
	sigemptyset(&set);
	for (size_t i = 0; i < sizeof ours / sizeof *ours; i++)
		sigaddset(&set, ours[i]);
	sigprocmask(SIG_BLOCK, &set, &s->mask);
	s->signals = signalfd(-1, &set, SFD_CLOEXEC | SFD_NONBLOCK);
	if (s->signals >= 0)
		return 0;
	log_err("cannot wait for signals: %s", strerror(errno));
	return -errno;
}

static int slot(struct pollfd *fds, unsigned *nr, int fd)
{
	if (fd < 0)
		return -1;
	fds[*nr] = (struct pollfd){ .fd = fd, .events = POLLIN };
	return (int)(*nr)++;
}

// The first are signals and listeners.
static unsigned fill(struct server *s, struct pollfd fds[SLOTS], uint64_t now)
{
	unsigned nr = 0;

	slot(fds, &nr, s->signals);
	for (unsigned i = 0; i < s->nr_listeners; i++)
		fds[slot(fds, &nr, s->listeners[i])].events = now < s->accept_after ? 0 : POLLIN;
	list_for_each(&s->conns, node) {
		struct server_conn *c = list_entry(node, struct server_conn, node);

		c->slot = slot(fds, &nr, c->fd);
	}
	list_for_each(&s->children, node) {
		struct server_child *c = list_entry(node, struct server_child, node);

		c->slot = slot(fds, &nr, c->line);
	}
	return nr;
}

// Milliseconds until something is to be done of ourselves; -1: nothing is.
static int time_left(const struct server *s, uint64_t now)
{
	uint64_t next = s->stopping ? s->stop_by : UINT64_MAX;

	if (s->awaits_pages && s->look_at < next)
		next = s->look_at;
	if (s->nr_listeners && s->accept_after > now && s->accept_after < next)
		next = s->accept_after;
	if (!list_empty(&s->conns) && list_first(&s->conns, struct server_conn, node)->deadline < next)
		next = list_first(&s->conns, struct server_conn, node)->deadline;
	if (next == UINT64_MAX)
		return -1;
	return next <= now ? 0 : (int)((next - now) / NSEC_PER_MSEC) + 1;
}

static void dispatch(struct server *s, const struct pollfd *fds, unsigned nr_listeners)
{
	list_for_each(&s->children, node) {
		struct server_child *c = list_entry(node, struct server_child, node);

		if (c->slot >= 0 && fds[c->slot].revents)
			server_line_ready(s, c);
	}
	list_for_each(&s->conns, node) {
		struct server_conn *c = list_entry(node, struct server_conn, node);

		if (c->slot >= 0 && fds[c->slot].revents)
			server_conn_ready(s, c);
	}
	for (unsigned i = 0; i < nr_listeners; i++)
		if (fds[1 + i].revents)
			server_accept(s, s->listeners[i]);
	if (fds[0].revents)
		take_signals(s);
}

static void loop(struct server *s)
{
	struct pollfd fds[SLOTS];

	while (!s->over && !(s->stopping && !server_nr_arriving(s))) {
		uint64_t now = clock_now_ns();
		unsigned nr = fill(s, fds, now), nr_listeners = s->nr_listeners;

		if (poll(fds, nr, time_left(s, now)) > 0)
			dispatch(s, fds, nr_listeners);
		now = clock_now_ns();
		server_conns_expire(s, now);
		server_look_at_pages(s, now);
		if (s->stopping && now >= s->stop_by) {
			log_warn("a VM that was arriving does not give up in time: its receiver is killed");
			server_signal_receivers(s, SIGKILL);
			s->over = true;
		}
	}
}

static int open_images(struct server *s)
{
	return s->o->images ? image_server_open(s->o->images, &s->images) : 0;
}

int server_run(const struct server_opts *o)
{
	struct server s = { .o = o, .pid = getpid(), .signals = -1 };

	list_init(&s.conns);
	list_init(&s.children);
	s.status = catch_signals(&s) || load(&s) || open_images(&s) ? CMD_FAILED : server_listen(&s);
	if (s.status == CMD_GO_ON) {
		s.status = CMD_OK;
		say_where(&s);
		loop(&s);
	}
	server_listen_close(&s);
	server_conns_close(&s);
	server_children_free(&s);
	map_file_free(s.map);
	wire_tls_free(s.tls);
	image_server_close(s.images);
	if (s.signals >= 0)
		close(s.signals);
	return s.status;
}
