// SPDX-License-Identifier: GPL-2.0-only
// A checkpoint that is open for reading: one of a chain, each owning the next.
#pragma once
#include <limits.h>

#include "images/criu.pb-c.h"
#include "images/reader.h"

struct img_block {
	uint64_t len, nr_chunks;
	struct img_chunk *chunks;
};

struct img_dir {
	int fd;
	char path[PATH_MAX];
	InventoryEntry *inv;
	VmEntry *vm;
	DeviceStateEntry *ds;
	uint32_t nr_blocks;
	struct img_block *blocks;
	int pages_fd;
	struct img_dir *parent;
};
