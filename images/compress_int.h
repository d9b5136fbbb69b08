// SPDX-License-Identifier: GPL-2.0-only
// Compresses chunks in threads of its own, and appends each to the pages file when it is ready, in any order. A chunk is one zstd
// frame with its size and a checksum, padded with zeros to the page; one that does not get smaller by a page stays as it is.
#pragma once
#include "images/pages_int.h"
#include "images/reader.h"

struct img_compressor;

// As many threads as CPUs are online, at most 8. pages and all chunks are the threads' until img_compressor_free(). -errno, logged.
int img_compressor_new(int level, struct img_pages *pages, struct img_compressor **c);
// Room for one chunk's present pages, to be filled from its start; img_compressor_add() takes len of it, and sets where chunk is
// stored some time later. Blocks while all buffers are in use; returns the first error of a write.
int img_compressor_room(struct img_compressor *c, uint8_t **room);
void img_compressor_add(struct img_compressor *c, struct img_place at, struct img_chunk *chunk, size_t len);
// Between these two, pages are the caller's.
void img_compressor_lock(struct img_compressor *c);
void img_compressor_unlock(struct img_compressor *c);
// Blocks until all is appended, and ends the threads. c may be NULL.
void img_compressor_free(struct img_compressor *c);
