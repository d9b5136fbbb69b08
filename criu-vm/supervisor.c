// SPDX-License-Identifier: GPL-2.0-only
#include "criu-vm/supervisor.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <linux/close_range.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include "criu-vm/arrival.h"
#include "criu-vm/cmd.h"
#include "criu-vm/vm_pager.h"
#include "util/cleanup.h"
#include "util/clock.h"
#include "util/io.h"
#include "util/log.h"
#include "util/process.h"

#define MAX_ARGS 16
#define SHORT_LIFE_NS (100 * NSEC_PER_MSEC)
#define FIRST_DELAY_NS (20 * NSEC_PER_MSEC)
#define MAX_DELAY_NS (5 * NSEC_PER_SEC)

struct supervisor {
	const struct run_dir *rd;
	pid_t qemu; // 0: not our child, or reaped
	int qemu_status;
	pid_t pager;
	int launch_fd, lock_fd;
};

// Becomes `criu-vm lazy-pages --name NAME ...` of the binary that the run directory names, or else of our own.
static void exec_self(const struct run_dir *rd, char *const *more)
{
	char *argv[MAX_ARGS] = { "criu-vm", "lazy-pages", "--name", rd->name, "--run-dir", rd->root };
	_cleanup_free_ char *exe = NULL;
	char path[PATH_MAX];
	size_t len;

	for (unsigned i = 0, n = 6; more[i] && n < MAX_ARGS - 1; i++)
		argv[n++] = more[i];
	if (!io_read_file(run_dir_file(rd, "exe", path, sizeof path), PATH_MAX, &exe, &len))
		execv(exe, argv);
	execv("/proc/self/exe", argv);
	log_err("cannot start criu-vm: %s", strerror(errno));
}

static pid_t start_pager(const struct supervisor *s)
{
	pid_t pid = fork();
	char launch_fd[12], lock_fd[12];
	char *first[] = { "--serve", "--launch-fd", launch_fd, "--lock-fd", lock_fd, NULL };

	if (pid)
		return pid;
	snprintf(launch_fd, sizeof launch_fd, "%d", s->launch_fd);
	snprintf(lock_fd, sizeof lock_fd, "%d", s->lock_fd);
	if (s->launch_fd < 0)
		first[1] = NULL;
	exec_self(s->rd, first);
	_exit(CMD_FAILED);
}

static void close_first(struct supervisor *s)
{
	if (s->launch_fd >= 0)
		close(s->launch_fd);
	if (s->lock_fd >= 0)
		close(s->lock_fd);
	s->launch_fd = s->lock_fd = -1;
}

// Waits for the pager, and reaps QEMU if it ends. Returns the pager's status.
static int wait_for_pager(struct supervisor *s)
{
	for (;;) {
		int status;
		pid_t pid = waitpid(-1, &status, 0);

		if (pid == s->pager)
			return status;
		if (pid < 0 && errno != EINTR)
			return 0; // not known to happen
		if (pid == s->qemu) {
			s->qemu_status = status;
			s->qemu = 0;
		}
	}
}

static void reap_qemu(struct supervisor *s)
{
	while (s->qemu && waitpid(s->qemu, &s->qemu_status, 0) < 0 && errno == EINTR)
		;
	s->qemu = 0;
}

static void serve_always(struct supervisor *s)
{
	uint64_t delay = 0;

	for (;;) {
		uint64_t begun = clock_now_ns();
		char how[80];
		int status;

		s->pager = start_pager(s);
		close_first(s);
		status = s->pager > 0 ? wait_for_pager(s) : 0;
		if (s->pager > 0 && WIFEXITED(status) && WEXITSTATUS(status) == CMD_OK)
			return;
		// The restore was given up, or came to nothing. Who could make it this host's has ended.
		if (!run_dir_has(s->rd, "running") && !arrival_is_committed(s->rd)) {
			if (s->qemu)
				kill(s->qemu, SIGKILL); // our child: the pid cannot be another's
			return;
		}
		if (s->pager > 0 && WIFEXITED(status) && WEXITSTATUS(status) == VM_PAGER_REPLACED)
			continue;
		delay = clock_now_ns() - begun > SHORT_LIFE_NS ? 0 : !delay ? FIRST_DELAY_NS : delay * 2 < MAX_DELAY_NS ? delay * 2 : MAX_DELAY_NS;
		log_warn("the pager has ended (%s); starting another%s",
			 s->pager > 0 ? process_how_it_ended(status, how, sizeof how) : "it could not be started", delay >= MAX_DELAY_NS ? " after 5 s" : "");
		usleep((useconds_t)(delay / 1000));
	}
}

