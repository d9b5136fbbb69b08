// SPDX-License-Identifier: GPL-2.0-only
// pagemap-N.img: where the pages of a block are. A chunk is one entry for each run of pages that are stored here, or are as in the
// parent; the last of the stored ones says where the chunk lies in pages-1.img. What has no entry is zero.
#pragma once
#include "images/file_int.h"
#include "images/reader.h"

int img_pagemap_put_head(struct img_out *o);
int img_pagemap_put(struct img_out *o, uint64_t chunk, const struct img_chunk *c);

// The whole file behind its magic into chunks, all zero before, of a block of len bytes. features: of the inventory. 0 or
// -EBADMSG. Where the chunks lie is checked by themselves only: whole pages, of a length that fits what is present.
int img_pagemap_get(struct img_in *in, uint64_t len, uint64_t features, struct img_chunk *chunks);
