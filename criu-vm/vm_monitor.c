// SPDX-License-Identifier: GPL-2.0-only
#include <errno.h>
#include <limits.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "criu-vm/arrival.h"
#include "criu-vm/launch.h"
#include "criu-vm/vm_pager_int.h"
#include "util/cleanup.h"
#include "util/clock.h"
#include "util/io.h"
#include "util/log.h"

#define MONITOR_TIMEOUT_MS 30000
#define REOPEN_AFTER_MS 500
#define MAX_VCPUS 1024
#define FIRST_PAUSE_NS (50 * NSEC_PER_MSEC)
#define MAX_PAUSE_NS (5 * NSEC_PER_SEC)
#define MARK_CONT "cont" // in the file "running": was said, or is about to be

enum request { REQUEST_DRAIN = 1, REQUEST_CONT, REQUEST_ANNOUNCE, REQUEST_STATUS };

// The monitor is opened by a thread: QEMU's main thread, which answers, may be waiting for a page that this process serves.
struct monitor_thread {
	char path[PATH_MAX];
	int done_fd, qemu_pidfd;
	bool again; // it was open before
	struct qmp *qmp;
	bool guest_runs;
	pid_t vcpus[MAX_VCPUS];
	size_t nr_vcpus;
	int err;
};

static void *open_monitor(void *arg)
{
	struct monitor_thread *m = arg;
	json_t *cpus = NULL, *status = NULL;

	if (m->again && poll(&(struct pollfd){ .fd = m->qemu_pidfd, .events = POLLIN }, 1, REOPEN_AFTER_MS))
		m->err = -ESRCH; // it was lost because QEMU was ending
	if (!m->err)
		m->err = qmp_open_watching(m->path, MONITOR_TIMEOUT_MS, m->qemu_pidfd, NULL, &m->qmp);
	if (!m->err)
		m->err = qmp_call(m->qmp, "query-cpus-fast", NULL, &cpus);
	if (!m->err)
		m->err = qmp_call(m->qmp, "query-status", NULL, &status);
	m->guest_runs = json_is_true(json_object_get(status, "running"));
	json_decref(status);
	for (size_t i = 0; i < json_array_size(cpus) && m->nr_vcpus < ARRAY_SIZE(m->vcpus); i++)
		m->vcpus[m->nr_vcpus++] = (pid_t)json_integer_value(json_object_get(json_array_get(cpus, i), "thread-id"));
	json_decref(cpus);
	if (write(m->done_fd, &m, sizeof m) != sizeof m) { // the VM has ended meanwhile
		qmp_close(m->qmp);
		free(m);
	}
	return NULL;
}

static void say_running(struct vm_pager *v)
{
	if (v->committed)
		arrival_show_monitors(v->rd, v->state.qemu);
	run_dir_mark(v->rd, "running", "");
	v->cont_trouble[0] = 0;
	v->committed = false; // it is like any other now
	if (v->started)
		return;
	v->started = true;
	launch_send(v->launch_fd, "running");
	loop_cancel(lp_pager_loop(v->lp), &v->launch_op);
	vm_pager_fill(v);
}

void vm_monitor_cannot_start(struct vm_pager *v, const char *why)
{
	unlinkat(v->rd->fd, "running", 0);
	log_err("the VM cannot start: %s", why);
	v->given_up = true;
	launch_send(v->launch_fd, "error the VM cannot start: %s", why);
	lp_pager_stop(v->lp, -ECANCELED);
}

static void say_cont(struct vm_pager *v);

static void cont_again(struct loop_op *op, int res)
{
	struct vm_pager *v = list_entry(op, struct vm_pager, cont_timer.op);

	(void)res;
	if (v->cont_due && v->qmp) // else when it is open again
		say_cont(v);
}

// It is this host's, and nobody else may run it: whatever prevents that has to go.
static void cont_later(struct vm_pager *v, const char *why)
{
	if (!v->cont_trouble[0]) {
		log_err("the VM is this host's and cannot run: %s; it is tried again and again", why);
		if (!v->started)
			launch_send(v->launch_fd, "error %s", why);
	}
	snprintf(v->cont_trouble, sizeof v->cont_trouble, "it cannot run: %s", why);
	v->cont_due = true;
	v->cont_pause = !v->cont_pause ? FIRST_PAUSE_NS : v->cont_pause * 2 < MAX_PAUSE_NS ? v->cont_pause * 2 : MAX_PAUSE_NS;
	v->cont_timer.op.done = cont_again;
	if (!v->cont_timer.op.busy)
		loop_timer(lp_pager_loop(v->lp), &v->cont_timer, v->cont_pause);
}

