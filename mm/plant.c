// SPDX-License-Identifier: GPL-2.0-only
/*
 * DOC: planting
 *
 *   we:      block signals, fork ---------------------------------------------- wait, fetch copies by pidfd_getfd(2)
 *   helper:                 \- seize, stop | userfaultfd, mmap, io_uring_setup, munmap | resume -/
 *   target:  ... runs .........................| its main thread stands still |............ runs on, two fds richer
 *
 * The helper is the tracer. It blocks all signals and has left our session, so neither Ctrl-C nor our own death, SIGKILL
 * included, reaches it between changing the target's code and registers and putting them back: it always finishes. If we are gone
 * by then, it also closes what it made. Until the target has stopped nothing is changed, and the helper may die (SIGALRM): the
 * kernel then lets the target go.
 *
 * Only the main thread is stopped, all others run on. libcompel writes a system call instruction over the target's code for that
 * while: we have it written over the vDSO's ELF header, which is executable and which no thread ever executes.
 */
#include "mm/plant.h"

#include <compel/infect.h>
#include <compel/log.h>
#include <errno.h>
#include <fcntl.h>
#include <liburing.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/pidfd.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <unistd.h>

#include "mm/maps.h"
#include "mm/uapi.h"
#include "util/cleanup.h"
#include "util/clock.h"
#include "util/io.h"
#include "util/log.h"
#include "util/process.h"

#define STOP_TIMEOUT_S 10
#define SCRATCH_LEN 4096
#define RING_MAX_ENTRIES 32768 // io_uring's own limit

// What the helper has to tell, in memory shared with it.
struct outcome {
	bool stopped;	  // the target was stopped, and will go on
	bool finished;	  // the helper came to its end
	int err;	  // 0 or -errno
	char failed[32];  // at doing what
	int uffd, ring;	  // fd numbers in the target
	int ring_err;	  // why ring is -1
	uint64_t window_ns;
};

struct injection {
	pid_t pid;
	int (*work)(struct injection *in); // what is done in the stopped target
	const struct mm_plant_opts *opts;  // of a plant
	int target_fd;			   // to be closed
	const char *kind;		   // of it
	uint64_t code; // where a system call instruction may be written for a moment
	pid_t parent;
	struct parasite_ctl *ctl;
	struct outcome *out;
};

static void log_compel(unsigned int level, const char *fmt, va_list ap)
{
	char line[256];

	if (level > COMPEL_LOG_ERROR)
		return;
	vsnprintf(line, sizeof line, fmt, ap);
	line[strcspn(line, "\n")] = 0;
	log_dbg("compel: %s", line);
}

// A system call inside the target: its result, or -errno.
static long call(const struct injection *in, int nr, unsigned long a, unsigned long b, unsigned long c, unsigned long d,
		 unsigned long e)
{
	long ret;

	// A signal that was under way when the target stopped can make the kernel want the call restarted (-512 to -516).
	for (int tries = 0; tries < 5; tries++) {
		if (compel_syscall(in->ctl, nr, &ret, a, b, c, d, e, 0))
			return -EINTR;
		if (ret > -512 || ret < -516)
			return ret;
	}
	return -EINTR;
}

static int failed(struct outcome *out, const char *what, long err)
{
	snprintf(out->failed, sizeof out->failed, "%s", what);
	out->err = (int)err;
	return out->err;
}

static long make_ring(struct injection *in, unsigned long scratch)
{
	struct io_uring_params params = { .flags = IORING_SETUP_SQPOLL, .sq_thread_idle = in->opts->sq_idle_ms };
	struct iovec ours = { &params, sizeof params }, theirs = { (void *)scratch, sizeof params };

	if (process_vm_writev(in->pid, &ours, 1, &theirs, 1, 0) != (ssize_t)sizeof params)
		return -EFAULT;
	return call(in, SYS_io_uring_setup, in->opts->ring_entries, scratch, 0, 0, 0);
}

static long add_ring(struct injection *in)
{
	long ring, scratch = call(in, SYS_mmap, 0, SCRATCH_LEN, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, (unsigned long)-1);

	if (scratch < 0 && scratch > -4096)
		return scratch;
	ring = make_ring(in, (unsigned long)scratch);
	call(in, SYS_munmap, (unsigned long)scratch, SCRATCH_LEN, 0, 0, 0);
	return ring;
}

// Both descriptors, or nothing, are left in the stopped target.
static int inject(struct injection *in)
{
	const unsigned long flags = O_CLOEXEC | O_NONBLOCK;
	struct outcome *out = in->out;
	long uffd, ring = -1;

	if (in->opts->target_uffd_dev >= 0)
		uffd = call(in, SYS_ioctl, (unsigned long)in->opts->target_uffd_dev, USERFAULTFD_IOC_NEW, flags, 0, 0);
	else
		uffd = call(in, SYS_userfaultfd, flags, 0, 0, 0, 0);
	if (uffd < 0)
		return failed(out, "making a userfaultfd", uffd);
	if (in->opts->ring_entries)
		ring = add_ring(in);
	out->uffd = (int)uffd;
	out->ring = ring < 0 ? -1 : (int)ring;
	out->ring_err = in->opts->ring_entries && ring < 0 ? (int)ring : 0;
	if (getppid() == in->parent)
		return 0;
	call(in, SYS_close, (unsigned long)uffd, 0, 0, 0, 0);
	if (ring >= 0)
		call(in, SYS_close, (unsigned long)ring, 0, 0, 0, 0);
	return failed(out, "reporting", -ECANCELED);
}

