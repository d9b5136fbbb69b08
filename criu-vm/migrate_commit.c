// SPDX-License-Identifier: GPL-2.0-only
//
// DOC: the point of no return, as the source sees it
//
// Before COMMIT is sent nothing has happened that `cont` does not undo. When the destination has said COMMITTED the VM is its own. In
// between, only the destination's record (migration_record.h) says which of the two it is, and it is asked until it answers: by this
// command; by the guardian if this was killed, which then becomes `criu-vm migrate --resume`; or by a person, with the same. QEMU
// is stopped by a signal all that time, so whatever is said to its monitors, and whoever of us has been killed, it does not run.
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "criu-vm/cmd.h"
#include "criu-vm/fault.h"
#include "criu-vm/migrate_int.h"
#include "criu-vm/process.h"
#include "criu-vm/tap.h"
#include "util/cleanup.h"
#include "util/clock.h"
#include "util/io.h"
#include "util/log.h"

#define COMMITTED_MS 60000
#define RUNNING_MS 60000
#define ASK_MS 10000
#define END_MS 30000
#define FIRST_PAUSE_NS (200 * NSEC_PER_MSEC)
#define MAX_PAUSE_NS (10 * NSEC_PER_SEC)
#define PAUSE_STEP_US 50000
#define WORD_COMMIT 'c'
#define WORD_ABORTED 'a'

int migrate_record(void *ctx)
{
	struct migrate *m = ctx;
	struct migration_source s = { .pid = m->src.vm->pid, .start = process_start(m->src.vm->pid), .was_running = m->offered_running,
				      .vm = (char *)m->o->vm, .name = m->src.is_ours ? m->src.name : NULL, .host = (char *)m->o->host,
				      .tls = (char *)m->o->tls_creds };

	memcpy(s.token, m->token, sizeof s.token);
	memcpy(s.host_id, m->host_id, sizeof s.host_id);
	return migration_source_save(&s);
}

void migrate_record_undo(void *ctx)
{
	struct migrate *m = ctx;

	if (!m->committed && !m->undecided)
		migration_source_remove(m->token);
}

// ---- asking

struct question {
	const char *host;
	uint16_t port;
	const struct wire_tls *tls;
	const uint8_t *token, *host_id;
};

static int ask(const struct question *q, bool *committed)
{
	struct wire_connect_opts o = { .host = q->host, .port = q->port, .tls = q->tls, .timeout_ms = ASK_MS, .quiet = true,
				       .preamble = { .kind = WIRE_ASK } };
	struct wire_conn *c;
	WireMsg *m = NULL;
	int r;

	memcpy(o.preamble.token, q->token, sizeof o.preamble.token);
	r = wire_connect(&o, &c);
	if (r)
		return r;
	r = wire_expect(c, ASK_MS, offsetof(WireMsg, status), &m);
	if (!r) {
		if (m->status->state == WIRE_STATE__WIRE_UNKNOWN)
			r = -EAGAIN;
		if (memcmp(m->status->token.data, q->token, WIRE_TOKEN_LEN) || memcmp(m->status->host.data, q->host_id, WIRE_TOKEN_LEN))
			r = -EXDEV; // it is not the one that the VM was offered to
		if (!r)
			*committed = m->status->state == WIRE_STATE__WIRE_COMMITTED;
		wire_msg__free_unpacked(m, NULL);
	}
	wire_close(c);
	return r;
}

// Until it answers, or somebody presses Ctrl-C: -EINTR.
static int ask_until_answered(const struct question *q, bool *committed)
{
	uint64_t pause = FIRST_PAUSE_NS;
	int r;

	while ((r = ask(q, committed))) {
		uint64_t end = clock_now_ns() + pause;

		log_warn("%s, port %u, is asked what became of the VM: %s; asking again", q->host, q->port,
			 r == -EXDEV ? "it is another host than the one that the VM was offered to, or has lost its records" : strerror(-r));
		while (clock_now_ns() < end && !cmd_interrupted())
			usleep(PAUSE_STEP_US);
		if (cmd_interrupted())
			return -EINTR;
		pause = pause * 2 < MAX_PAUSE_NS ? pause * 2 : MAX_PAUSE_NS;
	}
	return 0;
}

// ---- the commit

static void send_signal(const struct source *s, int signum)
{
	syscall(SYS_pidfd_send_signal, s->vm->pidfd, signum, NULL, 0);
}

