// SPDX-License-Identifier: GPL-2.0-only
#include "images/writer.h"

#include <errno.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "images/compress_int.h"
#include "images/dir_int.h"
#include "images/format.h"
#include "images/inventory_int.h"
#include "images/pagemap_int.h"
#include "images/pages_int.h"
#include "images/staging_int.h"
#include "images/valid_int.h"
#include "util/bitmap.h"
#include "util/cleanup.h"
#include "util/log.h"
#include "util/zero.h"

#define FILES_MAX (4 + IMG_BLOCKS_MAX)

struct file {
	char name[24];
	bool has_xxh3;
	uint64_t len, xxh3;
};

struct block {
	uint64_t len, nr_chunks;
	struct img_chunk *chunks;
	uint64_t *given; // a bit a chunk
};

struct img_writer {
	struct img_staging dir;
	struct img_stream_out *stream; // NULL: a directory
	struct img_pages pages;
	struct img_compressor *compressor; // NULL: chunks are stored as they are
	const struct img_dir *parent;
	uint64_t features;

	uint32_t nr_blocks;
	struct block *blocks;
	bool ended;
	uint64_t pages_scanned, pages_written, pages_parent;

	VmEntry *vm; // a copy, to compare blocks at commit
	bool have_device_state, have_stats;
	struct file files[FILES_MAX];
	uint32_t nr_files;
	int err; // the first
};

static int misuse(const struct img_writer *w, const char *what)
{
	log_err("%s: %s", w->dir.path, what);
	return -EINVAL;
}

static int first_error(struct img_writer *w, int ret)
{
	if (!w->err)
		w->err = ret;
	return ret;
}

// The parent beside the checkpoint is named by its name alone, so that both can be moved together.
static int link_parent(const struct img_writer *w)
{
	char proc[32], path[PATH_MAX], link[PATH_MAX + 4];
	size_t around = strlen(w->dir.final_path) - strlen(w->dir.final_name);
	ssize_t n;

	snprintf(proc, sizeof proc, "/proc/self/fd/%d", w->parent->fd);
	n = readlink(proc, path, sizeof path - 1);
	if (n < 0)
		return img_io_error(w->parent->path, "find", -errno);
	path[n] = 0;
	if (!strncmp(path, w->dir.final_path, around) && path[around] && !strchr(path + around, '/'))
		snprintf(link, sizeof link, "../%s", path + around);
	else
		snprintf(link, sizeof link, "%s", path);
	return symlinkat(link, w->dir.fd, IMG_NAME_PARENT) ? img_io_error(w->dir.path, "link the parent of", -errno) : 0;
}

static int open_dir(struct img_writer *w, const struct img_writer_opts *o)
{
	int ret = img_staging_open(&w->dir, o->dir);

	if (!ret && o->parent)
		ret = link_parent(w);
	return ret ? ret : img_pages_open(&w->pages, w->dir.fd, w->dir.path, IMG_NAME_PAGES);
}

static int open_stream(struct img_writer *w, const struct img_writer_opts *o)
{
	int ret;

	snprintf(w->dir.path, sizeof w->dir.path, "the stream");
	w->dir.fd = w->dir.parent_fd = -1;
	if (o->parent || o->ram_only)
		return misuse(w, "stands by itself: it is no increment and no pre-dump");
	ret = img_stream_out_open(o->stream_fd, w->features, o->interrupted, &w->stream);
	return ret ? ret : img_pages_open_stream(&w->pages, w->stream);
}

int img_writer_open(const struct img_writer_opts *o, struct img_writer **out)
{
	struct img_writer *w;
	int ret;

	if (img_dir_layers(o->parent) >= IMG_CHAIN_MAX) {
		log_err("%s: is the last of %u checkpoints that are built upon one another, which is the most: merge them", o->parent->path,
			IMG_CHAIN_MAX);
		return -EMLINK;
	}
	w = calloc(1, sizeof *w);
	if (!w)
		return img_io_error(o->dir, "write a checkpoint to", -ENOMEM);
	w->pages.fd = -1;
	w->parent = o->parent;
	w->features = (o->zstd_level ? IMG_FEATURE_ZSTD : 0) | (o->parent ? IMG_FEATURE_PARENT : 0) | (o->ram_only ? IMG_FEATURE_RAM_ONLY : 0);
	ret = o->dir ? open_dir(w, o) : open_stream(w, o);
	if (!ret && o->zstd_level)
		ret = img_compressor_new(o->zstd_level, &w->pages, &w->compressor);
	if (ret) {
		img_writer_free(w);
		return ret;
	}
	*out = w;
	return 0;
}

