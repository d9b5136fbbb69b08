// SPDX-License-Identifier: GPL-2.0-only
#include "images/frame_int.h"

#include <stdbool.h>

#include "util/size.h"

// Bit 2 of the descriptor, the byte behind the magic (RFC 8878, 3.1.1.1.1).
static bool has_checksum(const uint8_t *frame, size_t len)
{
	return len > 4 && frame[4] & 1 << 2;
}

const char *img_frame_unpack(ZSTD_DCtx *zstd, const uint8_t *stored, size_t stored_len, void *pages, size_t len)
{
	size_t frame = ZSTD_findFrameCompressedSize(stored, stored_len);

	if (ZSTD_isError(frame) || !has_checksum(stored, frame) || ZSTD_getFrameContentSize(stored, frame) != len)
		return "is no zstd frame of this chunk";
	if (ROUND_UP(frame, PAGE_SIZE) != stored_len)
		return "there is more behind its zstd frame than zeros up to the page";
	for (size_t i = frame; i < stored_len; i++)
		if (stored[i])
			return "there is more behind its zstd frame than zeros up to the page";
	return ZSTD_decompressDCtx(zstd, pages, len, stored, frame) == len ? NULL : "its zstd frame cannot be decompressed";
}
