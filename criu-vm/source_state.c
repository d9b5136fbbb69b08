// SPDX-License-Identifier: GPL-2.0-only
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "criu-vm/source.h"
#include "mm/read.h"
#include "qemu/devstate.h"
#include "util/bitmap.h"
#include "util/cleanup.h"
#include "util/size.h"
#include "util/zero.h"

int source_save_state(struct source *s)
{
	return qemu_devstate_save(s->vm->qmp, false, &s->state, &s->state_len);
}

static int read_block(struct source *s, const struct qemu_ramblock *b, uint8_t **data)
{
	uint64_t len = ROUND_UP(b->len, PAGE_SIZE);
	_cleanup_free_ uint64_t *present = calloc(BITMAP_WORDS(len / PAGE_SIZE), sizeof *present);
	struct mm_source *from = NULL;
	int r;

	*data = calloc(1, len); // which touches nothing of it
	r = *data && present ? mm_source_open(s->vm->pid, b->hva, len, &from) : -ENOMEM;
	if (!r)
		r = mm_source_present(from, 0, len, present);
	if (!r)
		r = mm_source_read(from, 0, present, len / PAGE_SIZE, *data);
	mm_source_close(from);
	return r;
}

int source_read_small(struct source *s)
{
	size_t nr = s->nr_blocks - s->nr_guest;
	int r = 0;

	s->small = calloc(nr + 1, sizeof *s->small);
	if (!s->small)
		return -ENOMEM;
	for (size_t i = 0; !r && i < nr; i++)
		r = read_block(s, &s->blocks[s->nr_guest + i], &s->small[i]);
	return r;
}

static bool is_known(const uint8_t *data, const uint8_t *former, size_t len)
{
	return former ? !memcmp(data, former, len) : mem_is_zero(data, len);
}

// A block's runs of pages that are not known. Borrows data; *runs and what it points to are one allocation, the caller's.
static int runs_of(const uint8_t *data, const uint8_t *former, uint64_t len, SmallBlockEntry *e)
{
	uint64_t nr_pages = DIV_ROUND_UP(len, PAGE_SIZE);
	SmallRunEntry *runs = NULL;

	e->runs = calloc(nr_pages, sizeof *e->runs);
	if (!e->runs || !(runs = calloc(nr_pages, sizeof *runs))) {
		free(e->runs);
		e->runs = NULL;
		return -ENOMEM;
	}
	e->runs[0] = runs; // freed by it, also when there is no run
	for (uint64_t off = 0; off < len; off += PAGE_SIZE) {
		size_t n = len - off < PAGE_SIZE ? len - off : PAGE_SIZE;
		SmallRunEntry *last = e->n_runs ? &runs[e->n_runs - 1] : NULL;

		if (is_known(data + off, former ? former + off : NULL, n))
			continue;
		if (last && last->off + last->data.len == off) {
			last->data.len += n;
			continue;
		}
		small_run_entry__init(&runs[e->n_runs]);
		runs[e->n_runs].off = off;
		runs[e->n_runs].data = (ProtobufCBinaryData){ .len = n, .data = (uint8_t *)data + off };
		e->runs[e->n_runs] = &runs[e->n_runs];
		e->n_runs++;
	}
	return 0;
}

int source_device_state(const struct source *s, const uint8_t *const *former, DeviceStateEntry *ds)
{
	size_t nr = s->nr_blocks - s->nr_guest;
	SmallBlockEntry *entries = calloc(nr + 1, sizeof *entries);
	int r = 0;

	device_state_entry__init(ds);
	ds->blocks = calloc(nr + 1, sizeof *ds->blocks);
	if (!entries || !ds->blocks) {
		free(entries);
		free(ds->blocks);
		return -ENOMEM;
	}
	ds->stream = (ProtobufCBinaryData){ .len = s->state_len, .data = s->state };
	ds->blocks[0] = entries; // freed by it, also when there is no block
	for (size_t i = 0; !r && i < nr; i++) {
		const struct qemu_ramblock *b = &s->blocks[s->nr_guest + i];

		small_block_entry__init(&entries[i]);
		entries[i].name = (char *)b->name;
		entries[i].len = b->len;
		ds->blocks[i] = &entries[i];
		r = runs_of(s->small[i], former ? former[i] : NULL, b->len, &entries[i]);
		ds->n_blocks++;
	}
	if (r)
		source_free_device_state(ds);
	return r;
}

void source_free_device_state(DeviceStateEntry *ds)
{
	for (size_t i = 0; i < ds->n_blocks; i++) {
		if (ds->blocks[i]->runs)
			free(ds->blocks[i]->runs[0]);
		free(ds->blocks[i]->runs);
	}
	free(ds->blocks[0]);
	free(ds->blocks);
}
