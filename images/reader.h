// SPDX-License-Identifier: GPL-2.0-only
// Reads a checkpoint, with the chain of checkpoints that it is an increment of. Metadata is checked as a whole at open, pages by
// chunk when they are read. Errors are logged here.
#pragma once
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "images/vm.pb-c.h"

struct img_dir;
struct img_unpacker;

// What one directory has of a chunk. A page with neither bit is zero.
struct img_chunk {
	uint64_t off;	    // in pages-1.img, a multiple of the page
	uint32_t stored;    // bytes from there, a multiple of the page: the present pages in order, or a zstd frame of them; 0: none
	uint64_t present[4];
	uint64_t parent[4]; // as in the parent
	uint64_t checksum;  // XXH3_64bits of what is stored
};

// Opens a checkpoint and all those that it is an increment of, and checks all their metadata: magics, versions, bounds,
// checksums, pagemaps, lengths of the pages files, and that each parent is the very checkpoint that was built upon. Reads no page,
// blocks on the disk. Holds a shared flock on each directory until closed. Damaged: -EBADMSG; not a VM's checkpoint: -EINVAL, or
// -ENOENT without inventory.img; of a newer format: -EOPNOTSUPP; locked by somebody who changes it: -EBUSY; a parent that is
// another checkpoint than it was: -ESTALE; else what the system said.
int img_dir_open(const char *path, struct img_dir **d);
void img_dir_close(struct img_dir *d);

// Tells this checkpoint from all others: a checksum over everything but the pages themselves, whose checksums are in it.
uint64_t img_dir_id(const struct img_dir *d);
// As it was opened; of a parent: the path that its child's link gives.
const char *img_dir_path(const struct img_dir *d);
// Whose it is: of the very directory that is open and is read, whatever its path leads to by now. 0, or what the system said (logged).
struct stat;
int img_dir_stat(const struct img_dir *d, struct stat *st);
// NULL: it stands by itself.
const struct img_dir *img_dir_parent(const struct img_dir *d);
// A pre-dump: RAM without a device state. It can be an increment's parent, but no VM can be restored from it.
bool img_dir_ram_only(const struct img_dir *d);

// Borrowed until img_dir_close(). Within the limits of the format, strings not interpreted. The device state of a pre-dump: NULL.
const VmEntry *img_dir_vm(const struct img_dir *d);
const DeviceStateEntry *img_dir_device_state(const struct img_dir *d);

uint32_t img_dir_nr_blocks(const struct img_dir *d);
uint64_t img_dir_block_len(const struct img_dir *d, uint32_t block);
uint64_t img_dir_block_chunks(const struct img_dir *d, uint32_t block);

// What this directory alone has; never NULL. chunk < img_dir_block_chunks().
const struct img_chunk *img_dir_chunk(const struct img_dir *d, uint32_t block, uint64_t chunk);

// The pages of a chunk that are stored in any directory of the chain: all others are zero.
void img_dir_pages(const struct img_dir *d, uint32_t block, uint64_t chunk, uint64_t map[4]);

// Some pages of a chunk that are stored together.
struct img_part {
	const struct img_dir *dir;     // of the chain
	unsigned layer;		       // 0: the directory that was opened, 1: its parent, ...
	uint32_t block;
	uint64_t chunk;
	const struct img_chunk *entry; // dir's
	uint64_t pages[4];	       // those that are wanted from it
};

// Where the wanted pages are, the newest directory first; those that no part has are zero. parts: room for img_dir_layers().
// Returns how many there are.
unsigned img_dir_layers(const struct img_dir *d); // of NULL: 0
unsigned img_dir_parts(const struct img_dir *d, uint32_t block, uint64_t chunk, const uint64_t want[4], struct img_part *parts);

// The pages file of the part, borrowed. O_DIRECT if the file system takes it: entry->stored bytes at entry->off are all that is
// to be read, into page-aligned memory.
int img_part_fd(const struct img_part *p);
// Stored page by page: page i of the chunk is at entry->off + 4096 * (number of present pages before it). What was checked once
// may then be read in pieces.
bool img_part_is_raw(const struct img_part *p);

// Takes stored chunks apart; for one thread at a time. -ENOMEM.
int img_unpacker_new(struct img_unpacker **u);
void img_unpacker_free(struct img_unpacker *u);
// stored: all of the part's entry->stored bytes. Checks them, and copies each wanted page i to dest + i * 4096; other pages are
// not touched. -EBADMSG (logged, naming the file and the chunk): damaged, and nothing was copied.
int img_part_unpack(struct img_unpacker *u, const struct img_part *p, const void *stored, char *dest);
// Of a raw part: checks stored, which then is the present pages one behind the other. -EBADMSG as above.
int img_part_check(const struct img_part *p, const void *stored);

// Blocks on the disk: reads all that is stored of the part, into IMG_STORED_MAX bytes, page-aligned, and unpacks it as above.
// -EBADMSG, -EIO, ... (logged, naming the file and the chunk).
int img_part_read(struct img_unpacker *u, const struct img_part *p, void *stored, char *dest);
// The same of the wanted pages of a chunk, wherever in the chain they are; zero pages are cleared. scratch: as stored above.
// -EBADMSG, -EIO, ...
int img_dir_read(const struct img_dir *d, struct img_unpacker *u, uint32_t block, uint64_t chunk, const uint64_t want[4], void *scratch,
		 char *dest);
// More than any chunk has stored.
#define IMG_STORED_MAX (1088U << 10)
