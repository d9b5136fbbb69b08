// SPDX-License-Identifier: GPL-2.0-only
// A checkpoint that is being written: writer.c has its metadata and its place, writer_pages.c the pages.
#pragma once
#include "images/compress_int.h"
#include "images/dir_int.h"
#include "images/file_int.h"
#include "images/format.h"
#include "images/pages_int.h"
#include "images/staging_int.h"
#include "images/writer.h"

#define IMG_FILES_MAX (5 + IMG_BLOCKS_MAX)

struct img_written_file {
	char name[24];
	bool has_xxh3;
	uint64_t len, xxh3;
};

struct img_written_block {
	uint64_t len, nr_chunks;
	struct img_chunk *chunks;
	uint64_t *given; // a bit a chunk
};

struct img_writer {
	struct img_staging dir;
	struct img_stream_out *stream; // NULL: a directory
	struct img_pages pages;
	struct img_compressor *compressor; // NULL: chunks are stored as they are
	const struct img_dir *parent;
	uint64_t features;

	uint32_t nr_blocks;
	struct img_written_block *blocks;
	bool ended;
	uint64_t pages_scanned, pages_written, pages_parent;

	VmEntry *vm; // a copy, to compare blocks at commit
	bool have_device_state, have_stats;
	struct img_written_file files[IMG_FILES_MAX];
	uint32_t nr_files;
	int err; // the first
};

// Logs what was done wrong, with the path: -EINVAL.
int img_writer_misuse(const struct img_writer *w, const char *what);
// Keeps the first error, and returns this one.
int img_writer_keep(struct img_writer *w, int ret);
// For the inventory. xxh3: NULL: without.
void img_writer_list(struct img_writer *w, const char *name, uint64_t len, const uint64_t *xxh3);
// Closes a metadata file and lists it.
int img_writer_finish_file(struct img_writer *w, struct img_out *o, const char *name);
