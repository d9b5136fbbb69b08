// SPDX-License-Identifier: GPL-2.0-only
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "criu-vm/cmd.h"
#include "criu-vm/source.h"
#include "qemu/freeze.h"
#include "util/cleanup.h"
#include "util/clock.h"
#include "util/log.h"
#include "util/process.h"

#define FREEZE_TIMEOUT_MS 5000
#define KILL_TIMEOUT_NS (30 * NSEC_PER_SEC)
#define KILL_POLL_MS 1000
#define ENDING_MS 2000
#define GO_ON_TIMEOUT_MS 120000
#define GUARDIAN_ID "criu-vm-guardian"
#define STANDSTILL_NICE (-20) // each of its many steps would wait for a CPU

// What else it had open would live as long as it does: the protection of guest RAM, locks, a stream.
static void keep_only(int a, int b)
{
	unsigned lower = (unsigned)(a < b ? a : b), upper = (unsigned)(a < b ? b : a);

	if (lower > 3)
		close_range(3, lower - 1, 0);
	if (upper > lower + 1)
		close_range(lower + 1, upper - 1, 0);
	close_range(upper + 1, ~0U, 0);
}

// Of standard output and error too: a pipe that we write to ends with us.
static void let_go_of_output(void)
{
	int null = open("/dev/null", O_RDWR | O_CLOEXEC);

	for (int fd = 0; fd < 3; fd++)
		dup2(null, fd);
}

// What QEMU says until it has answered that command, which it forgets if its client goes before; the killed command's answers may come first.
static int wait_for_answer(int monitor_fd)
{
	uint64_t end = clock_now_ns() + GO_ON_TIMEOUT_MS * NSEC_PER_MSEC;
	char text[8192];
	size_t len = 0;

	while (clock_now_ns() < end) {
		struct pollfd p = { .fd = monitor_fd, .events = POLLIN };
		char *line = text, *next;
		ssize_t n;

		if (poll(&p, 1, KILL_POLL_MS) <= 0)
			continue;
		n = read(monitor_fd, text + len, sizeof text - 1 - len);
		if (n <= 0)
			return n ? -errno : -EPIPE;
		text[len += (size_t)n] = 0;
		for (; (next = strchr(line, '\n')); line = next + 1) {
			*next = 0;
			if (strstr(line, GUARDIAN_ID))
				return strstr(line, "\"error\"") ? -EREMOTEIO : 0;
		}
		len = strlen(line) < sizeof text / 2 ? strlen(line) : 0; // a line that long is another one's
		memmove(text, line, len);
	}
	return -ETIMEDOUT;
}

int source_say_cont(int monitor_fd)
{
	static const char cont[] = "\n{\"execute\":\"cont\",\"id\":\"" GUARDIAN_ID "\"}\n";
	int flags = fcntl(monitor_fd, F_GETFL);

	if (flags < 0 || fcntl(monitor_fd, F_SETFL, flags & ~O_NONBLOCK) < 0 || write(monitor_fd, cont, sizeof cont - 1) != (ssize_t)sizeof cont - 1)
		return -errno;
	return wait_for_answer(monitor_fd);
}

static void __attribute__((noreturn)) be_guardian(struct source *s, int line)
{
	char word = 0, next;
	ssize_t n;

	setsid();
	cmd_ignore_signals();
	let_go_of_output();
	keep_only(line, qmp_fd(s->vm->qmp));
	while ((n = read(line, &next, 1)) == 1 && next)
		word = next;
	if (!n)
		s->orphan(s->ctx, word);
	_exit(0);
}

// A process that outlives us, also when we are killed: if the line to it is cut without a word, it lets the VM run on.
// It shares our connection to the monitor, since QEMU serves one.
static int start_guardian(struct source *s)
{
	int line[2];

	if (pipe2(line, O_CLOEXEC) < 0)
		return -errno;
	s->guardian = fork();
	if (!s->guardian)
		be_guardian(s, line[0]);
	close(line[0]);
	s->guardian_fd = line[1];
	return s->guardian < 0 ? -errno : 0;
}

void source_tell_guardian(struct source *s, char word)
{
	if (s->guardian > 0 && write(s->guardian_fd, &word, 1) != 1)
		log_warn("the process that watches over QEMU %d has gone", s->vm->pid);
}

void source_dismiss_guardian(struct source *s)
{
	if (s->guardian <= 0)
		return;
	if (write(s->guardian_fd, "", 1) == 1)
		waitpid(s->guardian, NULL, 0);
	close(s->guardian_fd);
	s->guardian = 0;
}

bool source_has_ended(const struct source *s)
{
	struct pollfd p = { .fd = s->vm ? s->vm->pidfd : -1, .events = POLLIN };

	return s->vm && (poll(&p, 1, 0) == 1 || (process_is_ending(s->vm->pid) && poll(&p, 1, ENDING_MS) == 1));
}

