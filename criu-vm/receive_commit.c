// SPDX-License-Identifier: GPL-2.0-only
//
// DOC: from the last page to the first instruction
//
// The source's VM stands all that time. Up to the moment when the pager is asked to commit, whatever happens is undone, and since only the pager
// makes the record, which it does only when asked, that is safe. From then on what the record says is done (migration_record.h):
//
//	the pager says "committed"         it is
//	the pager says "error"             it is not, and never will be: it has promised that by saying so
//	it says nothing, or has ended      nobody knows, so we want it aborted ourselves, and what is then decided is decided
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "criu-vm/arrival.h"
#include "criu-vm/receive_int.h"
#include "lazy-pages/control.h"
#include "qemu/devstate.h"
#include "qemu/qmp.h"
#include "util/cleanup.h"
#include "util/clock.h"
#include "util/log.h"

#define ATTACH_MS 60000
#define SERVE_MS 60000
#define COMMIT_MS 60000
#define RUN_MS 60000
#define DONE_MS 60000
#define ASK_MS 5000
#define LOOK_US 5000
#define AGAIN_S 1
#define TEXT_MAX 512

// Its disks stay the source's until it is to run. QEMU that does not know this capability does so always.
static int leave_disks_alone(struct receive *rv)
{
	json_t *args = json_pack("{s:[{s:s s:b}]}", "capabilities", "capability", "late-block-activate", "state", 1);

	int err = qmp_try(rv->r.qmp, "migrate-set-capabilities", args, NULL);
	const char *why = qmp_last_error(rv->r.qmp);

	if (err == -EREMOTEIO && (strstr(why, "does not accept value") || strstr(why, "Invalid parameter"))) {
		log_info("QEMU %s: %s", qmp_version(rv->r.qmp), why);
		return 0;
	}
	if (err)
		log_err("QEMU cannot be told to leave the VM's disks alone until it is to run: %s", why);
	return err;
}

// QEMU has touched some of guest RAM before its faults could be seen. What is not in the page table must not be in memory either: that is
// the case from here on, and saves the pager a look at every page while the VM stands.
static int empty_memory(const struct restore *r)
{
	for (size_t i = 0; i < r->nr_blocks; i++)
		if (fallocate(r->blocks[i].memfd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 0, (off_t)r->blocks[i].len) < 0) {
			int err = -errno;

			log_err("cannot empty guest RAM: %s", strerror(-err));
			return err;
		}
	return 0;
}

int receive_plant(void *ctx)
{
	struct receive *rv = ctx;
	int err = restore_plant(rv);

	return err || !rv->r.paging ? err : empty_memory(&rv->r);
}

int receive_attach(void *ctx)
{
	struct receive *rv = ctx;
	int err;

	receive_taps_undo(rv); // they are QEMU's
	err = leave_disks_alone(rv);
	if (!err)
		err = restore_hand_over(&rv->r);
	return err ? err : launch_wait(&rv->r.launch, "attached", true, ATTACH_MS);
}

int receive_serve(void *ctx)
{
	struct receive *rv = ctx;
	uint64_t begun = clock_now_ns();
	int err;

	pv_swap_close(&rv->r.swap); // its lock is the pager's from now on
	err = receive_lazy_arrived(rv);
	if (!err)
		err = launch_tell(&rv->r.launch, "arrived");
	if (!err)
		err = launch_wait(&rv->r.launch, "serving", true, SERVE_MS);
	log_dbg("the pager serves after %lu us", (clock_now_ns() - begun) / 1000);
	return err;
}

// Another monitor may have said `cont` while the state was loaded.
static int check_stands(struct receive *rv)
{
	json_t *status = NULL;
	int err = qmp_call(rv->r.qmp, "query-status", NULL, &status);
	bool stands = json_is_false(json_object_get(status, "running"));

	json_decref(status);
	if (err || stands)
		return err;
	log_err("somebody has made VM '%s' run here before it was this host's", rv->r.name);
	return -EPERM;
}

// The monitor serves one client: until the VM is this host's that is us, so that it is no other.
int receive_load(void *ctx)
{
	struct receive *rv = ctx;
	int err;

	rv->r.gives_up = receive_gives_up;
	err = restore_load_state(&rv->r, rv->state->stream.data, rv->state->stream.len, rv->small, rv->nr_small);
	return err ? err : check_stands(rv);
}

// How many pages came in, or went out, for what QEMU has touched so far.
static int count_pages(struct receive *rv)
{
	static const char *const in[] = { "pages_in_swap", "pages_in_source" }, *const out[] = { "pages_out_written", "pages_out_clean", "pages_out_zero" };
	json_t *answer = NULL, *counts;
	char path[PATH_MAX];
	int err;

	if (!rv->r.paging)
		return 0;
	err = lp_control_ask(run_dir_file(&rv->r.rd, "control.sock", path, sizeof path), "stat", ASK_MS, &answer);
	counts = json_object_get(answer, "counts");
	if (!err && !counts)
		err = -EPROTO;
	for (size_t i = 0; i < ARRAY_SIZE(in); i++)
		rv->page_ins += (uint64_t)json_integer_value(json_object_get(counts, in[i]));
	for (size_t i = 0; i < ARRAY_SIZE(out); i++)
		rv->page_outs += (uint64_t)json_integer_value(json_object_get(counts, out[i]));
	json_decref(answer);
	if (err)
		log_err("the pager does not say what it did: %s", strerror(-err));
	return err;
}

