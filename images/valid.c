// SPDX-License-Identifier: GPL-2.0-only
#include "images/valid.h"

#include <string.h>

#include "images/format.h"

static const char *block_fault(const VmBlockEntry *b)
{
	if (!*b->name)
		return "a block without a name";
	if (!b->len || b->len % PAGE_SIZE || b->len > IMG_BLOCK_LEN_MAX)
		return "a block's length is no multiple of the page, or out of range";
	if (b->page_size < PAGE_SIZE || b->page_size > GiB || b->page_size & (b->page_size - 1))
		return "a block's page size is no power of two, or out of range";
	return NULL;
}

const char *img_vm_fault(const VmEntry *vm)
{
	const char *fault = NULL;

	if (!*vm->machine || !*vm->qemu_path || !*vm->cwd || !vm->n_argv)
		return "no machine type, QEMU binary, working directory or command line";
	if (strcmp(vm->run_state, "running") && strcmp(vm->run_state, "paused"))
		return "the run state is neither \"running\" nor \"paused\"";
	if (!vm->n_blocks || vm->n_blocks > IMG_BLOCKS_MAX)
		return "the number of guest-RAM blocks is out of range";
	for (size_t i = 0; i < vm->n_blocks && !fault; i++) {
		fault = block_fault(vm->blocks[i]);
		for (size_t j = 0; j < i && !fault; j++)
			if (!strcmp(vm->blocks[i]->name, vm->blocks[j]->name))
				fault = "two blocks of one name";
	}
	return fault;
}

static const char *small_block_fault(const SmallBlockEntry *b)
{
	uint64_t end = 0;

	if (!*b->name)
		return "a small block without a name";
	if (!b->len || b->len % PAGE_SIZE || b->len > IMG_SMALL_BLOCK_LEN_MAX)
		return "a small block's length is no multiple of the page, or out of range";
	for (size_t i = 0; i < b->n_runs; i++) {
		const SmallRunEntry *r = b->runs[i];

		if (!r->data.len || r->off % PAGE_SIZE || r->data.len % PAGE_SIZE)
			return "a run of a small block is not of whole pages";
		if (r->off < end || r->off > b->len || r->data.len > b->len - r->off)
			return "a run of a small block is out of order, or beyond its end";
		end = r->off + r->data.len;
	}
	return NULL;
}

const char *img_small_blocks_fault(const DeviceStateEntry *ds)
{
	const char *fault = NULL;

	if (ds->n_blocks > IMG_SMALL_BLOCKS_MAX)
		return "too many small blocks";
	for (size_t i = 0; i < ds->n_blocks && !fault; i++) {
		fault = small_block_fault(ds->blocks[i]);
		for (size_t j = 0; j < i && !fault; j++)
			if (!strcmp(ds->blocks[i]->name, ds->blocks[j]->name))
				fault = "two small blocks of one name";
	}
	return fault;
}

const char *img_device_state_fault(const DeviceStateEntry *ds)
{
	return ds->stream.len ? img_small_blocks_fault(ds) : "no device-state stream";
}
