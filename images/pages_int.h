// SPDX-License-Identifier: GPL-2.0-only
// Writes pages-N.img: two buffers in turn, one filled while the other is on its way to the disk (io_uring, O_DIRECT where the
// file system takes it). Errors are logged here, and the first one is what every later call returns.
#pragma once
#include <liburing.h>
#include <limits.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct img_pages {
	struct io_uring ring;
	bool have_ring;
	int fd;
	int err;
	struct {
		uint8_t *data;
		uint64_t off;		// of data in the file
		size_t len;
		bool writing;
	} buf[2];
	unsigned cur;			// the buffer that is being filled
	uint64_t ahead;			// bytes that may yet be added, for the message of a full disk
	char path[PATH_MAX];
};

int img_pages_init(struct img_pages *p);
// Waits for I/O that is under way, whose buffers must not vanish. Accepts what img_pages_init() did not finish, and all zero
// but fd -1.
void img_pages_fini(struct img_pages *p);

int img_pages_open(struct img_pages *p, int dirfd, const char *dir, const char *name);
// Room for one chunk, page-aligned, to be filled from its start; img_pages_add() then takes len of it, whole pages. Blocks on
// the disk.
int img_pages_room(struct img_pages *p, uint8_t **room);
void img_pages_add(struct img_pages *p, size_t len);
// Bytes added so far.
uint64_t img_pages_len(const struct img_pages *p);
// All written and synced.
int img_pages_close(struct img_pages *p);
