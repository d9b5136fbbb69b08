// SPDX-License-Identifier: GPL-2.0-only
// Shared by ram.c and ram_snapshot.c only.
#pragma once
#include <jansson.h>
#include <pthread.h>
#include <sys/stat.h>

#include "criu-vm/ram.h"
#include "criu-vm/run_dir.h"
#include "images/reader.h"
#include "mm/read.h"
#include "mm/track.h"
#include "pvmem/reader.h"

// Page tables are looked at in pieces of so many chunks: a look at each by itself would cost more than the look.
#define WINDOW_CHUNKS 64

struct block {
	struct mm_source *source;
	uint64_t window[WINDOW_CHUNKS * PV_WORDS]; // present pages
	uint64_t copied[WINDOW_CHUNKS * PV_WORDS]; // of a private mapping of a file: those that are QEMU's own
	uint64_t window_begin, window_end;	   // of these chunks
	struct stat file;			   // as it was when ram_file_stands() was called
	bool settled;				   // no change after that can have left the same times
	char *map;				   // of a file in memory, once something was to be looked at there
	uint64_t *written; // a bit a page; NULL before the first ram_take()
	uint64_t first;	   // paged: its first chunk in the array of all guest RAM
};

struct ram {
	struct ram_opts o;
	struct block *blocks;
	struct mm_range *ranges;
	struct mm_pagemap *pagemap;
	bool discards;
	pthread_mutex_t reading; // what can be read by one at a time: images, a private mapping of a file

	// In private virtual memory.
	bool paged;
	struct run_dir rd;
	struct vm_state state;
	struct pv_pages *pages;
	struct pv_block *pv_blocks;
	struct pv_swap swap;
	struct img_dir *images;
	struct img_unpacker *unpacker;
	void *scratch;
	struct pv_reader_opts reader_opts;
	struct pv_reader *reader;
	struct pv_snapshot *snapshot;
	int shadow_fd;
	bool has_snapshot;
};

// A request to the pager, which may be being replaced just now. *answer (may be NULL) is the caller's. Logs.
int ram_ask_pager(struct ram *r, json_t *request, json_t **answer); // request is stolen
