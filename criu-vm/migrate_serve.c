// SPDX-License-Identifier: GPL-2.0-only
#include "criu-vm/migrate_serve.h"

#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "criu-vm/cmd.h"
#include "criu-vm/migrate_hold.h"
#include "criu-vm/migrate_status.h"
#include "criu-vm/progress.h"
#include "util/cleanup.h"
#include "util/clock.h"
#include "util/log.h"
#include "util/process.h"
#include "util/size.h"

#define LOOK_MS 100
#define RECORD_NS (300 * NSEC_PER_MSEC)
#define STATUS_NS NSEC_PER_SEC

struct serving {
	const struct serve_opts *o;
	struct progress progress;
	uint64_t total, shown; // pages
	uint64_t looked_ns, told_ns;
	bool qemu_ended, has_run;
	char trouble[192];
};

// `migrate --resume VM HOST` writes it there.
static void look_for_host(struct serving *v)
{
	struct migration_source *s = v->o->source, now;
	_cleanup_free_ char *host = NULL;
	uint16_t port;

	if (clock_now_ns() - v->looked_ns < RECORD_NS)
		return;
	v->looked_ns = clock_now_ns();
	if (migration_source_load(s->token, &now))
		return;
	if (strcmp(now.host, s->host) != 0 && !wire_parse_address(now.host, &host, &port)) {
		log_warn("the pages of VM '%s' are served to %s from now on, not to %s", s->there, now.host, s->host);
		free(s->host);
		s->host = steal_ptr(&now.host);
		lines_redirect(v->o->lines, host, port);
	}
	migration_source_fini(&now);
}

// While a tracer holds it, the signal is what stops it at once should that end; a SIGCONT that somebody sent takes it away.
static void keep_stopped(struct serving *v, char state)
{
	syscall(SYS_pidfd_send_signal, v->o->pidfd, SIGSTOP, NULL, 0);
	if (state == 'T' || state == 't')
		return;
	v->has_run = hold_has_run(v->o->source->pid, v->o->source->ran_ns);
	if (!v->has_run)
		log_err("QEMU %d of VM '%s', which runs at %s, was let go on here; it is stopped again", v->o->source->pid, v->o->source->there,
			v->o->source->host);
}

static void look_at_qemu(struct serving *v)
{
	struct pollfd p = { .fd = v->o->pidfd, .events = POLLIN };
	char state;

	if (v->qemu_ended)
		return;
	state = process_state(v->o->source->pid);
	if (poll(&p, 1, 0) <= 0 && state && state != 'Z' && state != 'X') {
		keep_stopped(v, state);
		return;
	}
	v->qemu_ended = true;
	log_err("QEMU %d of VM '%s', which runs at %s and needs pages from here yet, has ended: what was in its own memory is lost; what can be read is "
		"served on",
		v->o->source->pid, v->o->source->there, v->o->source->host);
}

static void tell(struct serving *v, const struct lines_status *s)
{
	struct migrate_status status = { .server = getpid(), .pages_left = s->provided.missing,
					 .pages_served = s->provided.pages + s->provided.zero_pages, .bytes = s->provided.bytes, .lines = s->nr,
					 .lines_wanted = v->o->source->lines };

	if (s->provided.missing > v->total)
		v->total = s->provided.missing;
	if (v->o->progress && v->total - s->provided.missing > v->shown) {
		v->progress.total = v->total * PAGE_SIZE;
		progress_add(&v->progress, (v->total - s->provided.missing - v->shown) * PAGE_SIZE);
		v->shown = v->total - s->provided.missing;
	}
	if (strcmp(s->trouble, v->trouble) != 0) {
		snprintf(v->trouble, sizeof v->trouble, "%s", s->trouble);
		if (*v->trouble)
			log_warn("VM '%s' needs pages from here: %s", v->o->source->there, v->trouble);
	}
	if (clock_now_ns() - v->told_ns < STATUS_NS)
		return;
	v->told_ns = clock_now_ns();
	snprintf(status.trouble, sizeof status.trouble, "%s%s%s", v->qemu_ended ? "QEMU has ended here" : "", v->qemu_ended && *s->trouble ? "; " : "",
		 s->trouble);
	migrate_status_save(v->o->source->token, &status);
}

int migrate_say_run(const struct migration_source *s)
{
	struct migrate_status status;

	migrate_status_load(s->token, &status);
	status.server = 0;
	status.lines = 0;
	snprintf(status.trouble, sizeof status.trouble, "QEMU %d was let run on here since the VM left: its memory is of another life, and "
		 "nothing of it is served", s->pid);
	migrate_status_save(s->token, &status);
	log_err("VM '%s', which runs at %s, needs pages from here yet, but %s", s->there, s->host, status.trouble);
	return -ESTALE;
}

int migrate_serve(const struct serve_opts *o, struct serve_result *result)
{
	struct serving v = { .o = o };
	struct lines_status s;

	if (o->progress)
		progress_begin(&v.progress, "pages that the VM has not got yet", 0);
	for (;;) {
		lines_wait_change(o->lines, LOOK_MS);
		lines_status(o->lines, &s);
		if (s.state != WIRE_LINE_WANTS || cmd_interrupted())
			break;
		look_for_host(&v);
		look_at_qemu(&v);
		if (v.has_run)
			break;
		tell(&v, &s);
	}
	if (o->progress)
		progress_end(&v.progress);
	if (s.state == WIRE_LINE_ENDED)
		log_warn("VM '%s' has ended at %s before all its pages had come; it ends here, too", o->source->there, o->source->host);
	result->state = s.state;
	result->provided = s.provided;
	if (s.state != WIRE_LINE_WANTS)
		return 0;
	return v.has_run ? migrate_say_run(o->source) : -EINTR;
}
