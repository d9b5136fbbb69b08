// SPDX-License-Identifier: GPL-2.0-only
// pagemap-N.img: which pages of a block are stored. A chunk with stored pages is one entry for each run of them, the last of which
// carries the chunk's checksum; a chunk without has none.
#pragma once
#include "images/file_int.h"
#include "images/reader.h"

int img_pagemap_put_head(struct img_out *o, uint32_t block);
int img_pagemap_put(struct img_out *o, uint64_t chunk, const struct img_chunk *c);

// The whole file behind its magic into chunks, all zero before, of a block of len bytes. *pages: how many are stored.
// 0 or -EBADMSG.
int img_pagemap_get(struct img_in *in, uint32_t block, uint64_t len, struct img_chunk *chunks, uint64_t *pages);
