// SPDX-License-Identifier: GPL-2.0-only
#include <poll.h>
#include <signal.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "criu-vm/arrival.h"
#include "criu-vm/receive.h"
#include "util/cleanup.h"

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
