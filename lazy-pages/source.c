// SPDX-License-Identifier: GPL-2.0-only
#include "lazy-pages/source.h"

#include <assert.h>
#include <errno.h>
#include <stdlib.h>

#include "lazy-pages/image_source.h"
#include "util/bitmap.h"

struct lp_source {
	struct lp_source_opts o;
	struct lp_image_source *images;
};

int lp_source_new(const struct lp_source_opts *o, struct lp_source **out)
{
	struct lp_source *s = calloc(1, sizeof *s);
	int err = s ? 0 : -ENOMEM;

	assert((o->images || o->remote) && (!o->images || !o->remote || o->in_images));
	if (!err && o->images)
		err = lp_image_source_new(o->loop, o->images, &s->images);
	if (err) {
		free(s);
		return err;
	}
	s->o = *o;
	*out = s;
	return 0;
}

void lp_source_free(struct lp_source *s)
{
	if (!s)
		return;
	lp_image_source_free(s->images);
	free(s);
}

void lp_source_set_engine(struct lp_source *s, struct pv_engine *e)
{
	if (s->images)
		lp_image_source_set_engine(s->images, e);
	if (s->o.remote)
		lp_remote_set_engine(s->o.remote, e);
}

// The engine asks for pages of one side at a time.
static bool is_in_images(const struct lp_source *s, const struct pv_source_read *rd)
{
	if (!s->images || !s->o.remote)
		return s->images;
	return bitmap_test(s->o.in_images[rd->chunk], bitmap_next(rd->pages, PV_CHUNK_PAGES, 0, true));
}

void lp_source_read(struct lp_source *s, struct pv_source_read *rd)
{
	if (is_in_images(s, rd))
		lp_image_source_read(s->images, rd);
	else
		lp_remote_read(s->o.remote, rd);
}
