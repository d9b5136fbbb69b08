// SPDX-License-Identifier: GPL-2.0-only
#include "criu-vm/restore.h"

#include <errno.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "criu-vm/owner.h"
#include "criu-vm/stages.h"
#include "pvmem/folio.h"
#include "qemu/qmp.h"
#include "util/cleanup.h"
#include "util/log.h"

static int lay_out_blocks(struct restore *r)
{
	r->nr_blocks = r->vm->n_blocks;
	r->blocks = calloc(r->nr_blocks + 1, sizeof *r->blocks);
	if (!r->blocks)
		return -ENOMEM;
	for (size_t i = 0; i < r->nr_blocks; i++) {
		struct pv_block *b = &r->blocks[i];

		*b = (struct pv_block){ .off = r->nr_chunks * PV_CHUNK_SIZE, .len = r->vm->blocks[i]->len, .memfd = -1 };
		r->nr_chunks += DIV_ROUND_UP(b->len, PV_CHUNK_SIZE);
		r->ram += b->len;
	}
	return 0;
}

static int choose_name(struct restore *r)
{
	_cleanup_free_ char *dir = r->o->dir ? realpath(r->o->dir, NULL) : NULL;
	const char *const candidates[] = { r->o->name, r->vm->name, dir ? strrchr(dir, '/') + 1 : NULL };

	for (size_t i = 0; i < ARRAY_SIZE(candidates); i++)
		if (candidates[i] && run_dir_name_ok(candidates[i])) {
			snprintf(r->name, sizeof r->name, "%s", candidates[i]);
			return 0;
		}
	log_err("give the VM a name with --name");
	return -EINVAL;
}

static int choose_log(struct restore *r)
{
	const char *given = r->o->log_file;

	if (!given && mkdir(LOG_DIR_DEFAULT, 0755) < 0 && errno != EEXIST) {
		log_err("cannot create %s: %s; choose a log file with -o", LOG_DIR_DEFAULT, strerror(errno));
		return -errno;
	}
	if (given)
		r->log = realpath(given, NULL);
	else if (asprintf(&r->log, LOG_DIR_DEFAULT "/%s.log", r->name) < 0)
		r->log = NULL;
	return r->log ? 0 : -ENOMEM;
}

static int open_dir(struct restore *r)
{
	int err = img_dir_open(r->o->dir, &r->images);

	if (err)
		return err;
	r->vm = img_dir_vm(r->images);
	if (!img_dir_ram_only(r->images))
		return owner_check_chain(r->images);
	log_err("%s is a pre-dump: memory without a device state; restore the dump that was made after it", r->o->dir);
	return -EINVAL;
}

static int open_peer(struct restore *r)
{
	struct restore_peer_opts o = { .server = r->o->server, .tls_creds = r->o->tls_creds, .insecure = r->o->insecure, .qemu = r->o->qemu,
				       .user = r->o->user };
	int err = restore_peer_open(&o, &r->peer);

	if (err)
		return err;
	r->vm = restore_peer_vm(r->peer);
	r->from_peer = true;
	r->state.fill = r->o->fill;
	return restore_peer_note(r->peer, &r->state);
}

int restore_lay_out(struct restore *r)
{
	char have[16], want[16];
	int err;

	if ((err = lay_out_blocks(r)) || (err = choose_name(r)) || (err = choose_log(r)))
		return err;
	r->state.ram = r->ram;
	r->state.nr_chunks = r->nr_chunks;
	r->state.tuning = r->o->tuning;
	r->state.budget = r->o->ram && r->o->ram < r->ram ? r->o->ram : r->ram;
	r->paging = r->state.paging = r->o->lazy || r->state.budget < r->ram;
	r->state.log = strdup(r->log);
	if (r->state.budget < pv_min_budget(r->ram)) {
		log_err("--ram %s is too little for this VM: below %s, I/O in flight and page-outs would leave no room to work in",
			size_format(r->state.budget, have), size_format(pv_min_budget(r->ram), want));
		return -EINVAL;
	}
	return 0;
}

static int open_images(void *ctx)
{
	struct restore *r = ctx;
	int err = r->o->dir ? open_dir(r) : r->o->server ? open_peer(r) : restore_stream_open(r);

	if (err || (err = restore_check_disks(r)) || (err = restore_lay_out(r)))
		return err;
	if (r->images && r->o->lazy) {
		r->state.images = realpath(r->o->dir, NULL);
		r->state.images_id = img_dir_id(r->images);
		r->state.fill = r->o->fill;
	}
	return 0;
}

int restore_run_dir(void *ctx)
{
	struct restore *r = ctx;
	char exe[PATH_MAX];
	ssize_t len = readlink("/proc/self/exe", exe, sizeof exe - 1);
	int err = len > 0 ? run_dir_create(r->o->run_dir, r->name, &r->rd) : -errno;

	if (err)
		return err;
	exe[len] = 0;
	err = run_dir_mark(&r->rd, "exe", exe);
	if (err)
		run_dir_destroy(&r->rd);
	return err;
}

void restore_run_dir_undo(void *ctx)
{
	struct restore *r = ctx;

	if (r->rd.fd >= 0 && !run_dir_lock(&r->rd)) // else it is being removed
		run_dir_destroy(&r->rd);
}

// What is allocated from here on, by this command too, is the VM's.
int restore_cgroup(void *ctx)
{
	struct restore *r = ctx;

	cgroup_own(&r->own);
	cgroup_create(r->name, 0, &r->state.cgroup);
	return vm_state_save(&r->rd, &r->state);
}

void restore_cgroup_undo(void *ctx)
{
	struct restore *r = ctx;

	cgroup_enter(&r->own, 0);
}

static const struct stage stages[] = {
	{ "images", open_images, NULL },
	{ "run-dir", restore_run_dir, restore_run_dir_undo },
	{ "cgroup", restore_cgroup, restore_cgroup_undo },
	{ "memory", restore_memory, restore_memory_undo },
	{ "place", restore_place, NULL },
	{ "disks", restore_disks, restore_disks_undo },
	{ "start", restore_start, restore_start_undo },
	{ "disks-again", restore_disks_again, NULL },
	{ "plant", restore_plant, NULL },
	{ "serve", restore_serve, NULL },
	{ "load", restore_load, NULL },
	{ "run", restore_go, NULL },
};

void restore_init(struct restore *r, const struct restore_opts *o)
{
	*r = (struct restore){ .o = o, .swap = PV_SWAP_NONE, .rd = RUN_DIR_NONE, .launch = LAUNCH_NONE, .io_fd = -1, .monitor = "qmp.sock",
			       .state = VM_STATE_NONE };
}

int restore_run(const struct restore_opts *o, struct restore *r)
{
	restore_init(r, o);
	return stages_run(stages, ARRAY_SIZE(stages), r);
}

void restore_fini(struct restore *r)
{
	for (size_t i = 0; r->blocks && i < r->nr_blocks; i++) {
		pv_block_unmap(&r->blocks[i]);
		if (r->blocks[i].memfd >= 0)
			close(r->blocks[i].memfd);
	}
	free(r->blocks);
	launch_done(&r->launch);
	if (r->pages)
		munmap(r->pages, r->nr_chunks * sizeof *r->pages);
	if (r->io_fd >= 0)
		close(r->io_fd);
	pv_swap_close(&r->swap);
	run_dir_close(&r->rd);
	cgroup_fini(&r->own);
	vm_state_fini(&r->state);
	qemu_disks_overlay_fini(&r->overlays);
	img_dir_close(r->images);
	img_stream_in_free(r->stream);
	restore_peer_free(r->peer);
	free(r->log);
}
