// SPDX-License-Identifier: GPL-2.0-only
//
// DOC: who goes on with a migration whose command was killed, or went away
//
//	nobody knows what was decided    the destination is asked; then QEMU ends here, or goes on
//	pages are needed from here yet   they are served, until none is
//
// By hand, or by the guardian, in the background (--token): of several only one acts, who has the claim. Where pages are served that may
// take long, and the others wait for their turn: should who serves be killed, the next one does. By hand nobody waits, but says who it is.
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "criu-vm/cmd.h"
#include "criu-vm/migrate_hold.h"
#include "criu-vm/migrate_int.h"
#include "criu-vm/migrate_serve.h"
#include "criu-vm/migrate_status.h"
#include "qemu/freeze.h"
#include "util/cleanup.h"
#include "util/clock.h"
#include "util/log.h"

#define TURN_US 500000

struct resume {
	const struct migrate_opts *o;
	struct migration_source s;
	struct wire_tls *tls;
	char *host; // of whom it is about: the one that is given, or the record's
	uint16_t port;
	int claim;
	struct hold hold;
	struct migrate_resumed *is;
};

static bool is_by_hand(const struct resume *x)
{
	return !x->o->token;
}

// ---- its QEMU

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

static int let_go_on(struct resume *x)
{
	int r = hold_go_on(&x->hold);

	if (r || !x->s.was_running)
		return r;
	return x->o->monitor_fd >= 0 ? source_say_cont(x->o->monitor_fd) : say_cont(&x->s);
}

static int failed(const struct resume *x, bool committed, int r)
{
	if (committed)
		log_err("the VM runs at %s; here its QEMU %d could not be ended: %s; kill it", x->s.host, x->s.pid, strerror(-r));
	else
		log_err("the VM was not taken over, and could not be made to go on: %s; say 'cont' to the monitor of QEMU %d", strerror(-r), x->s.pid);
	return -ESTALE;
}

static int carry_out(struct resume *x)
{
	int r = x->hold.pidfd >= 0 ? 0 : hold_open(&x->hold, x->s.pid, x->s.start);

	if (r == -ESRCH)
		r = 0; // it has ended
	else if (!r)
		r = x->is->committed ? hold_kill(&x->hold) : let_go_on(x);
	if (r)
		return failed(x, x->is->committed, r);
	migration_source_remove(x->s.token);
	return 0;
}

// ---- who else

static int find_host(struct resume *x)
{
	free(steal_ptr(&x->host));
	return wire_parse_address(x->o->host ? x->o->host : x->s.host, &x->host, &x->port);
}

// Memory goes there.
static int check_line(const struct resume *x)
{
	if (x->tls || x->s.insecure || x->o->insecure || wire_is_loopback(x->host))
		return 0;
	log_err("%s is not this host: the VM's memory would cross the network in the clear; give --tls-creds DIR, or say --insecure", x->host);
	return -EPERM;
}

// What may have changed since it was found. That the VM is there is not taken back.
static int load_again(struct resume *x)
{
	struct migration_source now;
	int r = migration_source_load(x->s.token, &now);

	if (r)
		return r;
	migration_source_fini(&x->s);
	x->s = now;
	x->is->committed |= x->s.committed;
	return 0;
}

static bool replace(char **text, const char *by)
{
	if (!by || (*text && !strcmp(*text, by)))
		return false;
	free(*text);
	*text = strdup(by);
	return true;
}

// And what is to change: where to, and how; and that the VM is there, if it is. If nothing is, a full disk does not matter.
static int renew(struct resume *x)
{
	_cleanup_free_ char *tls = x->o->tls_creds ? realpath(x->o->tls_creds, NULL) : NULL;
	int r = load_again(x);
	bool changed;

	if (r)
		return r;
	changed = x->is->committed && !x->s.committed;
	changed |= replace(&x->s.host, x->o->host) | replace(&x->s.tls, tls) | (x->o->insecure && !x->s.insecure);
	x->s.insecure |= x->o->insecure;
	if (x->is->committed && !x->s.committed) {
		x->s.committed = true;
		x->s.left_ns = clock_now_ns();
		x->s.ran_ns = qemu_ran_ns(x->s.pid);
	}
	if (!x->s.host || (tls && !x->s.tls))
		return -ENOMEM;
	r = changed ? migration_source_save(&x->s) : 0;
	return r ? r : find_host(x);
}

static void note_place(struct resume *x)
{
	x->is->committed = x->is->lazy = true;
	snprintf(x->is->name, sizeof x->is->name, "%s", x->s.there);
	snprintf(x->is->host, sizeof x->is->host, "%s", x->s.host);
}

static int tell_others(struct resume *x)
{
	struct migrate_status status;
	int r;

	r = x->o->host ? check_line(x) : 0;
	if (!r && x->o->host)
		r = renew(x);
	if (r)
		return r;
	if (!x->s.committed) {
		log_err("QEMU %d: another process is migrating it just now%s%s", x->s.pid, x->o->host ? "; if it asks what became of it, then now " : "",
			x->o->host ? x->o->host : "");
		return -EBUSY;
	}
	note_place(x);
	migrate_status_load(x->s.token, &status);
	x->is->others = true;
	x->is->server = status.server;
	x->is->pages_left = status.pages_left;
	return 0;
}

// -EBUSY: by hand, and it is not ours; -ENOENT: it is over.
static int wait_turn(struct resume *x)
{
	int r;

	while ((r = migration_source_claim(x->s.token, &x->claim)) == -EBUSY && !is_by_hand(x) && !cmd_interrupted())
		usleep(TURN_US);
	return r == -EBUSY && cmd_interrupted() ? -EINTR : r;
}

