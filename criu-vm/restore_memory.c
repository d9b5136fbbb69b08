// SPDX-License-Identifier: GPL-2.0-only
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "criu-vm/cmd.h"
#include "criu-vm/progress.h"
#include "criu-vm/restore.h"
#include "criu-vm/swap_registry.h"
#include "lazy-pages/image_source.h"
#include "pvmem/folio.h"
#include "pvmem/place.h"
#include "util/cleanup.h"
#include "util/log.h"
#include "util/process.h"

#define NR_BUFFERS 8

static int make_swap(struct restore *r)
{
	int err = swap_registry_prepare_image(r->name, r->o->swap, r->nr_chunks * PV_CHUNK_SIZE, r->o->swap_sparse, &r->swap);

	if (err)
		return err;
	err = vm_state_set_swap(&r->state, &r->swap);
	if (!err)
		err = vm_state_save(&r->rd, &r->state); // first, so that it is removed whatever happens
	if (err)
		pv_swap_close(&r->swap);
	return err ? err : swap_registry_publish_image(r->name, &r->swap);
}

static int make_block(struct restore *r, size_t i, bool folios)
{
	struct pv_block *b = &r->blocks[i];
	char name[128];
	int err;

	snprintf(name, sizeof name, "criu-vm:%s:%zu", r->name, i);
	b->memfd = memfd_create(name, MFD_CLOEXEC | MFD_ALLOW_SEALING);
	if (b->memfd < 0 || ftruncate(b->memfd, (off_t)b->len) < 0 ||
	    fcntl(b->memfd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL) < 0)
		goto failed;
	err = pv_block_map(b, folios);
	if (!err)
		return 0;
	errno = -err;
failed:
	err = -errno;
	log_err("cannot make %lu MiB of guest RAM: %s", b->len / MiB, strerror(-err));
	return err;
}

// Those of a chunk that stay where they are until they are touched.
static void pages_elsewhere(const struct restore *r, uint64_t chunk, uint64_t pages[PV_WORDS])
{
	uint64_t in_block;
	uint32_t block;

	if (r->peer) {
		restore_peer_pages(r->peer, chunk, pages);
		return;
	}
	lp_image_chunk(r->images, chunk, &block, &in_block);
	img_dir_pages(r->images, block, in_block, pages);
}

// All pages empty, but for those.
static void fill_page_table(struct restore *r)
{
	uint64_t all[PV_WORDS];

	memset(all, 0xff, sizeof all);
	for (uint64_t i = 0; i < r->nr_chunks; i++) {
		uint64_t stored[PV_WORDS];

		pv_pages_set_home(&r->pages[i], all, PV_HOME_ZERO);
		if (!r->o->lazy)
			continue;
		pages_elsewhere(r, i, stored);
		pv_pages_set_home(&r->pages[i], stored, PV_HOME_SOURCE);
	}
}

static uint64_t stored_bytes(const struct restore *r)
{
	uint64_t pages = 0;

	for (uint64_t i = 0; i < r->nr_chunks; i++) {
		uint64_t in_block, stored[PV_WORDS];
		uint32_t block;

		lp_image_chunk(r->images, i, &block, &in_block);
		img_dir_pages(r->images, block, in_block, stored);
		pages += bitmap_count(stored, PV_CHUNK_PAGES);
	}
	return pages * PAGE_SIZE;
}

// What is filled now must fit now; what a lazily restored VM comes to take later is its budget's matter.
static int check_room(const struct restore *r)
{
	uint64_t need = stored_bytes(r), have;
	char need_text[16], have_text[16];

	need = need < r->state.budget ? need : r->state.budget;
	if (r->o->lazy || host_memory_available(&have) || need <= have)
		return 0;
	log_err("%s of memory are needed and %s are available on this host; restore the VM into less with --ram", size_format(need, need_text),
		size_format(have, have_text));
	return -ENOMEM;
}

