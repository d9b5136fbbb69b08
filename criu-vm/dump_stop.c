// SPDX-License-Identifier: GPL-2.0-only
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "criu-vm/cmd.h"
#include "criu-vm/dump_int.h"
#include "qemu/devstate.h"
#include "util/cleanup.h"
#include "util/clock.h"
#include "util/log.h"

#define FREEZE_TIMEOUT_MS 5000
#define KILL_TIMEOUT_NS (30 * NSEC_PER_SEC)
#define KILL_POLL_MS 1000
#define GO_ON_TIMEOUT_MS 120000
#define GUARDIAN_LINGER_S 5
#define STANDSTILL_NICE (-20) // each of its many steps would wait for a CPU

// Renaming is what makes a checkpoint: from then on a VM that is to end may not run on by itself.
static bool is_complete(const struct dump *d)
{
	char path[PATH_MAX];

	if (d->o->then == DUMP_LEAVE_RUNNING || !d->o->dir)
		return false;
	snprintf(path, sizeof path, "%s/inventory.img", d->o->dir);
	return !access(path, F_OK);
}

// What else it had open would live as long as it does: the protection of guest RAM, locks, a stream.
static void keep_only(int a, int b)
{
	unsigned lower = (unsigned)(a < b ? a : b), upper = (unsigned)(a < b ? b : a);

	if (lower)
		close_range(0, lower - 1, 0);
	if (upper > lower + 1)
		close_range(lower + 1, upper - 1, 0);
	close_range(upper + 1, ~0U, 0);
}

// A process that outlives us, also when we are killed: if the line to it is cut without a word, it lets the VM run on.
// It shares our connection to the monitor, since QEMU serves one.
static int start_guardian(struct dump *d)
{
	static const char cont[] = "{\"execute\":\"cont\"}\n";
	int line[2];
	char word;

	if (!d->was_running)
		return 0;
	if (pipe2(line, O_CLOEXEC) < 0)
		return -errno;
	d->guardian = fork();
	if (!d->guardian) {
		setsid();
		cmd_ignore_signals();
		keep_only(line[0], qmp_fd(d->vm->qmp));
		if (!read(line[0], &word, 1) && !is_complete(d)) {
			fcntl(qmp_fd(d->vm->qmp), F_SETFL, 0);
			if (write(qmp_fd(d->vm->qmp), cont, sizeof cont - 1) > 0)
				sleep(GUARDIAN_LINGER_S); // QEMU forgets a command whose client has gone before it was run
		}
		_exit(0);
	}
	close(line[0]);
	d->guardian_fd = line[1];
	return d->guardian < 0 ? -errno : 0;
}

void dump_dismiss_guardian(struct dump *d)
{
	if (d->guardian <= 0)
		return;
	if (write(d->guardian_fd, "", 1) == 1)
		waitpid(d->guardian, NULL, 0);
	close(d->guardian_fd);
	d->guardian = 0;
}

bool dump_qemu_ended(const struct dump *d)
{
	struct pollfd p = { .fd = d->vm ? d->vm->pidfd : -1, .events = POLLIN };

	return d->vm && poll(&p, 1, 0) == 1;
}

// QEMU may be busy, with a slow disk for example; a VM that ran is not left behind before it runs.
int dump_go_on(void *ctx)
{
	struct dump *d = ctx;
	int r = 0;

	if (!d->standing)
		return 0;
	dump_thaw(d);
	qmp_set_timeout(d->vm->qmp, GO_ON_TIMEOUT_MS);
	if (d->was_running)
		r = qmp_call(d->vm->qmp, "cont", NULL, NULL);
	d->result->stopped_ns = clock_now_ns() - d->stopped_at_ns;
	if (r && !dump_qemu_ended(d)) {
		d->stuck = true;
		log_err("the VM, QEMU %d, is still stopped; say 'cont' to its monitor", d->vm->pid);
	}
	d->standing = false;
	if (d->o->then == DUMP_LEAVE_RUNNING)
		setpriority(PRIO_PROCESS, 0, d->nice);
	dump_dismiss_guardian(d);
	return r;
}