int supervisor_run(const struct run_dir *rd, pid_t qemu, int launch_fd, int lock_fd)
{
	struct supervisor s = { .rd = rd, .qemu = qemu, .qemu_status = -1, .launch_fd = launch_fd, .lock_fd = lock_fd };
	char status[12], fd[12], *bury[] = { "--bury", status, "--lock-fd", fd, NULL };
	int held = run_dir_hold(rd, "supervisor");

	if (held < 0) {
		log_err("VM '%s' has a supervisor already, or %s cannot be written: %s", rd->name, rd->path, strerror(-held));
		return CMD_FAILED;
	}
	if (mlockall(MCL_CURRENT | MCL_FUTURE | MCL_ONFAULT) < 0)
		log_warn("cannot lock the supervisor in memory: %s", strerror(errno));
	process_spare_from_oom();
	serve_always(&s);
	reap_qemu(&s);
	// Whoever wants the name waits until all is removed.
	flock(rd->fd, LOCK_EX);
	fcntl(rd->fd, F_SETFD, 0);
	snprintf(status, sizeof status, "%d", s.qemu_status);
	snprintf(fd, sizeof fd, "%d", rd->fd);
	exec_self(rd, bury);
	return CMD_FAILED;
}

static void __attribute__((noreturn)) be_supervisor(const struct run_dir *rd, const struct vm_state *s)
{
	_cleanup_close_ int in = open("/dev/null", O_RDONLY | O_CLOEXEC);
	_cleanup_close_ int out = s->log ? open(s->log, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600) : -1;
	char *more[] = { "--supervise", NULL };

	setsid();
	cmd_ignore_signals();
	cgroup_enter(&s->cgroup, 0); // out of the one of who has called us
	dup2(in, STDIN_FILENO);
	dup2(out >= 0 ? out : in, STDOUT_FILENO);
	dup2(out >= 0 ? out : in, STDERR_FILENO);
	close_range(STDERR_FILENO + 1, ~0U, CLOSE_RANGE_CLOEXEC);
	if (chdir("/") == 0)
		exec_self(rd, more);
	_exit(CMD_FAILED);
}

int supervisor_start(const struct run_dir *rd, const struct vm_state *s)
{
	pid_t pid = fork();
	int status, r;

	if (!pid) { // and once more: it is nobody's child whom we started
		if (fork() == 0)
			be_supervisor(rd, s);
		_exit(0);
	}
	if (pid > 0 && waitpid(pid, &status, 0) == pid)
		return 0;
	r = -errno;
	log_err("cannot start a supervisor for VM '%s': %s", rd->name, strerror(-r));
	return r;
}

int supervisor_bury(struct run_dir *rd, int status)
{
	_cleanup_free_ char *reason = NULL, *seen = NULL;
	char path[PATH_MAX], how[80];
	struct vm_state s;
	bool alive;
	size_t len;

	vm_state_load(rd, &s);
	alive = vm_state_qemu_alive(&s, NULL);
	vm_state_fini(&s);
	if (alive) { // whatever made somebody think otherwise
		log_err("QEMU has not ended; its VM is left as it is");
		return CMD_ATTENTION;
	}
	if (io_read_file(run_dir_file(rd, "reason", path, sizeof path), PATH_MAX, &reason, &len))
		reason = NULL;
	if (status < 0 && !io_read_file(run_dir_file(rd, "status", path, sizeof path), PATH_MAX, &seen, &len))
		status = atoi(seen);
	if (run_dir_has(rd, "running"))
		log_warn("ended: %s%s%s", status >= 0 ? process_how_it_ended(status, how, sizeof how) : "how is not known, QEMU was not its supervisor's child",
			 reason ? ", " : "", reason ? reason : "");
	run_dir_destroy(rd);
	return CMD_OK;
}