int restore_memory(void *ctx)
{
	struct restore *r = ctx;
	int err = r->images ? check_room(r) : 0;
	bool folios = r->state.tuning.folios && pv_folios_here(NULL) == PV_FOLIOS_YES;

	for (size_t i = 0; !err && i < r->nr_blocks; i++)
		err = make_block(r, i, folios);
	if (!err && r->state.budget < r->ram)
		err = make_swap(r);
	if (!err)
		err = run_dir_map_pages(&r->rd, r->nr_chunks, true, &r->pages);
	if (err)
		restore_memory_undo(r);
	else
		fill_page_table(r);
	return err;
}

void restore_memory_undo(void *ctx)
{
	struct restore *r = ctx;

	for (size_t i = 0; i < r->nr_blocks; i++) {
		pv_block_unmap(&r->blocks[i]);
		if (r->blocks[i].memfd >= 0)
			close(r->blocks[i].memfd);
		r->blocks[i].memfd = -1;
	}
	if (r->pages)
		munmap(r->pages, r->nr_chunks * sizeof *r->pages);
	r->pages = NULL;
	pv_swap_destroy(&r->swap);
}

// One chunk on its way from the images to its place: its parts are read one after the other.
struct move {
	struct loop_op op;
	struct pv_placing placing;
	struct mover *mover;
	struct img_part *parts;
	unsigned nr_parts, part;
	char *stored; // of the part, IMG_STORED_MAX
	char *pages;  // where parts are put together, a chunk
	bool busy;
};

struct mover {
	struct restore *r;
	struct loop loop;
	struct pv_placement placement;
	struct pv_placer placer;
	struct progress progress;
	struct img_unpacker *unpacker;
	struct move moves[NR_BUFFERS];
	uint64_t next;
	unsigned nr_busy;
	int err;
};

static void move_failed(struct move *m, int err, const char *what)
{
	if (!m->mover->err)
		log_err("chunk %lu of guest RAM: %s: %s", m->placing.chunk, what, strerror(-err));
	m->mover->err = err;
	m->busy = false;
	m->mover->nr_busy--;
}

static void placed(struct pv_placing *p, int err)
{
	struct move *m = list_entry(p, struct move, placing);

	if (err) {
		move_failed(m, err, "cannot put it into memory or the swap image");
		return;
	}
	progress_add(&m->mover->progress, bitmap_count(p->present, PV_CHUNK_PAGES) * PAGE_SIZE);
	m->busy = false;
	m->mover->nr_busy--;
}

static void read_part(struct move *m)
{
	const struct img_part *p = &m->parts[m->part];

	loop_read(&m->mover->loop, &m->op, img_part_fd(p), m->stored, p->entry->stored, p->entry->off);
}

// What is stored is just what is wanted of the chunk, page by page.
static bool is_packed(const struct move *m)
{
	const struct img_part *p = m->parts;

	return m->nr_parts == 1 && img_part_is_raw(p) && !memcmp(p->pages, p->entry->present, sizeof p->pages);
}

// All parts were unpacked to where their pages are in the chunk; now one page follows the other.
static void pack(struct move *m)
{
	char *to = m->pages;

	for (size_t i = 0, n; (n = bitmap_next_run(m->placing.present, PV_CHUNK_PAGES, &i)); i += n) {
		memmove(to, m->pages + i * PAGE_SIZE, n * PAGE_SIZE);
		to += n * PAGE_SIZE;
	}
}

static void part_read(struct loop_op *op, int res)
{
	struct move *m = list_entry(op, struct move, op);
	const struct img_part *p = &m->parts[m->part];
	int err;

	if (res < 0 || (uint32_t)res < p->entry->stored) {
		move_failed(m, res < 0 ? res : -EIO, "cannot read the images");
		return;
	}
	if (is_packed(m))
		err = img_part_check(p, m->stored);
	else
		err = img_part_unpack(m->mover->unpacker, p, m->stored, m->pages);
	if (err) {
		move_failed(m, err, "the images are damaged");
		return;
	}
	for (unsigned w = 0; w < PV_WORDS; w++)
		m->placing.present[w] |= p->pages[w];
	if (++m->part < m->nr_parts) {
		read_part(m);
		return;
	}
	m->placing.packed = is_packed(m) ? m->stored : m->pages;
	if (!is_packed(m))
		pack(m);
	m->placing.done = placed;
	pv_place(&m->mover->placer, &m->placing);
}

