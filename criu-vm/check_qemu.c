// SPDX-License-Identifier: GPL-2.0-only
// A QEMU without a machine is started for a moment, and asked over QMP what it is and what it can do.
#include <errno.h>
#include <fcntl.h>
#include <jansson.h>
#include <limits.h>
#include <linux/kvm.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include "criu-vm/check.h"
#include "util/cleanup.h"
#include "util/clock.h"
#include "util/size.h"

#define ANSWER_TIMEOUT_MS 10000
#define OUTPUT_MAX MiB
#define QUESTIONS "{\"execute\":\"qmp_capabilities\"}\n{\"execute\":\"query-commands\"}\n{\"execute\":\"quit\"}\n"

static bool executable(const char *dir, size_t dir_len, const char *name, char out[PATH_MAX])
{
	snprintf(out, PATH_MAX, "%.*s%s%s", (int)dir_len, dir, dir_len ? "/" : "", name);
	return !access(out, X_OK);
}

// As a shell would find it.
static bool find_program(const char *name, char out[PATH_MAX])
{
	const char *path = getenv("PATH");

	if (strchr(name, '/'))
		return executable("", 0, name, out);
	for (const char *p = path ? path : "/usr/bin:/bin"; *p; p += *p == ':') {
		size_t len = strcspn(p, ":");

		if (len && executable(p, len, name, out))
			return true;
		p += len;
	}
	return false;
}

static void become_qemu(const char *path, int line, pid_t parent)
{
	int null = open("/dev/null", O_WRONLY);

	prctl(PR_SET_PDEATHSIG, SIGKILL);
	if (getppid() != parent || null < 0 || dup2(line, 0) < 0 || dup2(line, 1) < 0 || dup2(null, 2) < 0)
		_exit(127);
	execl(path, path, "-nodefaults", "-no-user-config", "-machine", "none", "-display", "none", "-S", "-qmp", "stdio", (char *)NULL);
	_exit(127);
}

// All that QEMU says until it ends; *text is the caller's. -ETIMEDOUT, -EFBIG.
static int listen_to(int line, char **text)
{
	const uint64_t end = clock_now_ns() + ANSWER_TIMEOUT_MS * NSEC_PER_MSEC;
	_cleanup_free_ char *buf = malloc(OUTPUT_MAX);
	size_t have = 0;

	if (!buf)
		return -ENOMEM;
	for (;;) {
		struct pollfd p = { .fd = line, .events = POLLIN };
		uint64_t now = clock_now_ns();
		ssize_t n;

		if (now >= end || poll(&p, 1, (int)((end - now) / NSEC_PER_MSEC) + 1) == 0)
			return -ETIMEDOUT;
		n = read(line, buf + have, OUTPUT_MAX - 1 - have);
		if (n < 0 && errno == EINTR)
			continue;
		if (n <= 0)
			break;
		have += (size_t)n;
		if (have == OUTPUT_MAX - 1)
			return -EFBIG;
	}
	buf[have] = 0;
	*text = steal_ptr(&buf);
	return 0;
}

static int interview(const char *path, char **text)
{
	int lines[2], r;
	pid_t parent = getpid(), pid;

	if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, lines))
		return -errno;
	pid = fork();
	if (!pid)
		become_qemu(path, lines[1], parent);
	r = pid < 0 ? -errno : 0;
	close(lines[1]);
	if (!r && send(lines[0], QUESTIONS, strlen(QUESTIONS), MSG_NOSIGNAL) < 0)
		r = -EPIPE;
	if (!r)
		r = listen_to(lines[0], text);
	close(lines[0]);
	if (pid > 0) {
		kill(pid, SIGKILL);
		waitpid(pid, NULL, 0);
	}
	return r;
}

// What a dump and a restore send.
static const char *const needed[] = { "xen-save-devices-state", "migrate-incoming", "transaction", "getfd",
				      "human-monitor-command", "query-named-block-nodes", "query-cpus-fast", "announce-self" };

struct qemu_facts {
	int major, minor, micro;
	bool has[ARRAY_SIZE(needed)];
};

static void take_message(struct qemu_facts *q, const json_t *msg)
{
	const json_t *version = json_object_get(json_object_get(json_object_get(msg, "QMP"), "version"), "qemu");
	const json_t *list = json_object_get(msg, "return");
	const json_t *command;
	size_t i;

	if (version) {
		q->major = (int)json_integer_value(json_object_get(version, "major"));
		q->minor = (int)json_integer_value(json_object_get(version, "minor"));
		q->micro = (int)json_integer_value(json_object_get(version, "micro"));
	}
	json_array_foreach(list, i, command) {
		const char *name = json_string_value(json_object_get(command, "name"));

		for (size_t k = 0; name && k < ARRAY_SIZE(needed); k++)
			q->has[k] |= !strcmp(name, needed[k]);
	}
}

static void understand(char *text, struct qemu_facts *q)
{
	char *save;

	*q = (struct qemu_facts){ 0 };
	for (char *line = strtok_r(text, "\n", &save); line; line = strtok_r(NULL, "\n", &save)) {
		json_t *msg = json_loads(line, 0, NULL);

		take_message(q, msg);
		json_decref(msg);
	}
}

static bool judge(const char *path, const struct qemu_facts *q, struct check_answer *a)
{
	const int version = q->major * 100 + q->minor;

	if (!q->major) {
		check_found(a, "%s does not answer over QMP: is it a QEMU?", path);
		return false;
	}
	for (size_t k = 0; k < ARRAY_SIZE(needed); k++)
		if (!q->has[k]) {
			check_found(a, "%s, version %d.%d.%d, has no %s", path, q->major, q->minor, q->micro, needed[k]);
			return false;
		}
	check_found(a, "%s, version %d.%d.%d%s", path, q->major, q->minor, q->micro,
		    version < 702 || q->major > 10 ? ", which criu-vm was never tried with" : "");
	return true;
}

bool check_qemu(struct check_ctx *c, const struct check_item *item, struct check_answer *a)
{
	const char *given = getenv("QEMU");
	const char *name = given && *given ? given : "qemu-system-x86_64";
	_cleanup_free_ char *text = NULL;
	struct qemu_facts q;
	char path[PATH_MAX];
	int r;

	(void)c;
	(void)item;
	if (!find_program(name, path)) {
		check_found(a, "there is no %s%s", name, strchr(name, '/') ? "" : " in $PATH");
		return false;
	}
	r = interview(path, &text);
	if (r) {
		check_found(a, "%s does not answer over QMP: %s", path, strerror(-r));
		return false;
	}
	understand(text, &q);
	return judge(path, &q, a);
}

bool check_kvm(struct check_ctx *c, const struct check_item *item, struct check_answer *a)
{
	_cleanup_close_ int kvm = open("/dev/kvm", O_RDWR | O_CLOEXEC);
	_cleanup_close_ int vm = -1;

	(void)c;
	(void)item;
	if (kvm >= 0 && ioctl(kvm, KVM_GET_API_VERSION, 0) == KVM_API_VERSION)
		vm = ioctl(kvm, KVM_CREATE_VM, 0);
	if (vm >= 0)
		return true;
	check_found(a, "/dev/kvm: %s", strerror(errno));
	return false;
}
