// SPDX-License-Identifier: GPL-2.0-only
#include "criu-vm/vm_pager.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <unistd.h>

#include "criu-vm/cmd.h"
#include "criu-vm/launch.h"
#include "criu-vm/process.h"
#include "images/reader.h"
#include "lazy-pages/pager.h"
#include "mm/plant.h"
#include "qemu/qmp.h"
#include "util/cleanup.h"
#include "util/clock.h"
#include "util/io.h"
#include "util/log.h"
#include "util/loop.h"

#define MONITOR_TIMEOUT_MS 30000
#define REOPEN_AFTER_MS 500
#define FIRST_RETRY_NS (10 * NSEC_PER_MSEC) // the dead one's last I/O lets go of its files only just after the fence
#define RETRY_NS NSEC_PER_SEC
#define MAX_VCPUS 1024
#define MARK_CONT "cont" // in the file "running": was said, or is about to be

enum request { REQUEST_DRAIN = 1, REQUEST_CONT, REQUEST_ANNOUNCE };

struct vm_pager {
	struct run_dir *rd;
	struct vm_state state;
	int qemu_pidfd, control_fd;
	int launch_fd; // the line to the restore; -1: the VM ran before us
	int io_fd;
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
	bool cont_due; // nobody knows whether the last pager has said it
	char waits_for[256];
};

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

static void fill(struct vm_pager *v)
{
	if (!v->state.fill || !v->state.images)
		return;
	log_info("what is left in %s comes in the background", v->state.images);
	lp_pager_fill(v->lp);
}

static void images_done(void *ctx)
{
	struct vm_pager *v = ctx;
	char *dir = steal_ptr(&v->state.images);

	if (vm_state_save(v->rd, &v->state)) { // the next pager would look for them
		v->state.images = dir;
		return;
	}
	log_info("%s is no longer needed", dir);
	free(dir);
	img_dir_close(v->images);
	v->images = NULL;
}

static void say_running(struct vm_pager *v)
{
	run_dir_mark(v->rd, "running", "");
	if (v->started)
		return;
	v->started = true;
	launch_send(v->launch_fd, "running");
	loop_cancel(lp_pager_loop(v->lp), &v->launch_op);
	fill(v);
}

static void cannot_start(struct vm_pager *v, const char *why)
{
	unlinkat(v->rd->fd, "running", 0);
	log_err("the VM cannot start: %s", why);
	launch_send(v->launch_fd, "error the VM cannot start: %s", why);
	lp_pager_stop(v->lp, -ECANCELED);
}

// The VM may run from now on; a pager that follows us before we know says it once more.
static void say_cont(struct vm_pager *v)
{
	if (run_dir_mark(v->rd, "running", MARK_CONT) || qmp_send(v->qmp, "cont", NULL, REQUEST_CONT))
		cannot_start(v, "its monitor is closed");
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
		if (!m->ok && v->started) {
			log_err("the VM does not go on: %s", m->text);
			break;
		}
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
	if (!strcmp(m->text, "SHUTDOWN")) // for the record of its end
		run_dir_mark(v->rd, "reason", reason ? reason : "shutdown");
	if (strcmp(m->text, "BALLOON_CHANGE")) // as many as the guest likes
		log_info("QEMU: %s%s%s", m->text, reason ? ", " : "", reason ? reason : "");
}

static int start_monitor(struct vm_pager *v, bool again);

// QEMU is ending, and the pidfd will say so; if it is not, the monitor is opened again.
static void monitor_lost(struct vm_pager *v, int err)
{
	log_info("QEMU has closed its monitor (%s)", strerror(-err));
	qmp_close(v->qmp);
	v->qmp = NULL;
	if (v->draining)
		lp_pager_drained(v->lp, -EPIPE);
	v->draining = false;
	if (vm_state_qemu_alive(&v->state, NULL) && start_monitor(v, true))
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
	} else if (v->started && m->err) {
		log_err("QEMU's monitor does not answer; nothing can be paged out until it does");
		qmp_close(v->qmp);
		v->qmp = NULL;
		if (start_monitor(v, true))
			log_err("cannot open QEMU's monitor again; nothing can be paged out any more");
	} else if (m->err || lp_pager_set_vcpus(v->lp, m->vcpus, m->nr_vcpus)) {
		cannot_start(v, "its monitor does not answer");
	} else {
		v->guest_runs = m->guest_runs;
		remember_vcpus(v, m);
		v->qmp_op.done = qmp_readable;
		loop_poll_in(lp_pager_loop(v->lp), &v->qmp_op, qmp_fd(v->qmp));
		lp_pager_release(v->lp);
		if (v->started) {
			log_info("QEMU's monitor is open%s", m->again ? " again" : "");
			if (v->cont_due)
				say_cont(v);
			fill(v);
		} else if (v->state.run) {
			say_cont(v);
		} else {
			say_running(v);
		}
	}
	free(m);
}