// The next chunk that has content goes into this buffer. False when there is none.
static bool move_next(struct mover *v, struct move *m)
{
	uint64_t all[PV_WORDS], in_block;
	uint32_t block;

	memset(all, 0xff, sizeof all);
	for (m->nr_parts = 0; v->next < v->r->nr_chunks; v->next++) {
		lp_image_chunk(v->r->images, v->next, &block, &in_block);
		m->nr_parts = img_dir_parts(v->r->images, block, in_block, all, m->parts);
		if (m->nr_parts)
			break;
	}
	if (!m->nr_parts)
		return false;
	m->placing.chunk = v->next++;
	memset(m->placing.present, 0, sizeof m->placing.present);
	memset(m->placing.touched, 0xff, sizeof m->placing.touched);
	m->part = 0;
	m->busy = true;
	v->nr_busy++;
	read_part(m);
	return true;
}

static int move_all(struct mover *v)
{
	bool more = true;

	for (;;) {
		for (unsigned i = 0; more && !v->err && i < NR_BUFFERS; i++)
			if (!v->moves[i].busy)
				more = move_next(v, &v->moves[i]);
		if (cmd_interrupted() && !v->err) {
			log_err("interrupted; nothing was restored");
			v->err = -EINTR;
		}
		if (!v->nr_busy && (!more || v->err))
			return v->err;
		if (loop_round(&v->loop, true))
			return v->loop.error;
	}
}

// Everything to where it will live, before the VM runs. Lazily restored pages stay in the images instead.
int restore_place(void *ctx)
{
	struct restore *r = ctx;
	_cleanup_free_ uint8_t *hotness = NULL;
	struct mover *v;
	int err;

	restore_hotness(r, &hotness);
	if (r->o->lazy)
		return 0;
	if (r->stream)
		return restore_stream_place(r);
	v = calloc(1, sizeof *v);
	if (!v)
		return -ENOMEM;
	v->r = r;
	err = loop_init(&v->loop, 1024);
	if (err)
		log_err("cannot set up an io_uring: %s", strerror(-err));
	else
		err = pv_placement_init(&v->placement, &r->swap, r->blocks, r->nr_blocks, r->pages, r->nr_chunks,
					r->paging ? pv_placement_budget(r->state.budget) : r->nr_chunks * PV_CHUNK_SIZE);
	v->placer = (struct pv_placer){ .placement = &v->placement, .loop = &v->loop };
	if (!err && hotness)
		err = pv_placement_plan(&v->placement, hotness, r->nr_chunks);
	if (!err)
		err = img_unpacker_new(&v->unpacker);
	for (unsigned i = 0; i < NR_BUFFERS; i++) {
		v->moves[i].mover = v;
		v->moves[i].op.done = part_read;
		v->moves[i].parts = calloc(img_dir_layers(r->images), sizeof *v->moves[i].parts);
		v->moves[i].stored = aligned_alloc(PAGE_SIZE, IMG_STORED_MAX);
		v->moves[i].pages = aligned_alloc(PAGE_SIZE, PV_CHUNK_SIZE);
		if (!v->moves[i].parts || !v->moves[i].stored || !v->moves[i].pages)
			err = -ENOMEM;
	}
	if (!err) {
		progress_begin(&v->progress, "restoring memory", stored_bytes(r));
		err = move_all(v);
		progress_end(&v->progress);
	}
	r->nr_in_ram = v->placement.nr_ram;
	r->nr_in_swap = v->placement.nr_swap;
	loop_fini(&v->loop);
	pv_placement_fini(&v->placement);
	for (unsigned i = 0; i < NR_BUFFERS; i++) {
		free(v->moves[i].parts);
		free(v->moves[i].stored);
		free(v->moves[i].pages);
	}
	img_unpacker_free(v->unpacker);
	free(v);
	return err;
}