// Nobody can commit it before the pager is asked to; the record is for a source that asks.
static void note_aborted(const struct receive *rv)
{
	enum migration_decision is;

	migration_decide(rv->o->token, MIGRATION_ABORTED, NULL, &is);
}

int receive_ready(void *ctx)
{
	struct receive *rv = ctx;
	WireMsg *m = NULL;
	int err;

	server_line_undecided(rv->o->line);
	err = wire_send_plain(rv->c, offsetof(WireMsg, ready));
	if (err)
		log_err("%s: the line is lost: %s", wire_peer(rv->c), strerror(-err));
	else
		err = count_pages(rv); // the source has its disks to hand over meanwhile
	if (!err)
		err = receive_expect(rv, 0, offsetof(WireMsg, commit), &m);
	if (!err)
		wire_msg__free_unpacked(m, NULL);
	else
		note_aborted(rv);
	return err;
}

// Until it is known; not even an interruption makes a guess better.
static enum migration_decision find_out(const struct receive *rv)
{
	enum migration_decision is;

	while (migration_decide(rv->o->token, MIGRATION_ABORTED, NULL, &is))
		sleep(AGAIN_S);
	return is;
}

int receive_commit(void *ctx)
{
	struct receive *rv = ctx;
	int err = launch_tell(&rv->r.launch, "commit");

	wire_set_interrupted(rv->c, NULL);
	if (err) { // it has ended before it was asked
		note_aborted(rv);
		return err;
	}
	err = launch_wait(&rv->r.launch, "committed", false, COMMIT_MS);
	if (err == -EREMOTEIO) {
		note_aborted(rv);
		return err;
	}
	if (err && find_out(rv) != MIGRATION_COMMITTED)
		return err;
	rv->committed = true;
	wire_send_plain(rv->c, offsetof(WireMsg, committed)); // if it does not get there, the source asks
	qmp_close(steal_ptr(&rv->r.qmp));
	return 0;
}

// The pager was killed: another one makes it run.
static int wait_for_next(struct receive *rv)
{
	uint64_t end = clock_now_ns() + RUN_MS * NSEC_PER_MSEC;

	while (!arrival_has_run(&rv->r.rd)) {
		if (restore_qemu_ended(&rv->r))
			return -ECHILD;
		if (clock_now_ns() > end) {
			log_err("VM '%s' is this host's, but does not run yet; criu-vm stat %s says what it waits for", rv->r.name, rv->r.name);
			return -ETIMEDOUT;
		}
		usleep(LOOK_US);
	}
	return 0;
}

static int say_running(struct receive *rv, const char *error)
{
	WireRunning running = WIRE_RUNNING__INIT;
	WireMsg m = WIRE_MSG__INIT;
	char text[TEXT_MAX + 1];

	running.page_ins = rv->page_ins;
	running.page_outs = rv->page_outs;
	running.ram_pages = rv->placement.nr_ram;
	running.swap_pages = rv->placement.nr_swap;
	running.stood_us = rv->stood_ns / 1000;
	snprintf(text, sizeof text, "%s", error ? error : "");
	for (char *p = text; *p; p++)
		if ((unsigned char)*p < ' ')
			*p = ' ';
	running.error = error ? text : NULL;
	m.running = &running;
	return wire_send(rv->c, &m);
}

int receive_running(void *ctx)
{
	struct receive *rv = ctx;
	int err = launch_wait(&rv->r.launch, "running", false, RUN_MS);

	if (err == -EPIPE)
		err = wait_for_next(rv);
	rv->stood_ns = clock_now_ns() - rv->announced_ns;
	say_running(rv, err ? log_last_error() : NULL);
	receive_rounds_fini(rv);
	cgroup_enter(&rv->r.own, 0);
	if (!err)
		log_info("VM '%s' runs, %lu ms after its last round was announced", rv->r.name, rv->stood_ns / NSEC_PER_MSEC);
	return err;
}

int receive_done(void *ctx)
{
	struct receive *rv = ctx;
	WireMsg *m;

	if (wire_expect(rv->c, DONE_MS, offsetof(WireMsg, done), &m)) {
		log_info("%s has not said that it is done; should it ask, it is told that its VM runs here", wire_peer(rv->c));
		return 0;
	}
	wire_msg__free_unpacked(m, NULL);
	if (!receive_lazy_goes_on(rv)) // else it may ask for as long as it has pages that are needed here
		migration_forget(rv->o->token);
	return 0;
}
