// SPDX-License-Identifier: GPL-2.0-only
// The zstd frame that a chunk is stored as.
#pragma once
#include <stddef.h>
#include <stdint.h>
#include <zstd.h>

// Takes a frame with its padding apart: one frame with its size and a checksum, of exactly len bytes, and zeros up to the page. NULL,
// or what is wrong; then nothing in pages is of use. Silent.
const char *img_frame_unpack(ZSTD_DCtx *zstd, const uint8_t *stored, size_t stored_len, void *pages, size_t len);