static int start_monitor(struct vm_pager *v, bool again)
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
	if (!strcmp(msg, "run") && start_monitor(v, false))
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
	uint64_t memory;

	json_object_set_new(answer, "name", json_string(v->rd->name));
	json_object_set_new(answer, "supervisor_pid", json_integer(run_dir_is_held(v->rd, "supervisor") ? getppid() : 0));
	json_object_set_new(answer, "guest", json_string(v->guest_runs ? "running" : "paused"));
	if (!cgroup_memory_current(&v->state.cgroup, &memory)) {
		json_object_set_new(answer, "cgroup", json_string(v->state.cgroup.path[CGROUP_V2] && !v->state.cgroup.path[CGROUP_V1_MEMORY] ?
									  v->state.cgroup.path[CGROUP_V2] :
									  v->state.cgroup.path[CGROUP_V1_MEMORY]));
		json_object_set_new(answer, "cgroup_memory", json_integer((json_int_t)memory));
	}
	json_object_set_new(answer, "ram", json_integer((json_int_t)v->state.ram));
	json_object_set_new(answer, "swap", v->state.swap_path ? json_string(v->state.swap_path) : json_null());
	json_object_set_new(answer, "images", v->state.images ? json_string(v->state.images) : json_null());
	json_object_set_new(answer, "log", v->state.log ? json_string(v->state.log) : json_null());
	json_object_set_new(answer, "qemu_host_swap", json_integer((json_int_t)(proc_status_kib(v->state.qemu, "VmSwap:") * KiB)));
	json_object_set_new(answer, "qemu_page_tables", json_integer((json_int_t)(proc_status_kib(v->state.qemu, "VmPTE:") * KiB)));
	json_object_set_new(answer, "pager_memory", json_integer((json_int_t)(proc_status_kib(getpid(), "RssAnon:") * KiB)));
}

static json_t *answer_error(const char *fmt, ...) __attribute__((format(printf, 1, 2)));
static json_t *answer_error(const char *fmt, ...)
{
	char text[512];
	va_list ap;

	va_start(ap, fmt);
	vsnprintf(text, sizeof text, fmt, ap);
	va_end(ap);
	return json_pack("{s:s}", "error", text);
}

static void take_string(const json_t *request, const char *key, char **to)
{
	const char *s = json_string_value(json_object_get(request, key));

	if (s) {
		free(*to);
		*to = strdup(s);
	}
}

// Another pager, perhaps of another binary, perhaps with other paths, is to go on. Who asks has checked them.
static json_t *replace(struct vm_pager *v, const json_t *request)
{
	const char *exe = json_string_value(json_object_get(request, "exe"));
	int r = 0;

	if (!v->started)
		return answer_error("the VM is still being restored");
	if (!run_dir_is_held(v->rd, "supervisor"))
		return answer_error("no supervisor is there to start another pager");
	take_string(request, "swap", &v->state.swap_path);
	take_string(request, "images", &v->state.images);
	r = vm_state_save(v->rd, &v->state);
	if (!r && exe)
		r = run_dir_mark(v->rd, "exe", exe);
	if (r)
		return answer_error("the state of the VM cannot be written: %s", strerror(-r));
	log_info("another pager was asked for; making room for it");
	lp_pager_stop(v->lp, VM_PAGER_REPLACED);
	return json_object();
}

static int open_swap(struct vm_pager *v)
{
	if (!v->state.swap_path || v->swap.fd >= 0)
		return 0;
	return pv_swap_open(v->state.swap_path, v->state.nr_chunks * PV_CHUNK_SIZE, v->state.swap_token, v->state.swap_sparse, &v->swap);
}

// The swap image that a smaller budget needs, made by who asks.
static int take_swap(struct vm_pager *v, const json_t *request)
{
	if (v->swap.fd >= 0 || !json_object_get(request, "swap"))
		return 0;
	take_string(request, "swap", &v->state.swap_path);
	take_string(request, "swap_token", &v->state.swap_token);
	v->state.swap_sparse = json_is_true(json_object_get(request, "swap_sparse"));
	return v->state.swap_path && v->state.swap_token ? open_swap(v) : -EINVAL;
}