// The VM may run from now on; a pager that follows us before we know says it once more.
static void say_cont(struct vm_pager *v)
{
	int r = run_dir_mark(v->rd, "running", MARK_CONT);

	if (!r)
		r = v->qmp ? qmp_send(v->qmp, "cont", NULL, REQUEST_CONT) : -EPIPE;
	if (r && v->committed)
		cont_later(v, "its monitor is closed");
	else if (r)
		vm_monitor_cannot_start(v, "its monitor is closed");
}

static void reply_received(struct vm_pager *v, const struct qmp_msg *m)
{
	switch (m->id) {
	case REQUEST_DRAIN:
		if (!m->ok)
			log_err("QEMU does not drain: %s", m->text);
		v->draining = false;
		lp_pager_drained(v->lp, m->ok ? 0 : -EIO);
		break;
	case REQUEST_CONT:
		v->cont_due = false;
		if (!m->ok && v->committed) {
			cont_later(v, m->text);
			break;
		}
		if (!m->ok && v->started) {
			log_err("the VM does not go on: %s", m->text);
			break;
		}
		if (!m->ok) {
			vm_monitor_cannot_start(v, m->text);
			break;
		}
		say_running(v);
		if (qmp_send(v->qmp, "announce-self", json_pack("{s:i s:i s:i s:i}", "initial", 50, "max", 550, "rounds", 5, "step", 100),
			     REQUEST_ANNOUNCE))
			log_warn("cannot announce the VM on its network");
		break;
	case REQUEST_STATUS:
		vm_arrival_decide(v, m->ok ? m->data : NULL);
		break;
	default:
		break;
	}
}

static void event_received(struct vm_pager *v, const struct qmp_msg *m)
{
	const char *reason = json_string_value(json_object_get(m->data, "reason"));

	if (!strcmp(m->text, "STOP"))
		v->guest_runs = false;
	else if (!strcmp(m->text, "RESUME"))
		v->guest_runs = v->has_resumed = true;
	if (!strcmp(m->text, "SHUTDOWN")) // for the record of its end
		run_dir_mark(v->rd, "reason", reason ? reason : "shutdown");
	if (strcmp(m->text, "BALLOON_CHANGE")) // as many as the guest likes
		log_info("QEMU: %s%s%s", m->text, reason ? ", " : "", reason ? reason : "");
}

// QEMU is ending, and the pidfd will say so; if it is not, the monitor is opened again.
static void monitor_lost(struct vm_pager *v, int err)
{
	log_info("QEMU has closed its monitor (%s)", strerror(-err));
	qmp_close(v->qmp);
	v->qmp = NULL;
	if (v->draining)
		lp_pager_drained(v->lp, -EPIPE);
	v->draining = false;
	if (vm_state_qemu_alive(&v->state, NULL) && vm_monitor_start(v, true))
		log_err("cannot open QEMU's monitor again; nothing can be paged out any more");
}

static void qmp_readable(struct loop_op *op, int res)
{
	struct vm_pager *v = list_entry(op, struct vm_pager, qmp_op);
	struct qmp_msg m;
	int r = res < 0 ? res : 0;

	while (!r && !(r = qmp_receive(v->qmp, &m))) {
		if (m.kind == QMP_REPLY)
			reply_received(v, &m);
		else
			event_received(v, &m);
		qmp_msg_fini(&m);
	}
	if (r == -EAGAIN)
		loop_poll_in(lp_pager_loop(v->lp), op, qmp_fd(v->qmp));
	else
		monitor_lost(v, r);
}

void vm_monitor_drain(void *ctx)
{
	struct vm_pager *v = ctx;

#ifdef BENCH_NO_DRAIN // what drains cost is measured against this, which loses what a disk's DMA brings
	lp_pager_drained(v->lp, 0);
	return;
#endif
	v->draining = v->qmp && !qmp_send(v->qmp, "transaction", json_pack("{s:[]}", "actions"), REQUEST_DRAIN);
	if (!v->draining)
		lp_pager_drained(v->lp, -EPIPE);
}

int vm_monitor_ask_status(struct vm_pager *v)
{
	return v->qmp ? qmp_send(v->qmp, "query-status", NULL, REQUEST_STATUS) : -EPIPE;
}

// For a pager that has to go on before QEMU's monitor answers.
static void remember_vcpus(struct vm_pager *v, const struct monitor_thread *m)
{
	char text[12 * MAX_VCPUS + 1] = "";
	size_t len = 0;

	for (size_t i = 0; i < m->nr_vcpus; i++)
		len += (size_t)snprintf(text + len, sizeof text - len, "%d ", m->vcpus[i]);
	run_dir_mark(v->rd, "vcpus", text);
}

