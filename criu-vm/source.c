// SPDX-License-Identifier: GPL-2.0-only
#include "criu-vm/source.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "criu-vm/migration_source.h"
#include "qemu/cmdline.h"
#include "qemu/disks.h"
#include "qemu/now.h"
#include "qemu/refuse.h"
#include "util/cleanup.h"
#include "util/log.h"
#include "util/process.h"

static int open_ram(struct source *s)
{
	struct ram_opts o = { .pid = s->vm->pid, .blocks = s->blocks, .nr_blocks = s->nr_guest, .run_root = s->run_root,
			      .name = s->is_ours ? s->name : NULL };

	return ram_open(&o, &s->ram);
}

// Can it be taken, and as what is it to be restored? All that speaks against it is told.
static int look(struct source *s, const struct qemu_ours *ours)
{
	int refused = qemu_refuse(s->vm, s->blocks, s->nr_blocks, ours), r;

	if (refused && refused != -EOPNOTSUPP)
		return refused;
	r = qemu_now_mark(s->vm, &s->mark);
	if (!r)
		r = qemu_now_cmdline(s->vm, &s->argv, &s->argc);
	return refused ? refused : r;
}

// Of a VM that has left, or may have, only its pages are here.
static int check_is_here(const char *vm)
{
	struct migration_source s;
	int r = migration_source_find(vm, NULL, &s);
	bool is_here;

	if (r)
		return r == -ENOENT ? 0 : r;
	is_here = !s.committed && !process_is_stopped(s.pid);
	if (s.committed)
		log_err("VM %s runs at %s by now, which needs pages from here yet (criu-vm stat)", vm, s.host);
	else if (!is_here)
		log_err("nobody knows yet whether VM %s was taken over by %s, where it was going: criu-vm migrate --resume %s", vm, s.host, vm);
	migration_source_fini(&s);
	return is_here ? 0 : -EBUSY;
}

// Before it is asked anything, since it may be stopped; and then whatever it was called.
static int open_vm(struct source *s)
{
	char pid[12];
	int r = check_is_here(s->spec);

	if (!r)
		r = qemu_vm_open(s->spec, &s->vm);
	if (r)
		return r;
	snprintf(pid, sizeof pid, "%d", s->vm->pid);
	return check_is_here(pid);
}

int source_attach(struct source *s)
{
	struct qemu_ours ours;
	int r = open_vm(s);

	if (r)
		return r;
	s->was_running = !strcmp(s->vm->run_state, "running");
	r = source_find_ours(s, &ours);
	if (r || (r = qemu_ramblocks(s->vm, &s->blocks, &s->nr_blocks)) || (r = look(s, &ours)))
		return r;
	while (s->nr_guest < s->nr_blocks && s->blocks[s->nr_guest].guest_ram)
		s->ram_len += s->blocks[s->nr_guest++].len;
	if (!s->nr_guest) {
		log_err("QEMU %d has no guest RAM", s->vm->pid);
		return -EOPNOTSUPP;
	}
	return open_ram(s);
}

void source_fini(struct source *s)
{
	source_thaw(s);
	ram_close(s->ram);
	qemu_disks_free(s->disks, s->nr_disks);
	for (size_t i = 0; s->small && i < s->nr_blocks - s->nr_guest; i++)
		free(s->small[i]);
	free(s->small);
	free(s->state);
	free(s->blocks);
	qemu_cmdline_free(s->argv);
	if (source_has_ended(s))
		tracked_remove(s->run_root, s->vm->pid);
	if (s->vm)
		tracked_unlock(s->vm->pid, s->lock_fd);
	qemu_vm_close(s->vm);
}

VmEntry *source_describe(const struct source *s)
{
	VmEntry *vm = calloc(1, sizeof *vm);
	VmBlockEntry *entries = calloc(s->nr_guest, sizeof *entries);
	VmBlockEntry **list = calloc(s->nr_guest, sizeof *list);

	if (!vm || !entries || !list) {
		free(vm);
		free(entries);
		free(list);
		return NULL;
	}
	for (size_t i = 0; i < s->nr_guest; i++) {
		const struct qemu_ramblock *b = &s->blocks[i];

		vm_block_entry__init(&entries[i]);
		entries[i].name = (char *)b->name;
		entries[i].len = b->len;
		entries[i].page_size = b->page_size;
		entries[i].backend_id = *b->backend_id ? (char *)b->backend_id : NULL;
		entries[i].has_shared = true;
		entries[i].shared = b->kind == QEMU_RAM_FILE_SHARED;
		list[i] = &entries[i];
	}
	vm_entry__init(vm);
	vm->qemu_version = (char *)qmp_version(s->vm->qmp);
	vm->machine = s->vm->machine;
	vm->qemu_path = s->vm->exe;
	vm->n_argv = (size_t)s->argc;
	vm->argv = s->argv;
	vm->cwd = s->vm->cwd;
	vm->uid = s->vm->uid;
	vm->gid = s->vm->gid;
	vm->run_state = s->was_running ? "running" : "paused";
	vm->n_blocks = s->nr_guest;
	vm->blocks = list;
	vm->name = s->vm->name;
	vm->n_disks = s->nr_disks;
	vm->disks = s->disks;
	return vm;
}

void source_free_description(VmEntry *vm)
{
	if (!vm)
		return;
	free(vm->blocks[0]); // all of them; guest RAM is one block at least
	free(vm->blocks);
	free(vm);
}