static void give_swap_up(struct vm_pager *v)
{
	pv_swap_close(&v->swap);
	free(v->state.swap_path);
	free(v->state.swap_token);
	v->state.swap_path = v->state.swap_token = NULL;
}

static json_t *set(struct vm_pager *v, const json_t *request)
{
	uint64_t ram = (uint64_t)json_integer_value(json_object_get(request, "ram")), old = v->state.budget;
	bool had_swap = v->swap.fd >= 0;
	char want[16], least[16];
	int r;

	if (!v->state.paging)
		return answer_error("all of its memory is plain memory: it was restored without --ram and --lazy-pages");
	if (ram < pv_min_budget(v->state.ram))
		return answer_error("%s is too little for this VM: it needs %s at least, so that I/O in flight and page-outs have room",
				    size_format(ram, want), size_format(pv_min_budget(v->state.ram), least));
	if (!lp_pager_serves(v->lp))
		return answer_error("its pager does not serve yet; criu-vm stat tells what it waits for");
	v->state.budget = ram < v->state.ram ? ram : v->state.ram;
	r = take_swap(v, request);
	if (!r && v->state.budget < v->state.ram && v->swap.fd < 0)
		r = -ENODEV;
	if (!r)
		r = vm_state_save(v->rd, &v->state); // first: whoever comes after us must find that swap image
	if (r) {
		v->state.budget = old;
		if (!had_swap)
			give_swap_up(v);
		return r == -ENODEV ? answer_error("it has no swap image") : answer_error("%s", log_last_error());
	}
	lp_pager_set_budget(v->lp, v->state.budget);
	log_info("the budget is %s now", size_format(v->state.budget, want));
	return json_pack("{s:I}", "budget", (json_int_t)v->state.budget);
}

static json_t *command(void *ctx, const char *name, const json_t *request)
{
	if (!strcmp(name, "replace"))
		return replace(ctx, request);
	if (!strcmp(name, "set"))
		return set(ctx, request);
	return answer_error("unknown command");
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
		if (v->plant.ring_fd < 0) // the other way of zapping leaves locked pages alone; it needs a host without swap
			munlock(b->map, b->len);
	}
	return 0;
}

static int open_images(struct vm_pager *v)
{
	int r;

	if (!v->state.images || v->images)
		return 0;
	r = img_dir_open(v->state.images, &v->images);
	if (r || img_dir_id(v->images) == v->state.images_id)
		return r;
	log_err("%s is another checkpoint than the one that VM '%s' was restored from; give its directory with criu-vm lazy-pages --name %s "
		"--images-dir DIR",
		v->state.images, v->rd->name, v->rd->name);
	img_dir_close(v->images);
	v->images = NULL;
	return -ESTALE;
}

// May be tried again after an error.
static int start_paging(struct vm_pager *v)
{
	struct lp_paging paging;
	int r = open_swap(v);

	if (!r)
		r = open_images(v);
	if (r)
		return r;
	paging = (struct lp_paging){ .plant = &v->plant, .blocks = v->blocks, .nr_blocks = v->state.nr_blocks, .pages = v->pages,
				     .swap = &v->swap, .images = v->images, .budget = v->state.budget };
	return lp_pager_start(v->lp, &paging);
}

static int attach_paging(struct vm_pager *v)
{
	const struct vm_state *s = &v->state;
	int r;

	r = mm_plant_fetch(s->qemu, s->target_uffd, s->target_ring, s->ring_entries, &v->plant);
	if (r || (r = mm_fetch_fd(s->qemu, s->target_io, "anon_inode:[io_uring]", &v->io_fd)))
		return r;
	if ((r = run_dir_map_pages(v->rd, s->nr_chunks, false, &v->pages)) || (r = map_blocks(v)))
		return r;
	r = lp_pager_fence(v->lp, v->io_fd, s->io_entries);
	if (r)
		return r;
	r = start_paging(v);
	// A VM that runs is not given up because a disk is away.
	for (uint64_t ns = FIRST_RETRY_NS; r && v->launch_fd < 0 && r != -ESRCH && r != VM_PAGER_REPLACED; ns *= 2) {
		snprintf(v->waits_for, sizeof v->waits_for, "%s", log_last_error());
		r = lp_pager_wait(v->lp, ns < RETRY_NS ? ns : RETRY_NS, v->waits_for);
		if (!r)
			r = start_paging(v);
	}
	return r;
}

