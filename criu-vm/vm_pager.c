// SPDX-License-Identifier: GPL-2.0-only
#include "criu-vm/vm_pager.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include "criu-vm/cmd.h"
#include "criu-vm/launch.h"
#include "images/reader.h"
#include "lazy-pages/pager.h"
#include "mm/plant.h"
#include "qemu/qmp.h"
#include "util/cleanup.h"
#include "util/io.h"
#include "util/log.h"
#include "util/loop.h"

#define MONITOR_TIMEOUT_MS 30000
#define REOPEN_AFTER_MS 500

enum request { REQUEST_DRAIN = 1, REQUEST_CONT, REQUEST_ANNOUNCE };

struct vm_pager {
	struct run_dir *rd;
	struct vm_state state;
	int qemu_pidfd, control_fd, launch_fd;
	struct mm_plant plant;
	struct pv_block *blocks;
	struct pv_pages *pages;
	struct pv_swap swap;
	struct img_dir *images;
	struct lp_pager *lp;
	struct qmp *qmp; // NULL until it is open, and after QEMU closed it
	struct loop_op launch_op, qmp_op, opened_op;
	int opened[2];   // a byte when the monitor thread is done
	bool started;    // the VM is its own
	bool guest_runs, draining;
	char *ended_by;  // why QEMU said it would end
};

// The monitor is opened by a thread: QEMU's main thread, which answers, may be waiting for a page that this process serves.
struct monitor_thread {
	char path[PATH_MAX];
	int done_fd, qemu_pidfd;
	bool again; // it was open before
	struct qmp *qmp;
	pid_t vcpus[1024];
	size_t nr_vcpus;
	int err;
};

static void *open_monitor(void *arg)
{
	struct monitor_thread *m = arg;
	json_t *cpus = NULL;

	if (m->again && poll(&(struct pollfd){ .fd = m->qemu_pidfd, .events = POLLIN }, 1, REOPEN_AFTER_MS))
		m->err = -ESRCH; // it was lost because QEMU was ending
	if (!m->err)
		m->err = qmp_open(m->path, MONITOR_TIMEOUT_MS, &m->qmp);
	if (!m->err)
		m->err = qmp_call(m->qmp, "query-cpus-fast", NULL, &cpus);
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
	if (v->started)
		return;
	v->started = true;
	launch_send(v->launch_fd, "running");
	loop_cancel(lp_pager_loop(v->lp), &v->launch_op);
}

static void cannot_start(struct vm_pager *v, const char *why)
{
	log_err("the VM cannot start: %s", why);
	launch_send(v->launch_fd, "error the VM cannot start: %s", why);
	lp_pager_stop(v->lp, -ECANCELED);
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
		if (!m->ok) {
			cannot_start(v, m->text);
			break;
		}
		say_running(v);
		if (qmp_send(v->qmp, "announce-self", json_pack("{s:i s:i s:i s:i}", "initial", 50, "max", 550, "rounds", 5, "step", 100),
			     REQUEST_ANNOUNCE))
			log_warn("cannot announce the VM on its network");
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
		v->guest_runs = true;
	if (!strcmp(m->text, "SHUTDOWN")) {
		free(v->ended_by);
		v->ended_by = strdup(reason ? reason : "shutdown");
	}
	log_info("QEMU: %s%s%s", m->text, reason ? ", " : "", reason ? reason : "");
}

static int start_monitor(struct vm_pager *v);

