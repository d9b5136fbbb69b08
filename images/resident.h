// SPDX-License-Identifier: GPL-2.0-only
// resident.img: of a VM in private virtual memory, how recently each chunk was used, and which of its pages were in memory. It says
// nothing of what a page holds: who restores the VM may use it to bring what was hot first, or not at all. Errors are logged here.
#pragma once
#include <stddef.h>
#include <stdint.h>

struct img_dir;
struct img_writer;

struct img_resident_chunk {
	uint64_t chunk;	   // in its block
	uint64_t pages[4]; // that were in memory: at least one
	uint32_t block;
	uint8_t age; // 1: used long ago, to 255: just now
};

// Chunks of which something was in memory, by block, then by chunk, each once.
struct img_resident {
	struct img_resident_chunk *chunks;
	size_t nr;
};

// Of the checkpoint itself: what its parents say is old. Of one that has no such file: none. Reads the disk, and checks again what was
// checked when the checkpoint was opened. The list is the caller's, to be freed with img_resident_fini(). -EBADMSG, -ENOMEM, -EIO, ...
int img_dir_resident(const struct img_dir *d, struct img_resident *r);
void img_resident_fini(struct img_resident *r);

// Once, between img_writer_blocks() and the commit, and not for a pre-dump. A stream has no place for it, and an empty list needs
// none: nothing is written then. Compresses and blocks on the disk. Else as img_writer_vm(). -EINVAL: not in order, or beyond a block.
int img_writer_resident(struct img_writer *w, const struct img_resident *r);
