// SPDX-License-Identifier: GPL-2.0-only
// Page source: a checkpoint's images, with those that it is an increment of. The first read of a chunk in one of them is of all
// that is stored there, and checked before a page of it is handed on; after that only what is asked for is read, where it is stored
// page by page.
#pragma once
#include "images/reader.h"
#include "pvmem/engine.h"
#include "util/loop.h"

struct lp_image_source;

// dir and loop are borrowed. The blocks of guest RAM are those of the images, in their order. -ENOMEM.
int lp_image_source_new(struct loop *l, const struct img_dir *dir, struct lp_image_source **s);
// No read may be in flight: the loop has ended.
void lp_image_source_free(struct lp_image_source *s);
// To whom pv_source_done() is said.
void lp_image_source_set_engine(struct lp_image_source *s, struct pv_engine *e);
// pv_ops.source_read. Never blocks: when all buffers are in use, the read waits for one.
void lp_image_source_read(struct lp_image_source *s, struct pv_source_read *rd);

// Where a chunk of all guest RAM is in the images. The chunk must exist.
void lp_image_chunk(const struct img_dir *dir, uint64_t chunk, uint32_t *block, uint64_t *in_block);
