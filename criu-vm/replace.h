// SPDX-License-Identifier: GPL-2.0-only
#pragma once
#include "criu-vm/run_dir.h"

struct replace_opts {
	const char *name;
	const char *swap, *images; // where they are now; NULL: where they were
};

// Another pager for a VM, of this binary, whether the last one serves, was killed, or cannot reach its swap image: returns when it
// serves. What swap and images name is checked before anything is touched. Blocks, some seconds at most. Tells the user. An enum
// cmd_exit; CMD_ATTENTION: the guest waits, the message says for what.
int replace_pager(const struct replace_opts *o, struct run_dir *rd);
