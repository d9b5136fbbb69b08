// SPDX-License-Identifier: GPL-2.0-only
#include "images/reader.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include "images/criu.pb-c.h"
#include "images/format.h"
#include "images/inventory_int.h"
#include "images/pagemap_int.h"
#include "images/valid_int.h"
#include "util/bitmap.h"
#include "util/log.h"

struct block {
	uint64_t len, nr_chunks;
	struct img_chunk *chunks;
	int pages_fd;
};

struct img_dir {
	int fd;
	char path[PATH_MAX];
	InventoryEntry *inv;
	VmEntry *vm;
	DeviceStateEntry *ds;
	uint32_t nr_blocks;
	struct block *blocks;
};

// A file that the inventory lists. NULL is logged.
static const VmFileEntry *listed(const struct img_dir *d, const char *name)
{
	for (size_t i = 0; i < d->inv->n_vm_files; i++)
		if (!strcmp(d->inv->vm_files[i]->name, name))
			return d->inv->vm_files[i];
	log_err("%s/%s: damaged: it does not list %s", d->path, IMG_NAME_INVENTORY, name);
	return NULL;
}

static int check_len(const char *path, uint64_t len, const VmFileEntry *f)
{
	if (len == f->len)
		return 0;
	return img_damaged(path, "it has %" PRIu64 " bytes instead of the %" PRIu64 " that %s says", len, f->len, IMG_NAME_INVENTORY);
}

// Opens a metadata file whose length is that of the inventory, and which has this magic. img_in_fini() follows in any case.
static int open_listed(const struct img_dir *d, const char *name, uint32_t want, struct img_in *in, const VmFileEntry **f)
{
	uint32_t magic;
	int ret;

	memset(in, 0, sizeof *in);
	*f = listed(d, name);
	if (!*f)
		return -EBADMSG;
	ret = img_in_open(in, d->fd, d->path, name, &magic);
	if (!ret)
		ret = check_len(in->path, in->len, *f);
	if (!ret && magic != want)
		ret = img_damaged(in->path, "its magic is %#x instead of %#x", magic, want);
	return ret;
}

// After the whole file was read.
static int check_sum(const struct img_in *in, const VmFileEntry *f)
{
	if (f->has_xxh3 && f->xxh3 == img_in_digest(in))
		return 0;
	return img_damaged(in->path, "its checksum is not the one that %s says", IMG_NAME_INVENTORY);
}

static int read_message(const struct img_dir *d, const char *name, uint32_t magic, const ProtobufCMessageDescriptor *type,
			uint32_t max, ProtobufCMessage **m)
{
	const VmFileEntry *f;
	struct img_in in;
	int ret;

	*m = NULL;
	ret = open_listed(d, name, magic, &in, &f);
	if (!ret)
		ret = img_in_get_last(&in, type, max, m);
	if (!ret)
		ret = check_sum(&in, f);
	img_in_fini(&in);
	return ret;
}

static int read_vm(struct img_dir *d)
{
	ProtobufCMessage *m;
	const char *fault;
	int ret = read_message(d, IMG_NAME_VM, IMG_MAGIC_VM, &vm_entry__descriptor, IMG_VM_MAX, &m);

	d->vm = (VmEntry *)m;
	if (ret)
		return ret;
	fault = img_vm_fault(d->vm);
	if (fault)
		log_err("%s/%s: damaged: %s", d->path, IMG_NAME_VM, fault);
	return fault ? -EBADMSG : 0;
}

static int read_device_state(struct img_dir *d)
{
	ProtobufCMessage *m;
	const char *fault;
	int ret = read_message(d, IMG_NAME_DEVICE_STATE, IMG_MAGIC_DEVICE_STATE, &device_state_entry__descriptor,
			       IMG_DEVICE_STATE_MAX, &m);

	d->ds = (DeviceStateEntry *)m;
	if (ret)
		return ret;
	fault = img_device_state_fault(d->ds);
	if (fault)
		log_err("%s/%s: damaged: %s", d->path, IMG_NAME_DEVICE_STATE, fault);
	return fault ? -EBADMSG : 0;
}

// Optional, and of no use here: only whether it is whole.
static int check_stats(struct img_dir *d)
{
	ProtobufCMessage *m;
	int ret = read_message(d, IMG_NAME_STATS, IMG_MAGIC_STATS, &stats_entry__descriptor, IMG_STATS_MAX, &m);

	if (m)
		protobuf_c_message_free_unpacked(m, NULL);
	return ret;
}

static int open_pages(struct img_dir *d, struct block *b, const char *name, uint64_t pages)
{
	const int flags = O_RDONLY | O_CLOEXEC | O_NOCTTY | O_NONBLOCK;
	const VmFileEntry *f = listed(d, name);
	char path[PATH_MAX + 32];
	struct stat st;
	int now;

	if (!f)
		return -EBADMSG;
	snprintf(path, sizeof path, "%s/%s", d->path, name);
	b->pages_fd = openat(d->fd, name, flags | O_DIRECT);
	if (b->pages_fd < 0 && errno == EINVAL)
		b->pages_fd = openat(d->fd, name, flags);
	if (b->pages_fd < 0 || fstat(b->pages_fd, &st))
		return img_io_error(path, "open", -errno);
	if (!S_ISREG(st.st_mode))
		return img_damaged(path, "it is no regular file");
	// It was for the open only: with it, io_uring fails a read that would wait for the disk.
	now = fcntl(b->pages_fd, F_GETFL);
	if (now < 0 || fcntl(b->pages_fd, F_SETFL, now & ~O_NONBLOCK))
		return img_io_error(path, "open", -errno);
	if (f->len != pages * PAGE_SIZE)
		return img_damaged(path, "its pagemap has %" PRIu64 " pages, %s %" PRIu64 " bytes", pages, IMG_NAME_INVENTORY, f->len);
	return check_len(path, (uint64_t)st.st_size, f);
}

