// SPDX-License-Identifier: GPL-2.0-only
// Writes a checkpoint: beside its place, synced, and renamed into it as a whole. Errors are logged here, with the path.
#pragma once
#include <stdint.h>

#include "images/vm.pb-c.h"

struct img_writer;

// Microseconds.
struct img_times {
	uint64_t freezing_us, frozen_us, memdump_us, memwrite_us;
};

// dir may be absent (its parent is there) or an empty directory that is no mount point; else -ENOTEMPTY, -ENOTDIR, -EBUSY or
// -ENOENT, before anything is written. Everything goes into a new "dir.XXXX.partial" beside it until img_writer_commit().
// Free with img_writer_free(), in any case.
int img_writer_open(const char *dir, struct img_writer **w);

// Guest-RAM blocks, 0-based, in ascending order without gaps; len in bytes, a multiple of the page.
int img_writer_begin_block(struct img_writer *w, uint32_t block, uint64_t len);

// Chunks of the block in ascending order; those left out are zero. buf: 1 MiB (less if the block ends before) with any alignment,
// the caller's again on return. Pages whose bit in maybe is clear are known to be zero and not looked at; of the others those that
// are zero are found, and not stored. Blocks while both write buffers are full. May return the error of an earlier chunk's write:
// -ENOSPC, -EIO, ...
int img_writer_chunk(struct img_writer *w, uint64_t chunk, const void *buf, const uint64_t maybe[4]);

// Blocks until the block's pages are on disk.
int img_writer_end_block(struct img_writer *w);

// vm.img, device-state.img, stats-dump.img: each once, at any time between open and commit. The first two must be there and keep
// to the format's limits (-EINVAL, -EFBIG); vm->blocks must be the blocks written. The messages stay the caller's. The statistics
// count the pages of the blocks ended so far: call it after them.
int img_writer_vm(struct img_writer *w, const VmEntry *vm);
int img_writer_device_state(struct img_writer *w, const DeviceStateEntry *ds);
int img_writer_stats(struct img_writer *w, const struct img_times *t);

// Pages stored so far, zero pages not counted.
uint64_t img_writer_pages(const struct img_writer *w);

// The inventory, and the rename: after 0 the checkpoint is there and survives a power cut, after an error it is not there.
// Blocks on the disk.
int img_writer_commit(struct img_writer *w);

// Removes what was not committed. w may be NULL.
void img_writer_free(struct img_writer *w);
