// SPDX-License-Identifier: GPL-2.0-only
#include "criu-vm/verify.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "criu-vm/chunk_threads.h"
#include "criu-vm/cmd.h"
#include "images/format.h"
#include "images/stream.h"
#include "qemu/cmdline.h"
#include "qemu/devstate.h"
#include "qemu/disks.h"
#include "util/bitmap.h"
#include "util/cleanup.h"
#include "util/log.h"

// ---- pages

// item: of the first directory all chunks, then of the next.
static int64_t check_chunk(void *ctx, uint64_t item, const struct chunk_buffers *b)
{
	struct verify *v = ctx;
	uint64_t nr = nr_chunks_of_all(v->images);
	struct img_part p = { .layer = (unsigned)(item / nr) };

	p.dir = v->layers[p.layer].dir;
	chunk_of_all(p.dir, item % nr, &p.block, &p.chunk);
	p.entry = img_dir_chunk(p.dir, p.block, p.chunk);
	if (!p.entry->stored || v->nr_problems >= VERIFY_PROBLEMS_MAX)
		return 0;
	if (img_part_read(b->unpacker, &p, b->stored, b->pages)) // no page of it is wanted
		v->whole = false;
	return p.entry->stored;
}

static int check_pages(struct verify *v)
{
	struct chunk_work work = { .what = "verifying memory", .nr = v->nr_layers * nr_chunks_of_all(v->images), .bytes = v->bytes,
				   .one = check_chunk, .ctx = v };
	int err;

	err = chunk_threads_run(&work);
	if (err == -EINTR)
		log_err("interrupted; not all was looked at");
	return err;
}

// ---- the rest

static int count_layers(struct verify *v)
{
	unsigned i = 0;

	v->nr_layers = img_dir_layers(v->images);
	v->layers = calloc(v->nr_layers, sizeof *v->layers);
	if (!v->layers) {
		log_err("out of memory");
		return -ENOMEM;
	}
	for (const struct img_dir *d = v->images; d; d = img_dir_parent(d), i++) {
		struct verify_layer *l = &v->layers[i];

		l->dir = d;
		for (uint32_t b = 0; b < img_dir_nr_blocks(d); b++) {
			for (uint64_t c = 0; c < img_dir_block_chunks(d, b); c++) {
				const struct img_chunk *entry = img_dir_chunk(d, b, c);
				struct img_part p = { .dir = d, .block = b, .chunk = c, .entry = entry };

				l->chunks += entry->stored > 0;
				l->compressed += entry->stored && !img_part_is_raw(&p);
				l->pages += bitmap_count(entry->present, IMG_CHUNK_PAGES);
				l->bytes += entry->stored;
			}
		}
		v->pages += l->pages;
		v->bytes += l->bytes;
	}
	return 0;
}

static bool device_state_is_good(const DeviceStateEntry *ds, const char *path)
{
	if (!qemu_devstate_check(ds->stream.data, ds->stream.len))
		return true;
	log_err("%s: the device state is not what QEMU saves", path);
	return false;
}

static bool device_states_are_good(const struct verify *v)
{
	bool good = true;

	for (unsigned i = 0; i < v->nr_layers; i++) {
		const struct img_dir *d = v->layers[i].dir;
		const DeviceStateEntry *ds = img_dir_device_state(d);

		if (ds)
			good &= device_state_is_good(ds, img_dir_path(d));
	}
	return good;
}

// As restore does it, with descriptors that nobody has.
static bool can_be_rebuilt(const VmEntry *vm)
{
	_cleanup_free_ struct qemu_cmdline_ram *ram = calloc(vm->n_blocks, sizeof *ram);
	struct qemu_cmdline_opts o = { .qemu = vm->qemu_path, .recorded = vm->argv, .nr_recorded = (int)vm->n_argv, .machine = vm->machine,
				       .qmp_fd = 3, .commands_fd = 4, .ram = ram, .nr_ram = vm->n_blocks, .as_root = !vm->uid };
	char **argv;

	if (!ram)
		return false;
	for (size_t i = 0; i < vm->n_blocks; i++)
		ram[i] = (struct qemu_cmdline_ram){ .backend_id = vm->blocks[i]->backend_id, .len = vm->blocks[i]->len, .fd = (int)i + 10 };
	if (qemu_cmdline_rebuild(&o, &argv))
		return false;
	qemu_cmdline_free(argv);
	return true;
}

static bool disks_are_good(const VmEntry *vm)
{
	bool good = !qemu_disks_check(vm->disks, vm->n_disks), snapshots = false;

	for (size_t i = 0; i < vm->n_disks; i++)
		snapshots |= vm->disks[i]->snapshot != NULL;
	if (snapshots && qemu_disks_overlay_check(vm->disks, vm->n_disks, vm->cwd, vm->argv, (int)vm->n_argv))
		good = false;
	return good;
}

static void note(void *ctx, const char *text)
{
	struct verify *v = ctx;
	char **more = realloc(v->problems, (v->nr_problems + 1) * sizeof *more);

	if (!more)
		return;
	v->problems = more;
	v->problems[v->nr_problems] = strdup(text);
	v->nr_problems += v->problems[v->nr_problems] != NULL;
}

static void look_at_vm(struct verify *v, const VmEntry *vm)
{
	v->restorable = can_be_rebuilt(vm);
	v->restorable &= disks_are_good(vm);
	v->restorable &= v->whole;
}

static int look_at_dir(const char *dir, struct verify *v)
{
	int err = img_dir_open(dir, &v->images);

	if (err)
		return 0; // that is what was asked
	err = count_layers(v);
	if (err)
		return err;
	v->whole = device_states_are_good(v);
	err = check_pages(v);
	if (err || img_dir_ram_only(v->images))
		return err;
	look_at_vm(v, img_dir_vm(v->images));
	return 0;
}

static int look_at_stream(struct verify *v)
{
	_cleanup_free_ void *packed = aligned_alloc(PAGE_SIZE, IMG_CHUNK_SIZE);
	struct img_stream_in *s = NULL;
	struct img_stream_chunk c;
	int ret = packed ? img_stream_in_open(STDIN_FILENO, cmd_interrupted, &s) : -ENOMEM;

	while (!ret && (ret = img_stream_in_next(s, &c, packed)) == 1) {
		v->pages += bitmap_count(c.present, IMG_CHUNK_PAGES);
		v->bytes = v->pages * PAGE_SIZE;
		ret = 0;
	}
	if (!ret) {
		v->whole = device_state_is_good(img_stream_in_device_state(s), "the stream");
		look_at_vm(v, img_stream_in_vm(s));
	}
	if (!packed)
		log_err("out of memory");
	img_stream_in_free(s);
	return ret == -EINTR || ret == -ENOMEM ? ret : 0;
}

int verify_run(const char *dir, struct verify *v)
{
	int err;

	*v = (struct verify){ 0 };
	log_listen(note, v);
	err = dir ? look_at_dir(dir, v) : look_at_stream(v);
	log_listen(NULL, NULL);
	return err;
}

void verify_fini(struct verify *v)
{
	for (unsigned i = 0; i < v->nr_problems; i++)
		free(v->problems[i]);
	free(v->problems);
	free(v->layers);
	img_dir_close(v->images);
}
