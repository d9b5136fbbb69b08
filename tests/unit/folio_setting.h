// SPDX-License-Identifier: GPL-2.0-only
// Switches folios of 1 MiB on for as long as a test runs, and back to what the host had when it has ended, however it ends.
#pragma once
#include <fcntl.h>
#include <signal.h>
#include <stdbool.h>
#include <string.h>
#include <sys/file.h>
#include <sys/wait.h>
#include <unistd.h>

#include "pvmem/folio.h"

// The value in brackets.
static inline bool folio_setting_read(int fd, char value[32])
{
	char text[128] = "", *open, *close;
	ssize_t n = pread(fd, text, sizeof text - 1, 0);

	open = n > 0 ? strchr(text, '[') : NULL;
	close = open ? strchr(open, ']') : NULL;
	if (!close || close - open > 31)
		return false;
	*close = 0;
	strcpy(value, open + 1);
	return true;
}

// Ends when nobody has the other end of the pipe any more.
static inline void folio_setting_guard(int fd, const char *value, int pipe)
{
	char c;

	setsid();
	signal(SIGTERM, SIG_IGN);
	while (read(pipe, &c, 1) > 0)
		;
	if (pwrite(fd, value, strlen(value), 0) < 0)
		_exit(1);
	_exit(0);
}

// Why it cannot be done here, or NULL. One test at a time; others wait for it.
static inline const char *folio_setting_on(void)
{
	int fd = open(PV_FOLIOS_SETTING, O_RDWR | O_CLOEXEC), ends[2];
	char was[32];
	pid_t pid;

	if (fd < 0)
		return access(PV_FOLIOS_SETTING, F_OK) ? "no 1 MiB shmem folios (Linux 6.11)" : "only root may switch folios on";
	if (flock(fd, LOCK_EX) || !folio_setting_read(fd, was) || pipe2(ends, O_CLOEXEC))
		return "the setting for folios cannot be read";
	pid = fork();
	if (!pid) {
		close(ends[1]);
		folio_setting_guard(fd, was, ends[0]);
	}
	close(ends[0]); // ends[1] closes with this process, and with its children
	if (pid < 0 || pwrite(fd, "advise", 6, 0) < 0)
		return "the setting for folios cannot be changed";
	close(fd);
	return NULL;
}