static int find_out(struct migrate *m)
{
	struct question q = { .host = m->host, .port = m->port, .tls = m->tls, .token = m->token, .host_id = m->host_id };
	int r;

	log_warn("the line to %s was lost at the commit: only it knows whether the VM is there or here; it is asked until it answers", m->host);
	r = ask_until_answered(&q, &m->committed);
	if (!r)
		return 0;
	m->undecided = true;
	log_err("nobody knows whether the VM runs on %s: here it stands (QEMU %d is stopped) until that is known. It is asked on in the background; "
		"by hand: criu-vm migrate --resume %d",
		m->host, m->src.vm->pid, m->src.vm->pid);
	return -ESTALE;
}

int migrate_commit(void *ctx)
{
	struct migrate *m = ctx;
	WireMsg *answer;
	int r;

	send_signal(&m->src, SIGSTOP);
	source_tell_guardian(&m->src, WORD_COMMIT);
	m->said_commit = true;
	wire_set_interrupted(m->control, NULL); // it is too late for Ctrl-C
	fault_here("committing");
	r = wire_send_plain(m->control, offsetof(WireMsg, commit));
	if (!r)
		r = wire_expect(m->control, COMMITTED_MS, offsetof(WireMsg, committed), &answer);
	if (!r)
		wire_msg__free_unpacked(answer, NULL);
	m->committed = !r;
	if (r && (r = find_out(m)))
		return r;
	if (m->committed)
		return 0;
	source_tell_guardian(&m->src, WORD_ABORTED);
	log_err("the VM was not taken over by %s; it goes on here", m->host);
	return -ECANCELED;
}

static int wait_running(struct migrate *m)
{
	WireMsg *answer;
	int r = wire_expect(m->control, RUNNING_MS, offsetof(WireMsg, running), &answer);
	const WireRunning *run;

	m->result->stood_us = (clock_now_ns() - m->src.stopped_at_ns) / 1000;
	if (r) {
		log_err("%s: %s; it has taken the VM over, but did not say that it runs: look there with criu-vm stat", wire_peer(m->control), strerror(-r));
		return -ESTALE;
	}
	run = answer->running;
	m->result->page_ins = run->page_ins;
	m->result->page_outs = run->page_outs;
	m->result->ram_pages = run->ram_pages;
	m->result->swap_pages = run->swap_pages;
	m->result->stood_there_us = run->stood_us;
	m->result->running = !run->error;
	if (run->error)
		log_err("the VM is on %s by now, but does not run: %s", m->host, run->error);
	wire_msg__free_unpacked(answer, NULL);
	return m->result->running ? 0 : -ESTALE;
}

int migrate_end(void *ctx)
{
	struct migrate *m = ctx;
	int r, ended;

	fault_here("end");
	for (size_t i = 0; i < m->nr_nets; i++)
		tap_set_up(m->src.vm->pid, m->ifnames[i], false);
	r = wait_running(m);
	ended = source_end(&m->src);
	source_dismiss_guardian(&m->src);
	if (!ended) {
		migration_source_remove(m->token);
		tracked_remove(m->o->run_root, m->src.vm->pid);
		wire_send_plain(m->control, offsetof(WireMsg, done));
	}
	return r ? r : ended;
}

// ---- after this command was killed

static void __attribute__((noreturn)) become_resume(const struct migrate *m)
{
	char pid[12], monitor[12], token[WIRE_TOKEN_TEXT];
	char *argv[] = { "criu-vm", "migrate", "--resume", "--run-dir", (char *)m->o->run_root, "--monitor-fd", monitor, "--token", token, pid, NULL };

	snprintf(pid, sizeof pid, "%d", m->src.vm->pid);
	snprintf(monitor, sizeof monitor, "%d", qmp_fd(m->src.vm->qmp));
	wire_token_format(m->token, token);
	fcntl(qmp_fd(m->src.vm->qmp), F_SETFD, 0);
	execv("/proc/self/exe", argv);
	_exit(1);
}

// In the guardian: nothing but what a child of a process with threads may do.
void migrate_orphan(void *ctx, char word)
{
	struct migrate *m = ctx;

	if (word == WORD_COMMIT)
		become_resume(m);
	kill(m->src.vm->pid, SIGCONT);
	if (!m->src.was_running || !source_say_cont(qmp_fd(m->src.vm->qmp)))
		migration_source_remove(m->token);
}

static int open_process(const struct migration_source *s)
{
	int fd = (int)syscall(SYS_pidfd_open, s->pid, 0), r = fd < 0 ? -errno : 0;

	if (!r && process_start(s->pid) == s->start)
		return fd;
	if (fd >= 0)
		close(fd);
	return r ? r : -ESRCH;
}

