// SPDX-License-Identifier: GPL-2.0-only
// Writes pages-1.img, whose bytes are appended: some buffers in turn, one filled while the others are on their way to the disk
// (io_uring, O_DIRECT where the file system takes it). Errors are logged here, and the first one is what every later call returns.
// Or a stream, to which each chunk is written at once. For one thread at a time, but for what is atomic.
#pragma once
#include <liburing.h>
#include <limits.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "images/reader.h"
#include "images/stream.h"

#define IMG_PAGES_BUFS 4

struct img_pages {
	struct img_stream_out *stream; // borrowed; NULL: a file
	struct io_uring ring;
	bool have_ring;
	int fd;
	int err;
	struct {
		uint8_t *data;
		uint64_t off; // of data in the file
		size_t len;
		bool writing;
	} buf[IMG_PAGES_BUFS];
	unsigned cur;           // the buffer that is being filled
	uint64_t allocated;     // bytes of the file that the file system has room for
	_Atomic uint64_t len;   // bytes added so far
	bool no_clone;          // the file system cannot
	_Atomic uint64_t ahead; // bytes that may yet be added, as far as the caller knows
	char path[PATH_MAX];
};

// Which chunk of the VM's RAM it is.
struct img_place {
	uint32_t block;
	uint64_t chunk;
};

// Instead of img_pages_open().
int img_pages_open_stream(struct img_pages *p, struct img_stream_out *stream);
// Creates dirfd/name. img_pages_fini() follows in any case.
int img_pages_open(struct img_pages *p, int dirfd, const char *dir, const char *name);
// Waits for I/O that is under way, whose buffers must not vanish. Accepts all zero but fd -1.
void img_pages_fini(struct img_pages *p);

// Room for one chunk, page-aligned, to be filled from its start with what is to be stored, whole pages; img_pages_add() then takes
// len of it, and notes in c where that is, and its checksum. Blocks on the disk, or on who reads the stream.
int img_pages_room(struct img_pages *p, uint8_t **room);
int img_pages_add(struct img_pages *p, struct img_place at, struct img_chunk *c, size_t len, uint64_t checksum);
// c->stored bytes from off of another file, as if they had been added; they share their blocks where the file system can.
// -EOPNOTSUPP: it cannot, and nothing was done (not logged).
int img_pages_clone(struct img_pages *p, struct img_chunk *c, int from, uint64_t off);
// All written and synced.
int img_pages_close(struct img_pages *p);