// The number may belong to something else by now: looked at as late as can be.
static int extract(struct injection *in)
{
	char path[48], link[64] = "";
	long ret;

	snprintf(path, sizeof path, "/proc/%d/fd/%d", in->pid, in->target_fd);
	if (readlink(path, link, sizeof link - 1) < 0 || strcmp(link, in->kind))
		return failed(in->out, "finding what to close", -EBADF);
	ret = call(in, SYS_close, (unsigned long)in->target_fd, 0, 0, 0, 0);
	return ret ? failed(in->out, "closing a descriptor", ret) : 0;
}

static void helper(struct injection *in)
{
	struct outcome *out = in->out;
	uint64_t begin;
	sigset_t alarm_only;
	int state;

	setsid();
	compel_log_init(log_compel, COMPEL_LOG_ERROR);
	sigemptyset(&alarm_only);
	sigaddset(&alarm_only, SIGALRM);
	signal(SIGALRM, SIG_DFL);
	alarm(STOP_TIMEOUT_S);
	sigprocmask(SIG_UNBLOCK, &alarm_only, NULL);
	begin = clock_now_ns();
	state = compel_stop_task(in->pid);
	sigprocmask(SIG_BLOCK, &alarm_only, NULL);
	if (state != COMPEL_TASK_ALIVE && state != COMPEL_TASK_STOPPED) {
		failed(out, "stopping it", -ESRCH); // the parent finds out why
		return;
	}
	out->stopped = true;
	in->ctl = compel_prepare_noctx(in->pid);
	if (!in->ctl)
		failed(out, "reading its registers", -EIO);
	else if (!compel_mode_native(in->ctl))
		failed(out, "looking at its code (32-bit?)", -ENOEXEC);
	else {
		compel_infect_ctx(in->ctl)->syscall_ip = in->code;
		in->work(in);
	}
	if (compel_resume_task(in->pid, state, state) && !out->err)
		failed(out, "letting it go on", -ESRCH);
	out->window_ns = clock_now_ns() - begin;
	out->finished = true;
}

// Runs the helper and waits for its end.
static int run_helper(struct injection *in)
{
	sigset_t all, before;
	pid_t child;
	int status, ret;

	sigfillset(&all);
	sigprocmask(SIG_BLOCK, &all, &before);
	in->parent = getpid();
	child = fork();
	ret = -errno;
	if (!child) {
		helper(in);
		_exit(0);
	}
	sigprocmask(SIG_SETMASK, &before, NULL);
	if (child < 0)
		return ret;
	while (waitpid(child, &status, 0) < 0 && errno == EINTR)
		;
	return 0;
}

static uint64_t status_number(pid_t pid, const char *key)
{
	_cleanup_free_ char *text = NULL;
	char path[32], *at;
	size_t len;

	snprintf(path, sizeof path, "/proc/%d/status", pid);
	if (io_read_file(path, 1 << 20, &text, &len) || !(at = strstr(text, key)))
		return 0;
	return strtoull(at + strlen(key), NULL, 10);
}

static int has_ended(pid_t pid)
{
	log_err("process %d: there is none, or it has ended", pid);
	return -ESRCH;
}

// Says why there is no plant; the errno it comes down to.
static int explain(const struct injection *in)
{
	const struct outcome *out = in->out;

	if (!out->finished && !out->stopped && !out->err) {
		log_err("process %d: its main thread did not stop within %d s; it may be waiting for a disk or a page, try again", in->pid,
			STOP_TIMEOUT_S);
		return -ETIMEDOUT;
	}
	if (!out->stopped) {
		uint64_t tracer = status_number(in->pid, "\nTracerPid:");

		if (process_is_ending(in->pid))
			return has_ended(in->pid);
		if (tracer) {
			log_err("process %d is being traced by process %llu (a debugger, strace?): detach that first", in->pid,
				(unsigned long long)tracer);
			return -EBUSY;
		}
		log_err("process %d cannot be stopped: this needs root, or CAP_SYS_PTRACE", in->pid);
		return -EPERM;
	}
	if (!out->finished && !out->err) {
		log_err("process %d: the injecting helper was killed at work; look whether the process still runs", in->pid);
		return -EIO;
	}
	if (out->err == -EPERM && in->opts && in->opts->target_uffd_dev < 0)
		log_err("process %d may not use userfaultfd(2): it does not run as root. Hand it an opened /dev/userfaultfd, "
			"or set vm.unprivileged_userfaultfd=1", in->pid);
	else
		log_err("process %d: %s: %s", in->pid, out->failed, strerror(-out->err));
	return out->err;
}

