// SPDX-License-Identifier: GPL-2.0-only
#include "criu-vm/receive.h"

#include <errno.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "criu-vm/arrival.h"
#include "criu-vm/cmd.h"
#include "criu-vm/migration_lazy.h"
#include "criu-vm/receive_int.h"
#include "criu-vm/stages.h"
#include "util/clock.h"
#include "util/log.h"

#define ACCEPT_MS 10000
#define GLANCE_MS 100

_Static_assert(!offsetof(struct receive, r), "a restore's stages take a receive for one");

void receive_tell_abort(void *ctx)
{
	struct receive *rv = ctx;
	const char *why = log_last_error();

	if (rv->c)
		wire_set_interrupted(rv->c, NULL); // this much is said
	if (rv->c && !rv->told)
		wire_send_abort(rv->c, "%s", *why ? why : "the destination has given up");
	rv->told = true;
}

// Of those that nobody waits for just now.
static int look_around(struct receive *rv)
{
	struct launch *l = &rv->r.launch;

	if (rv->pages && receive_pages_error(rv->pages))
		return receive_pages_error(rv->pages);
	if (l->qemu_pidfd >= 0 && restore_qemu_ended(&rv->r))
		return -ECHILD;
	return l->fd >= 0 ? launch_look(l) : 0;
}

// err: of wire_receive(). Nothing has come, and that is all: 0.
static int no_message(struct receive *rv, int err)
{
	if (err == -ETIMEDOUT)
		return look_around(rv);
	if (err == -ECONNABORTED) // it has said why
		rv->told = true;
	else if (err == -EINTR)
		log_err("interrupted; the VM does not arrive");
	else
		log_err("%s: the line is lost: %s", wire_peer(rv->c), strerror(-err));
	return err;
}

bool receive_gives_up(void *ctx)
{
	struct receive *rv = ctx;
	WireMsg *m;
	int err;

	if (!wire_poll(rv->c, 0) && wire_lost_in(rv->c))
		return look_around(rv);
	err = wire_receive(rv->c, 1, &m);
	if (err)
		return no_message(rv, err);
	log_err("%s: said something while it was not its turn", wire_peer(rv->c));
	wire_msg__free_unpacked(m, NULL);
	return true;
}

int receive_message(struct receive *rv, unsigned timeout_ms, WireMsg **m)
{
	uint64_t end = clock_now_ns() + timeout_ms * NSEC_PER_MSEC;

	for (;;) {
		int err = wire_receive(rv->c, GLANCE_MS, m);

		if (!err)
			return 0;
		err = no_message(rv, err);
		if (err)
			return err;
		if (timeout_ms && clock_now_ns() > end) {
			log_err("%s: says nothing that was waited for in %u s", wire_peer(rv->c), timeout_ms / 1000);
			return -ETIMEDOUT;
		}
	}
}

int receive_expect(struct receive *rv, unsigned timeout_ms, size_t kind, WireMsg **m)
{
	int err = receive_message(rv, timeout_ms, m);

	if (err || *(void **)((char *)*m + kind))
		return err;
	log_err("%s: said something else than was its turn to say", wire_peer(rv->c));
	wire_msg__free_unpacked(*m, NULL);
	*m = NULL;
	return -EPROTO;
}

static int make_run_dir(void *ctx)
{
	struct receive *rv = ctx;
	int err = restore_run_dir(&rv->r);

	if (!err && (err = arrival_mark(&rv->r.rd, rv->o->token)))
		restore_run_dir_undo(&rv->r);
	return err;
}

// Before the commit: all of it is undone, or none of it.
static const struct stage arrival[] = {
	{ "receive-offer", receive_offer, receive_offer_undo },
	{ "receive-run-dir", make_run_dir, restore_run_dir_undo },
	{ "receive-cgroup", restore_cgroup, restore_cgroup_undo },
	{ "receive-memory", restore_memory, restore_memory_undo },
	{ "receive-taps", receive_taps, receive_taps_undo },
	{ "receive-start", restore_start, restore_start_undo },
	{ "receive-plant", receive_plant, NULL },
	{ "receive-attach", receive_attach, receive_tell_abort },
	{ "receive-admit", receive_admit, receive_admit_undo },
	{ "receive-pages", receive_rounds, receive_tell_abort },
	{ "receive-serve", receive_serve, receive_tell_abort },
	{ "receive-load", receive_load, receive_tell_abort },
	{ "receive-ready", receive_ready, receive_tell_abort },
	{ "receive-commit", receive_commit, NULL },
};

