// SPDX-License-Identifier: GPL-2.0-only
#include "criu-vm/launch.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/close_range.h>
#include <poll.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "criu-vm/cmd.h"
#include "util/cleanup.h"
#include "util/clock.h"
#include "util/log.h"
#include "util/user.h"

#define QEMU_END_TIMEOUT_MS 10000

int launch_send(int fd, const char *fmt, ...)
{
	char msg[LAUNCH_MSG_MAX];
	va_list ap;

	va_start(ap, fmt);
	vsnprintf(msg, sizeof msg, fmt, ap);
	va_end(ap);
	return send(fd, msg, strlen(msg), MSG_NOSIGNAL) < 0 ? -errno : 0;
}

int launch_tell(const struct launch *l, const char *msg)
{
	int r = launch_send(l->fd, "%s", msg);

	if (r)
		log_err("the pager ended before the VM ran");
	return r;
}

static int receive(int fd, char msg[LAUNCH_MSG_MAX], int timeout_ms)
{
	struct pollfd p = { .fd = fd, .events = POLLIN };
	ssize_t n;
	int r;

	r = poll(&p, 1, timeout_ms);
	if (r < 0)
		return errno == EINTR ? -EAGAIN : -errno;
	if (!r)
		return -EAGAIN;
	n = recv(fd, msg, LAUNCH_MSG_MAX - 1, 0);
	if (n <= 0)
		return -EPIPE;
	msg[n] = 0;
	return 0;
}

// What the pager says by itself: who it is, or that it cannot go on.
static int take_note(struct launch *l, const char *msg)
{
	if (!strncmp(msg, "error ", 6)) {
		log_err("%s", msg + 6);
		return -EREMOTEIO;
	}
	sscanf(msg, "pager %d", &l->pager);
	return 0;
}

int launch_look(struct launch *l)
{
	char msg[LAUNCH_MSG_MAX];
	int r = receive(l->fd, msg, 0);

	if (r == -EAGAIN)
		return 0;
	if (r)
		log_err("the pager ended before the VM ran");
	return r ? r : take_note(l, msg);
}

int launch_wait(struct launch *l, const char *want, bool interruptible, int timeout_ms)
{
	uint64_t end = clock_now_ns() + (uint64_t)timeout_ms * NSEC_PER_MSEC;
	char msg[LAUNCH_MSG_MAX];

	for (;;) {
		int r = receive(l->fd, msg, 100);

		if (r == -EAGAIN && interruptible && cmd_interrupted()) {
			log_err("interrupted; the new VM is being removed");
			return -EINTR;
		}
		if (r == -EAGAIN && clock_now_ns() < end)
			continue;
		if (r == -EAGAIN) {
			log_err("the pager does not answer in %d s", timeout_ms / 1000);
			return -ETIMEDOUT;
		}
		if (r) {
			log_err("the pager ended before the VM ran");
			return r;
		}
		if (!strcmp(msg, want))
			return 0;
		r = take_note(l, msg);
		if (r)
			return r;
	}
}

static int redirect(const char *log)
{
	_cleanup_close_ int in = open("/dev/null", O_RDONLY | O_CLOEXEC);
	_cleanup_close_ int out = open(log, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);

	if (in < 0 || out < 0 || dup2(in, STDIN_FILENO) < 0 || dup2(out, STDOUT_FILENO) < 0 || dup2(out, STDERR_FILENO) < 0)
		return -errno;
	return 0;
}

static void __attribute__((noreturn)) exec_qemu(const struct launch_opts *o)
{
	int r;

	for (size_t i = 0; i < o->nr_fds; i++)
		fcntl(o->fds[i], F_SETFD, 0);
	cmd_default_signals();
	// Before QEMU's binary, which may be that user's own, runs an instruction.
	r = user_become(o->uid, o->gid);
	if (r) {
		fprintf(stderr, "cannot become user %u, as whom the VM ran: %s\n", o->uid, strerror(-r));
		_exit(127);
	}
	if (chdir(o->cwd) < 0) {
		fprintf(stderr, "cannot enter %s, where the VM was started: %s\n", o->cwd, strerror(errno));
		_exit(127);
	}
	execv(o->argv[0], o->argv);
	fprintf(stderr, "cannot run %s: %s\n", o->argv[0], strerror(errno));
	_exit(127);
}