// Should we be killed.
static void start_successor(const struct resume *x)
{
	char pid[12], token[WIRE_TOKEN_TEXT];
	char *argv[] = { "criu-vm", "migrate", "--resume", "--run-dir", (char *)x->o->run_root, "--token", token, pid, NULL };
	int null;

	snprintf(pid, sizeof pid, "%d", x->s.pid);
	wire_token_format(x->s.token, token);
	if (fork())
		return;
	setsid();
	null = open("/dev/null", O_RDWR);
	for (int fd = 0; fd < 3; fd++)
		dup2(null, fd);
	close_range(3, ~0U, 0);
	execv("/proc/self/exe", argv);
	_exit(1);
}

// ---- its pages

static int serve_on(struct resume *x, struct lines *lines)
{
	struct serve_opts o = { .source = &x->s, .lines = lines, .pidfd = x->hold.pidfd, .progress = is_by_hand(x) };
	struct serve_result served;
	int r = migrate_serve(&o, &served);

	x->is->served = served.state;
	if (r) {
		if (r == -EINTR)
			migrate_say_unfinished(&x->s, served.provided.missing);
		lines_close(lines);
		return r;
	}
	r = hold_kill(&x->hold);
	if (r) {
		lines_close(lines);
		return failed(x, true, r);
	}
	migration_source_remove(x->s.token);
	tracked_remove(x->o->run_root, x->s.pid);
	lines_over(lines, NULL);
	return 0;
}

static int serve_from(struct resume *x, struct ram *ram)
{
	struct lines_opts o = { .token = x->s.token, .host_id = x->s.host_id, .key = x->s.key, .host = x->host, .port = x->port, .tls = x->tls,
				.nr = x->s.lines, .zstd = x->s.zstd, .bandwidth = x->s.bandwidth, .ram = ram,
				.pidfd = x->hold.pidfd, .blocks = x->s.blocks, .nr_blocks = x->s.nr_blocks };
	struct migrate_status status;
	struct lines *lines;
	int r;

	if (is_by_hand(x))
		start_successor(x);
	r = lines_open(&o, &lines);
	if (r)
		return r;
	migrate_status_load(x->s.token, &status);
	lines_set_missing(lines, status.pages_left);
	lines_hold(lines, false);
	return serve_on(x, lines);
}

static int hold(struct resume *x)
{
	int r = x->hold.pidfd >= 0 ? 0 : hold_open(&x->hold, x->s.pid, x->s.start);

	if (!r)
		r = hold_begin(&x->hold);
	if (r)
		hold_close(&x->hold);
	return r;
}

static int serve(struct resume *x)
{
	struct ram_opts o = { .pid = x->s.pid, .blocks = x->s.blocks, .nr_blocks = x->s.nr_blocks, .run_root = x->s.run_root, .name = x->s.name };
	struct ram *ram = NULL;
	int r;

	if (x->hold.pidfd < 0) {
		log_err("the VM runs at %s, and needs pages from QEMU %d yet, which has ended: they are lost", x->s.host, x->s.pid);
		return -ESTALE;
	}
	if (hold_has_run(x->s.pid, x->s.ran_ns))
		return migrate_say_run(&x->s);
	r = ram_open(&o, &ram);
	if (!r)
		r = serve_from(x, ram);
	ram_close(ram);
	return r;
}

// ---- all of it

static int ask(struct resume *x)
{
	struct migrate_question q = { .host = x->host, .port = x->port, .tls = x->tls, .token = x->s.token, .host_id = x->s.host_id };

	if (x->s.committed) {
		x->is->committed = true;
		return 0;
	}
	return migrate_ask(&q, &x->is->committed);
}

static int resume_lazily(struct resume *x)
{
	int r = check_line(x);

	hold(x); // if it is there yet
	if (!r)
		r = renew(x);
	if (r)
		return r;
	note_place(x);
	return serve(x);
}

// Only one acts upon it, and only once.
static int resume(struct resume *x)
{
	int r = find_host(x);

	if (!r && x->s.lazy && is_by_hand(x) && migration_source_is_claimed(x->s.token))
		return tell_others(x);
	if (!r)
		r = ask(x);
	if (r && r != -ENOENT)
		return r;
	if (!r)
		r = x->s.lazy ? wait_turn(x) : migration_source_claim(x->s.token, &x->claim);
	if (!r)
		r = load_again(x); // who had the claim may have learnt what was decided, whatever is said now
	if (!r)
		return x->s.lazy && x->is->committed ? resume_lazily(x) : carry_out(x);
	if (r != -EINTR)
		log_err("QEMU %d: %s", x->s.pid, r == -ENOENT || r == -EBUSY ? "another process, which has asked, too, sees to it" : strerror(-r));
	return r;
}

int migrate_resume(const struct migrate_opts *o, struct migrate_resumed *is)
{
	struct resume x = { .o = o, .claim = -1, .hold = HOLD_NONE, .is = is };
	uint8_t token[WIRE_TOKEN_LEN];
	const char *creds;
	int r = o->token ? wire_token_parse(o->token, token) : 0;

	*is = (struct migrate_resumed){ .committed = false };
	if (!r)
		r = migration_source_find(o->vm, o->token ? token : NULL, &x.s);
	if (r) {
		log_err("of VM %s no migration is known that waits for an answer, or whose pages are here yet", o->vm);
		return r;
	}
	creds = o->tls_creds ? o->tls_creds : x.s.tls;
	if (creds)
		r = wire_tls_load(creds, false, &x.tls);
	if (!r)
		r = resume(&x);
	hold_close(&x.hold);
	wire_tls_free(x.tls);
	migration_source_fini(&x.s);
	free(x.host);
	if (x.claim >= 0)
		close(x.claim);
	return r;
}