static int attach(struct vm_pager *v)
{
	int r = vm_state_load(v->rd, &v->state);
	struct lp_opts o;

	if (r)
		return r;
	if (!vm_state_qemu_alive(&v->state, &v->qemu_pidfd)) {
		log_err("its QEMU, pid %d, has ended", v->state.qemu);
		return -ESRCH;
	}
	if (v->qemu_pidfd < 0) {
		log_err("cannot watch QEMU, pid %d", v->state.qemu);
		return -EMFILE;
	}
	v->control_fd = r = run_dir_listen(v->rd, "control.sock");
	if (r < 0)
		return r;
	o = (struct lp_opts){ .qemu = v->state.qemu, .qemu_pidfd = v->qemu_pidfd, .control_fd = v->control_fd, .ctx = v, .drain = drain,
			      .describe = describe, .images_done = images_done, .command = command };
	r = lp_pager_new(&o, &v->lp);
	return r || !v->state.paging ? r : attach_paging(v);
}

// The thread has said that it is done, and nobody has listened; or it will find nobody to say it to.
static void drop_monitor(struct vm_pager *v)
{
	struct monitor_thread *m;

	if (v->opened[0] <= 0)
		return;
	if (poll(&(struct pollfd){ .fd = v->opened[0], .events = POLLIN }, 1, 0) > 0 && !io_read_full(v->opened[0], &m, sizeof m)) {
		qmp_close(m->qmp);
		free(m);
	}
	for (unsigned i = 0; i < 2; i++)
		close(v->opened[i]);
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
	drop_monitor(v);
	if (v->pages)
		munmap(v->pages, v->state.nr_chunks * sizeof *v->pages);
	if (v->io_fd >= 0)
		close(v->io_fd);
	if (v->control_fd >= 0)
		close(v->control_fd);
	if (v->qemu_pidfd >= 0)
		close(v->qemu_pidfd);
	vm_state_fini(&v->state);
}

// What the pager needs while guest pages wait for it must not have to come from a disk itself; and the pages that it
// brings in stay in memory as long as they are on its books.
static void stay_in_memory(void)
{
	// What there is, all of it now; what comes, guest RAM among it, as it is touched.
	if (mlockall(MCL_CURRENT) < 0 || mlockall(MCL_FUTURE | MCL_ONFAULT) < 0)
		log_warn("cannot lock the pager in memory: %s; with swap on, the host may page guest RAM a second time", strerror(errno));
	process_spare_from_oom();
}

static int serve(struct vm_pager *v)
{
	if (v->launch_fd >= 0) {
		v->launch_op.done = launch_readable;
		loop_poll_in(lp_pager_loop(v->lp), &v->launch_op, v->launch_fd);
		launch_send(v->launch_fd, "pager %d", getpid());
		launch_send(v->launch_fd, "serving");
	} else {
		recall_vcpus(v);
		v->cont_due = cont_is_due(v);
		log_info("serves VM '%s', whose QEMU is pid %d, from here on", v->rd->name, v->state.qemu);
		if (start_monitor(v, false))
			log_err("cannot open QEMU's monitor; nothing can be paged out");
	}
	return lp_pager_run(v->lp);
}

int vm_pager_run(struct run_dir *rd, int launch_fd)
{
	struct vm_pager v = { .rd = rd, .qemu_pidfd = -1, .control_fd = -1, .launch_fd = launch_fd, .started = launch_fd < 0, .io_fd = -1,
			      .plant = { .uffd = -1, .ring_fd = -1 }, .swap = PV_SWAP_NONE };
	int r;

	stay_in_memory();
	r = attach(&v);
	if (r && launch_fd >= 0)
		launch_send(launch_fd, "error the pager cannot attach: %s", log_last_error());
	else if (!r)
		r = serve(&v);
	if (r == -ESRCH)
		r = 0;
	if (!r && launch_fd >= 0 && !v.started)
		launch_send(launch_fd, "error QEMU has ended; its output is in %s", v.state.log ? v.state.log : "the log");
	if (r < 0)
		log_err("the pager gives up%s", launch_fd < 0 || v.started ? "; the guest waits for another one" : "");
	detach(&v);
	return r < 0 ? CMD_FAILED : r;
}
