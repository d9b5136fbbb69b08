// SPDX-License-Identifier: GPL-2.0-only
//
// DOC: what was hot where the VM was before
//
// Images say it (images/resident.h), or the other host. What is placed before the VM runs, is placed by it: the hottest in memory. Its
// first pager finds it in the run directory: what is in memory then begins on the queue of its age, and what comes in the background comes
// in that order.
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>

#include "criu-vm/restore.h"
#include "images/resident.h"
#include "lazy-pages/image_source.h"
#include "pvmem/place.h"
#include "util/cleanup.h"
#include "util/io.h"
#include "util/log.h"

// Of the first MiB, which holds what firmware and devices share with each other: loading the device state touches it.
#define HOTTEST 255

int restore_note_hotness(const struct restore *r, const uint8_t *hotness)
{
	_cleanup_free_ uint8_t *ages = malloc(r->nr_chunks);
	_cleanup_close_ int fd = -1;
	int err;

	if (!ages)
		return -ENOMEM;
	for (uint64_t i = 0; i < r->nr_chunks; i++)
		ages[i] = hotness[i * PV_HOTNESS_BYTES];
	fd = openat(r->rd.fd, "hotness", O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
	err = fd < 0 ? -errno : io_write_full(fd, ages, r->nr_chunks);
	if (err)
		log_err("%s/hotness: %s", r->rd.path, strerror(-err));
	return err;
}

// How many pages of a chunk come, as pv_placement_plan() wants it.
static void count_pages(const struct restore *r, uint64_t chunk, uint8_t *hotness)
{
	uint64_t stored[PV_WORDS], in_block;
	uint32_t block;
	size_t nr;

	lp_image_chunk(r->images, chunk, &block, &in_block);
	img_dir_pages(r->images, block, in_block, stored);
	nr = bitmap_count(stored, PV_CHUNK_PAGES);
	hotness[1] = (uint8_t)nr;
	hotness[2] = (uint8_t)(nr >> 8);
}

static int read_hotness(const struct restore *r, uint8_t **out)
{
	_cleanup_free_ uint8_t *hotness = NULL;
	struct img_resident resident;
	int err;

	err = img_dir_resident(r->images, &resident);
	if (err || !resident.nr)
		return err;
	hotness = calloc(r->nr_chunks, PV_HOTNESS_BYTES);
	for (uint64_t i = 0; hotness && i < r->nr_chunks; i++)
		count_pages(r, i, hotness + i * PV_HOTNESS_BYTES);
	for (size_t i = 0; hotness && i < resident.nr; i++) {
		const struct img_resident_chunk *c = &resident.chunks[i];

		hotness[(r->blocks[c->block].off / PV_CHUNK_SIZE + c->chunk) * PV_HOTNESS_BYTES] = c->age;
	}
	img_resident_fini(&resident);
	if (!hotness)
		return -ENOMEM;
	hotness[0] = HOTTEST;
	err = restore_note_hotness(r, hotness);
	if (!err)
		*out = steal_ptr(&hotness);
	return err;
}

void restore_hotness(const struct restore *r, uint8_t **hotness)
{
	int err;

	*hotness = NULL;
	if (!r->images || !r->paging)
		return;
	err = read_hotness(r, hotness);
	if (err)
		log_warn("the restore goes on without what was hot: %s", strerror(-err));
}
