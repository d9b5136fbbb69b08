// SPDX-License-Identifier: GPL-2.0-only
//
// DOC: what is hot
//
// The destination puts the hottest chunks into RAM, the others into its swap image, so it is told before the first page. Of an ordinary
// VM nobody knows what it reads; what it writes is noted. Between track and pre-copy, while the destination gets ready anyway, that is
// looked at several times, and each chunk gets a byte of history as VMemDirect's had: h = h / 2 + 128 if it was written. Of a VM in
// private virtual memory its pager knows: what is resident is hotter than what is not, by its place in the chunk queues.
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "criu-vm/migrate_int.h"
#include "qemu/hot.h"
#include "util/bitmap.h"
#include "util/cleanup.h"
#include "util/log.h"
#include "util/size.h"

// Of the first MiB, which holds what firmware and devices share with each other: loading the device state touches it.
#define HOTTEST 255

int migrate_sample(struct migrate *m)
{
	int r = ram_is_paged(m->src.ram) ? 0 : ram_take(m->src.ram, m->src.tracked.discards);

	for (uint32_t b = 0; !r && !ram_is_paged(m->src.ram) && b < m->src.nr_guest; b++)
		for (uint64_t i = 0; i < DIV_ROUND_UP(m->src.blocks[b].len, CHUNK_SIZE); i++) {
			uint8_t *hot = &m->hotness[(m->first[b] + i) * WIRE_HOTNESS_LEN];

			*hot = (uint8_t)(*hot >> 1 | (bitmap_empty(ram_written(m->src.ram, b, i), CHUNK_PAGES) ? 0 : 0x80));
		}
	return r;
}

static int ask_ages(struct migrate *m)
{
	_cleanup_free_ uint8_t *ages = malloc(m->nr_chunks);
	int r = ages ? ram_ages(m->src.ram, ages) : -ENOMEM;

	for (uint64_t i = 0; !r && i < m->nr_chunks; i++)
		m->hotness[i * WIRE_HOTNESS_LEN] = ages[i];
	return r;
}

int migrate_send_hotness(void *ctx)
{
	struct migrate *m = ctx;
	int r = ram_is_paged(m->src.ram) ? ask_ages(m) : migrate_sample(m);

	m->hotness[0] = HOTTEST;
	for (uint32_t b = 0; !r && b < m->src.nr_guest; b++)
		for (uint64_t i = 0; !r && i < DIV_ROUND_UP(m->src.blocks[b].len, CHUNK_SIZE); i++) {
			uint8_t *hot = &m->hotness[(m->first[b] + i) * WIRE_HOTNESS_LEN];
			uint64_t present[CHUNK_WORDS];
			size_t nr;

			r = ram_present(m->src.ram, b, i, present);
			nr = bitmap_count(present, CHUNK_PAGES);
			hot[1] = (uint8_t)nr;
			hot[2] = (uint8_t)(nr >> 8);
		}
	if (!r)
		r = migrate_sent(m, wire_send_document(m->control, WIRE_DOCUMENT_KIND__WIRE_DOC_HOTNESS, m->hotness, m->nr_chunks * WIRE_HOTNESS_LEN),
				 "it was told what is hot");
	return r ? r : migrate_send_small(m);
}

// ---- what is touched first

static int by_chunk(const void *a, const void *b)
{
	const struct hot_pages *x = a, *y = b;

	return x->chunk < y->chunk ? -1 : x->chunk > y->chunk;
}

static bool find_page(const struct migrate *m, uint64_t hva, uint64_t *chunk, size_t *page)
{
	for (uint32_t b = 0; b < m->src.nr_guest; b++) {
		uint64_t off = hva - m->src.blocks[b].hva;

		if (hva < m->src.blocks[b].hva || off >= m->src.blocks[b].len)
			continue;
		*chunk = m->first[b] + off / CHUNK_SIZE;
		*page = off % CHUNK_SIZE / PAGE_SIZE;
		return true;
	}
	return false;
}

// Entries of one chunk become one.
static void merge_hot(struct migrate *m)
{
	size_t n = 0;

	for (size_t i = 0; i < m->nr_hot; i++) {
		if (n && m->hot[n - 1].chunk == m->hot[i].chunk)
			for (unsigned w = 0; w < CHUNK_WORDS; w++)
				m->hot[n - 1].pages[w] |= m->hot[i].pages[w];
		else
			m->hot[n++] = m->hot[i];
	}
	m->nr_hot = n;
}

int migrate_find_hot_pages(struct migrate *m)
{
	_cleanup_free_ uint64_t *hvas = NULL;
	size_t nr, page;
	int r;

	if (m->hot || (!m->goes_lazy && m->result->budget >= m->src.ram_len)) // all of it will be in memory
		return 0;
	// What a VM in private virtual memory executes is resident, so it is hot already; and no page table is to be paged in for this.
	r = qemu_hot_pages(m->src.vm, !ram_is_paged(m->src.ram), &hvas, &nr);

	if (r)
		return r;
	m->hot = calloc(nr + 1, sizeof *m->hot);
	if (!m->hot)
		return -ENOMEM;
	for (size_t i = 0; i < nr; i++)
		if (find_page(m, hvas[i], &m->hot[m->nr_hot].chunk, &page))
			bitmap_set(m->hot[m->nr_hot++].pages, page);
	qsort(m->hot, m->nr_hot, sizeof *m->hot, by_chunk);
	merge_hot(m);
	return 0;
}

const struct hot_pages *migrate_hot_pages_of(const struct migrate *m, uint64_t chunk)
{
	struct hot_pages key = { .chunk = chunk };

	return m->last && m->nr_hot ? bsearch(&key, m->hot, m->nr_hot, sizeof *m->hot, by_chunk) : NULL;
}