static int find_vdso(pid_t pid, uint64_t *addr)
{
	_cleanup_free_ struct mm_vma *v = NULL;
	size_t nr;
	int ret = mm_maps_read(pid, &v, &nr);

	if (ret)
		return ret;
	for (size_t i = 0; i < nr; i++)
		if (!strcmp(v[i].name, "[vdso]")) {
			*addr = v[i].start;
			return 0;
		}
	if (process_is_ending(pid))
		return has_ended(pid);
	log_err("process %d has no vDSO: the kernel was booted with vdso=0?", pid);
	return -ENOEXEC;
}

// in->out is good until end_injection(), whatever is returned.
static int run_injection(struct injection *in)
{
	int ret = find_vdso(in->pid, &in->code);

	if (ret)
		return ret;
	in->out = mmap(NULL, sizeof *in->out, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	if (in->out == MAP_FAILED) {
		in->out = NULL;
		return -ENOMEM;
	}
	ret = run_helper(in);
	return !ret && (!in->out->finished || in->out->err) ? explain(in) : ret;
}

static void end_injection(struct injection *in)
{
	if (in->out)
		munmap(in->out, sizeof *in->out);
}

int mm_plant(pid_t pid, const struct mm_plant_opts *o, struct mm_plant *p)
{
	struct injection in = { .pid = pid, .work = inject, .opts = o };
	int ret;

	*p = (struct mm_plant){ .uffd = -1, .ring_fd = -1 };
	if (o->ring_entries > RING_MAX_ENTRIES || (o->ring_entries && !o->sq_idle_ms)) {
		log_err("planting: %u entries, idle after %u ms: no such ring", o->ring_entries, o->sq_idle_ms);
		return -EINVAL;
	}
	ret = run_injection(&in);
	if (!ret) {
		if (in.out->ring_err)
			log_warn("process %d cannot have an io_uring (%s); see kernel.io_uring_disabled", pid, strerror(-in.out->ring_err));
		log_info("planted in process %d, its main thread stood still for %.2f ms", pid,
			 (double)in.out->window_ns / NSEC_PER_MSEC);
		ret = mm_plant_fetch(pid, in.out->uffd, in.out->ring, o->ring_entries, p);
		p->window_ns = in.out->window_ns;
	}
	end_injection(&in);
	return ret;
}

int mm_plant_remove(pid_t pid, int target_fd, const char *kind)
{
	struct injection in = { .pid = pid, .work = extract, .target_fd = target_fd, .kind = kind };
	int ret = run_injection(&in);

	end_injection(&in);
	return ret;
}

int mm_fetch_fd(pid_t pid, int target_fd, const char *kind, int *fd)
{
	_cleanup_close_ int pidfd = pidfd_open(pid, 0), got = -1;
	char path[32], link[64] = "";
	int ret = 0;

	if (pidfd < 0 || (got = pidfd_getfd(pidfd, target_fd, 0)) < 0)
		ret = -errno;
	if (!ret) {
		snprintf(path, sizeof path, "/proc/self/fd/%d", got);
		if (readlink(path, link, sizeof link - 1) < 0)
			ret = -errno;
		else if (strcmp(link, kind))
			ret = -EBADF;
	}
	if (ret) {
		log_err("process %d: cannot fetch its descriptor %d, %s: %s%s", pid, target_fd, kind, strerror(-ret),
			ret == -EBADF ? ": the process was not planted, or is another one" : "");
		return ret;
	}
	*fd = steal_fd(&got);
	return 0;
}

// Where things lie in a ring depends on the kernel and the number of entries only: a short-lived ring of ours tells.
// *params is zero.
static int ring_params(unsigned entries, struct io_uring_params *params)
{
	_cleanup_close_ int fd = io_uring_setup(entries, params);

	if (fd < 0) {
		log_err("cannot make an io_uring of %u entries: %s", entries, strerror(-fd));
		return fd;
	}
	params->flags |= IORING_SETUP_SQPOLL;
	return 0;
}

int mm_plant_fetch(pid_t pid, int target_uffd, int target_ring, unsigned ring_entries, struct mm_plant *p)
{
	int ret;

	*p = (struct mm_plant){ .uffd = -1, .ring_fd = -1, .target_uffd = target_uffd, .target_ring = target_ring };
	ret = mm_fetch_fd(pid, target_uffd, "anon_inode:[userfaultfd]", &p->uffd);
	if (!ret && target_ring >= 0)
		ret = mm_fetch_fd(pid, target_ring, "anon_inode:[io_uring]", &p->ring_fd);
	if (!ret && target_ring >= 0)
		ret = ring_params(ring_entries, &p->ring);
	if (ret)
		mm_plant_fini(p);
	return ret;
}

void mm_plant_fini(struct mm_plant *p)
{
	if (!p)
		return;
	if (p->uffd >= 0)
		close(p->uffd);
	if (p->ring_fd >= 0)
		close(p->ring_fd);
	p->uffd = p->ring_fd = -1;
}
