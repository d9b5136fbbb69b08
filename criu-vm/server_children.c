// SPDX-License-Identifier: GPL-2.0-only
// The server's children: each is forked for one connection, and says nothing but what it wants promised.
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include "criu-vm/cmd.h"
#include "criu-vm/migration_record.h"
#include "criu-vm/process.h"
#include "criu-vm/receive.h"
#include "criu-vm/server_int.h"
#include "util/cleanup.h"
#include "util/log.h"
#include "wire/control.h"

#define REFUSE_MS 2000

static void child_free(struct server_child *c)
{
	list_remove(&c->node);
	if (c->line >= 0)
		close(c->line);
	free(c);
}

static bool is_helper(const struct server_child *c)
{
	return c->kind == SERVER_ANSWERER || c->kind == SERVER_REFUSER;
}

static unsigned count(const struct server *s, bool helpers)
{
	unsigned n = 0;

	list_for_each(&s->children, node)
		n += is_helper(list_entry(node, struct server_child, node)) == helpers;
	return n;
}

unsigned server_nr_arriving(const struct server *s)
{
	return count(s, false);
}

struct server_child *server_receiver_of(struct server *s, const uint8_t token[WIRE_TOKEN_LEN])
{
	list_for_each(&s->children, node) {
		struct server_child *c = list_entry(node, struct server_child, node);

		if (!is_helper(c) && !memcmp(c->token, token, WIRE_TOKEN_LEN))
			return c;
	}
	return NULL;
}

static int refuse(int fd, const char *why)
{
	struct wire_conn *c;

	if (wire_accept(fd, NULL, REFUSE_MS, &c))
		return CMD_FAILED;
	wire_set_timeout(c, REFUSE_MS);
	wire_send_abort(c, "%s", why);
	wire_finish(c, REFUSE_MS);
	wire_close(c);
	return CMD_FAILED;
}

// In the child: of what is the server's, nothing stays open.
static void let_go(struct server *s)
{
	server_listen_close(s);
	server_conns_close(s);
	server_children_free(s);
	close(s->signals);
	unsetenv("NOTIFY_SOCKET"); // of the service manager
	cmd_catch_signals();
	sigprocmask(SIG_SETMASK, &s->mask, NULL);
}

static int be_child(struct server *s, enum server_child_kind kind, const uint8_t token[WIRE_TOKEN_LEN], int line, int fd, const char *why)
{
	struct receive_opts o = { .server = s->o, .map = s->map, .tls = s->tls, .line = line };

	let_go(s);
	if (kind == SERVER_REFUSER)
		return refuse(fd, why);
	memcpy(o.token, token, sizeof o.token);
	return kind == SERVER_RECEIVER ? receive_run(&o, fd) : receive_answer(&o, fd);
}

// The oldest that may go: a receiver that has got something promised does not, since there is more to it than a connection.
static struct server_child *find_victim(struct server *s, bool helpers)
{
	list_for_each(&s->children, node) {
		struct server_child *c = list_entry(node, struct server_child, node);

		if (helpers ? is_helper(c) : c->kind == SERVER_RECEIVER && !c->promised)
			return c;
	}
	return NULL;
}

// Makes room for one more, as for connections: whoever opens many and says nothing keeps nobody out.
static bool make_room(struct server *s, bool helper)
{
	struct server_child *victim;

	if (count(s, helper) < (helper ? SERVER_HELPERS : SERVER_RECEIVERS))
		return true;
	victim = find_victim(s, helper);
	if (!victim)
		return false;
	server_warn(s, victim->peer, "dropped, since too many are connected, and it has not said much");
	kill(victim->pid, SIGKILL);
	child_free(victim);
	return true;
}