void dump_go_on_undo(void *ctx)
{
	dump_go_on(ctx);
}

static int run_state(struct dump *d, char *state, size_t size)
{
	json_t *status = NULL;
	const char *s;
	int r = qmp_call(d->vm->qmp, "query-status", NULL, &status);

	s = json_string_value(json_object_get(status, "status"));
	snprintf(state, size, "%s", s ? s : "?");
	json_decref(status);
	return r;
}

int dump_stop(void *ctx)
{
	struct dump *d = ctx;
	char state[32];
	int r = run_state(d, state, sizeof state);

	if (r)
		return r;
	d->was_running = !strcmp(state, "running"); // not what it was at first: that may be seconds ago
	if (!d->was_running && strcmp(state, "paused") && strcmp(state, "prelaunch")) {
		log_err("QEMU %d is '%s' by now; nothing was dumped", d->vm->pid, state);
		return -EAGAIN;
	}
	r = start_guardian(d);
	if (r) {
		log_err("cannot fork: %s", strerror(-r));
		return r;
	}
	d->nice = getpriority(PRIO_PROCESS, 0);
	if (d->o->then == DUMP_LEAVE_RUNNING)
		setpriority(PRIO_PROCESS, 0, STANDSTILL_NICE);
	d->standing = true;
	d->stopped_at_ns = clock_now_ns();
	r = qmp_call(d->vm->qmp, "stop", NULL, NULL);
	if (!r)
		r = run_state(d, state, sizeof state);
	if (!r && d->was_running && strcmp(state, "paused")) {
		log_err("QEMU %d is '%s' instead of stopped: the guest ended, or something went wrong in it, just now", d->vm->pid, state);
		d->was_running = false; // cont would not be right
		r = -EAGAIN;
	}
	if (r)
		dump_go_on(d);
	return r;
}

int dump_save_state(void *ctx)
{
	struct dump *d = ctx;

	return qemu_devstate_save(d->vm->qmp, false, &d->state, &d->state_len);
}

// Between its device state and the standstill of its process nobody may have let it run.
static int still_stopped(struct dump *d)
{
	struct qmp_msg m;
	int r = 0;

	while (!qmp_receive(d->vm->qmp, &m)) {
		if (m.kind == QMP_EVENT && !strcmp(m.text, "RESUME"))
			r = -EBUSY;
		qmp_msg_fini(&m);
	}
	if (r)
		log_err("somebody let QEMU %d run while it was being dumped; nothing was dumped", d->vm->pid);
	return r;
}

int dump_freeze(void *ctx)
{
	struct dump *d = ctx;
	uint64_t begun = clock_now_ns();
	int r = qemu_freeze(d->vm->pid, FREEZE_TIMEOUT_MS, &d->freezer);

	d->times.freezing_us = (clock_now_ns() - begun) / 1000;
	if (!r && (r = still_stopped(d)))
		dump_thaw(d);
	return r;
}

void dump_thaw(void *ctx)
{
	struct dump *d = ctx;

	qemu_thaw(steal_ptr(&d->freezer));
}

int dump_drain(struct dump *d)
{
	return qmp_call(d->vm->qmp, "transaction", json_pack("{s:[]}", "actions"), NULL);
}

// Not by `quit`: nothing of the guest, and no disk image, may change after the copy.
int dump_end_source(struct dump *d)
{
	struct pollfd p = { .fd = d->vm->pidfd, .events = POLLIN };
	uint64_t end = clock_now_ns() + KILL_TIMEOUT_NS;

	if (!syscall(SYS_pidfd_send_signal, d->vm->pidfd, SIGKILL, NULL, 0)) {
		dump_thaw(d); // a thread that is traced ends only when it is let go
		while (clock_now_ns() < end) // it is too late for Ctrl-C
			if (poll(&p, 1, KILL_POLL_MS) > 0)
				return 0;
	}
	log_err("the checkpoint is complete, but QEMU %d could not be ended; it is stopped, and must not run on beside a restored copy", d->vm->pid);
	return -ESTALE;
}