// QEMU may be busy, with a slow disk for example; a VM that ran is not left behind before it runs.
int source_go_on(struct source *s)
{
	int r = 0;

	if (!s->standing)
		return 0;
	source_thaw(s);
	qmp_set_timeout(s->vm->qmp, GO_ON_TIMEOUT_MS);
	if (s->was_running)
		r = qmp_call(s->vm->qmp, "cont", NULL, NULL);
	s->stopped_ns = clock_now_ns() - s->stopped_at_ns;
	if (r && !source_has_ended(s)) {
		s->stuck = true;
		log_err("the VM, QEMU %d, is still stopped; say 'cont' to its monitor", s->vm->pid);
	}
	s->standing = false;
	if (s->short_stop)
		setpriority(PRIO_PROCESS, 0, s->nice);
	source_dismiss_guardian(s);
	return r;
}

static int run_state(struct source *s, char *state, size_t size)
{
	json_t *status = NULL;
	const char *text;
	int r = qmp_call(s->vm->qmp, "query-status", NULL, &status);

	text = json_string_value(json_object_get(status, "status"));
	snprintf(state, size, "%s", text ? text : "?");
	json_decref(status);
	return r;
}

// What happened before the standstill is no business of still_stopped().
static void forget_events(struct source *s)
{
	struct qmp_msg m;

	while (!qmp_receive(s->vm->qmp, &m))
		qmp_msg_fini(&m);
}

int source_stop(struct source *s)
{
	char state[32];
	int r = run_state(s, state, sizeof state);

	if (r)
		return r;
	s->was_running = !strcmp(state, "running"); // not what it was at first: that may be seconds ago
	if (!s->was_running && strcmp(state, "paused") && strcmp(state, "prelaunch")) {
		log_err("QEMU %d is '%s' by now; nothing was %s", s->vm->pid, state, s->taken);
		return -EAGAIN;
	}
	forget_events(s);
	r = start_guardian(s);
	if (r) {
		log_err("cannot fork: %s", strerror(-r));
		return r;
	}
	s->nice = getpriority(PRIO_PROCESS, 0);
	if (s->short_stop)
		setpriority(PRIO_PROCESS, 0, STANDSTILL_NICE);
	s->standing = true;
	s->stopped_at_ns = clock_now_ns();
	r = qmp_call(s->vm->qmp, "stop", NULL, NULL);
	if (!r)
		r = run_state(s, state, sizeof state);
	if (!r && s->was_running && strcmp(state, "paused")) {
		log_err("QEMU %d is '%s' instead of stopped: the guest ended, or something went wrong in it, just now", s->vm->pid, state);
		s->was_running = false; // cont would not be right
		r = -EAGAIN;
	}
	if (r)
		source_go_on(s);
	return r;
}

// Between its device state and the standstill of its process nobody may have let it run.
static int still_stopped(struct source *s)
{
	struct qmp_msg m;
	int r = 0;

	while (!qmp_receive(s->vm->qmp, &m)) {
		if (m.kind == QMP_EVENT && !strcmp(m.text, "RESUME"))
			r = -EBUSY;
		qmp_msg_fini(&m);
	}
	if (r)
		log_err("somebody let QEMU %d run just now; nothing was %s", s->vm->pid, s->taken);
	return r;
}

int source_freeze(struct source *s)
{
	uint64_t begun = clock_now_ns();
	int r = qemu_freeze(s->vm->pid, FREEZE_TIMEOUT_MS, &s->freezer);

	s->freezing_us = (clock_now_ns() - begun) / 1000;
	if (!r && (r = still_stopped(s)))
		source_thaw(s);
	return r;
}

void source_thaw(struct source *s)
{
	qemu_thaw(steal_ptr(&s->freezer));
}

int source_drain(struct source *s)
{
	return qmp_call(s->vm->qmp, "transaction", json_pack("{s:[]}", "actions"), NULL);
}

// Not by `quit`: nothing of the guest, and no disk image, may change any more.
int source_end(struct source *s)
{
	struct pollfd p = { .fd = s->vm->pidfd, .events = POLLIN };
	uint64_t end = clock_now_ns() + KILL_TIMEOUT_NS;

	if (!syscall(SYS_pidfd_send_signal, s->vm->pidfd, SIGKILL, NULL, 0)) {
		source_thaw(s); // a thread that is traced ends only when it is let go
		while (clock_now_ns() < end) // it is too late for Ctrl-C
			if (poll(&p, 1, KILL_POLL_MS) > 0)
				return 0;
	}
	log_err("the VM is %s, but QEMU %d could not be ended; it is stopped, and must not run on beside the new one", s->taken, s->vm->pid);
	return -ESTALE;
}
