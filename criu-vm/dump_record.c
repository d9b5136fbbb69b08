// SPDX-License-Identifier: GPL-2.0-only
#include <errno.h>
#include <stdlib.h>

#include "criu-vm/dump_int.h"
#include "util/bitmap.h"
#include "util/cleanup.h"
#include "util/log.h"
#include "util/size.h"

int dump_write_vm(struct dump *d)
{
	VmEntry *vm = source_describe(&d->src);
	int r = vm ? img_writer_vm(d->writer, vm) : -ENOMEM;

	source_free_description(vm);
	return r;
}

int dump_write_device_state(struct dump *d)
{
	DeviceStateEntry ds;
	int r = source_device_state(&d->src, NULL, &ds);

	if (r)
		return r;
	r = img_writer_device_state(d->writer, &ds);
	source_free_device_state(&ds);
	return r;
}

int dump_write_first(struct dump *d)
{
	return d->o->dir ? 0 : dump_write_vm(d);
}

static uint64_t nr_chunks(const struct dump *d)
{
	uint64_t nr = 0;

	for (size_t i = 0; i < d->src.nr_guest; i++)
		nr += DIV_ROUND_UP(d->src.blocks[i].len, CHUNK_SIZE);
	return nr;
}

// A chunk may come, or go, between the two questions: what is left of it is not worth a word.
static void list_resident(struct dump *d, const uint8_t *age)
{
	struct img_resident *r = &d->resident;

	for (uint32_t b = 0; b < d->src.nr_guest; b++)
		for (uint64_t i = 0; i < DIV_ROUND_UP(d->src.blocks[b].len, CHUNK_SIZE); i++, age++) {
			struct img_resident_chunk *c = &r->chunks[r->nr];

			if (!*age)
				continue;
			*c = (struct img_resident_chunk){ .block = b, .chunk = i, .age = *age };
			ram_resident(d->src.ram, b, i, c->pages);
			r->nr += !bitmap_empty(c->pages, CHUNK_PAGES);
		}
}

int dump_look_at_resident(void *ctx)
{
	struct dump *d = ctx;
	_cleanup_free_ uint8_t *ages = NULL;
	size_t nr = 0;

	if (!ram_has_pager(d->src.ram) || !d->o->dir)
		return 0;
	ages = malloc(nr_chunks(d));
	if (!ages || ram_ages(d->src.ram, ages)) {
		log_warn("the dump goes on without what is hot");
		return 0;
	}
	for (uint64_t i = 0; i < nr_chunks(d); i++)
		nr += ages[i] != 0;
	d->resident.chunks = calloc(nr + 1, sizeof *d->resident.chunks);
	if (d->resident.chunks)
		list_resident(d, ages);
	return 0;
}
