// SPDX-License-Identifier: GPL-2.0-only
#include "util/process.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include "util/cleanup.h"
#include "util/io.h"
#include "util/log.h"
#include "util/size.h"

#define REAP_TRIES 20
#define REAP_WAIT_US 10000

#define STAT_MAX 1024
#define PF_EXITING 0x4 // of the kernel's include/linux/sched.h

// What follows the name, which may have anything in it; NULL: there is no such process.
static const char *read_stat(pid_t pid, char line[STAT_MAX])
{
	_cleanup_fclose_ FILE *f = NULL;
	const char *p;
	char path[40];

	snprintf(path, sizeof path, "/proc/%d/stat", pid);
	f = fopen(path, "re");
	p = f && fgets(line, STAT_MAX, f) ? strrchr(line, ')') : NULL;
	return p ? p + 1 : NULL;
}

uint64_t process_start(pid_t pid)
{
	char line[STAT_MAX];
	const char *rest = read_stat(pid, line);
	unsigned long long start = 0;

	// Field 22.
	if (!rest || sscanf(rest, " %*c %*d %*d %*d %*d %*d %*u %*u %*u %*u %*u %*u %*u %*d %*d %*d %*d %*d %*d %llu", &start) != 1)
		return 0;
	return start;
}

char process_state(pid_t pid)
{
	char line[STAT_MAX], state = 0;
	const char *rest = read_stat(pid, line);

	return rest && sscanf(rest, " %c", &state) == 1 ? state : 0;
}

bool process_is_stopped(pid_t pid)
{
	char state = process_state(pid);

	return state == 'T' || state == 't';
}

// The one that is being killed has the signal pending, until it begins to exit.
static bool is_being_killed(pid_t pid)
{
	static const char *const keys[] = { "\nSigPnd:", "\nShdPnd:" };
	_cleanup_free_ char *text = NULL;
	char path[40];
	size_t len;

	snprintf(path, sizeof path, "/proc/%d/status", pid);
	if (io_read_file(path, MiB, &text, &len))
		return true;
	for (size_t i = 0; i < ARRAY_SIZE(keys); i++) {
		const char *at = strstr(text, keys[i]);

		if (at && strtoull(at + strlen(keys[i]), NULL, 16) & 1UL << (SIGKILL - 1))
			return true;
	}
	return false;
}

bool process_is_ending(pid_t pid)
{
	bool killed = is_being_killed(pid); // before we see that it does not exit yet
	char line[STAT_MAX], state;
	const char *rest = read_stat(pid, line);
	unsigned flags;

	if (killed || !rest || sscanf(rest, " %c %*d %*d %*d %*d %*d %u", &state, &flags) != 2)
		return true;
	return state == 'Z' || state == 'X' || flags & PF_EXITING;
}

const char *process_how_it_ended(int status, char *buf, size_t size)
{
	if (WIFSIGNALED(status))
		snprintf(buf, size, "killed by signal %d (%s)", WTERMSIG(status), strsignal(WTERMSIG(status)));
	else
		snprintf(buf, size, "exit status %d", WEXITSTATUS(status));
	return buf;
}

// Linux 6.15; from include/uapi/linux/pidfd.h.
struct exit_info {
	uint64_t mask, cgroupid;
	uint32_t pid, tgid, ppid, ids[8];
	int32_t exit_code;
};
#define GET_EXIT_INFO _IOWR(0xFF, 11, struct exit_info)
#define INFO_EXIT (1UL << 3)

int process_exit_status(int pidfd)
{
	for (unsigned i = 0; i < REAP_TRIES; i++) {
		struct exit_info info = { .mask = INFO_EXIT };

		if (!ioctl(pidfd, GET_EXIT_INFO, &info) && info.mask & INFO_EXIT)
			return info.exit_code;
		usleep(REAP_WAIT_US);
	}
	return -1;
}

void process_spare_from_oom(void)
{
	_cleanup_close_ int fd = open("/proc/self/oom_score_adj", O_WRONLY | O_CLOEXEC);

	if (fd < 0 || io_write_full(fd, "-1000", 5))
		log_warn("when memory is short the kernel may kill this process: %s (CAP_SYS_RESOURCE is needed)", strerror(errno));
}

int host_memory_available(uint64_t *bytes)
{
	static const char key[] = "MemAvailable:";
	_cleanup_free_ char *text = NULL;
	size_t len;
	int r = io_read_file("/proc/meminfo", MiB, &text, &len);
	const char *at = r ? NULL : strstr(text, key);

	if (!r && !at)
		r = -ENODATA;
	if (!r)
		*bytes = strtoull(at + strlen(key), NULL, 10) * KiB;
	return r;
}
