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

#include "images/dir_int.h"
#include "images/format.h"
#include "images/inventory_int.h"
#include "images/pagemap_int.h"
#include "images/resident_int.h"
#include "images/valid.h"
#include "util/bitmap.h"
#include "util/cleanup.h"
#include "util/log.h"

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

int img_dir_open_listed(const struct img_dir *d, const char *name, uint32_t want, struct img_in *in, const VmFileEntry **f)
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

int img_dir_check_sum(const struct img_in *in, const VmFileEntry *f)
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
	ret = img_dir_open_listed(d, name, magic, &in, &f);
	if (!ret)
		ret = img_in_get_last(&in, type, max, m);
	if (!ret)
		ret = img_dir_check_sum(&in, f);
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

static int open_pages(struct img_dir *d)
{
	const int flags = O_RDONLY | O_CLOEXEC | O_NOCTTY | O_NONBLOCK;
	const VmFileEntry *f = listed(d, IMG_NAME_PAGES);
	char path[PATH_MAX + 32];
	struct stat st;
	int now;

	if (!f)
		return -EBADMSG;
	snprintf(path, sizeof path, "%s/%s", d->path, IMG_NAME_PAGES);
	d->pages_fd = openat(d->fd, IMG_NAME_PAGES, flags | O_DIRECT);
	if (d->pages_fd < 0 && errno == EINVAL)
		d->pages_fd = openat(d->fd, IMG_NAME_PAGES, flags);
	if (d->pages_fd < 0 || fstat(d->pages_fd, &st))
		return img_io_error(path, "open", -errno);
	if (!S_ISREG(st.st_mode))
		return img_damaged(path, "it is no regular file");
	// It was for the open only: with it, io_uring fails a read that would wait for the disk.
	now = fcntl(d->pages_fd, F_GETFL);
	if (now < 0 || fcntl(d->pages_fd, F_SETFL, now & ~O_NONBLOCK))
		return img_io_error(path, "open", -errno);
	return check_len(path, (uint64_t)st.st_size, f);
}

static int read_block(struct img_dir *d, uint32_t i)
{
	struct img_block *b = &d->blocks[i];
	const VmFileEntry *f;
	struct img_in in;
	char name[24];
	int ret;

	b->len = d->vm->blocks[i]->len;
	b->nr_chunks = DIV_ROUND_UP(b->len, IMG_CHUNK_SIZE);
	b->chunks = calloc(b->nr_chunks, sizeof *b->chunks);
	if (!b->chunks)
		return img_io_error(d->path, "open", -ENOMEM);
	snprintf(name, sizeof name, IMG_NAME_PAGEMAP, i + 1);
	ret = img_dir_open_listed(d, name, IMG_MAGIC_PAGEMAP, &in, &f);
	if (!ret)
		ret = img_pagemap_get(&in, b->len, d->inv->vm_features, b->chunks);
	if (!ret)
		ret = img_dir_check_sum(&in, f);
	img_in_fini(&in);
	return ret;
}

static uint64_t stored_len(const struct img_dir *d)
{
	uint64_t len = 0;

	for (uint32_t i = 0; i < d->nr_blocks; i++)
		for (uint64_t c = 0; c < d->blocks[i].nr_chunks; c++)
			len += d->blocks[i].chunks[c].stored;
	return len;
}

