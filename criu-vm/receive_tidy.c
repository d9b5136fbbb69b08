// SPDX-License-Identifier: GPL-2.0-only
#include <dirent.h>
#include <poll.h>
#include <signal.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "criu-vm/arrival.h"
#include "criu-vm/migration_lazy.h"
#include "criu-vm/receive.h"
#include "util/cleanup.h"
#include "util/log.h"

#define END_MS 10000

// All of ours beside it are gone, too: it stands there, and would for ever.
static void end_qemu(int pidfd)
{
	if (syscall(SYS_pidfd_send_signal, pidfd, SIGKILL, NULL, 0) == 0)
		poll(&(struct pollfd){ .fd = pidfd, .events = POLLIN }, 1, END_MS);
}

void receive_tidy(const char *run_dir, const uint8_t token[WIRE_TOKEN_LEN], const char *name)
{
	enum migration_decision is;
	uint8_t its[WIRE_TOKEN_LEN];
	_cleanup_close_ int pidfd = -1;
	struct vm_state s;
	struct run_dir rd;

	// Unless it is this host's, nobody can make it so any more from here on.
	if (migration_decide(token, MIGRATION_ABORTED, NULL, &is) || is != MIGRATION_ABORTED)
		return;
	migration_unprepare(token);
	migration_lazy_remove(token);
	if (run_dir_open(run_dir, name, &rd))
		return;
	if (arrival_token(&rd, its) || memcmp(its, token, sizeof its) || run_dir_is_held(&rd, "supervisor") || run_dir_lock(&rd)) {
		run_dir_close(&rd); // another VM's, or its supervisor or pager sees to it
		return;
	}
	vm_state_load(&rd, &s);
	if (vm_state_qemu_alive(&s, &pidfd) && pidfd >= 0)
		end_qemu(pidfd);
	if (vm_state_qemu_alive(&s, NULL))
		run_dir_close(&rd);
	else
		run_dir_destroy(&rd);
	vm_state_fini(&s);
}

// Who is at work there, or ends it, has it locked.
static void tidy_one(const char *run_dir, const char *name)
{
	uint8_t token[WIRE_TOKEN_LEN];
	enum migration_decision is;
	struct vm_state s;
	struct run_dir rd;

	if (!run_dir_name_ok(name) || run_dir_open(run_dir, name, &rd))
		return;
	if (run_dir_has(&rd, "running") || run_dir_is_held(&rd, "supervisor") || run_dir_lock(&rd) || arrival_token(&rd, token)) {
		run_dir_close(&rd);
		return;
	}
	vm_state_load(&rd, &s);
	if (!vm_state_qemu_alive(&s, NULL) && !migration_decide(token, MIGRATION_ABORTED, NULL, &is) && is == MIGRATION_ABORTED) {
		log_info("removing what is left of VM '%s', which did not arrive", name);
		migration_unprepare(token);
		run_dir_destroy(&rd);
	}
	run_dir_close(&rd);
	vm_state_fini(&s);
}

void receive_tidy_all(const char *run_dir)
{
	DIR *dir = opendir(run_dir);
	const struct dirent *d;

	while (dir && (d = readdir(dir)))
		tidy_one(run_dir, d->d_name);
	if (dir)
		closedir(dir);
}
