// SPDX-License-Identifier: GPL-2.0-only
// Reads the chunks of a checkpoint in several threads: while one waits for the disk, another one computes.
#pragma once
#include <stdint.h>

#include "images/reader.h"

// A thread's own.
struct chunk_buffers {
	struct img_unpacker *unpacker;
	void *stored; // IMG_STORED_MAX bytes, page-aligned
	char *pages;  // IMG_CHUNK_SIZE bytes, page-aligned
};

struct chunk_work {
	const char *what; // is done, for the progress line
	uint64_t nr;	  // items, handed out in order
	uint64_t bytes;	  // that are read in all
	// An item's work, in any thread: bytes read, or -errno (logged), which ends all.
	int64_t (*one)(void *ctx, uint64_t item, const struct chunk_buffers *b);
	void *ctx;
};

// 0, the first error of an item, -EINTR (not logged), or -ENOMEM.
int chunk_threads_run(const struct chunk_work *work);

// The chunk-th of all chunks of all blocks. It must exist.
void chunk_of_all(const struct img_dir *d, uint64_t chunk, uint32_t *block, uint64_t *in_block);
uint64_t nr_chunks_of_all(const struct img_dir *d);
