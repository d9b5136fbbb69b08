// SPDX-License-Identifier: GPL-2.0-only
// A checkpoint as one stream of bytes, for pipes: docs/stream-format.md is normative. Errors are logged here.
//
// DOC: a stream
//
//	header | VM | CHUNK, CHUNK, ..., DEVICE_STATE, ..., CHUNK | END, then the end of the stream
//
// It stands by itself: no parent, no pre-dump. Who reads it knows the VM from the first record, can put each chunk where it is to
// live as it arrives, and may use nothing of it before END was there and right.
#pragma once
#include <stdbool.h>
#include <stdint.h>

#include "images/reader.h"

struct img_stream_out;
struct img_stream_in;

// interrupted (may be NULL) is asked now and then while the other end is waited for; true: -EINTR.

// fd is borrowed. features: IMG_FEATURE_ZSTD or 0.
int img_stream_out_open(int fd, uint64_t features, bool (*interrupted)(void), struct img_stream_out **s);
// First and once.
int img_stream_out_vm(struct img_stream_out *s, const VmEntry *vm);
// In any order, each once, by one thread at a time. c->off has no meaning; c->parent must be empty. stored: c->stored bytes.
int img_stream_out_chunk(struct img_stream_out *s, uint32_t block, uint64_t chunk, const struct img_chunk *c, const void *stored);
int img_stream_out_device_state(struct img_stream_out *s, const DeviceStateEntry *ds);
// The end. Whether the reader has got it nobody knows; if it is a regular file, it is on disk.
int img_stream_out_commit(struct img_stream_out *s);
void img_stream_out_free(struct img_stream_out *s);

// Reads to the VM. fd is borrowed. No stream: -EINVAL; of a newer format: -EOPNOTSUPP; damaged: -EBADMSG; cut off: -ENODATA.
int img_stream_in_open(int fd, bool (*interrupted)(void), struct img_stream_in **s);
void img_stream_in_free(struct img_stream_in *s);
// Borrowed until img_stream_in_free(). Within the limits of the format, strings not interpreted.
const VmEntry *img_stream_in_vm(const struct img_stream_in *s);

struct img_stream_chunk {
	uint32_t block;
	uint64_t chunk;
	uint64_t present[4]; // at least one
};

// The next chunk, its present pages in order in packed, IMG_CHUNK_SIZE bytes, page-aligned. 1; or 0 once: that was all, and the
// whole stream was right to its end; or an error as above, and then nothing of the stream may be used.
int img_stream_in_next(struct img_stream_in *s, struct img_stream_chunk *c, void *packed);
// After the end. Borrowed until img_stream_in_free().
const DeviceStateEntry *img_stream_in_device_state(const struct img_stream_in *s);
