// SPDX-License-Identifier: GPL-2.0-only
#include "images/writer.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "images/format.h"
#include "images/inventory_int.h"
#include "images/pagemap_int.h"
#include "images/pages_int.h"
#include "images/staging_int.h"
#include "images/valid_int.h"
#include "util/bitmap.h"
#include "util/cleanup.h"
#include "util/log.h"

#define FILES_MAX (3 + 2 * IMG_BLOCKS_MAX)

struct file {
	char name[24];
	bool has_xxh3;
	uint64_t len, xxh3;
};

struct img_writer {
	struct img_staging dir;
	struct img_pages pages;
	struct img_out pagemap;

	bool in_block;
	uint32_t nr_blocks;			// begun
	uint64_t block_len[IMG_BLOCKS_MAX];
	uint64_t next_chunk;			// of the block that is open
	uint64_t pages_scanned, pages_written;

	VmEntry *vm;				// a copy, to compare blocks at commit
	bool have_device_state, have_stats;
	struct file files[FILES_MAX];
	uint32_t nr_files;
};

static int misuse(const struct img_writer *w, const char *what)
{
	log_err("%s: %s", w->dir.path, what);
	return -EINVAL;
}

int img_writer_open(const char *dir, struct img_writer **out)
{
	struct img_writer *w = calloc(1, sizeof *w);
	int ret;

	if (!w)
		return img_io_error(dir, "write a checkpoint to", -ENOMEM);
	w->pages.fd = -1;
	ret = img_staging_open(&w->dir, dir);
	if (!ret)
		ret = img_pages_init(&w->pages);
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

int img_writer_begin_block(struct img_writer *w, uint32_t block, uint64_t len)
{
	char name[24];
	int ret;

	if (w->in_block || block != w->nr_blocks || block >= IMG_BLOCKS_MAX)
		return misuse(w, "blocks come one after the other");
	if (!len || len % PAGE_SIZE || len > IMG_BLOCK_LEN_MAX)
		return misuse(w, "a block's length is no multiple of the page, or out of range");

	snprintf(name, sizeof name, IMG_NAME_PAGES, block + 1);
	ret = img_pages_open(&w->pages, w->dir.fd, w->dir.path, name);
	if (ret)
		return ret;
	snprintf(name, sizeof name, IMG_NAME_PAGEMAP, block + 1);
	ret = img_out_open(&w->pagemap, w->dir.fd, w->dir.path, name, IMG_MAGIC_PAGEMAP);
	if (!ret)
		ret = img_pagemap_put_head(&w->pagemap, block);
	if (ret)
		return ret;
	w->block_len[w->nr_blocks++] = len;
	w->next_chunk = 0;
	w->in_block = true;
	return 0;
}

// All bytes are equal to their successor, and the first ones are zero. memcmp() is as fast as the machine allows.
static bool page_is_zero(const uint8_t *p)
{
	uint64_t first;

	memcpy(&first, p, sizeof first);
	return !first && !memcmp(p, p + sizeof first, PAGE_SIZE - sizeof first);
}

int img_writer_chunk(struct img_writer *w, uint64_t chunk, const void *buf, const uint64_t maybe[4])
{
	uint64_t len = w->in_block ? w->block_len[w->nr_blocks - 1] : 0;
	struct img_chunk c = { .off = img_pages_len(&w->pages) };
	size_t nr_pages, packed = 0;
	uint8_t *room;
	int ret;

	if (chunk < w->next_chunk || chunk >= DIV_ROUND_UP(len, IMG_CHUNK_SIZE))
		return misuse(w, "chunks come in ascending order, inside a block");
	nr_pages = len - chunk * IMG_CHUNK_SIZE < IMG_CHUNK_SIZE ? len / PAGE_SIZE % IMG_CHUNK_PAGES : IMG_CHUNK_PAGES;
	w->next_chunk = chunk + 1;
	w->pages.ahead = len - chunk * IMG_CHUNK_SIZE;
	ret = img_pages_room(&w->pages, &room);
	if (ret)
		return ret;

	for (size_t i = 0; (i = bitmap_next(maybe, nr_pages, i, true)) < nr_pages; i++) {
		const uint8_t *page = (const uint8_t *)buf + i * PAGE_SIZE;

		w->pages_scanned++;
		if (page_is_zero(page))
			continue;
		memcpy(room + packed, page, PAGE_SIZE);
		packed += PAGE_SIZE;
		bitmap_set(c.present, i);
	}
	if (!packed)
		return 0;
	c.checksum = XXH3_64bits(room, packed);
	img_pages_add(&w->pages, packed);
	w->pages_written += packed / PAGE_SIZE;
	return img_pagemap_put(&w->pagemap, chunk, &c);
}

int img_writer_end_block(struct img_writer *w)
{
	char name[24];
	int ret;

	if (!w->in_block)
		return misuse(w, "no block is open");
	w->in_block = false;
	w->pages.ahead = 0;
	ret = img_pages_close(&w->pages);
	if (ret)
		return ret;
	snprintf(name, sizeof name, IMG_NAME_PAGES, w->nr_blocks);
	list_file(w, name, img_pages_len(&w->pages), NULL);
	snprintf(name, sizeof name, IMG_NAME_PAGEMAP, w->nr_blocks);
	ret = finish_file(w, &w->pagemap, name);
	img_out_fini(&w->pagemap);
	return ret;
}

int img_writer_vm(struct img_writer *w, const VmEntry *vm)
{
	const char *fault = w->vm ? "vm.img is written already" : img_vm_fault(vm);
	_cleanup_free_ uint8_t *packed = NULL;
	size_t len;
	int ret;

	if (fault)
		return misuse(w, fault);
	ret = write_file(w, IMG_NAME_VM, IMG_MAGIC_VM, IMG_VM_MAX, &vm->base);
	if (ret)
		return ret;
	packed = malloc(vm_entry__get_packed_size(vm));
	len = packed ? vm_entry__pack(vm, packed) : 0;
	w->vm = packed ? vm_entry__unpack(NULL, len, packed) : NULL;
	return w->vm ? 0 : img_io_error(w->dir.path, "write", -ENOMEM);
}

int img_writer_device_state(struct img_writer *w, const DeviceStateEntry *ds)
{
	const char *fault = w->have_device_state ? "device-state.img is written already" : img_device_state_fault(ds);

	if (fault)
		return misuse(w, fault);
	w->have_device_state = true;
	return write_file(w, IMG_NAME_DEVICE_STATE, IMG_MAGIC_DEVICE_STATE, IMG_DEVICE_STATE_MAX, &ds->base);
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

	if (w->have_stats)
		return misuse(w, "stats-dump.img is written already");
	w->have_stats = true;
	dump.freezing_time = us32(t->freezing_us);
	dump.frozen_time = us32(t->frozen_us);
	dump.memdump_time = us32(t->memdump_us);
	dump.memwrite_time = us32(t->memwrite_us);
	dump.pages_scanned = w->pages_scanned;
	dump.pages_written = w->pages_written;
	stats.dump = &dump;
	return write_file(w, IMG_NAME_STATS, IMG_MAGIC_STATS, IMG_STATS_MAX, &stats.base);
}

uint64_t img_writer_pages(const struct img_writer *w)
{
	return w->pages_written;
}

static const char *incomplete(const struct img_writer *w)
{
	if (w->in_block || !w->vm || !w->have_device_state)
		return "cannot be committed without vm.img, device-state.img and the end of each block";
	if (w->vm->n_blocks != w->nr_blocks)
		return "vm.img has another number of blocks than were written";
	for (uint32_t i = 0; i < w->nr_blocks; i++)
		if (w->vm->blocks[i]->len != w->block_len[i])
			return "a block in vm.img has another length than was written";
	// An error on the way leaves a file unlisted.
	if (w->nr_files != 2 + w->have_stats + 2 * w->nr_blocks)
		return "cannot be committed after an error";
	return NULL;
}

static int write_inventory(const struct img_writer *w)
{
	_cleanup_free_ VmFileEntry *entries = calloc(w->nr_files, sizeof *entries);
	_cleanup_free_ VmFileEntry **list = calloc(w->nr_files, sizeof *list);

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
	return img_inventory_put(w->dir.fd, w->dir.path, list, w->nr_files);
}

int img_writer_commit(struct img_writer *w)
{
	const char *fault = incomplete(w);
	int ret;

	if (fault)
		return misuse(w, fault);
	ret = write_inventory(w);
	return ret ? ret : img_staging_commit(&w->dir);
}

void img_writer_free(struct img_writer *w)
{
	if (!w)
		return;
	img_pages_fini(&w->pages);
	img_out_fini(&w->pagemap);
	if (w->vm)
		vm_entry__free_unpacked(w->vm, NULL);
	img_staging_fini(&w->dir);
	free(w);
}
