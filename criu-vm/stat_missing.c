// SPDX-License-Identifier: GPL-2.0-only
#include "criu-vm/stat_missing.h"

#include <errno.h>
#include <limits.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>

#include "criu-vm/run_dir.h"
#include "criu-vm/stat_vm.h"
#include "util/cleanup.h"
#include "util/io.h"
#include "util/log.h"

struct search {
	const struct run_dir *rd;
	struct vm_state state;
	struct pv_pages *pages;
	uint64_t (*in_images)[PV_WORDS]; // NULL: no page is in images
	json_t *list;
	uint64_t nr;
};

static int open_table(struct search *s)
{
	size_t len, want = s->state.nr_chunks * sizeof *s->in_images;
	char path[PATH_MAX];
	int r = run_dir_map_pages(s->rd, s->state.nr_chunks, false, &s->pages);

	if (r || !s->state.images)
		return r;
	r = io_read_file(run_dir_file(s->rd, "in-images", path, sizeof path), want, (char **)&s->in_images, &len);
	if (!r && len != want)
		r = -EBADMSG;
	if (r)
		log_err("%s: %s", path, strerror(-r));
	return r;
}

// Of the chunk: their home is elsewhere, and nothing of them is here.
static void find_in_chunk(const struct search *s, uint64_t chunk, uint64_t map[PV_WORDS])
{
	const struct pv_pages *p = &s->pages[chunk];

	pv_pages_of_home(p, PV_HOME_SOURCE, map);
	for (unsigned w = 0; w < PV_WORDS; w++)
		map[w] &= ~p->valid[w] & ~(s->in_images ? s->in_images[chunk][w] : 0);
}

static int add_run(struct search *s, size_t block, uint64_t off, uint64_t len)
{
	const char *name = s->state.blocks[block].name;

	s->nr += len / PAGE_SIZE;
	return json_array_append_new(s->list, json_pack("{s:s s:I s:I}", "block", name ? name : "?", "offset", (json_int_t)off, "length",
							(json_int_t)len)) ? -ENOMEM : 0;
}

// Runs of pages, across chunks.
static int find_in_block(struct search *s, size_t block)
{
	const struct vm_state_block *b = &s->state.blocks[block];
	uint64_t first = b->off / PV_CHUNK_SIZE, from = 0, to = 0;
	int r = 0;

	for (uint64_t i = 0; !r && i < DIV_ROUND_UP(b->len, PV_CHUNK_SIZE) && first + i < s->state.nr_chunks; i++) {
		uint64_t map[PV_WORDS];

		find_in_chunk(s, first + i, map);
		for (size_t at = 0, n; !r && (n = bitmap_next_run(map, PV_CHUNK_PAGES, &at)); at += n) {
			uint64_t off = i * PV_CHUNK_SIZE + at * PAGE_SIZE;

			if (off != to && to > from)
				r = add_run(s, block, from, to - from);
			from = off != to || to == from ? off : from;
			to = off + n * PAGE_SIZE;
		}
	}
	return !r && to > from ? add_run(s, block, from, to - from) : r;
}

static int find(struct search *s)
{
	int r = s->state.remote ? open_table(s) : 0;

	for (size_t i = 0; !r && s->pages && i < s->state.nr_blocks; i++)
		r = find_in_block(s, i);
	return r;
}

int stat_missing(const char *root, const char *name, json_t **missing)
{
	struct search s = { .list = NULL };
	struct run_dir rd;
	int r = run_dir_name_ok(name) ? run_dir_open(root, name, &rd) : -ENOENT;

	if (r)
		return r;
	s.rd = &rd;
	r = vm_state_load(&rd, &s.state);
	if (!r) {
		s.list = json_array();
		r = find(&s);
	}
	*missing = r ? NULL : json_pack("{s:s s:I s:O}", "name", name, "pages", (json_int_t)s.nr, "missing", s.list);
	if (!r && !*missing)
		r = -ENOMEM;
	json_decref(s.list);
	if (s.pages)
		munmap(s.pages, s.state.nr_chunks * sizeof *s.pages);
	free(s.in_images);
	vm_state_fini(&s.state);
	run_dir_close(&rd);
	return r;
}

void stat_print_missing(FILE *f, const json_t *missing)
{
	const json_t *run;
	char size[16];
	size_t i;

	json_array_foreach(json_object_get(missing, "missing"), i, run)
		fprintf(f, "%s: %#lx to %#lx\n", stat_string(run, "block"), stat_number(run, NULL, "offset"),
			stat_number(run, NULL, "offset") + stat_number(run, NULL, "length"));
	fprintf(f, "%lu pages are missing (%s)\n", stat_number(missing, NULL, "pages"),
		size_format(stat_number(missing, NULL, "pages") * PAGE_SIZE, size));
}