// After it: whatever fails here changes nothing for the VM.
static const struct stage life[] = {
	{ "receive-running", receive_running, NULL },
	{ "receive-done", receive_done, NULL },
};

static void fini(struct receive *rv)
{
	receive_rounds_fini(rv);
	receive_taps_undo(rv);
	receive_lazy_fini(rv);
	wire_keepalive_stop(rv->keepalive);
	wire_close(rv->c);
	restore_fini(&rv->r);
	if (rv->early)
		wire_msg__free_unpacked(rv->early, NULL);
	if (rv->offer)
		wire_msg__free_unpacked(rv->offer, NULL);
	if (rv->vm)
		vm_entry__free_unpacked(rv->vm, NULL);
	if (rv->state)
		device_state_entry__free_unpacked(rv->state, NULL);
	restore_free_small(rv->small, rv->nr_small);
}

static int receive(struct receive *rv, int fd)
{
	int err = wire_accept(fd, rv->o->tls, ACCEPT_MS, &rv->c);

	if (err)
		return err;
	wire_set_interrupted(rv->c, cmd_interrupted);
	err = stages_run(arrival, ARRAY_SIZE(arrival), rv);
	if (err) {
		receive_tell_abort(rv);
		return err;
	}
	return stages_finish(life, ARRAY_SIZE(life), rv);
}

int receive_run(const struct receive_opts *o, int fd)
{
	struct receive rv = { .o = o };
	int err;

	restore_init(&rv.r, &rv.ro);
	err = receive(&rv, fd);
	fini(&rv);
	return !err ? CMD_OK : rv.committed ? CMD_ATTENTION : CMD_FAILED;
}

static void set_running(const struct receive_opts *o, const char *name, WireStatus *status)
{
	struct run_dir rd;

	if (run_dir_open(o->server->run_dir, name, &rd))
		return;
	status->has_running = true;
	status->running = run_dir_has(&rd, "running");
	run_dir_close(&rd);
}

int receive_answer(const struct receive_opts *o, int fd)
{
	WireStatus status = WIRE_STATUS__INIT;
	WireMsg m = WIRE_MSG__INIT;
	enum migration_decision is;
	char name[RUN_DIR_NAME_MAX + 1];
	uint8_t host[WIRE_TOKEN_LEN] = { 0 };
	struct wire_conn *c;
	int err = wire_accept(fd, o->tls, ACCEPT_MS, &c);

	if (err)
		return CMD_FAILED;
	status.state = WIRE_STATE__WIRE_UNKNOWN; // it asks again
	err = migration_decide(o->token, MIGRATION_ABORTED, NULL, &is);
	if (!err && is == MIGRATION_ABORTED) {
		status.state = WIRE_STATE__WIRE_ABORTED;
		migration_lazy_remove(o->token);
	}
	if (!err && is == MIGRATION_COMMITTED && !migration_decided(o->token, &is, name) && is == MIGRATION_COMMITTED) {
		status.state = WIRE_STATE__WIRE_COMMITTED;
		status.name = name;
		set_running(o, name, &status);
	}
	if (migration_host_id(host))
		status.state = WIRE_STATE__WIRE_UNKNOWN;
	status.host.data = host;
	status.host.len = sizeof host;
	status.token.data = (uint8_t *)o->token;
	status.token.len = WIRE_TOKEN_LEN;
	m.status = &status;
	err = wire_send(c, &m);
	log_info("%s asked what became of its VM: %s%s", wire_peer(c), status.state == WIRE_STATE__WIRE_COMMITTED ? "it is here, " :
		 status.state == WIRE_STATE__WIRE_ABORTED ? "it did not arrive" : "that cannot be told now", status.name ? status.name : "");
	wire_close(c);
	return err || status.state == WIRE_STATE__WIRE_UNKNOWN ? CMD_FAILED : CMD_OK;
}
