// SPDX-License-Identifier: GPL-2.0-only
#include "criu-vm/vm_hot.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "criu-vm/vm_pager_int.h"
#include "images/resident.h"
#include "util/cleanup.h"
#include "util/io.h"
#include "util/log.h"

static void read_ages(struct vm_pager *v)
{
	_cleanup_close_ int fd = openat(v->rd->fd, "hotness", O_RDONLY | O_CLOEXEC);
	struct stat st;

	if (v->hot.ages || fd < 0 || fstat(fd, &st) < 0 || (uint64_t)st.st_size != v->state.nr_chunks)
		return;
	v->hot.ages = malloc(v->state.nr_chunks);
	if (v->hot.ages && io_read_full(fd, v->hot.ages, v->state.nr_chunks))
		free(steal_ptr(&v->hot.ages));
}

// As the engine wants them: the hottest first, then by address.
static int by_age(const void *a, const void *b)
{
	const struct pv_warm_chunk *x = a, *y = b;

	if (x->age != y->age)
		return x->age > y->age ? -1 : 1;
	return x->chunk < y->chunk ? -1 : x->chunk > y->chunk;
}

// The image's chunks as the engine counts them. Those that guest RAM does not have are left out.
static void take_list(struct vm_pager *v, const struct img_resident *r)
{
	v->hot.warm = calloc(r->nr, sizeof *v->hot.warm);
	for (size_t i = 0; v->hot.warm && i < r->nr; i++) {
		const struct img_resident_chunk *c = &r->chunks[i];
		struct pv_warm_chunk *w = &v->hot.warm[v->hot.nr_warm];

		if (c->block >= v->state.nr_blocks || c->chunk >= DIV_ROUND_UP(v->state.blocks[c->block].len, PV_CHUNK_SIZE))
			continue;
		w->chunk = v->state.blocks[c->block].off / PV_CHUNK_SIZE + c->chunk;
		w->age = c->age;
		memcpy(w->pages, c->pages, sizeof w->pages);
		v->hot.nr_warm++;
	}
	if (v->hot.warm)
		qsort(v->hot.warm, v->hot.nr_warm, sizeof *v->hot.warm, by_age);
}

static void read_resident(struct vm_pager *v)
{
	struct img_resident r;

	if (!v->images || v->hot.warm || img_dir_resident(v->images, &r))
		return;
	if (r.nr)
		take_list(v, &r);
	img_resident_fini(&r);
}

void vm_hot_describe_paging(struct vm_pager *v, struct lp_paging *paging)
{
	bool is_first = v->launch_fd >= 0;

	read_ages(v);
	paging->hotness = v->hot.ages;
	if (!is_first)
		return;
	paging->ages = v->hot.ages;
	if (v->state.arriving || v->state.remote) // then the images say what was hot some time ago, before it came from another host
		return;
	read_resident(v);
	paging->warm = v->hot.warm;
	paging->nr_warm = v->hot.nr_warm;
}

void vm_hot_fini(struct vm_pager *v)
{
	free(v->hot.ages);
	free(v->hot.warm);
}