static int read_block(struct img_dir *d, uint32_t i)
{
	struct block *b = &d->blocks[i];
	const VmFileEntry *f;
	struct img_in in;
	uint64_t pages;
	char name[24];
	int ret;

	b->len = d->vm->blocks[i]->len;
	b->nr_chunks = DIV_ROUND_UP(b->len, IMG_CHUNK_SIZE);
	b->chunks = calloc(b->nr_chunks, sizeof *b->chunks);
	if (!b->chunks)
		return img_io_error(d->path, "open", -ENOMEM);
	snprintf(name, sizeof name, IMG_NAME_PAGEMAP, i + 1);
	ret = open_listed(d, name, IMG_MAGIC_PAGEMAP, &in, &f);
	if (!ret)
		ret = img_pagemap_get(&in, i, b->len, b->chunks, &pages);
	if (!ret)
		ret = check_sum(&in, f);
	img_in_fini(&in);
	if (ret)
		return ret;
	snprintf(name, sizeof name, IMG_NAME_PAGES, i + 1);
	return open_pages(d, b, name, pages);
}

static int read_blocks(struct img_dir *d)
{
	int ret = 0;

	d->blocks = calloc(d->vm->n_blocks, sizeof *d->blocks);
	if (!d->blocks)
		return img_io_error(d->path, "open", -ENOMEM);
	d->nr_blocks = (uint32_t)d->vm->n_blocks;
	for (uint32_t i = 0; i < d->nr_blocks; i++)
		d->blocks[i].pages_fd = -1;
	for (uint32_t i = 0; !ret && i < d->nr_blocks; i++)
		ret = read_block(d, i);
	return ret;
}

static int read_all(struct img_dir *d)
{
	size_t expected;
	int ret = img_inventory_get(d->fd, d->path, &d->inv);

	if (!ret)
		ret = read_vm(d);
	if (!ret)
		ret = read_device_state(d);
	if (!ret)
		ret = read_blocks(d);
	if (ret)
		return ret;
	// All of these were found, so one more can only be the statistics.
	expected = 2 + 2 * (size_t)d->nr_blocks;
	if (d->inv->n_vm_files == expected)
		return 0;
	if (d->inv->n_vm_files == expected + 1)
		return check_stats(d);
	log_err("%s/%s: damaged: it lists files that do not belong here", d->path, IMG_NAME_INVENTORY);
	return -EBADMSG;
}

static int open_locked(struct img_dir *d, const char *path)
{
	if (snprintf(d->path, sizeof d->path, "%s", path) >= (int)sizeof d->path)
		return img_io_error(path, "open", -ENAMETOOLONG);
	d->fd = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	if (d->fd < 0)
		return img_io_error(path, "open the checkpoint", -errno);
	if (!flock(d->fd, LOCK_SH | LOCK_NB))
		return 0;
	if (errno != EWOULDBLOCK)
		return img_io_error(path, "lock", -errno);
	log_err("%s: is locked by a process that changes it: wait until that ends", path);
	return -EBUSY;
}

int img_dir_open(const char *path, struct img_dir **out)
{
	struct img_dir *d = calloc(1, sizeof *d);
	int ret;

	if (!d)
		return img_io_error(path, "open", -ENOMEM);
	d->fd = -1;
	ret = open_locked(d, path);
	if (!ret)
		ret = read_all(d);
	if (ret) {
		img_dir_close(d);
		return ret;
	}
	*out = d;
	return 0;
}

void img_dir_close(struct img_dir *d)
{
	if (!d)
		return;
	for (uint32_t i = 0; i < d->nr_blocks; i++) {
		free(d->blocks[i].chunks);
		if (d->blocks[i].pages_fd >= 0)
			close(d->blocks[i].pages_fd);
	}
	free(d->blocks);
	device_state_entry__free_unpacked(d->ds, NULL);
	vm_entry__free_unpacked(d->vm, NULL);
	inventory_entry__free_unpacked(d->inv, NULL);
	if (d->fd >= 0)
		close(d->fd);
	free(d);
}

uint64_t img_dir_id(const struct img_dir *d)
{
	return d->inv->vm_checksum;
}

const VmEntry *img_dir_vm(const struct img_dir *d)
{
	return d->vm;
}

const DeviceStateEntry *img_dir_device_state(const struct img_dir *d)
{
	return d->ds;
}

uint32_t img_dir_nr_blocks(const struct img_dir *d)
{
	return d->nr_blocks;
}

uint64_t img_dir_block_len(const struct img_dir *d, uint32_t block)
{
	return d->blocks[block].len;
}

uint64_t img_dir_block_chunks(const struct img_dir *d, uint32_t block)
{
	return d->blocks[block].nr_chunks;
}

const struct img_chunk *img_dir_chunk(const struct img_dir *d, uint32_t block, uint64_t chunk)
{
	return &d->blocks[block].chunks[chunk];
}

int img_dir_pages_fd(const struct img_dir *d, uint32_t block)
{
	return d->blocks[block].pages_fd;
}

bool img_chunk_check(const struct img_chunk *c, const void *packed_pages)
{
	size_t pages = bitmap_count(c->present, IMG_CHUNK_PAGES);

	return !pages || XXH3_64bits(packed_pages, pages * PAGE_SIZE) == c->checksum;
}