static void list_file(struct img_writer *w, const char *name, uint64_t len, const uint64_t *xxh3)
{
	struct file *f = &w->files[w->nr_files++];

	snprintf(f->name, sizeof f->name, "%s", name);
	f->len = len;
	f->has_xxh3 = xxh3;
	f->xxh3 = xxh3 ? *xxh3 : 0;
}

// Closes a metadata file and lists it.
static int finish_file(struct img_writer *w, struct img_out *o, const char *name)
{
	int ret = img_out_close(o);
	uint64_t xxh3;

	if (ret)
		return ret;
	xxh3 = img_out_digest(o);
	list_file(w, name, o->len, &xxh3);
	return 0;
}

// A metadata file of one message.
static int write_file(struct img_writer *w, const char *name, uint32_t magic, uint32_t max, const ProtobufCMessage *m)
{
	struct img_out o;
	int ret;

	if (protobuf_c_message_get_packed_size(m) > max) {
		log_err("%s/%s: would have %zu bytes, more than the %u that the format allows", w->dir.path, name,
			protobuf_c_message_get_packed_size(m), max);
		return -EFBIG;
	}
	ret = img_out_open(&o, w->dir.fd, w->dir.path, name, magic);
	if (!ret)
		ret = img_out_put(&o, m);
	if (!ret)
		ret = finish_file(w, &o, name);
	img_out_fini(&o);
	return ret;
}

static int add_block(struct img_writer *w, uint64_t len)
{
	struct block *b = &w->blocks[w->nr_blocks++];

	b->len = len;
	b->nr_chunks = DIV_ROUND_UP(len, IMG_CHUNK_SIZE);
	b->chunks = calloc(b->nr_chunks, sizeof *b->chunks);
	b->given = calloc(BITMAP_WORDS(b->nr_chunks), sizeof *b->given);
	w->pages.ahead += len;
	return b->chunks && b->given ? 0 : img_io_error(w->dir.path, "write", -ENOMEM);
}

int img_writer_blocks(struct img_writer *w, const uint64_t *lens, uint32_t nr)
{
	int ret = 0;

	if (w->blocks || !nr || nr > IMG_BLOCKS_MAX || (w->parent && nr != w->parent->nr_blocks))
		return first_error(w, misuse(w, "the blocks come once, and are those of the parent"));
	for (uint32_t i = 0; i < nr; i++)
		if (!lens[i] || lens[i] % PAGE_SIZE || lens[i] > IMG_BLOCK_LEN_MAX || (w->parent && lens[i] != w->parent->blocks[i].len))
			return first_error(w, misuse(w, "a block's length is no multiple of the page, out of range, or not that of the parent"));
	w->blocks = calloc(nr, sizeof *w->blocks);
	if (!w->blocks)
		ret = img_io_error(w->dir.path, "write", -ENOMEM);
	for (uint32_t i = 0; !ret && i < nr; i++)
		ret = add_block(w, lens[i]);
	return first_error(w, ret);
}

// Copies the pages that are not zero one behind the other, and notes which they are.
static size_t pack(const void *buf, const uint64_t look[IMG_CHUNK_WORDS], uint64_t present[IMG_CHUNK_WORDS], uint8_t *to)
{
	size_t packed = 0;

	for (size_t i = 0; (i = bitmap_next(look, IMG_CHUNK_PAGES, i, true)) < IMG_CHUNK_PAGES; i++) {
		const uint8_t *page = (const uint8_t *)buf + i * PAGE_SIZE;

		if (mem_is_zero(page, PAGE_SIZE))
			continue;
		memcpy(to + packed, page, PAGE_SIZE);
		packed += PAGE_SIZE;
		bitmap_set(present, i);
	}
	return packed;
}