// In the new process, until it becomes `criu-vm lazy-pages`. fd: its end of the line.
static void __attribute__((noreturn)) be_supervisor(const struct launch_opts *o, int fd)
{
	char launch_fd[12], lock_fd[12], qemu_pid[12], msg[LAUNCH_MSG_MAX];
	char *argv[] = { "criu-vm", "lazy-pages", "--name", (char *)o->name, "--run-dir", (char *)o->root, "--supervise", "--qemu-pid",
			 qemu_pid, "--launch-fd", launch_fd, "--lock-fd", lock_fd, NULL };
	struct run_dir rd = *o->rd;
	pid_t qemu;
	int r;

	setsid();
	cmd_ignore_signals();
	// Nothing of the caller's stays open in the VM: QEMU and the pager get what is named to them.
	close_range(STDERR_FILENO + 1, ~0U, CLOSE_RANGE_CLOEXEC);
	if ((r = redirect(o->log))) {
		launch_send(fd, "error cannot write log %s: %s", o->log, strerror(-r));
		_exit(1);
	}
	log_init(STDERR_FILENO, log_max(), o->name, true);
	qemu = fork();
	if (!qemu)
		exec_qemu(o);
	if (chdir("/") < 0)
		log_warn("cannot leave the folder that the restore was started in: %s", strerror(errno));
	if (qemu > 0)
		launch_send(fd, "qemu %d", qemu);
	else
		launch_send(fd, "error cannot fork: %s", strerror(errno));
	while ((r = receive(fd, msg, -1)) == -EAGAIN)
		;
	if (!r && qemu > 0) {
		snprintf(qemu_pid, sizeof qemu_pid, "%d", qemu);
		snprintf(launch_fd, sizeof launch_fd, "%d", fd);
		snprintf(lock_fd, sizeof lock_fd, "%d", rd.fd);
		fcntl(fd, F_SETFD, 0);
		fcntl(rd.fd, F_SETFD, 0);
		execv("/proc/self/exe", argv);
		launch_send(fd, "error cannot start the supervisor: %s", strerror(errno));
	}
	if (qemu > 0) {
		kill(qemu, SIGKILL);
		waitpid(qemu, NULL, 0);
	}
	if (r) // the restore was killed, or is waiting for our end
		run_dir_destroy(&rd);
	_exit(1);
}

int launch_start(const struct launch_opts *o, struct launch *l)
{
	char msg[LAUNCH_MSG_MAX];
	int pair[2], r;

	*l = LAUNCH_NONE;
	if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair) < 0) {
		r = -errno;
		log_err("cannot make a socket pair: %s", strerror(-r));
		return r;
	}
	l->supervisor = fork();
	if (!l->supervisor) {
		close(pair[0]);
		be_supervisor(o, pair[1]);
	}
	close(pair[1]);
	l->fd = pair[0];
	if (l->supervisor < 0) {
		r = -errno;
		log_err("cannot fork: %s", strerror(-r));
		launch_abort(l);
		return r;
	}
	while ((r = receive(l->fd, msg, 10000)) == -EAGAIN && !cmd_interrupted())
		;
	if (!r && sscanf(msg, "qemu %d", &l->qemu) == 1)
		l->qemu_pidfd = (int)syscall(SYS_pidfd_open, l->qemu, 0);
	if (l->qemu_pidfd >= 0)
		return 0;
	if (cmd_interrupted()) {
		log_err("interrupted; the new VM is being removed");
		r = -EINTR;
	} else {
		log_err("cannot start QEMU: %s", r ? strerror(-r) : msg);
	}
	launch_abort(l);
	return r ? r : -ECHILD;
}

void launch_abort(struct launch *l)
{
	// The supervisor ends it, too, unless it was killed itself; and in any case ends when QEMU has.
	if (l->qemu_pidfd >= 0)
		syscall(SYS_pidfd_send_signal, l->qemu_pidfd, SIGKILL, NULL, 0);
	if (l->fd >= 0)
		close(l->fd);
	if (l->qemu_pidfd >= 0 && !poll(&(struct pollfd){ .fd = l->qemu_pidfd, .events = POLLIN }, 1, QEMU_END_TIMEOUT_MS)) {
		log_err("QEMU, pid %d, was killed and does not end; does it wait for a disk? Its supervisor %d removes the rest when it has",
			l->qemu, l->supervisor);
	} else if (l->supervisor > 0) {
		while (waitpid(l->supervisor, NULL, 0) < 0 && errno == EINTR)
			;
	}
	if (l->qemu_pidfd >= 0)
		close(l->qemu_pidfd);
	*l = LAUNCH_NONE;
}

void launch_done(struct launch *l)
{
	if (l->fd >= 0)
		close(l->fd);
	if (l->qemu_pidfd >= 0)
		close(l->qemu_pidfd);
	*l = LAUNCH_NONE;
}
