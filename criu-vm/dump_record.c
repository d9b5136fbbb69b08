// SPDX-License-Identifier: GPL-2.0-only
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "criu-vm/dump_int.h"
#include "util/cleanup.h"
#include "util/size.h"
#include "util/zero.h"

int dump_write_vm(struct dump *d)
{
	_cleanup_free_ VmBlockEntry *entries = calloc(d->nr_guest, sizeof *entries);
	_cleanup_free_ VmBlockEntry **list = calloc(d->nr_guest, sizeof *list);
	VmEntry vm = VM_ENTRY__INIT;

	if (!entries || !list)
		return -ENOMEM;
	for (size_t i = 0; i < d->nr_guest; i++) {
		const struct qemu_ramblock *b = &d->blocks[i];

		vm_block_entry__init(&entries[i]);
		entries[i].name = (char *)b->name;
		entries[i].len = b->len;
		entries[i].page_size = b->page_size;
		entries[i].backend_id = *b->backend_id ? (char *)b->backend_id : NULL;
		entries[i].has_shared = true;
		entries[i].shared = b->kind == QEMU_RAM_FILE_SHARED;
		list[i] = &entries[i];
	}
	vm.qemu_version = (char *)qmp_version(d->vm->qmp);
	vm.machine = d->vm->machine;
	vm.qemu_path = d->vm->exe;
	vm.n_argv = (size_t)d->argc;
	vm.argv = d->argv;
	vm.cwd = d->vm->cwd;
	vm.uid = d->vm->uid;
	vm.gid = d->vm->gid;
	vm.run_state = d->was_running ? "running" : "paused";
	vm.n_blocks = d->nr_guest;
	vm.blocks = list;
	vm.name = d->vm->name;
	vm.n_disks = d->nr_disks;
	vm.disks = d->disks;
	return img_writer_vm(d->writer, &vm);
}

// A block's runs of pages that are not zero. Borrows data; *runs and what it points to are one allocation, the caller's.
static int runs_of(const uint8_t *data, uint64_t len, SmallBlockEntry *e)
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

		if (mem_is_zero(data + off, n))
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

int dump_write_device_state(struct dump *d)
{
	size_t nr = d->nr_blocks - d->nr_guest;
	_cleanup_free_ SmallBlockEntry *entries = calloc(nr + 1, sizeof *entries);
	_cleanup_free_ SmallBlockEntry **list = calloc(nr + 1, sizeof *list);
	DeviceStateEntry ds = DEVICE_STATE_ENTRY__INIT;
	int r = entries && list ? 0 : -ENOMEM;

	for (size_t i = 0; !r && i < nr; i++) {
		const struct qemu_ramblock *b = &d->blocks[d->nr_guest + i];

		small_block_entry__init(&entries[i]);
		entries[i].name = (char *)b->name;
		entries[i].len = b->len;
		list[i] = &entries[i];
		r = runs_of(d->small[i], b->len, &entries[i]);
	}
	if (!r) {
		ds.stream = (ProtobufCBinaryData){ .len = d->state_len, .data = d->state };
		ds.n_blocks = nr;
		ds.blocks = list;
		r = img_writer_device_state(d->writer, &ds);
	}
	for (size_t i = 0; entries && i < nr; i++) {
		if (entries[i].runs)
			free(entries[i].runs[0]);
		free(entries[i].runs);
	}
	return r;
}

int dump_write_first(struct dump *d)
{
	return d->o->dir ? 0 : dump_write_vm(d);
}
