// SPDX-License-Identifier: GPL-2.0-only
// The page source of a VM: a checkpoint's images, another host, or both: then each page is in one of them.
#pragma once
#include "images/reader.h"
#include "lazy-pages/remote.h"
#include "pvmem/engine.h"

struct lp_source;

struct lp_source_opts {
	struct loop *loop;
	const struct img_dir *images; // or NULL
	struct lp_remote *remote;     // or NULL
	// With both: of each chunk the pages that are in the images, as the engine has it (pv_opts).
	const uint64_t (*in_images)[PV_WORDS];
};

// All that o points to is borrowed, and outlives the source. -ENOMEM.
int lp_source_new(const struct lp_source_opts *o, struct lp_source **s);
// No read may be in flight: the loop has ended, or nothing needs the source any more. Accepts NULL.
void lp_source_free(struct lp_source *s);
// To whom pv_source_done() is said.
void lp_source_set_engine(struct lp_source *s, struct pv_engine *e);
// pv_ops.source_read: pages of images, or of the remote. Never blocks.
void lp_source_read(struct lp_source *s, struct pv_source_read *rd);
