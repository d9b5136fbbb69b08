// SPDX-License-Identifier: GPL-2.0-only
#pragma once
#include "criu-vm/run_dir.h"

struct replace_opts {
	const char *name;
	const char *swap, *images; // where they are now; NULL: where they were
	const char *paging;        // changes how the VM is paged (pvmem/tuning.h), and is understood; NULL: as before
	const char *server;        // of the checkpoint, the same: HOST[:PORT]
	const char *tls_creds;     // with it; NULL: as before
	bool insecure;
};

// Another pager for a VM, of this binary, whether the last one serves, was killed, or cannot reach its swap image: returns when it
// serves. What swap, images and server name is checked before anything is touched. Blocks, some seconds at most. Tells the user. An enum
// cmd_exit; CMD_ATTENTION: the guest waits, the message says for what.
int replace_pager(const struct replace_opts *o, struct run_dir *rd);