// QEMU is ending, and the pidfd will say so; if it is not, the monitor is opened again.
static void monitor_lost(struct vm_pager *v, int err)
{
	log_info("QEMU has closed its monitor (%s)", strerror(-err));
	qmp_close(v->qmp);
	v->qmp = NULL;
	if (v->draining)
		lp_pager_drained(v->lp, -EPIPE);
	v->draining = false;
	if (vm_state_qemu_alive(&v->state, NULL) && start_monitor(v))
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

static void drain(void *ctx)
{
	struct vm_pager *v = ctx;

	v->draining = v->qmp && !qmp_send(v->qmp, "transaction", json_pack("{s:[]}", "actions"), REQUEST_DRAIN);
	if (!v->draining)
		lp_pager_drained(v->lp, -EPIPE);
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
	if (v->started && m->err) {
		if (m->err != -ESRCH)
			log_err("QEMU's monitor does not answer; nothing can be paged out any more");
	} else if (m->err || lp_pager_set_vcpus(v->lp, m->vcpus, m->nr_vcpus)) {
		cannot_start(v, "its monitor does not answer");
	} else {
		v->qmp_op.done = qmp_readable;
		loop_poll_in(lp_pager_loop(v->lp), &v->qmp_op, qmp_fd(v->qmp));
		lp_pager_release(v->lp);
		if (v->started)
			log_info("QEMU's monitor is open again");
		else if (!v->state.run)
			say_running(v);
		else if (qmp_send(v->qmp, "cont", NULL, REQUEST_CONT))
			cannot_start(v, "its monitor is closed");
	}
	free(m);
}

static int start_monitor(struct vm_pager *v)
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
	m->again = v->started;
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

static void launch_readable(struct loop_op *op, int res)
{
	struct vm_pager *v = list_entry(op, struct vm_pager, launch_op);
	char msg[LAUNCH_MSG_MAX];
	ssize_t n;

	if (v->started || res < 0)
		return;
	n = recv(v->launch_fd, msg, sizeof msg - 1, 0);
	if (n <= 0) {
		log_err("the restore was given up; ending the VM");
		lp_pager_stop(v->lp, -ECANCELED);
		return;
	}
	msg[n] = 0;
	if (!strcmp(msg, "run") && start_monitor(v))
		cannot_start(v, "no thread for its monitor");
	loop_poll_in(lp_pager_loop(v->lp), op, v->launch_fd);
}

static uint64_t proc_status_kib(pid_t pid, const char *key)
{
	char path[40], *p;
	_cleanup_free_ char *text = NULL;
	size_t len;

	snprintf(path, sizeof path, "/proc/%d/status", pid);
	if (io_read_file(path, 1 << 16, &text, &len) || !(p = strstr(text, key)))
		return 0;
	return strtoull(p + strlen(key), NULL, 10);
}

static void describe(void *ctx, json_t *answer)
{
	const struct vm_pager *v = ctx;

	json_object_set_new(answer, "name", json_string(v->rd->name));
	json_object_set_new(answer, "guest", json_string(v->guest_runs ? "running" : "paused"));
	json_object_set_new(answer, "ram", json_integer((json_int_t)v->state.ram));
	json_object_set_new(answer, "swap", v->state.swap_path ? json_string(v->state.swap_path) : json_null());
	json_object_set_new(answer, "images", v->state.images ? json_string(v->state.images) : json_null());
	json_object_set_new(answer, "log", v->state.log ? json_string(v->state.log) : json_null());
	json_object_set_new(answer, "qemu_host_swap", json_integer((json_int_t)(proc_status_kib(v->state.qemu, "VmSwap:") * KiB)));
	json_object_set_new(answer, "qemu_page_tables", json_integer((json_int_t)(proc_status_kib(v->state.qemu, "VmPTE:") * KiB)));
	json_object_set_new(answer, "pager_memory", json_integer((json_int_t)(proc_status_kib(getpid(), "RssAnon:") * KiB)));
}

static int map_blocks(struct vm_pager *v)
{
	v->blocks = calloc(v->state.nr_blocks, sizeof *v->blocks);
	if (!v->blocks)
		return -ENOMEM;
	for (size_t i = 0; i < v->state.nr_blocks; i++) {
		const struct vm_state_block *s = &v->state.blocks[i];
		struct pv_block *b = &v->blocks[i];
		char path[64];

		*b = (struct pv_block){ .off = s->off, .len = s->len, .hva = s->hva, .memfd = -1 };
		snprintf(path, sizeof path, "/proc/%d/fd/%d", v->state.qemu, s->memfd);
		b->memfd = open(path, O_RDWR | O_CLOEXEC);
		if (b->memfd >= 0)
			b->map = mmap(NULL, b->len, PROT_READ | PROT_WRITE, MAP_SHARED, b->memfd, 0);
		if (b->memfd < 0 || b->map == MAP_FAILED) {
			log_err("cannot map guest RAM (%s): %s", path, strerror(errno));
			return -errno;
		}
		// A page-in must not allocate more than the page that it is for.
		madvise(b->map, b->len, MADV_NOHUGEPAGE);
		madvise(b->map, b->len, MADV_DONTDUMP);
		// Resident guest pages stay out of the host's swap. (Not with the other way of zapping, which needs that swap off.)
		if (v->plant.ring_fd >= 0 && mlock2(b->map, b->len, MLOCK_ONFAULT) < 0)
			log_warn("cannot lock guest RAM in memory: %s; with swap on, the host may page it a second time", strerror(errno));
	}
	return 0;
}

static int open_swap(struct vm_pager *v)
{
	int fd;

	if (!v->state.swap_path)
		return 0;
	fd = open(v->state.swap_path, O_RDWR | O_DIRECT | O_CLOEXEC | O_NOFOLLOW);
	if (fd < 0 || flock(fd, LOCK_EX | LOCK_NB) < 0) {
		int r = -errno;

		log_err("cannot open swap image %s: %s", v->state.swap_path, r == -EWOULDBLOCK ? "another process has it locked" : strerror(-r));
		if (fd >= 0)
			close(fd);
		return r;
	}
	return pv_swap_adopt(fd, v->state.swap_path, (uint64_t)v->state.nr_chunks * PV_CHUNK_SIZE, v->state.swap_sparse, &v->swap);
}

static int attach(struct vm_pager *v)
{
	struct lp_opts o;
	int r = vm_state_load(v->rd, &v->state);

	if (r)
		return r;
	if (!vm_state_qemu_alive(&v->state, &v->qemu_pidfd)) {
		log_err("its QEMU, pid %d, has ended", v->state.qemu);
		return -ESRCH;
	}
	v->control_fd = r = run_dir_listen(v->rd, "control.sock");
	if (r < 0)
		return r;
	o = (struct lp_opts){ .qemu = v->state.qemu, .qemu_pidfd = v->qemu_pidfd, .control_fd = v->control_fd, .ctx = v, .drain = drain,
			      .describe = describe };
	if (v->state.paging) {
		r = mm_plant_fetch(v->state.qemu, v->state.target_uffd, v->state.target_ring, v->state.ring_entries, &v->plant);
		if (r || (r = run_dir_map_pages(v->rd, v->state.nr_chunks, false, &v->pages)) || (r = map_blocks(v)) || (r = open_swap(v)))
			return r;
		if (v->state.images && (r = img_dir_open(v->state.images, &v->images)))
			return r;
		o.plant = &v->plant;
		o.blocks = v->blocks;
		o.nr_blocks = v->state.nr_blocks;
		o.pages = v->pages;
		o.swap = &v->swap;
		o.images = v->images;
		o.budget = v->state.budget;
	}
	return lp_pager_new(&o, &v->lp);
}

// Says how it ended, if it was our child.
static void reap_qemu(struct vm_pager *v)
{
	int status;

	if (waitpid(v->state.qemu, &status, 0) != v->state.qemu)
		log_warn("QEMU has ended");
	else if (WIFSIGNALED(status))
		log_warn("QEMU was killed by signal %d (%s)", WTERMSIG(status), strsignal(WTERMSIG(status)));
	else
		log_warn("QEMU has ended with status %d%s%s", WEXITSTATUS(status), v->ended_by ? ": " : "", v->ended_by ? v->ended_by : "");
}

static void detach(struct vm_pager *v)
{
	lp_pager_free(v->lp);
	qmp_close(v->qmp);
	mm_plant_fini(&v->plant);
	img_dir_close(v->images);
	pv_swap_close(&v->swap);
	for (size_t i = 0; v->blocks && i < v->state.nr_blocks; i++)
		if (v->blocks[i].memfd >= 0) {
			munmap(v->blocks[i].map, v->blocks[i].len);
			close(v->blocks[i].memfd);
		}
	free(v->blocks);
	free(v->ended_by);
	for (unsigned i = 0; i < 2; i++)
		if (v->opened[i] > 0)
			close(v->opened[i]);
	if (v->pages)
		munmap(v->pages, v->state.nr_chunks * sizeof *v->pages);
	if (v->control_fd >= 0)
		close(v->control_fd);
	if (v->qemu_pidfd >= 0)
		close(v->qemu_pidfd);
	vm_state_fini(&v->state);
}

int vm_pager_run(struct run_dir *rd, int launch_fd)
{
	struct vm_pager v = { .rd = rd, .qemu_pidfd = -1, .control_fd = -1, .launch_fd = launch_fd, .plant = { .uffd = -1, .ring_fd = -1 },
			      .swap = PV_SWAP_NONE };
	int r = attach(&v);

	if (r) {
		launch_send(launch_fd, "error the pager cannot attach: %s", log_last_error());
	} else {
		v.launch_op.done = launch_readable;
		loop_poll_in(lp_pager_loop(v.lp), &v.launch_op, launch_fd);
		launch_send(launch_fd, "serving");
		r = lp_pager_run(v.lp);
	}
	if (r && v.started) { // the VM lives: what it needs stays, its faults wait
		log_err("the pager gives up; the guest waits");
		detach(&v);
		run_dir_close(rd);
		return CMD_ATTENTION;
	}
	if (r && v.state.qemu > 0)
		kill(v.state.qemu, SIGKILL); // our child: the pid cannot be another's
	if (v.state.qemu > 0)
		reap_qemu(&v);
	if (!v.started)
		launch_send(launch_fd, "error QEMU has ended; its output is in %s", v.state.log ? v.state.log : "the log");
	detach(&v);
	run_dir_destroy(rd);
	return r ? CMD_FAILED : CMD_OK;
}