static int store(struct img_writer *w, uint32_t block, uint64_t chunk, const void *buf, const uint64_t look[IMG_CHUNK_WORDS])
{
	struct img_chunk *c = &w->blocks[block].chunks[chunk];
	uint8_t *room;
	struct img_place at = { block, chunk };
	size_t packed;
	int ret = w->compressor ? img_compressor_room(w->compressor, &room) : img_pages_room(&w->pages, &room);

	if (ret)
		return ret;
	packed = pack(buf, look, c->present, room);
	w->pages_written += packed / PAGE_SIZE;
	if (packed && w->compressor)
		img_compressor_add(w->compressor, at, c, packed);
	else if (packed)
		ret = img_pages_add(&w->pages, at, c, packed, XXH3_64bits(room, packed));
	return ret;
}

// Takes note of a chunk that comes. *c: its entry.
static int begin_chunk(struct img_writer *w, uint32_t block, uint64_t chunk, struct img_chunk **c, uint64_t valid[IMG_CHUNK_WORDS])
{
	struct block *b = block < w->nr_blocks ? &w->blocks[block] : NULL;
	uint64_t left;

	if (w->err)
		return w->err;
	if (!b || w->ended || chunk >= b->nr_chunks || bitmap_test(b->given, chunk))
		return first_error(w, misuse(w, "a chunk comes once, and is inside a block"));
	if (w->stream && !w->vm)
		return first_error(w, misuse(w, "begins with the VM"));
	bitmap_set(b->given, chunk);
	*c = &b->chunks[chunk];
	left = b->len - chunk * IMG_CHUNK_SIZE;
	left = left < IMG_CHUNK_SIZE ? left : IMG_CHUNK_SIZE;
	memset(valid, 0, IMG_CHUNK_WORDS * sizeof *valid);
	bitmap_set_range(valid, 0, left / PAGE_SIZE);
	w->pages.ahead -= left;
	return 0;
}

int img_writer_chunk(struct img_writer *w, uint32_t block, uint64_t chunk, const void *buf, const uint64_t maybe[4], const uint64_t parent[4])
{
	uint64_t look[IMG_CHUNK_WORDS], valid[IMG_CHUNK_WORDS];
	struct img_chunk *c;
	int ret = begin_chunk(w, block, chunk, &c, valid);

	if (ret)
		return ret;
	for (unsigned i = 0; i < IMG_CHUNK_WORDS; i++) {
		c->parent[i] = parent ? parent[i] & valid[i] : 0;
		look[i] = maybe[i] & valid[i] & ~c->parent[i];
	}
	w->pages_parent += bitmap_count(c->parent, IMG_CHUNK_PAGES);
	w->pages_scanned += bitmap_count(look, IMG_CHUNK_PAGES);
	if (!w->parent && !bitmap_empty(c->parent, IMG_CHUNK_PAGES))
		return first_error(w, misuse(w, "there is no parent that a page could be as in"));
	return bitmap_empty(look, IMG_CHUNK_PAGES) ? 0 : first_error(w, store(w, block, chunk, buf, look));
}

static int copy_stored(struct img_writer *w, const struct img_part *p, struct img_chunk *c, const void *stored)
{
	struct img_place at = { p->block, p->chunk };
	uint8_t *room;
	int ret;

	c->stored = p->entry->stored;
	c->checksum = p->entry->checksum;
	ret = img_pages_clone(&w->pages, c, img_part_fd(p), p->entry->off);
	if (ret != -EOPNOTSUPP)
		return ret;
	ret = img_pages_room(&w->pages, &room);
	if (ret)
		return ret;
	memcpy(room, stored, p->entry->stored);
	return img_pages_add(&w->pages, at, c, p->entry->stored, p->entry->checksum);
}

