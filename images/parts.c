// SPDX-License-Identifier: GPL-2.0-only
// Where a chunk's pages are in a chain, and taking apart what is stored of it.
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <xxhash.h>

#include "images/dir_int.h"
#include "images/file_int.h"
#include "images/format.h"
#include "images/frame_int.h"
#include "util/bitmap.h"
#include "util/io.h"
#include "util/log.h"

struct img_unpacker {
	ZSTD_DCtx *zstd;
	char pages[IMG_CHUNK_SIZE];
};

unsigned img_dir_layers(const struct img_dir *d)
{
	unsigned nr = 0;

	for (; d; d = d->parent)
		nr++;
	return nr;
}

unsigned img_dir_parts(const struct img_dir *d, uint32_t block, uint64_t chunk, const uint64_t want[4], struct img_part *parts)
{
	uint64_t rest[IMG_CHUNK_WORDS];
	unsigned nr = 0, layer = 0;

	memcpy(rest, want, sizeof rest);
	for (; d && !bitmap_empty(rest, IMG_CHUNK_PAGES); d = d->parent, layer++) {
		const struct img_chunk *c = img_dir_chunk(d, block, chunk);
		struct img_part p = { .dir = d, .layer = layer, .block = block, .chunk = chunk, .entry = c };

		for (unsigned w = 0; w < IMG_CHUNK_WORDS; w++) {
			p.pages[w] = rest[w] & c->present[w];
			rest[w] &= c->parent[w];
		}
		if (!bitmap_empty(p.pages, IMG_CHUNK_PAGES))
			parts[nr++] = p;
	}
	return nr;
}

void img_dir_pages(const struct img_dir *d, uint32_t block, uint64_t chunk, uint64_t map[4])
{
	uint64_t rest[IMG_CHUNK_WORDS];

	memset(rest, 0xff, sizeof rest);
	memset(map, 0, IMG_CHUNK_WORDS * sizeof *map);
	for (; d; d = d->parent) {
		const struct img_chunk *c = img_dir_chunk(d, block, chunk);

		for (unsigned w = 0; w < IMG_CHUNK_WORDS; w++) {
			map[w] |= rest[w] & c->present[w];
			rest[w] &= c->parent[w];
		}
	}
}

int img_part_fd(const struct img_part *p)
{
	return p->dir->pages_fd;
}

static size_t present_len(const struct img_chunk *c)
{
	return bitmap_count(c->present, IMG_CHUNK_PAGES) * PAGE_SIZE;
}

bool img_part_is_raw(const struct img_part *p)
{
	return p->entry->stored == present_len(p->entry);
}

int img_unpacker_new(struct img_unpacker **out)
{
	struct img_unpacker *u = malloc(sizeof *u);

	if (u)
		u->zstd = ZSTD_createDCtx();
	if (!u || !u->zstd) {
		free(u);
		return -ENOMEM;
	}
	*out = u;
	return 0;
}

void img_unpacker_free(struct img_unpacker *u)
{
	if (u)
		ZSTD_freeDCtx(u->zstd);
	free(u);
}

static int damaged(const struct img_part *p, const char *what)
{
	char path[PATH_MAX + 32];

	snprintf(path, sizeof path, "%s/%s", p->dir->path, IMG_NAME_PAGES);
	return img_damaged(path, "chunk %" PRIu64 " of block %u, %u bytes at %" PRIu64 ": %s", p->chunk, p->block + 1, p->entry->stored,
			   p->entry->off, what);
}

int img_part_check(const struct img_part *p, const void *stored)
{
	return XXH3_64bits(stored, p->entry->stored) == p->entry->checksum ? 0 : damaged(p, "its checksum is wrong");
}

int img_part_unpack(struct img_unpacker *u, const struct img_part *p, const void *stored, char *dest)
{
	const char *packed = img_part_is_raw(p) ? stored : u->pages, *fault = NULL;
	int ret = img_part_check(p, stored);

	if (ret)
		return ret;
	if (packed == u->pages)
		fault = img_frame_unpack(u->zstd, stored, p->entry->stored, u->pages, present_len(p->entry));
	if (fault)
		return damaged(p, fault);
	for (size_t i = 0, n; (n = bitmap_next_run(p->pages, IMG_CHUNK_PAGES, &i)); i += n)
		memcpy(dest + i * PAGE_SIZE, packed + bitmap_count(p->entry->present, i) * PAGE_SIZE, n * PAGE_SIZE);
	return 0;
}

int img_part_read(struct img_unpacker *u, const struct img_part *p, void *stored, char *dest)
{
	int ret = io_pread_full(p->dir->pages_fd, stored, p->entry->stored, p->entry->off);

	if (!ret)
		return img_part_unpack(u, p, stored, dest);
	if (ret == -ENODATA)
		return damaged(p, "the file ends before it");
	log_err("%s/" IMG_NAME_PAGES ": chunk %" PRIu64 " of block %u cannot be read: %s", p->dir->path, p->chunk, p->block + 1,
		strerror(-ret));
	return ret;
}

int img_dir_read(const struct img_dir *d, struct img_unpacker *u, uint32_t block, uint64_t chunk, const uint64_t want[4], void *scratch,
		 char *dest)
{
	struct img_part parts[IMG_CHAIN_MAX];
	unsigned nr = img_dir_parts(d, block, chunk, want, parts);
	uint64_t zero[IMG_CHUNK_WORDS];
	int ret = 0;

	memcpy(zero, want, sizeof zero);
	for (unsigned i = 0; !ret && i < nr; i++) {
		ret = img_part_read(u, &parts[i], scratch, dest);
		for (unsigned w = 0; w < IMG_CHUNK_WORDS; w++)
			zero[w] &= ~parts[i].pages[w];
	}
	for (size_t i = 0, n; !ret && (n = bitmap_next_run(zero, IMG_CHUNK_PAGES, &i)); i += n)
		memset(dest + i * PAGE_SIZE, 0, n * PAGE_SIZE);
	return ret;
}