// Each page of the pages file belongs to one chunk.
static int check_extents(const struct img_dir *d)
{
	uint64_t nr = stored_len(d) / PAGE_SIZE;
	_cleanup_free_ uint64_t *taken = NULL;
	char path[PATH_MAX + 32];

	snprintf(path, sizeof path, "%s/%s", d->path, IMG_NAME_PAGES);
	if (listed(d, IMG_NAME_PAGES)->len != nr * PAGE_SIZE)
		return img_damaged(path, "its pagemaps have %" PRIu64 " bytes of it, not all", nr * PAGE_SIZE);
	taken = calloc(BITMAP_WORDS(nr) + 1, sizeof *taken);
	if (!taken)
		return img_io_error(d->path, "open", -ENOMEM);
	for (uint32_t i = 0; i < d->nr_blocks; i++)
		for (uint64_t j = 0; j < d->blocks[i].nr_chunks; j++) {
			const struct img_chunk *c = &d->blocks[i].chunks[j];
			uint64_t first = c->off / PAGE_SIZE, n = c->stored / PAGE_SIZE;

			if (!n)
				continue;
			if (first >= nr || n > nr - first || bitmap_next(taken, first + n, first, true) < first + n)
				return img_damaged(path, "chunk %" PRIu64 " of block %u is beyond its end, or where another is", j, i + 1);
			bitmap_set_range(taken, first, n);
		}
	return 0;
}

static int read_blocks(struct img_dir *d)
{
	int ret = 0;

	d->blocks = calloc(d->vm->n_blocks, sizeof *d->blocks);
	if (!d->blocks)
		return img_io_error(d->path, "open", -ENOMEM);
	d->nr_blocks = (uint32_t)d->vm->n_blocks;
	for (uint32_t i = 0; !ret && i < d->nr_blocks; i++)
		ret = read_block(d, i);
	if (!ret)
		ret = open_pages(d);
	return ret ? ret : check_extents(d);
}

// Behind the inventory.
static int read_rest(struct img_dir *d)
{
	bool has_resident = d->inv->vm_features & IMG_FEATURE_RESIDENT;
	size_t expected = 2 + !img_dir_ram_only(d) + has_resident;
	int ret = read_vm(d);

	if (!ret && !img_dir_ram_only(d))
		ret = read_device_state(d);
	if (!ret)
		ret = read_blocks(d);
	if (!ret && has_resident)
		ret = img_resident_check(d);
	if (ret)
		return ret;
	// All of these were found, so one more can only be the statistics.
	expected += d->nr_blocks;
	if (d->inv->n_vm_files == expected)
		return 0;
	if (d->inv->n_vm_files == expected + 1)
		return check_stats(d);
	log_err("%s/%s: damaged: it lists files that do not belong here", d->path, IMG_NAME_INVENTORY);
	return -EBADMSG;
}

// What the child's link says, for messages and for who opens it again; the link itself is what is opened.
static int set_parent_path(struct img_dir *d, const struct img_dir *child)
{
	char link[PATH_MAX];
	ssize_t n = readlinkat(child->fd, IMG_NAME_PARENT, link, sizeof link - 1);
	int len;

	if (n < 0 && errno == EINVAL) // a directory in its place serves as well
		n = snprintf(link, sizeof link, "%s", IMG_NAME_PARENT);
	if (n < 0)
		return img_io_error(child->path, "find the parent of", -errno);
	link[n] = 0;
	len = *link == '/' ? snprintf(d->path, sizeof d->path, "%s", link) : snprintf(d->path, sizeof d->path, "%s/%s", child->path, link);
	return len < (int)sizeof d->path ? 0 : img_io_error(child->path, "find the parent of", -ENAMETOOLONG);
}

