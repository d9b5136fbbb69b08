// SPDX-License-Identifier: GPL-2.0-only
#include "images/pagemap_int.h"

#include <inttypes.h>

#include "images/criu.pb-c.h"
#include "images/format.h"
#include "util/bitmap.h"

int img_pagemap_put_head(struct img_out *o, uint32_t block)
{
	PagemapHead head = PAGEMAP_HEAD__INIT;

	head.pages_id = block + 1;
	return img_out_put(o, &head.base);
}

int img_pagemap_put(struct img_out *o, uint64_t chunk, const struct img_chunk *c)
{
	int ret = 0;

	for (size_t i = 0, n; !ret && (n = bitmap_next_run(c->present, IMG_CHUNK_PAGES, &i)); i += n) {
		PagemapEntry e = PAGEMAP_ENTRY__INIT;

		e.vaddr = chunk * IMG_CHUNK_SIZE + i * PAGE_SIZE;
		e.nr_pages = (uint32_t)n;
		e.has_flags = true;
		e.flags = IMG_PE_PRESENT;
		e.has_vm_checksum = bitmap_next(c->present, IMG_CHUNK_PAGES, i + n, true) == IMG_CHUNK_PAGES;
		e.vm_checksum = c->checksum;
		ret = img_out_put(o, &e.base);
	}
	return ret;
}

struct walk {
	struct img_in *in;
	struct img_chunk *chunks;
	uint64_t nr_pages;	// of the block
	uint64_t next;		// first page that the next entry may have
	uint64_t stored;
	bool open;		// the last chunk has no checksum yet
};

static int add_entry(struct walk *w, const PagemapEntry *e)
{
	uint64_t page = e->vaddr / PAGE_SIZE, chunk = page / IMG_CHUNK_PAGES;
	struct img_chunk *c;

	if (e->vaddr % PAGE_SIZE || page >= w->nr_pages || !e->nr_pages || e->nr_pages > w->nr_pages - page ||
	    (page + e->nr_pages - 1) / IMG_CHUNK_PAGES != chunk)
		return img_damaged(w->in->path, "%u pages at %#" PRIx64 " are not inside one chunk of the block", e->nr_pages, e->vaddr);
	if (e->flags != IMG_PE_PRESENT || e->in_parent)
		return img_damaged(w->in->path, "the entry at %#" PRIx64 " has unknown flags %#x", e->vaddr, e->flags);
	if (page < w->next)
		return img_damaged(w->in->path, "the entry at %#" PRIx64 " is out of order", e->vaddr);
	if (w->open && chunk != (w->next - 1) / IMG_CHUNK_PAGES)
		return img_damaged(w->in->path, "no checksum for the chunk before %#" PRIx64, e->vaddr);

	c = &w->chunks[chunk];
	if (!w->open)
		c->off = w->stored * PAGE_SIZE;
	bitmap_set_range(c->present, page % IMG_CHUNK_PAGES, e->nr_pages);
	c->checksum = e->vm_checksum;
	w->stored += e->nr_pages;
	w->open = !e->has_vm_checksum;
	// Nothing may follow in a chunk that has its checksum.
	w->next = w->open ? page + e->nr_pages : (chunk + 1) * IMG_CHUNK_PAGES;
	return 0;
}

int img_pagemap_get(struct img_in *in, uint32_t block, uint64_t len, struct img_chunk *chunks, uint64_t *pages)
{
	struct walk w = { .in = in, .chunks = chunks, .nr_pages = len / PAGE_SIZE };
	ProtobufCMessage *m;
	uint32_t id;
	int ret;

	ret = img_in_get(in, &pagemap_head__descriptor, IMG_PAGEMAP_ENTRY_MAX, &m);
	if (ret < 0)
		return ret;
	if (!ret)
		return img_damaged(in->path, "there is nothing behind its magic");
	id = ((PagemapHead *)m)->pages_id;
	protobuf_c_message_free_unpacked(m, NULL);
	if (id != block + 1)
		return img_damaged(in->path, "it says it is of pages-%u.img", id);

	while ((ret = img_in_get(in, &pagemap_entry__descriptor, IMG_PAGEMAP_ENTRY_MAX, &m)) > 0) {
		ret = add_entry(&w, (const PagemapEntry *)m);
		protobuf_c_message_free_unpacked(m, NULL);
		if (ret)
			return ret;
	}
	if (!ret && w.open)
		ret = img_damaged(in->path, "no checksum for its last chunk");
	*pages = w.stored;
	return ret;
}
