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
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "criu-vm/fault.h"
#include "criu-vm/migrate_int.h"
#include "criu-vm/tap.h"
#include "util/clock.h"
#include "util/log.h"
#include "util/process.h"

#define COMMITTED_MS 60000
#define RUNNING_MS 60000
#define WORD_COMMIT 'c'
#define WORD_ABORTED 'a'

// Who goes on with it may be in another folder.
int migrate_record(void *ctx)
{
	struct migrate *m = ctx;
	struct migration_source *s = &m->record;

	*s = (struct migration_source){ .pid = m->src.vm->pid, .start = process_start(m->src.vm->pid), .was_running = m->offered_running,
					.vm = strdup(m->o->vm), .name = m->src.is_ours ? strdup(m->src.name) : NULL, .host = strdup(m->o->host),
					.tls = m->o->tls_creds ? realpath(m->o->tls_creds, NULL) : NULL, .insecure = m->o->insecure,
					.run_root = m->src.is_ours ? realpath(m->o->run_root, NULL) : NULL };
	if (!s->vm || !s->host || (m->o->tls_creds && !s->tls) || (m->src.is_ours && (!s->name || !s->run_root)))
		return -ENOMEM;
	memcpy(s->token, m->token, sizeof s->token);
	memcpy(s->host_id, m->host_id, sizeof s->host_id);
	return migration_source_save(s);
}

void migrate_record_undo(void *ctx)
{
	struct migrate *m = ctx;

	if (!m->committed && !m->undecided)
		migration_source_remove(m->token);
}

// ---- the commit

static void send_signal(const struct source *s, int signum)
{
	syscall(SYS_pidfd_send_signal, s->vm->pidfd, signum, NULL, 0);
}

static int find_out(struct migrate *m)
{
	struct migrate_question q = { .host = m->host, .port = m->port, .tls = m->tls, .token = m->token, .host_id = m->host_id };
	int r;

	log_warn("the line to %s was lost at the commit: only it knows whether the VM is there or here; it is asked until it answers", m->host);
	r = migrate_ask(&q, &m->committed);
	if (!r)
		return 0;
	m->undecided = true;
	if (r == -ENOENT) {
		log_err("QEMU %d: another process, which has asked, too, has seen to it", m->src.vm->pid);
		return -ESTALE;
	}
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
	m->result->switch_ns = clock_now_ns() - m->begun_ns;
	if (m->lines)
		return migrate_end_lazily(m, r);
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
