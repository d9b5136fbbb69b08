// SPDX-License-Identifier: GPL-2.0-only
// Shared by the files of a checkpoint's server only:
//
//   image_server.c  what is served, and what is told of it
//   image_line.c    page lines
#pragma once
#include <stddef.h>
#include <stdint.h>

#include "images/reader.h"

struct document {
	void *data;
	size_t len;
};

struct image_server {
	struct img_dir *dir;
	char *path;
	uint64_t nr_chunks, nr_pages;
	uint64_t *block_len, *first; // bytes; the first of its chunks among all
	struct document vm, state, present;
	uint64_t *checked; // a bit a chunk, of each directory of the chain; shared by all processes, atomic
	size_t checked_len;
};
