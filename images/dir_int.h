// SPDX-License-Identifier: GPL-2.0-only
// A checkpoint that is open for reading: one of a chain, each owning the next.
#pragma once
#include <limits.h>

#include "images/criu.pb-c.h"
#include "images/file_int.h"
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

// Opens a metadata file whose length is that of the inventory, and which has this magic. img_in_fini() follows in any case. Logs.
int img_dir_open_listed(const struct img_dir *d, const char *name, uint32_t magic, struct img_in *in, const VmFileEntry **f);
// After the whole file was read. Logs.
int img_dir_check_sum(const struct img_in *in, const VmFileEntry *f);