int img_writer_stored(struct img_writer *w, const struct img_part *p, const void *stored)
{
	uint64_t valid[IMG_CHUNK_WORDS];
	struct img_chunk *c;
	int ret = begin_chunk(w, p->block, p->chunk, &c, valid);

	if (ret)
		return ret;
	for (unsigned i = 0; i < IMG_CHUNK_WORDS; i++)
		if (p->entry->present[i] & ~valid[i])
			return first_error(w, misuse(w, "a chunk is longer than its block"));
	if (w->stream && !(w->features & IMG_FEATURE_ZSTD) && !img_part_is_raw(p))
		return first_error(w, misuse(w, "cannot have compressed chunks: it has begun without"));
	memcpy(c->present, p->entry->present, sizeof c->present);
	w->pages_written += bitmap_count(c->present, IMG_CHUNK_PAGES);
	if (!img_part_is_raw(p))
		w->features |= IMG_FEATURE_ZSTD;
	if (w->compressor)
		img_compressor_lock(w->compressor);
	ret = copy_stored(w, p, c, stored);
	if (w->compressor)
		img_compressor_unlock(w->compressor);
	return first_error(w, ret);
}

static int write_pagemap(struct img_writer *w, uint32_t block)
{
	const struct block *b = &w->blocks[block];
	struct img_out o;
	char name[24];
	int ret;

	snprintf(name, sizeof name, IMG_NAME_PAGEMAP, block + 1);
	ret = img_out_open(&o, w->dir.fd, w->dir.path, name, IMG_MAGIC_PAGEMAP);
	if (!ret)
		ret = img_pagemap_put_head(&o);
	for (uint64_t i = 0; !ret && i < b->nr_chunks; i++)
		ret = img_pagemap_put(&o, i, &b->chunks[i]);
	if (!ret)
		ret = finish_file(w, &o, name);
	img_out_fini(&o);
	return ret;
}

int img_writer_end_pages(struct img_writer *w)
{
	int ret = w->err;

	if (ret)
		return ret;
	if (!w->blocks || w->ended)
		return first_error(w, misuse(w, "pages end once, after the blocks were given"));
	w->ended = true;
	img_compressor_free(w->compressor);
	w->compressor = NULL;
	ret = img_pages_close(&w->pages);
	if (!ret && !w->stream)
		list_file(w, IMG_NAME_PAGES, w->pages.len, NULL);
	for (uint32_t i = 0; !ret && !w->stream && i < w->nr_blocks; i++)
		ret = write_pagemap(w, i);
	return first_error(w, ret);
}

static VmEntry *copy_vm(const VmEntry *vm)
{
	_cleanup_free_ uint8_t *packed = malloc(vm_entry__get_packed_size(vm));
	size_t len = packed ? vm_entry__pack(vm, packed) : 0;

	return packed ? vm_entry__unpack(NULL, len, packed) : NULL;
}

int img_writer_vm(struct img_writer *w, const VmEntry *vm)
{
	const char *fault = w->vm ? "vm.img is written already" : img_vm_fault(vm);
	int ret = w->err;

	if (!ret && fault)
		ret = misuse(w, fault);
	if (!ret)
		ret = w->stream ? img_stream_out_vm(w->stream, vm) : write_file(w, IMG_NAME_VM, IMG_MAGIC_VM, IMG_VM_MAX, &vm->base);
	if (!ret && !(w->vm = copy_vm(vm)))
		ret = img_io_error(w->dir.path, "write", -ENOMEM);
	return first_error(w, ret);
}

int img_writer_device_state(struct img_writer *w, const DeviceStateEntry *ds)
{
	const char *fault = img_device_state_fault(ds);
	int ret = w->err;

	if (w->have_device_state || w->features & IMG_FEATURE_RAM_ONLY)
		fault = "device-state.img is written already, or is not for a pre-dump";
	else if (w->stream && !w->ended)
		fault = "the device state comes behind the pages";
	if (!ret && fault)
		ret = misuse(w, fault);
	w->have_device_state = true;
	if (!ret && w->stream)
		ret = img_stream_out_device_state(w->stream, ds);
	else if (!ret)
		ret = write_file(w, IMG_NAME_DEVICE_STATE, IMG_MAGIC_DEVICE_STATE, IMG_DEVICE_STATE_MAX, &ds->base);
	return first_error(w, ret);
}

// CRIU has 32 bits of microseconds.
static uint32_t us32(uint64_t us)
{
	return us > UINT32_MAX ? UINT32_MAX : (uint32_t)us;
}

