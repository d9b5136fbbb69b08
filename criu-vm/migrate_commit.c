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
#include <limits.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <unistd.h>

#include "criu-vm/cmd.h"
#include "criu-vm/fault.h"
#include "criu-vm/migrate_int.h"
#include "criu-vm/process.h"
#include "criu-vm/tap.h"
#include "util/cleanup.h"
#include "util/clock.h"
#include "util/log.h"

#define COMMITTED_MS 60000
#define RUNNING_MS 60000
#define ASK_MS 10000
#define FIRST_PAUSE_NS (200 * NSEC_PER_MSEC)
#define MAX_PAUSE_NS (10 * NSEC_PER_SEC)
#define PAUSE_STEP_US 50000
#define WORD_COMMIT 'c'
#define WORD_ABORTED 'a'

int migrate_record(void *ctx)
{
	struct migrate *m = ctx;
	struct migration_source s = { .pid = m->src.vm->pid, .start = process_start(m->src.vm->pid), .was_running = m->src.was_running,
				      .vm = (char *)m->o->vm, .host = (char *)m->o->host, .tls = (char *)m->o->tls_creds };

	memcpy(s.token, m->token, sizeof s.token);
	return migration_source_save(&s);
}

void migrate_record_undo(void *ctx)
{
	struct migrate *m = ctx;

	if (!m->committed && !m->undecided)
		migration_source_remove(m->token);
}

// ---- asking

static int ask(const struct wire_connect_opts *o, bool *committed)
{
	struct wire_conn *c;
	WireMsg *m = NULL;
	int r = wire_connect(o, &c);

	if (r)
		return r;
	r = wire_expect(c, ASK_MS, offsetof(WireMsg, status), &m);
	if (!r) {
		*committed = m->status->state == WIRE_STATE__WIRE_COMMITTED;
		r = m->status->state == WIRE_STATE__WIRE_UNKNOWN ? -EAGAIN : 0;
		if (m->status->token.len != WIRE_TOKEN_LEN || memcmp(m->status->token.data, o->preamble.token, WIRE_TOKEN_LEN))
			r = -EBADMSG;
		wire_msg__free_unpacked(m, NULL);
	}
	wire_close(c);
	return r;
}

// Until it answers, or somebody presses Ctrl-C: -EINTR.
static int ask_until_answered(const char *host, uint16_t port, const struct wire_tls *tls, const uint8_t *token, bool *committed)
{
	struct wire_connect_opts o = { .host = host, .port = port, .tls = tls, .timeout_ms = ASK_MS, .quiet = true,
				       .preamble = { .kind = WIRE_ASK } };
	uint64_t pause = FIRST_PAUSE_NS;
	int r;

	memcpy(o.preamble.token, token, sizeof o.preamble.token);
	while ((r = ask(&o, committed))) {
		uint64_t end = clock_now_ns() + pause;

		log_warn("%s is asked what became of the VM: %s; asking again", host, strerror(-r));
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
	int r;

	log_warn("the line to %s was lost at the commit: only it knows whether the VM is there or here; it is asked until it answers", m->host);
	r = ask_until_answered(m->host, m->port, m->tls, m->token, &m->committed);
	if (!r)
		return 0;
	m->undecided = true;
	log_err("nobody knows whether the VM runs on %s: here it stands (QEMU %d is stopped) until that is known. It is asked on in the background; "
		"by hand: criu-vm migrate --resume %d %s",
		m->host, m->src.vm->pid, m->src.vm->pid, m->o->host);
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
	char pid[12], monitor[12], *argv[16] = { "criu-vm", "migrate", "--resume", "--run-dir", (char *)m->o->run_root, "--monitor-fd", monitor };
	size_t n = 7;

	snprintf(pid, sizeof pid, "%d", m->src.vm->pid);
	snprintf(monitor, sizeof monitor, "%d", qmp_fd(m->src.vm->qmp));
	fcntl(qmp_fd(m->src.vm->qmp), F_SETFD, 0);
	if (m->o->tls_creds) {
		argv[n++] = "--tls-creds";
		argv[n++] = (char *)m->o->tls_creds;
	}
	if (m->o->insecure)
		argv[n++] = "--insecure";
	argv[n++] = pid;
	argv[n++] = (char *)m->o->host;
	argv[n] = NULL;
	execv("/proc/self/exe", argv);
	_exit(1);
}

// In the guardian: nothing but what a child of a process with threads may do.
bool migrate_orphan(void *ctx, char word)
{
	struct migrate *m = ctx;

	if (word == WORD_COMMIT)
		become_resume(m);
	kill(m->src.vm->pid, SIGCONT);
	return true;
}

// The process whose VM it is, without asking it anything: it is stopped.
static pid_t find_pid(const char *spec)
{
	struct sockaddr_un a = { .sun_family = AF_UNIX };
	struct ucred cred = { .pid = -1 };
	socklen_t len = sizeof cred;
	_cleanup_close_ int fd = -1;
	char *end;
	long pid = strtol(spec, &end, 10);

	if (*spec && !*end)
		return pid > 0 && pid <= INT_MAX ? (pid_t)pid : -1;
	if (strlen(spec) >= sizeof a.sun_path)
		return -1;
	strcpy(a.sun_path, spec);
	fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
	if (fd < 0 || connect(fd, (struct sockaddr *)&a, sizeof a) < 0 || getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &cred, &len) < 0)
		return -1;
	return cred.pid;
}

static int open_process(const struct migration_source *s)
{
	int fd = (int)syscall(SYS_pidfd_open, s->pid, 0);

	if (fd >= 0 && process_start(s->pid) == s->start)
		return fd;
	if (fd >= 0)
		close(fd);
	return -ESRCH;
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
	syscall(SYS_pidfd_send_signal, pidfd, SIGCONT, NULL, 0);
	if (!s->was_running)
		return 0;
	return monitor_fd >= 0 ? source_say_cont(monitor_fd) : say_cont(s);
}

static int carry_out(const struct migration_source *s, int monitor_fd, bool committed)
{
	_cleanup_close_ int pidfd = open_process(s);
	int r = 0;

	if (pidfd >= 0 && committed)
		syscall(SYS_pidfd_send_signal, pidfd, SIGKILL, NULL, 0);
	else if (pidfd >= 0)
		r = let_go_on(s, pidfd, monitor_fd);
	if (r) {
		log_err("the VM was not taken over, and could not be made to go on; say 'cont' to the monitor of QEMU %d", s->pid);
		return -ESTALE;
	}
	migration_source_remove(s->token);
	return 0;
}

int migrate_resume(const struct migrate_opts *o, bool *committed)
{
	struct migration_source s;
	struct wire_tls *tls = NULL;
	_cleanup_free_ char *host = NULL;
	uint16_t port;
	pid_t pid = find_pid(o->vm);
	int r = pid > 0 ? migration_source_find(pid, &s) : -ENOENT;

	if (r) {
		log_err("of VM %s no migration is known that waits for an answer", o->vm);
		return r;
	}
	r = wire_parse_address(o->host, &host, &port);
	if (!r && o->tls_creds)
		r = wire_tls_load(o->tls_creds, false, &tls);
	if (!r)
		r = ask_until_answered(host, port, tls, s.token, committed);
	if (!r)
		r = carry_out(&s, o->monitor_fd, *committed);
	wire_tls_free(tls);
	migration_source_fini(&s);
	return r;
}
