// SPDX-License-Identifier: GPL-2.0-only
// The server's children: each is forked for one connection, and says nothing but what it wants promised.
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include "criu-vm/cmd.h"
#include "criu-vm/image_server.h"
#include "criu-vm/migration_lazy.h"
#include "criu-vm/migration_record.h"
#include "criu-vm/receive.h"
#include "criu-vm/server_int.h"
#include "util/cleanup.h"
#include "util/clock.h"
#include "util/log.h"
#include "util/process.h"
#include "wire/control.h"
#include "wire/pages.h"

#define REFUSE_MS 2000
#define PAGES_LOOK_NS NSEC_PER_SEC
#define SOURCE_NS (120 * NSEC_PER_SEC) // it connects every 10 s, and may end a big QEMU meanwhile

static void child_free(struct server_child *c)
{
	list_remove(&c->node);
	if (c->line >= 0)
		close(c->line);
	free(c);
}

// Counted apart, so that none keeps the others out.
enum child_class { ARRIVING, HELPER, READER };

static enum child_class class_of(enum server_child_kind kind)
{
	switch (kind) {
	case SERVER_RECEIVER:
	case SERVER_TIDIER:
		return ARRIVING;
	case SERVER_DESCRIBER: // who restores needs both, and it may take long
	case SERVER_READER:
		return READER;
	default:
		return HELPER;
	}
}

static unsigned count(const struct server *s, enum child_class class)
{
	unsigned n = 0;

	list_for_each(&s->children, node)
		n += class_of(list_entry(node, struct server_child, node)->kind) == class;
	return n;
}

unsigned server_nr_arriving(const struct server *s)
{
	return count(s, ARRIVING);
}

struct server_child *server_receiver_of(struct server *s, const uint8_t token[WIRE_TOKEN_LEN])
{
	list_for_each(&s->children, node) {
		struct server_child *c = list_entry(node, struct server_child, node);

		if (class_of(c->kind) == ARRIVING && !memcmp(c->token, token, WIRE_TOKEN_LEN))
			return c;
	}
	return NULL;
}

// A page line is told by a frame.
static void refuse_line(const struct server *s, const struct wire_preamble *p, struct wire_conn *c)
{
	enum wire_refusal code = p->kind == WIRE_LINE ? WIRE_REFUSED_UNKNOWN : s->images ? WIRE_REFUSED_FULL : WIRE_REFUSED_CHECKPOINT;
	struct wire_pages *pages;

	if (wire_pages_new(c, &pages))
		return;
	wire_line_refuse(pages, code);
	wire_pages_free(pages);
}

