// SPDX-License-Identifier: GPL-2.0-only
// Reads a checkpoint. Its metadata is checked as a whole at open, its pages by chunk when they are read. Errors are logged here.
#pragma once
#include <stdbool.h>
#include <stdint.h>

#include "images/vm.pb-c.h"

struct img_dir;

// off: of the first present page in pages-N.img; the others follow in order. checksum: see img_chunk_check().
struct img_chunk {
	uint64_t off;
	uint64_t present[4];
	uint64_t checksum;
};

// Opens a checkpoint and checks all its metadata: magics, versions, bounds, checksums, order of the pagemap, lengths of the
// pages files. Reads no page, blocks on the disk. Holds a shared flock on the directory until closed. Damaged: -EBADMSG; not a
// VM's checkpoint: -EINVAL, or -ENOENT without inventory.img; of a newer format: -EOPNOTSUPP; locked by somebody who changes it:
// -EBUSY; else what the system said.
int img_dir_open(const char *path, struct img_dir **d);
void img_dir_close(struct img_dir *d);

// Tells this checkpoint from all others: a checksum over everything but the pages themselves, whose checksums are in it.
uint64_t img_dir_id(const struct img_dir *d);

// Borrowed until img_dir_close(). Within the limits of the format, strings not interpreted.
const VmEntry *img_dir_vm(const struct img_dir *d);
const DeviceStateEntry *img_dir_device_state(const struct img_dir *d);

uint32_t img_dir_nr_blocks(const struct img_dir *d);
uint64_t img_dir_block_len(const struct img_dir *d, uint32_t block);
uint64_t img_dir_block_chunks(const struct img_dir *d, uint32_t block);

// Never NULL; present is all zero where nothing is stored. chunk < img_dir_block_chunks().
const struct img_chunk *img_dir_chunk(const struct img_dir *d, uint32_t block, uint64_t chunk);

// pages-N.img, borrowed. O_DIRECT if the file system takes it: read whole pages at page offsets into page-aligned memory.
int img_dir_pages_fd(const struct img_dir *d, uint32_t block);

// Do these bytes, the chunk's present pages one behind the other, match its checksum? True for a chunk without pages.
bool img_chunk_check(const struct img_chunk *c, const void *packed_pages);