void server_spawn(struct server *s, enum server_child_kind kind, const uint8_t token[WIRE_TOKEN_LEN], int taken, const char *peer,
		  const char *why)
{
	_cleanup_close_ int fd = taken, line = -1;
	struct server_child *c;
	int pair[2];

	if (!make_room(s, kind != SERVER_RECEIVER)) {
		kind = SERVER_REFUSER;
		why = "as many VMs are arriving as the server can take at once; try again later";
		make_room(s, true);
	}
	c = calloc(1, sizeof *c);
	if (!c || socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0, pair)) {
		log_err("cannot serve %s: %s", peer, strerror(errno));
		free(c);
		return;
	}
	*c = (struct server_child){ .kind = kind, .line = pair[0], .slot = -1 };
	line = pair[1];
	memcpy(c->token, token, sizeof c->token);
	snprintf(c->peer, sizeof c->peer, "%s", peer);
	list_append(&s->children, &c->node);
	fflush(NULL); // or the child might say it again
	c->pid = fork();
	if (!c->pid)
		_exit(be_child(s, kind, token, steal_fd(&line), steal_fd(&fd), why));
	if (c->pid < 0) {
		log_err("cannot serve %s: fork: %s", peer, strerror(errno));
		child_free(c);
	} else if (kind == SERVER_REFUSER) {
		server_warn(s, peer, why);
	}
}

// fd: to be sent along, or -1.
static int send_message(const struct server_child *c, const struct server_message *m, int fd)
{
	union {
		struct cmsghdr align;
		char buf[CMSG_SPACE(sizeof(int))];
	} control = { 0 };
	struct iovec iov = { .iov_base = (void *)m, .iov_len = sizeof *m };
	struct msghdr msg = { .msg_iov = &iov, .msg_iovlen = 1 };

	if (fd >= 0) {
		struct cmsghdr *h = &control.align;

		msg.msg_control = &control;
		msg.msg_controllen = sizeof control;
		h->cmsg_level = SOL_SOCKET;
		h->cmsg_type = SCM_RIGHTS;
		h->cmsg_len = CMSG_LEN(sizeof fd);
		memcpy(CMSG_DATA(h), &fd, sizeof fd);
	}
	return sendmsg(c->line, &msg, MSG_DONTWAIT | MSG_NOSIGNAL) < 0 ? -errno : 0;
}

void server_pass(struct server_child *c, unsigned channel, int taken)
{
	_cleanup_close_ int fd = taken;
	struct server_message m = { .kind = SERVER_CHANNEL, .channel = channel };
	int r = c->line < 0 ? -EPIPE : c->nr_channels == SERVER_CHANNELS ? -EMFILE : send_message(c, &m, fd);

	if (r)
		log_warn("%s: a data channel is closed: %s", c->name, strerror(-r));
	else
		c->nr_channels++;
}

static void close_line(struct server_child *c)
{
	close(c->line);
	c->line = -1;
}

// Although it is ours: it talks to others.
static bool request_ok(const struct server_request *q)
{
	return q->undecided || (memchr(q->name, 0, sizeof q->name) && run_dir_name_ok(q->name));
}

void server_line_ready(struct server *s, struct server_child *c)
{
	struct server_message m = { .kind = SERVER_PROMISE };
	struct server_request q;
	ssize_t n = recv(c->line, &q, sizeof q, MSG_DONTWAIT);

	if (n < 0 && (errno == EAGAIN || errno == EINTR))
		return;
	if (n != sizeof q || !request_ok(&q)) {
		close_line(c);
		return;
	}
	if (q.undecided) {
		c->undecided = true;
		return;
	}
	m.error = server_promise(s, c, q.name, q.bytes, m.reason);
	if (send_message(c, &m, -1))
		close_line(c);
}

// Whatever its receiver did: its VM may have been committed.
static int tell_end(const struct server *s, const struct server_child *c, int status)
{
	enum migration_decision is = MIGRATION_UNDECIDED;
	char how[64], text[200], name[RUN_DIR_NAME_MAX + 1];

	if (WIFEXITED(status) && WEXITSTATUS(status) == CMD_OK) {
		server_say(s, "arrived", c->name, c->peer, "it runs here");
		return CMD_OK;
	}
	process_how_it_ended(status, how, sizeof how);
	migration_decided(c->token, &is, name);
	if (is == MIGRATION_COMMITTED) {
		snprintf(text, sizeof text, "it is this host's, but its receiver ended with %s; 'criu-vm stat' says how it is", how);
		log_err("%s: %s", name, text);
		server_say(s, "attention", name, c->peer, text);
		return CMD_ATTENTION;
	}
	snprintf(text, sizeof text, "it did not arrive: %s", how);
	server_say(s, "failed", c->name, c->peer, text);
	return CMD_FAILED;
}