static int refuse(const struct server *s, const struct wire_preamble *p, int fd, const char *why)
{
	struct wire_conn *c;

	if (wire_accept(fd, p->tls ? s->tls : NULL, REFUSE_MS, &c))
		return CMD_FAILED;
	wire_set_timeout(c, REFUSE_MS);
	if (p->kind == WIRE_LINE || p->kind == WIRE_IMAGE_LINE)
		refuse_line(s, p, c);
	else
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

// Ends with the server: who reads waits for the next one.
static int serve_images(const struct server *s, enum server_child_kind kind, const struct wire_preamble *p, int line, int fd)
{
	prctl(PR_SET_PDEATHSIG, SIGTERM);
	if (getppid() != s->pid) // before that
		return CMD_FAILED;
	if (kind == SERVER_READER)
		return image_server_line(s->images, s->tls, p->channel, line, fd);
	return image_server_describe(s->images, s->tls, p->token, line, fd);
}

static int be_child(struct server *s, enum server_child_kind kind, const struct wire_preamble *p, int line, int fd, const char *why)
{
	struct receive_opts o = { .server = s->o, .map = s->map, .tls = s->tls, .line = line };

	let_go(s);
	if (kind == SERVER_REFUSER)
		return refuse(s, p, fd, why);
	if (kind == SERVER_DESCRIBER || kind == SERVER_READER)
		return serve_images(s, kind, p, line, fd);
	memcpy(o.token, p->token, sizeof o.token);
	if (kind == SERVER_PASSER)
		return receive_line(&o, p->channel, fd);
	return kind == SERVER_RECEIVER ? receive_run(&o, fd) : receive_answer(&o, fd);
}

static bool may_go(const struct server_child *c)
{
	return class_of(c->kind) == READER ? !c->introduced : c->kind == SERVER_RECEIVER ? !c->promised : class_of(c->kind) == HELPER;
}

// The oldest that may go: a receiver that has got something promised does not, since there is more to it than a connection; nor does a
// reader that a VM may wait for.
static struct server_child *find_victim(struct server *s, enum child_class class)
{
	list_for_each(&s->children, node) {
		struct server_child *c = list_entry(node, struct server_child, node);

		if (class == class_of(c->kind) && may_go(c))
			return c;
	}
	return NULL;
}

// Makes room for one more, as for connections: whoever opens many and says nothing keeps nobody out.
static bool make_room(struct server *s, enum child_class class)
{
	static const unsigned most[] = { [ARRIVING] = SERVER_RECEIVERS, [HELPER] = SERVER_HELPERS, [READER] = SERVER_READERS };
	struct server_child *victim;

	if (count(s, class) < most[class])
		return true;
	victim = find_victim(s, class);
	if (!victim)
		return false;
	server_warn(s, victim->peer, "dropped, since too many are connected, and it has not said much");
	kill(victim->pid, SIGKILL);
	child_free(victim);
	return true;
}

void server_spawn(struct server *s, enum server_child_kind kind, const struct wire_preamble *p, struct server_conn *of, const char *why)
{
	_cleanup_close_ int fd = steal_fd(&of->fd), line = -1;
	struct server_child *c;
	int pair[2] = { -1, -1 };

	if (!make_room(s, class_of(kind))) {
		why = class_of(kind) == READER ? "the checkpoint has as many readers as the server can have; try again later" :
						 "as many VMs are arriving as the server can take at once; try again later";
		kind = SERVER_REFUSER;
		make_room(s, HELPER);
	}
	c = calloc(1, sizeof *c);
	if (!c || socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0, pair)) {
		log_err("cannot serve %s: %s", of->peer, strerror(errno));
		free(c);
		return;
	}
	*c = (struct server_child){ .kind = kind, .line = pair[0], .slot = -1 };
	line = pair[1];
	memcpy(c->token, p->token, sizeof c->token);
	memcpy(c->peer, of->peer, sizeof c->peer);
	list_append(&s->children, &c->node);
	fflush(NULL); // or the child might say it again
	c->pid = fork();
	if (!c->pid)
		_exit(be_child(s, kind, p, steal_fd(&line), steal_fd(&fd), why));
	if (c->pid < 0) {
		log_err("cannot serve %s: fork: %s", of->peer, strerror(errno));
		child_free(c);
	} else if (kind == SERVER_REFUSER) {
		server_warn(s, of->peer, why);
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
	return q->undecided || q->introduced || (memchr(q->name, 0, sizeof q->name) && run_dir_name_ok(q->name));
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
	c->undecided |= q.undecided;
	c->introduced |= q.introduced;
	if (q.introduced) // and says nothing more
		close_line(c);
	if (q.undecided || q.introduced)
		return;
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

// Of a VM whose pages have not all come, or whose source has not said yet that it knows. When it could, and does not come for long, it has
// ended without a word.
static bool is_expected(struct server *s, uint64_t now)
{
	struct migration_lazy l;
	int r = migration_lazy_find(s->once_token, &l);

	if (!r && l.state != WIRE_LINE_WANTS && !s->expected_until)
		s->expected_until = now + SOURCE_NS;
	migration_lazy_fini(&l);
	return r != -ENOENT && !(s->expected_until && now >= s->expected_until);
}

// Once: nothing is left to be done, but perhaps one thing. While its source has page lines, it asks if it has to.
static void end_once(struct server *s, const char *name, bool may_ask)
{
	s->awaits_pages = !s->stopping && is_expected(s, clock_now_ns());
	s->awaits_ask = !s->stopping && !s->awaits_pages && may_ask;
	s->over = !s->awaits_pages && !s->awaits_ask;
	if (s->awaits_pages)
		log_info("the VM has pages on its source yet: the server ends when they have come");
	if (s->awaits_ask)
		log_info("%s: its source may not know what became of it: the server ends when it has asked", name);
}

void server_look_at_pages(struct server *s, uint64_t now)
{
	if (!s->awaits_pages || now < s->look_at)
		return;
	s->look_at = now + PAGES_LOOK_NS;
	s->over |= !is_expected(s, now);
}

static void receiver_ended(struct server *s, const struct server_child *c, int status)
{
	int r = tell_end(s, c, status);

	if (!s->o->once)
		return;
	s->status = r;
	memcpy(s->once_token, c->token, sizeof s->once_token);
	end_once(s, c->name, !c->asked && may_ask(c));
}

static void answerer_ended(struct server *s, const struct server_child *c, int status)
{
	struct server_child *receiver = server_receiver_of(s, c->token);

	if (!WIFEXITED(status) || WEXITSTATUS(status) != CMD_OK)
		return;
	if (receiver)
		receiver->asked = true;
	if (!s->awaits_ask || memcmp(s->once_token, c->token, sizeof s->once_token) != 0)
		return;
	end_once(s, c->name, false);
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
