// SPDX-License-Identifier: GPL-2.0-only
// Writes a checkpoint: beside its place, synced, and renamed into it as a whole. Errors are logged here, with the path, and the
// first one is what every later call returns.
#pragma once
#include <stdbool.h>
#include <stdint.h>

#include "images/vm.pb-c.h"

struct img_dir;
struct img_part;
struct img_writer;

// Microseconds.
struct img_times {
	uint64_t freezing_us, frozen_us, memdump_us, memwrite_us;
};

struct img_writer_opts {
	const char *dir; // absent (its parent is there) or an empty directory that is no mount point
	const struct img_dir *parent; // NULL, or what this is an increment of: open until img_writer_free()
	int zstd_level;  // 0: pages are stored as they are
	bool ram_only;   // a pre-dump
	int stream_fd;   // where dir is NULL: a stream is written to it (images/stream.h), without a parent; it stays the caller's
	bool (*interrupted)(void); // asked now and then while a stream's reader is waited for; may be NULL. True: -EINTR
};

// -ENOTEMPTY, -ENOTDIR, -EBUSY, -ENOENT, or -EMLINK (the chain would be too long) before anything is written. Everything goes
// into a new "dir.XXXX.partial" beside dir until img_writer_commit(). Compresses in threads of its own. Free with
// img_writer_free(), in any case.
int img_writer_open(const struct img_writer_opts *o, struct img_writer **w);

// The guest-RAM blocks, once, before the first chunk: their lengths in bytes, multiples of the page; of an increment, as in its
// parent (-EINVAL).
int img_writer_blocks(struct img_writer *w, const uint64_t *lens, uint32_t nr);

// A chunk, in any order, each once; those left out are zero as a whole. buf: 1 MiB (less if the block ends before) with any
// alignment, the caller's again on return. Of the pages
//	whose bit in parent is set:   are as in the parent; buf is not looked at. NULL: none, as in a checkpoint without parent
//	else, whose bit in maybe is set: are looked at; those of zeros are found, and not stored
//	of the others:                are zero; buf is not looked at
// Blocks while all buffers are full. May return the error of an earlier chunk's write: -ENOSPC, -EIO, ...
int img_writer_chunk(struct img_writer *w, uint32_t block, uint64_t chunk, const void *buf, const uint64_t maybe[4],
		     const uint64_t parent[4]);

// A chunk as another checkpoint has it stored, all of the part's entry and no other pages; p->block and p->chunk are where it goes,
// too. stored: what is stored, which the caller has checked; it is copied, or shared with the other checkpoint where the file
// system can. Else as img_writer_chunk().
int img_writer_stored(struct img_writer *w, const struct img_part *p, const void *stored);

// Blocks until all chunks are on disk. None may follow.
int img_writer_end_pages(struct img_writer *w);

// vm.img, device-state.img (not for a pre-dump), stats-dump.img: each once, at any time between open and commit; of a stream, vm.img
// before the first chunk, device-state.img after img_writer_end_pages(), and no statistics. The first two must be there and keep to
// the format's limits (-EINVAL, -EFBIG); vm->blocks must be the blocks written. The messages stay the caller's. The statistics count
// the pages so far: call it after img_writer_end_pages().
int img_writer_vm(struct img_writer *w, const VmEntry *vm);
int img_writer_device_state(struct img_writer *w, const DeviceStateEntry *ds);
int img_writer_stats(struct img_writer *w, const struct img_times *t);

// So far: pages stored here, zero pages and the parent's not counted; and the bytes that they take.
uint64_t img_writer_pages(const struct img_writer *w);
uint64_t img_writer_bytes(const struct img_writer *w);

// The inventory, and the rename (or a stream's end): after 0 the checkpoint is there and survives a power cut, after an error it is
// not there. Blocks on the disk. *id (may be NULL): its img_dir_id(), of a stream 0.
int img_writer_commit(struct img_writer *w, uint64_t *id);

// Removes what was not committed. w may be NULL.
void img_writer_free(struct img_writer *w);
