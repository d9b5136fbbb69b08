// SPDX-License-Identifier: GPL-2.0-only
// A checkpoint and all that it is an increment of become one that stands by itself.
#pragma once
#include <stdint.h>

struct merge_result {
	unsigned layers; // directories that were merged
	uint64_t pages, bytes; // stored in the new one
};

// Makes `to` of `from`, which is left as it is: a checkpoint of a checkpoint, a pre-dump of a pre-dump. Every page is checked on its way;
// on an error there is no `to`. Stored chunks that are needed as a whole are taken as they are, sharing their blocks where the
// file system can; others are stored anew, compressed if the newest directory has compressed ones. Blocks on the disk, in
// several threads. 0 or -errno, logged; -EINTR: interrupted; -EPERM: not to be trusted (criu-vm/owner.h).
int merge_run(const char *from, const char *to, struct merge_result *r);
