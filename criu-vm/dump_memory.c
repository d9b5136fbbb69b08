// SPDX-License-Identifier: GPL-2.0-only
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>

#include "criu-vm/cmd.h"
#include "criu-vm/dump_int.h"
#include "util/bitmap.h"
#include "util/cleanup.h"
#include "util/clock.h"
#include "util/log.h"
#include "util/size.h"

// What is read of a chunk, and what is as in the parent.
static int look_at(struct dump *d, uint32_t block, uint64_t chunk, uint64_t read[4], uint64_t parent[4])
{
	int r = ram_present(d->src.ram, block, chunk, read);

	memset(parent, 0, 4 * sizeof *parent);
	if (!r && d->parent)
		r = ram_unchanged(d->src.ram, block, chunk, read, parent);
	for (unsigned w = 0; w < 4; w++)
		read[w] &= ~parent[w];
	return r;
}

static int copy_chunk(struct dump *d, uint32_t block, uint64_t chunk, char *buf)
{
	uint64_t read[4], parent[4];
	int r = look_at(d, block, chunk, read, parent);

	if (r || (bitmap_empty(read, CHUNK_PAGES) && bitmap_empty(parent, CHUNK_PAGES)))
		return r;
	r = ram_read(d->src.ram, block, chunk, read, buf);
	return r ? r : img_writer_chunk(d->writer, block, chunk, buf, read, d->parent ? parent : NULL);
}

int dump_check_interrupted(void)
{
	if (!cmd_interrupted())
		return 0;
	log_err("interrupted; the VM goes on, nothing was dumped");
	return -EINTR;
}

int dump_copy(void *ctx)
{
	struct dump *d = ctx;
	char *buf = aligned_alloc(PAGE_SIZE, CHUNK_SIZE);
	uint64_t begun = clock_now_ns();
	int r = buf ? 0 : -ENOMEM;

	if (d->src.standing && !d->parent)
		setpriority(PRIO_PROCESS, 0, d->src.nice); // it takes long
	progress_begin(&d->progress, "dumping memory", d->src.ram_len);
	for (uint32_t i = 0; i < d->src.nr_guest; i++)
		for (uint64_t c = 0; !r && c < DIV_ROUND_UP(d->src.blocks[i].len, CHUNK_SIZE); c++) {
			r = dump_check_interrupted();
			if (!r)
				r = copy_chunk(d, i, c, buf);
			progress_add(&d->progress, CHUNK_SIZE);
		}
	progress_end(&d->progress);
	free(buf);
	d->times.memdump_us = (clock_now_ns() - begun) / 1000;
	return r;
}