// By its pid: another QEMU may have its socket's path by now.
static int say_cont(const struct migration_source *s)
{
	struct qemu_vm *vm;
	char pid[12];
	int r;

	snprintf(pid, sizeof pid, "%d", s->pid);
	r = qemu_vm_open(pid, &vm);
	if (r)
		return r;
	if (vm->pid != s->pid)
		r = -ESRCH;
	else if (strcmp(vm->run_state, "running") != 0)
		r = qmp_call(vm->qmp, "cont", NULL, NULL);
	qemu_vm_close(vm);
	return r;
}

static int let_go_on(const struct migration_source *s, int pidfd, int monitor_fd)
{
	if (syscall(SYS_pidfd_send_signal, pidfd, SIGCONT, NULL, 0) < 0)
		return -errno;
	if (!s->was_running)
		return 0;
	return monitor_fd >= 0 ? source_say_cont(monitor_fd) : say_cont(s);
}

static int end_process(int pidfd)
{
	struct pollfd p = { .fd = pidfd, .events = POLLIN };

	if (syscall(SYS_pidfd_send_signal, pidfd, SIGKILL, NULL, 0) < 0)
		return -errno;
	return poll(&p, 1, END_MS) > 0 ? 0 : -ETIMEDOUT;
}

static int carry_out(const struct migration_source *s, int monitor_fd, bool committed)
{
	_cleanup_close_ int pidfd = open_process(s);
	int r;

	if (pidfd == -ESRCH)
		r = 0; // it has ended
	else if (pidfd < 0)
		r = pidfd;
	else
		r = committed ? end_process(pidfd) : let_go_on(s, pidfd, monitor_fd);
	if (!r) {
		migration_source_remove(s->token);
		return 0;
	}
	if (committed)
		log_err("the VM runs at %s; here its QEMU %d could not be ended: %s; kill it", s->host, s->pid, strerror(-r));
	else
		log_err("the VM was not taken over, and could not be made to go on: %s; say 'cont' to the monitor of QEMU %d", strerror(-r), s->pid);
	return -ESTALE;
}

// Only one acts upon it, and only once.
static int resume(const struct migrate_opts *o, const struct migration_source *s, const struct wire_tls *tls, bool *committed)
{
	struct question q = { .tls = tls, .token = s->token, .host_id = s->host_id };
	_cleanup_free_ char *host = NULL;
	_cleanup_close_ int claimed = -1;
	int r = wire_parse_address(o->host ? o->host : s->host, &host, &q.port);

	q.host = host;
	if (!r)
		r = ask_until_answered(&q, committed);
	if (r)
		return r;
	r = migration_source_claim(s->token, &claimed);
	if (!r)
		return carry_out(s, o->monitor_fd, *committed);
	log_err("QEMU %d: %s", s->pid, r == -ENOENT || r == -EBUSY ? "another process, which has asked, too, sees to it" : strerror(-r));
	return r;
}

int migrate_resume(const struct migrate_opts *o, bool *committed)
{
	uint8_t token[WIRE_TOKEN_LEN];
	struct migration_source s;
	struct wire_tls *tls = NULL;
	const char *creds;
	int r = o->token ? wire_token_parse(o->token, token) : 0;

	if (!r)
		r = migration_source_find(o->vm, o->token ? token : NULL, &s);
	if (r) {
		log_err("of VM %s no migration is known that waits for an answer", o->vm);
		return r;
	}
	creds = o->tls_creds ? o->tls_creds : s.tls;
	if (creds)
		r = wire_tls_load(creds, false, &tls);
	if (!r)
		r = resume(o, &s, tls, committed);
	wire_tls_free(tls);
	migration_source_fini(&s);
	return r;
}

// 'T' of /proc/PID/stat.
static bool is_stopped(pid_t pid)
{
	_cleanup_free_ char *text = NULL;
	char path[40];
	const char *at;
	size_t len;

	snprintf(path, sizeof path, "/proc/%d/stat", pid);
	at = io_read_file(path, 4096, &text, &len) ? NULL : strrchr(text, ')');
	return at && at[1] == ' ' && at[2] == 'T';
}

int migrate_check_undecided(const struct migrate_opts *o)
{
	struct migration_source s;
	int r = migration_source_find(o->vm, NULL, &s);
	bool stopped;

	if (r)
		return r == -ENOENT ? 0 : r;
	stopped = is_stopped(s.pid);
	if (stopped)
		log_err("nobody knows yet whether VM %s was taken over by %s, where it was going: criu-vm migrate --resume %s", o->vm, s.host, o->vm);
	migration_source_fini(&s);
	return stopped ? -EBUSY : 0;
}