// The source has not said that it knows: that would have removed the record.
static bool may_ask(const struct server_child *c)
{
	enum migration_decision is;

	migration_decided(c->token, &is, NULL);
	return is == MIGRATION_COMMITTED || (is == MIGRATION_ABORTED && c->undecided);
}

static void receiver_ended(struct server *s, const struct server_child *c, int status)
{
	int r = tell_end(s, c, status);

	if (!s->o->once)
		return;
	s->status = r;
	s->awaits_ask = !s->stopping && !c->asked && may_ask(c);
	s->over = !s->awaits_ask;
	memcpy(s->ask_token, c->token, sizeof s->ask_token);
	if (s->awaits_ask)
		log_info("%s: its source may not know what became of it: the server ends when it has asked", c->name);
}

static void answerer_ended(struct server *s, const struct server_child *c, int status)
{
	struct server_child *receiver = server_receiver_of(s, c->token);

	if (!WIFEXITED(status) || WEXITSTATUS(status) != CMD_OK)
		return;
	if (receiver)
		receiver->asked = true;
	s->over |= s->awaits_ask && !memcmp(s->ask_token, c->token, sizeof s->ask_token);
}

// A receiver that was killed has left things behind: a child removes them, which may take a while. It is not told of before, nor has its
// name or its memory been freed. False: there is none, or there cannot be one.
static bool becomes_tidier(struct server *s, struct server_child *c, int status)
{
	struct server_child killed = *c;
	pid_t pid;

	if (!WIFSIGNALED(status) || !c->name[0])
		return false;
	fflush(NULL);
	pid = fork();
	if (!pid) {
		let_go(s);
		receive_tidy(s->o->run_dir, killed.token, killed.name);
		_exit(CMD_OK);
	}
	if (pid < 0) {
		log_err("cannot tidy up after the receiver of %s: fork: %s", c->name, strerror(errno));
		return false;
	}
	if (c->line >= 0)
		close_line(c);
	c->kind = SERVER_TIDIER;
	c->pid = pid;
	c->receiver_status = status;
	return true;
}

static void child_ended(struct server *s, struct server_child *c, int status)
{
	if (c->kind == SERVER_RECEIVER && becomes_tidier(s, c, status))
		return;
	if (c->kind == SERVER_RECEIVER)
		receiver_ended(s, c, status);
	else if (c->kind == SERVER_TIDIER)
		receiver_ended(s, c, c->receiver_status);
	else if (c->kind == SERVER_ANSWERER)
		answerer_ended(s, c, status);
	child_free(c);
}

static struct server_child *child_of_pid(struct server *s, pid_t pid)
{
	list_for_each(&s->children, node)
		if (list_entry(node, struct server_child, node)->pid == pid)
			return list_entry(node, struct server_child, node);
	return NULL;
}

void server_reap(struct server *s)
{
	int status;
	pid_t pid;

	while ((pid = waitpid(-1, &status, WNOHANG)) > 0) {
		struct server_child *c = child_of_pid(s, pid);

		if (c) // else it was dropped
			child_ended(s, c, status);
	}
}

void server_signal_receivers(struct server *s, int sig)
{
	list_for_each(&s->children, node) {
		struct server_child *c = list_entry(node, struct server_child, node);

		if (c->kind == SERVER_RECEIVER)
			kill(c->pid, sig);
	}
}

void server_children_free(struct server *s)
{
	list_for_each(&s->children, node)
		child_free(list_entry(node, struct server_child, node));
}
