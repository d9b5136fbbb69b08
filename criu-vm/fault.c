// SPDX-License-Identifier: GPL-2.0-only
#include "criu-vm/fault.h"

#include <errno.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "util/log.h"

#define DELAY_S 3

static int happen(const char *name, const char *kind, size_t len)
{
	if (len == 4 && !strncmp(kind, "kill", len)) {
		kill(getpid(), SIGKILL);
	} else if (len == 5 && !strncmp(kind, "errno", len)) {
		log_err("'%s' fails on purpose, as CRIU_VM_FAULT says", name);
		return -EIO;
	} else if (len >= 5 && !strncmp(kind, "delay", 5)) {
		log_warn("'%s' is held up on purpose, as CRIU_VM_FAULT says", name);
		sleep(len > 5 ? (unsigned)atoi(kind + 5) : DELAY_S);
	} else {
		log_warn("CRIU_VM_FAULT: '%.*s' is no kind of fault: kill, errno, delay", (int)len, kind);
	}
	return 0;
}

int fault_here(const char *name)
{
	const char *at = getenv("CRIU_VM_FAULT");
	size_t len = strlen(name);

	while (at && *at) {
		size_t all = strcspn(at, ",");

		if (all > len && !strncmp(at, name, len) && at[len] == ':')
			return happen(name, at + len + 1, all - len - 1);
		at += all + (at[all] == ',');
	}
	return 0;
}
