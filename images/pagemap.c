// SPDX-License-Identifier: GPL-2.0-only
#include "images/pagemap_int.h"

#include <inttypes.h>

#include "images/criu.pb-c.h"
#include "images/format.h"
#include "util/bitmap.h"

// There is one pages file for all blocks.
#define PAGES_ID 1

int img_pagemap_put_head(struct img_out *o)
{
	PagemapHead head = PAGEMAP_HEAD__INIT;

	head.pages_id = PAGES_ID;
	return img_out_put(o, &head.base);
}

int img_pagemap_put(struct img_out *o, uint64_t chunk, const struct img_chunk *c)
{
	uint64_t any[IMG_CHUNK_WORDS];
	size_t i = 0;
	int ret = 0;

	for (unsigned w = 0; w < IMG_CHUNK_WORDS; w++)
		any[w] = c->present[w] | c->parent[w];
	while (!ret && (i = bitmap_next(any, IMG_CHUNK_PAGES, i, true)) < IMG_CHUNK_PAGES) {
		bool present = bitmap_test(c->present, i);
		size_t end = bitmap_next(present ? c->present : c->parent, IMG_CHUNK_PAGES, i, false);
		PagemapEntry e = PAGEMAP_ENTRY__INIT;

		e.vaddr = chunk * IMG_CHUNK_SIZE + i * PAGE_SIZE;
		e.nr_pages = (uint32_t)(end - i);
		e.has_flags = true;
		e.flags = present ? IMG_PE_PRESENT : IMG_PE_PARENT;
		e.has_in_parent = e.in_parent = !present;
		e.has_vm_checksum = present && bitmap_next(c->present, IMG_CHUNK_PAGES, end, true) == IMG_CHUNK_PAGES;
		e.has_vm_offset = e.has_vm_stored = e.has_vm_checksum;
		e.vm_checksum = c->checksum;
		e.vm_offset = c->off;
		e.vm_stored = c->stored;
		ret = img_out_put(o, &e.base);
		i = end;
	}
	return ret;
}

struct walk {
	struct img_in *in;
	struct img_chunk *chunks;
	uint64_t features;
	uint64_t nr_pages;	// of the block
	uint64_t next;		// first page that the next entry may have
	bool open;		// pages of the last chunk are stored nobody said yet where
};

static int check_run(const struct walk *w, const PagemapEntry *e)
{
	uint64_t page = e->vaddr / PAGE_SIZE;
	bool in_parent = e->flags == IMG_PE_PARENT && w->features & IMG_FEATURE_PARENT;

	if (e->vaddr % PAGE_SIZE || page >= w->nr_pages || !e->nr_pages || e->nr_pages > w->nr_pages - page ||
	    (page + e->nr_pages - 1) / IMG_CHUNK_PAGES != page / IMG_CHUNK_PAGES)
		return img_damaged(w->in->path, "%u pages at %#" PRIx64 " are not inside one chunk of the block", e->nr_pages, e->vaddr);
	if ((e->flags != IMG_PE_PRESENT && !in_parent) || e->in_parent != in_parent)
		return img_damaged(w->in->path, "the entry at %#" PRIx64 " has unknown flags %#x", e->vaddr, e->flags);
	if (page < w->next)
		return img_damaged(w->in->path, "the entry at %#" PRIx64 " is out of order", e->vaddr);
	if (w->open && page / IMG_CHUNK_PAGES != (w->next - 1) / IMG_CHUNK_PAGES)
		return img_damaged(w->in->path, "nothing says where the chunk before %#" PRIx64 " is stored", e->vaddr);
	if (e->has_vm_offset != e->has_vm_checksum || e->has_vm_stored != e->has_vm_checksum || (e->has_vm_checksum && in_parent))
		return img_damaged(w->in->path, "the entry at %#" PRIx64 " says by halves where its chunk is stored", e->vaddr);
	return 0;
}

// Where a chunk is stored, when all its present pages are known.
static int add_extent(struct walk *w, struct img_chunk *c, const PagemapEntry *e)
{
	uint64_t raw = bitmap_count(c->present, IMG_CHUNK_PAGES) * PAGE_SIZE;
	bool fits = w->features & IMG_FEATURE_ZSTD ? e->vm_stored && e->vm_stored <= raw : e->vm_stored == raw;

	if (!fits || e->vm_stored % PAGE_SIZE || e->vm_offset % PAGE_SIZE)
		return img_damaged(w->in->path, "a chunk of %" PRIu64 " bytes before %#" PRIx64 " cannot be stored as %u bytes at %" PRIu64, raw,
				   e->vaddr + e->nr_pages * PAGE_SIZE, e->vm_stored, e->vm_offset);
	c->off = e->vm_offset;
	c->stored = e->vm_stored;
	c->checksum = e->vm_checksum;
	return 0;
}

static int add_entry(struct walk *w, const PagemapEntry *e)
{
	uint64_t page = e->vaddr / PAGE_SIZE;
	struct img_chunk *c;
	int ret = check_run(w, e);

	if (ret)
		return ret;
	c = &w->chunks[page / IMG_CHUNK_PAGES];
	w->next = page + e->nr_pages;
	if (e->flags == IMG_PE_PARENT) {
		bitmap_set_range(c->parent, page % IMG_CHUNK_PAGES, e->nr_pages);
		return 0;
	}
	if (c->stored)
		return img_damaged(w->in->path, "the entry at %#" PRIx64 " follows the one that says where its chunk is stored", e->vaddr);
	bitmap_set_range(c->present, page % IMG_CHUNK_PAGES, e->nr_pages);
	w->open = !e->has_vm_checksum;
	return w->open ? 0 : add_extent(w, c, e);
}

int img_pagemap_get(struct img_in *in, uint64_t len, uint64_t features, struct img_chunk *chunks)
{
	struct walk w = { .in = in, .chunks = chunks, .features = features, .nr_pages = len / PAGE_SIZE };
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
	if (id != PAGES_ID)
		return img_damaged(in->path, "it says it is of pages-%u.img", id);

	while ((ret = img_in_get(in, &pagemap_entry__descriptor, IMG_PAGEMAP_ENTRY_MAX, &m)) > 0) {
		ret = add_entry(&w, (const PagemapEntry *)m);
		protobuf_c_message_free_unpacked(m, NULL);
		if (ret)
			return ret;
	}
	if (!ret && w.open)
		ret = img_damaged(in->path, "nothing says where its last chunk is stored");
	return ret;
}