int img_writer_stats(struct img_writer *w, const struct img_times *t)
{
	DumpStatsEntry dump = DUMP_STATS_ENTRY__INIT;
	StatsEntry stats = STATS_ENTRY__INIT;

	if (w->err)
		return w->err;
	if (w->have_stats)
		return first_error(w, misuse(w, "stats-dump.img is written already"));
	w->have_stats = true;
	if (w->stream)
		return 0;
	dump.freezing_time = us32(t->freezing_us);
	dump.frozen_time = us32(t->frozen_us);
	dump.memdump_time = us32(t->memdump_us);
	dump.memwrite_time = us32(t->memwrite_us);
	dump.pages_scanned = w->pages_scanned;
	dump.pages_skipped_parent = w->pages_parent;
	dump.pages_written = w->pages_written;
	stats.dump = &dump;
	return first_error(w, write_file(w, IMG_NAME_STATS, IMG_MAGIC_STATS, IMG_STATS_MAX, &stats.base));
}

uint64_t img_writer_pages(const struct img_writer *w)
{
	return w->pages_written;
}

uint64_t img_writer_bytes(const struct img_writer *w)
{
	return w->pages.len;
}

static const char *incomplete(const struct img_writer *w)
{
	if (!w->ended || !w->vm || (!w->have_device_state && !(w->features & IMG_FEATURE_RAM_ONLY)))
		return "cannot be committed without vm.img, device-state.img and the end of the pages";
	if (w->vm->n_blocks != w->nr_blocks)
		return "vm.img has another number of blocks than were written";
	for (uint32_t i = 0; i < w->nr_blocks; i++)
		if (w->vm->blocks[i]->len != w->blocks[i].len)
			return "a block in vm.img has another length than was written";
	return NULL;
}

static int write_inventory(const struct img_writer *w, uint64_t *id)
{
	InventoryEntry inv = INVENTORY_ENTRY__INIT;
	_cleanup_free_ VmFileEntry *entries = calloc(w->nr_files, sizeof *entries);
	_cleanup_free_ VmFileEntry **list = calloc(w->nr_files, sizeof *list);
	int ret;

	if (!entries || !list)
		return img_io_error(w->dir.path, "write", -ENOMEM);
	for (uint32_t i = 0; i < w->nr_files; i++) {
		const struct file *f = &w->files[i];

		vm_file_entry__init(&entries[i]);
		entries[i].name = (char *)f->name;
		entries[i].len = f->len;
		entries[i].has_xxh3 = f->has_xxh3;
		entries[i].xxh3 = f->xxh3;
		list[i] = &entries[i];
	}
	inv.n_vm_files = w->nr_files;
	inv.vm_files = list;
	inv.has_vm_features = w->features != 0;
	inv.vm_features = w->features;
	inv.has_vm_parent = w->parent != NULL;
	inv.vm_parent = w->parent ? img_dir_id(w->parent) : 0;
	ret = img_inventory_put(w->dir.fd, w->dir.path, &inv);
	*id = inv.vm_checksum;
	return ret;
}

int img_writer_commit(struct img_writer *w, uint64_t *id)
{
	const char *fault = incomplete(w);
	uint64_t own = 0;
	int ret = w->err;

	if (!ret && fault)
		ret = misuse(w, fault);
	if (!ret && w->stream)
		ret = img_stream_out_commit(w->stream);
	else if (!ret && !(ret = write_inventory(w, &own)))
		ret = img_staging_commit(&w->dir);
	if (!ret && id)
		*id = own;
	return first_error(w, ret);
}

void img_writer_free(struct img_writer *w)
{
	if (!w)
		return;
	img_compressor_free(w->compressor);
	img_pages_fini(&w->pages);
	for (uint32_t i = 0; i < w->nr_blocks; i++) {
		free(w->blocks[i].chunks);
		free(w->blocks[i].given);
	}
	free(w->blocks);
	if (w->vm)
		vm_entry__free_unpacked(w->vm, NULL);
	if (w->stream)
		img_stream_out_free(w->stream);
	else
		img_staging_fini(&w->dir);
	free(w);
}
