// SPDX-License-Identifier: GPL-2.0-only
#include <errno.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "images/inventory_int.h"
#include "images/valid.h"
#include "images/writer_int.h"
#include "util/cleanup.h"
#include "util/log.h"

int img_writer_misuse(const struct img_writer *w, const char *what)
{
	log_err("%s: %s", w->dir.path, what);
	return -EINVAL;
}

int img_writer_keep(struct img_writer *w, int ret)
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
		return img_writer_misuse(w, "stands by itself: it is no increment and no pre-dump");
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

void img_writer_list(struct img_writer *w, const char *name, uint64_t len, const uint64_t *xxh3)
{
	struct img_written_file *f = &w->files[w->nr_files++];

	snprintf(f->name, sizeof f->name, "%s", name);
	f->len = len;
	f->has_xxh3 = xxh3;
	f->xxh3 = xxh3 ? *xxh3 : 0;
}

int img_writer_finish_file(struct img_writer *w, struct img_out *o, const char *name)
{
	int ret = img_out_close(o);
	uint64_t xxh3;

	if (ret)
		return ret;
	xxh3 = img_out_digest(o);
	img_writer_list(w, name, o->len, &xxh3);
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
		ret = img_writer_finish_file(w, &o, name);
	img_out_fini(&o);
	return ret;
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
		ret = img_writer_misuse(w, fault);
	if (!ret)
		ret = w->stream ? img_stream_out_vm(w->stream, vm) : write_file(w, IMG_NAME_VM, IMG_MAGIC_VM, IMG_VM_MAX, &vm->base);
	if (!ret && !(w->vm = copy_vm(vm)))
		ret = img_io_error(w->dir.path, "write", -ENOMEM);
	return img_writer_keep(w, ret);
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
		ret = img_writer_misuse(w, fault);
	w->have_device_state = true;
	if (!ret && w->stream)
		ret = img_stream_out_device_state(w->stream, ds);
	else if (!ret)
		ret = write_file(w, IMG_NAME_DEVICE_STATE, IMG_MAGIC_DEVICE_STATE, IMG_DEVICE_STATE_MAX, &ds->base);
	return img_writer_keep(w, ret);
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
		return img_writer_keep(w, img_writer_misuse(w, "stats-dump.img is written already"));
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
	return img_writer_keep(w, write_file(w, IMG_NAME_STATS, IMG_MAGIC_STATS, IMG_STATS_MAX, &stats.base));
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
		const struct img_written_file *f = &w->files[i];

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
		ret = img_writer_misuse(w, fault);
	if (!ret && w->stream)
		ret = img_stream_out_commit(w->stream);
	else if (!ret && !(ret = write_inventory(w, &own)))
		ret = img_staging_commit(&w->dir);
	if (!ret && id)
		*id = own;
	return img_writer_keep(w, ret);
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