static int open_locked(struct img_dir *d, const char *path, const struct img_dir *child)
{
	int ret = 0;

	if (child)
		ret = set_parent_path(d, child);
	else if (snprintf(d->path, sizeof d->path, "%s", path) >= (int)sizeof d->path)
		ret = img_io_error(path, "open", -ENAMETOOLONG);
	if (ret)
		return ret;
	d->fd = openat(child ? child->fd : AT_FDCWD, child ? IMG_NAME_PARENT : path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	if (d->fd < 0)
		return img_io_error(d->path, child ? "open the checkpoint, which an increment needs as its parent," : "open the checkpoint", -errno);
	if (!flock(d->fd, LOCK_SH | LOCK_NB))
		return 0;
	if (errno != EWOULDBLOCK)
		return img_io_error(d->path, "lock", -errno);
	log_err("%s: is locked by a process that changes it: wait until that ends", d->path);
	return -EBUSY;
}

// Before anything of it is read: is it the checkpoint that was built upon, and none that is in the chain already?
static int check_parent_id(const struct img_dir *d, const struct img_dir *child)
{
	if (d->inv->vm_checksum == child->inv->vm_parent)
		return 0;
	log_err("%s: is another checkpoint than the one that %s is an increment of: put that one back", d->path, child->path);
	return -ESTALE;
}

static int check_loop(const struct img_dir *d, const struct img_dir *first)
{
	struct stat st, other;
	unsigned nr = 1;

	if (fstat(d->fd, &st))
		return img_io_error(d->path, "look at", -errno);
	for (const struct img_dir *i = first; i != d; i = i->parent, nr++)
		if (fstat(i->fd, &other) || (st.st_dev == other.st_dev && st.st_ino == other.st_ino))
			return img_damaged(first->path, "its chain of parents comes back to %s", i->path);
	return nr <= IMG_CHAIN_MAX ? 0 : img_damaged(first->path, "it has more than %u parents", IMG_CHAIN_MAX - 1);
}

static int check_same_blocks(const struct img_dir *d, const struct img_dir *child)
{
	bool same = d->nr_blocks == child->nr_blocks;

	for (uint32_t i = 0; same && i < d->nr_blocks; i++)
		same = d->blocks[i].len == child->blocks[i].len;
	return same ? 0 : img_damaged(child->path, "its blocks are not those of its parent %s", d->path);
}

// *d, the end of the chain that begins with first, is filled in; child is NULL for the first.
static int read_dir(struct img_dir *d, const char *path, const struct img_dir *first, const struct img_dir *child)
{
	int ret = open_locked(d, path, child);

	if (!ret)
		ret = check_loop(d, first);
	if (!ret)
		ret = img_inventory_get(d->fd, d->path, &d->inv);
	if (!ret && child)
		ret = check_parent_id(d, child);
	if (!ret)
		ret = read_rest(d);
	return !ret && child ? check_same_blocks(d, child) : ret;
}

int img_dir_open(const char *path, struct img_dir **out)
{
	struct img_dir *first = NULL, *child = NULL, **end = &first;
	int ret;

	do {
		struct img_dir *d = calloc(1, sizeof *d);

		if (!d) {
			ret = img_io_error(path, "open", -ENOMEM);
			break;
		}
		d->fd = d->pages_fd = -1;
		*end = d;
		end = &d->parent;
		ret = read_dir(d, path, first, child);
		child = d;
	} while (!ret && child->inv->vm_features & IMG_FEATURE_PARENT);
	if (ret)
		img_dir_close(first);
	else
		*out = first;
	return ret;
}

void img_dir_close(struct img_dir *d)
{
	for (struct img_dir *parent; d; d = parent) {
		parent = d->parent;
		for (uint32_t i = 0; i < d->nr_blocks; i++)
			free(d->blocks[i].chunks);
		free(d->blocks);
		device_state_entry__free_unpacked(d->ds, NULL);
		vm_entry__free_unpacked(d->vm, NULL);
		inventory_entry__free_unpacked(d->inv, NULL);
		if (d->pages_fd >= 0)
			close(d->pages_fd);
		if (d->fd >= 0)
			close(d->fd);
		free(d);
	}
}

uint64_t img_dir_id(const struct img_dir *d)
{
	return d->inv->vm_checksum;
}

const char *img_dir_path(const struct img_dir *d)
{
	return d->path;
}

int img_dir_stat(const struct img_dir *d, struct stat *st)
{
	return fstat(d->fd, st) ? img_io_error(d->path, "look at", -errno) : 0;
}

const struct img_dir *img_dir_parent(const struct img_dir *d)
{
	return d->parent;
}

bool img_dir_ram_only(const struct img_dir *d)
{
	return d->inv->vm_features & IMG_FEATURE_RAM_ONLY;
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
