// SPDX-License-Identifier: GPL-2.0-only
// Is a checkpoint whole, and can it be restored?
//
// DOC: what is looked at
//
//   metadata       of the directory and of all that it is an increment of: at open. If it is not right, nothing else can be looked at
//   pages          each stored chunk of each directory: its checksum, its zstd frame
//   device state   its structure
//   command line   can it still be rebuilt
//   disks          are they as they were
#pragma once
#include <stdbool.h>
#include <stdint.h>

#include "images/reader.h"

// After so many, the rest of the pages is not looked at.
#define VERIFY_PROBLEMS_MAX 1000U

struct verify_layer {
	const struct img_dir *dir;
	uint64_t chunks, compressed, pages, bytes; // stored in it; compressed: of the chunks
};

struct verify {
	struct img_dir *images; // NULL: it could not be opened, or is a stream
	struct verify_layer *layers; // the newest first
	unsigned nr_layers;
	uint64_t pages, bytes; // stored, in all of them or in the stream; bytes as pages if a stream
	_Atomic bool whole; // its files are as they were written, and fit one another
	bool restorable; // and a VM could be restored from it here, now
	char **problems;
	_Atomic unsigned nr_problems;
};

// Looks at all of a directory, or of a stream on standard input (NULL), and logs every problem. Blocks on the disk, in several
// threads. 0: see v; -EINTR: interrupted; -ENOMEM. Logs. verify_fini() follows in any case.
int verify_run(const char *dir, struct verify *v);
void verify_fini(struct verify *v);