static bool cont_is_due(const struct vm_pager *v)
{
	_cleanup_free_ char *text = NULL;
	char path[PATH_MAX];
	size_t len;

	return !io_read_file(run_dir_file(v->rd, "running", path, sizeof path), PATH_MAX, &text, &len) && !strcmp(text, MARK_CONT);
}

static void recall_vcpus(struct vm_pager *v)
{
	_cleanup_free_ char *text = NULL;
	char path[PATH_MAX], *at, *end;
	pid_t vcpus[MAX_VCPUS];
	size_t nr = 0, len;

	if (io_read_file(run_dir_file(v->rd, "vcpus", path, sizeof path), sizeof vcpus * 4, &text, &len))
		return;
	for (at = text; nr < MAX_VCPUS && (vcpus[nr] = (pid_t)strtol(at, &end, 10)); at = end)
		nr++;
	lp_pager_set_vcpus(v->lp, vcpus, nr);
}

void vm_monitor_begin(struct vm_pager *v)
{
	bool is_new = v->committed || !v->started;

	lp_pager_release(v->lp);
	if (v->committed)
		vm_arrival_taps_up(v);
	if (v->started)
		vm_pager_fill(v);
	if (is_new && !v->state.run)
		say_running(v);
	else if (is_new || v->cont_due)
		say_cont(v);
}

static void monitor_opened(struct loop_op *op, int res)
{
	struct vm_pager *v = list_entry(op, struct vm_pager, opened_op);
	struct monitor_thread *m = NULL;

	(void)res;
	if (io_read_full(v->opened[0], &m, sizeof m))
		return;
	for (unsigned i = 0; i < 2; i++)
		close(v->opened[i]);
	v->opened[0] = v->opened[1] = -1;
	v->qmp = m->qmp;
	if (m->err == -ESRCH) {
		// QEMU has ended, and so does the loop.
	} else if ((v->started || v->committed) && m->err) {
		log_err("QEMU's monitor does not answer; nothing can be paged out until it does");
		qmp_close(v->qmp);
		v->qmp = NULL;
		if (vm_monitor_start(v, true))
			log_err("cannot open QEMU's monitor again; nothing can be paged out any more");
	} else if (m->err || lp_pager_set_vcpus(v->lp, m->vcpus, m->nr_vcpus)) {
		vm_monitor_cannot_start(v, "its monitor does not answer");
	} else {
		v->guest_runs = m->guest_runs;
		remember_vcpus(v, m);
		v->qmp_op.done = qmp_readable;
		loop_poll_in(lp_pager_loop(v->lp), &v->qmp_op, qmp_fd(v->qmp));
		if (m->again || v->started)
			log_info("QEMU's monitor is open%s", m->again ? " again" : "");
		if (vm_arrival_is_pending(v) && m->again) // what it was asked is lost
			vm_monitor_cannot_start(v, "its monitor was closed meanwhile");
		else if (vm_arrival_is_pending(v))
			launch_send(v->launch_fd, "attached");
		else
			vm_monitor_begin(v);
	}
	free(m);
}

int vm_monitor_start(struct vm_pager *v, bool again)
{
	struct monitor_thread *m = calloc(1, sizeof *m);
	sigset_t all, old;
	pthread_t t;
	int r;

	if (!m)
		return -ENOMEM;
	if (pipe2(v->opened, O_CLOEXEC) < 0) {
		free(m);
		return -errno;
	}
	run_dir_file(v->rd, "qmp.sock", m->path, sizeof m->path);
	m->done_fd = v->opened[1];
	m->qemu_pidfd = v->qemu_pidfd;
	m->again = again;
	v->opened_op.done = monitor_opened;
	loop_poll_in(lp_pager_loop(v->lp), &v->opened_op, v->opened[0]);
	sigfillset(&all);
	pthread_sigmask(SIG_SETMASK, &all, &old);
	r = pthread_create(&t, NULL, open_monitor, m);
	pthread_sigmask(SIG_SETMASK, &old, NULL);
	if (!r)
		pthread_detach(t);
	else
		free(m);
	return -r;
}

// The thread has said that it is done, and nobody has listened; or it will find nobody to say it to.
void vm_monitor_end(struct vm_pager *v)
{
	struct monitor_thread *m;

	if (v->opened[0] <= 0)
		return;
	if (poll(&(struct pollfd){ .fd = v->opened[0], .events = POLLIN }, 1, 0) > 0 && !io_read_full(v->opened[0], &m, sizeof m)) {
		qmp_close(m->qmp);
		free(m);
	}
	close(v->opened[0]); // the other end is the thread's, which may be at it just now
}

void vm_monitor_recall(struct vm_pager *v)
{
	recall_vcpus(v);
	v->cont_due = cont_is_due(v) || (v->committed && v->state.run);
}
