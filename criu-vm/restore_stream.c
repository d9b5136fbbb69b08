// SPDX-License-Identifier: GPL-2.0-only
// Restore from a stream on standard input: each chunk goes to where it will live as it arrives; no page is used, and QEMU is not
// started, before the end of the stream was there and right.
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "criu-vm/cmd.h"
#include "criu-vm/owner.h"
#include "criu-vm/progress.h"
#include "criu-vm/restore.h"
#include "pvmem/place.h"
#include "util/bitmap.h"
#include "util/log.h"
#include "util/process.h"

// Chunks on their way to the swap image while the next ones arrive.
#define NR_BUFFERS 8
// How much guest RAM the stream will bring it does not say.
#define ROOM_EVERY (64 * MiB)
#define ROOM_LEAST (128 * MiB)

struct arrival {
	struct pv_placing placing;
	struct arrivals *all;
	bool busy;
};

struct arrivals {
	struct restore *r;
	struct loop loop;
	struct pv_placement placement;
	struct pv_placer placer;
	struct progress progress;
	struct arrival arrival[NR_BUFFERS];
	unsigned nr_busy;
	uint64_t until_look; // bytes
	int err;
};

// What comes through a pipe comes from whoever it is that we are.
static int check_owner(const struct restore *r)
{
	struct stat st;

	if (fstat(STDIN_FILENO, &st) < 0)
		return -errno;
	return S_ISREG(st.st_mode) ? owner_check(&st, r->vm, "the stream's file") : 0;
}

int restore_stream_open(struct restore *r)
{
	int err = img_stream_in_open(STDIN_FILENO, cmd_interrupted, &r->stream);

	if (err)
		return err;
	r->vm = img_stream_in_vm(r->stream);
	return check_owner(r);
}

static void placed(struct pv_placing *p, int err)
{
	struct arrival *a = list_entry(p, struct arrival, placing);

	if (err && !a->all->err) {
		log_err("chunk %lu of guest RAM: cannot write it to the swap image: %s", p->chunk, strerror(-err));
		a->all->err = err;
	}
	a->busy = false;
	a->all->nr_busy--;
}

static struct arrival *free_one(struct arrivals *v)
{
	for (unsigned i = 0; i < NR_BUFFERS; i++)
		if (!v->arrival[i].busy)
			return &v->arrival[i];
	return NULL;
}

static int check_room(struct arrivals *v, uint64_t len)
{
	char have_text[16];
	uint64_t have;

	if (len <= v->until_look) {
		v->until_look -= len;
		return 0;
	}
	v->until_look = ROOM_EVERY;
	if (host_memory_available(&have) || have >= ROOM_LEAST)
		return 0;
	log_err("guest RAM does not fit: %s of memory are left on this host; restore the VM into less with --ram",
		size_format(have, have_text));
	return -ENOMEM;
}

// 1: there may be more.
static int take_one(struct arrivals *v, struct arrival *a)
{
	struct img_stream_chunk c;
	int ret = img_stream_in_next(v->r->stream, &c, a->placing.packed);
	uint64_t len;

	if (ret != 1)
		return ret;
	len = bitmap_count(c.present, PV_CHUNK_PAGES) * PAGE_SIZE;
	ret = check_room(v, len);
	if (ret)
		return ret;
	a->placing.chunk = v->r->blocks[c.block].off / PV_CHUNK_SIZE + c.chunk;
	memcpy(a->placing.present, c.present, sizeof a->placing.present);
	a->busy = true;
	v->nr_busy++;
	pv_place(&v->placer, &a->placing);
	progress_add(&v->progress, len);
	return 1;
}

static int take_all(struct arrivals *v)
{
	int ret = 1;

	for (;;) {
		struct arrival *a = free_one(v);

		if (ret == 1 && !v->err && a)
			ret = take_one(v, a);
		if (!v->nr_busy && (ret != 1 || v->err))
			return ret < 0 ? ret : v->err;
		// Who has nothing to take waits for what is being written.
		if (v->nr_busy && loop_round(&v->loop, ret != 1 || v->err || !free_one(v)))
			return v->loop.error;
	}
}

static int set_up(struct arrivals *v)
{
	struct restore *r = v->r;
	int err = loop_init(&v->loop, 1024);

	if (err) {
		log_err("cannot set up an io_uring: %s", strerror(-err));
		return err;
	}
	err = pv_placement_init(&v->placement, &r->swap, r->blocks, r->nr_blocks, r->pages, r->nr_chunks,
				r->paging ? pv_placement_budget(r->state.budget) : r->nr_chunks * PV_CHUNK_SIZE);
	v->placer = (struct pv_placer){ .placement = &v->placement, .loop = &v->loop };
	for (unsigned i = 0; i < NR_BUFFERS; i++) {
		v->arrival[i].all = v;
		v->arrival[i].placing.done = placed;
		memset(v->arrival[i].placing.touched, 0xff, sizeof v->arrival[i].placing.touched);
		v->arrival[i].placing.packed = aligned_alloc(PAGE_SIZE, PV_CHUNK_SIZE);
		if (!v->arrival[i].placing.packed)
			err = -ENOMEM;
	}
	return err;
}

int restore_stream_place(struct restore *r)
{
	struct arrivals *v = calloc(1, sizeof *v);
	int err;

	if (!v)
		return -ENOMEM;
	v->r = r;
	err = set_up(v);
	if (!err) {
		progress_begin(&v->progress, "restoring memory", r->ram);
		err = take_all(v);
		progress_end(&v->progress);
	}
	r->nr_in_ram = v->placement.nr_ram;
	r->nr_in_swap = v->placement.nr_swap;
	loop_fini(&v->loop);
	pv_placement_fini(&v->placement);
	for (unsigned i = 0; i < NR_BUFFERS; i++)
		free(v->arrival[i].placing.packed);
	free(v);
	return err;
}
