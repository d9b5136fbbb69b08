// SPDX-License-Identifier: GPL-2.0-only
// A page line of a VM that was restored from a served checkpoint.
#include <errno.h>
#include <stdlib.h>

#include "criu-vm/cmd.h"
#include "criu-vm/image_server.h"
#include "criu-vm/image_server_int.h"
#include "criu-vm/provide.h"
#include "criu-vm/server.h"
#include "images/format.h"
#include "util/bitmap.h"
#include "util/io.h"
#include "util/log.h"

#define ACCEPT_MS 10000
#define FINISH_MS 2000

// A VM asks for some pages, then for those beside them: what was unpacked for the first is there for the next. As many as the places
// that a guest usually works at; each is a chunk's memory. In the background chunks come whole.
#define NR_UNPACKED 4

struct unpacked {
	const struct img_chunk *entry; // NULL: nothing
	uint64_t used;		       // when, in reads
	char *pages;		       // page i of the chunk at i * PAGE_SIZE; NULL: not needed yet
};

struct reader {
	const struct image_server *s;
	int line; // to the server
	struct img_unpacker *unpacker;
	struct img_part *parts;
	char *stored; // IMG_STORED_MAX
	struct unpacked unpacked[NR_UNPACKED];
	unsigned nr_unpacked;
	uint64_t nr_reads;
};

static void copy_pages(const uint64_t pages[IMG_CHUNK_WORDS], const char *from, char *to)
{
	for (size_t i = 0, n; (n = bitmap_next_run(pages, IMG_CHUNK_PAGES, &i)); i += n)
		memcpy(to + i * PAGE_SIZE, from + i * PAGE_SIZE, n * PAGE_SIZE);
}

// ---- stored page by page

static uint64_t *checked_word(const struct image_server *s, const struct img_part *p, uint64_t *bit)
{
	uint64_t i = p->layer * s->nr_chunks + s->first[p->block] + p->chunk;

	*bit = 1ULL << i % 64;
	return &s->checked[i / 64];
}

static bool is_checked(const struct image_server *s, const struct img_part *p)
{
	uint64_t bit, *word = checked_word(s, p, &bit);

	return __atomic_load_n(word, __ATOMIC_RELAXED) & bit;
}

static void set_checked(const struct image_server *s, const struct img_part *p)
{
	uint64_t bit, *word = checked_word(s, p, &bit);

	__atomic_fetch_or(word, bit, __ATOMIC_RELAXED);
}

static int read_pieces(const struct img_part *p, char *buf)
{
	const uint64_t *present = p->entry->present;
	int err = 0;

	for (size_t i = 0, n; !err && (n = bitmap_next_run(p->pages, IMG_CHUNK_PAGES, &i)); i += n)
		err = io_pread_full(img_part_fd(p), buf + i * PAGE_SIZE, n * PAGE_SIZE, p->entry->off + bitmap_count(present, i) * PAGE_SIZE);
	if (err)
		log_err("%s/" IMG_NAME_PAGES ": chunk %lu of block %u cannot be read: %s", img_dir_path(p->dir), p->chunk, p->block + 1,
			strerror(-err));
	return err;
}

static int read_raw(struct reader *r, const struct img_part *p, char *buf)
{
	int err;

	if (is_checked(r->s, p))
		return read_pieces(p, buf);
	err = img_part_read(r->unpacker, p, r->stored, buf);
	if (!err)
		set_checked(r->s, p);
	return err;
}

// ---- compressed

// The place of the one that was not used for the longest time.
static struct unpacked *oldest(struct reader *r)
{
	struct unpacked *u = &r->unpacked[0];

	for (unsigned i = 1; i < r->nr_unpacked; i++)
		if (r->unpacked[i].used < u->used)
			u = &r->unpacked[i];
	return u;
}

static struct unpacked *find(struct reader *r, const struct img_chunk *entry)
{
	for (unsigned i = 0; i < r->nr_unpacked; i++)
		if (r->unpacked[i].entry == entry)
			return &r->unpacked[i];
	return NULL;
}

static int unpack(struct reader *r, const struct img_part *p, struct unpacked **out)
{
	struct unpacked *u = oldest(r);
	struct img_part all = *p;
	int err;

	u->entry = NULL;
	if (!u->pages && !(u->pages = aligned_alloc(PAGE_SIZE, IMG_CHUNK_SIZE))) {
		log_err("not enough memory to unpack pages");
		return -ENOMEM;
	}
	memcpy(all.pages, p->entry->present, sizeof all.pages);
	err = img_part_read(r->unpacker, &all, r->stored, u->pages);
	if (err)
		return err;
	u->entry = p->entry;
	*out = u;
	return 0;
}

static int read_packed(struct reader *r, const struct img_part *p, char *buf)
{
	struct unpacked *u = find(r, p->entry);
	int err = u ? 0 : unpack(r, p, &u);

	if (err)
		return err;
	u->used = ++r->nr_reads;
	copy_pages(p->pages, u->pages, buf);
	return 0;
}

// ---- the line

// provider.read. What no part has is zero.
static int read_pages(void *ctx, uint32_t block, uint64_t chunk, const uint64_t want[4], char *buf)
{
	struct reader *r = ctx;
	unsigned nr = img_dir_parts(r->s->dir, block, chunk, want, r->parts);
	uint64_t rest[IMG_CHUNK_WORDS];
	int err = 0;

	memcpy(rest, want, sizeof rest);
	for (unsigned i = 0; !err && i < nr; i++) {
		const struct img_part *p = &r->parts[i];

		err = img_part_is_raw(p) ? read_raw(r, p, buf) : read_packed(r, p, buf);
		for (unsigned w = 0; w < IMG_CHUNK_WORDS; w++)
			rest[w] &= ~p->pages[w];
	}
	for (size_t i = 0, n; !err && (n = bitmap_next_run(rest, IMG_CHUNK_PAGES, &i)); i += n)
		memset(buf + i * PAGE_SIZE, 0, n * PAGE_SIZE);
	return err;
}

static int reader_init(struct reader *r, const struct image_server *s, unsigned nr, int line)
{
	*r = (struct reader){ .s = s, .line = line, .nr_unpacked = nr ? 1 : NR_UNPACKED, .parts = calloc(img_dir_layers(s->dir), sizeof *r->parts),
			      .stored = aligned_alloc(PAGE_SIZE, IMG_STORED_MAX) };
	return r->parts && r->stored ? img_unpacker_new(&r->unpacker) : -ENOMEM;
}

static void reader_fini(struct reader *r)
{
	for (unsigned i = 0; i < NR_UNPACKED; i++)
		free(r->unpacked[i].pages);
	img_unpacker_free(r->unpacker);
	free(r->stored);
	free(r->parts);
}

static bool is_ending(void *ctx)
{
	(void)ctx;
	return cmd_interrupted();
}

static void introduced(void *ctx)
{
	const struct reader *r = ctx;

	server_line_introduced(r->line);
}

static void say_last(struct wire_conn *c, int err)
{
	struct wire_pages *p;

	if ((err && err != -ESTALE) || wire_pages_new(c, &p))
		return;
	if (err)
		wire_line_refuse(p, WIRE_REFUSED_CHECKPOINT);
	else
		wire_line_say(p, WIRE_OVER);
	wire_pages_free(p);
	wire_finish(c, FINISH_MS);
}

static int serve(struct reader *r, struct wire_conn *c)
{
	static const uint8_t any[WIRE_TOKEN_LEN];
	struct provider p = { .ctx = r, .block_len = r->s->block_len, .nr_blocks = img_dir_nr_blocks(r->s->dir), .read = read_pages,
			      .any_token = true, .introduced = introduced, .ending = is_ending };
	struct provided all = { 0 };
	enum wire_line_state state;
	enum wire_refusal why;
	int err;

	image_server_line_id(any, img_dir_id(r->s->dir), p.id);
	err = provide(&p, c, false, &all, &state, &why);
	say_last(c, err);
	if (err == -ESTALE)
		log_warn("%s: its VM was restored from another checkpoint than %s", wire_peer(c), r->s->path);
	else
		log_info("%s: a page line has ended (%s): %lu pages, %lu of zeros, were sent", wire_peer(c),
			 !err ? "nothing is needed any more" : err == -ECANCELED ? "the server ends" : strerror(-err), all.pages, all.zero_pages);
	return err;
}

int image_server_line(const struct image_server *s, const struct wire_tls *tls, unsigned nr, int line, int fd)
{
	struct wire_conn *c;
	struct reader r;
	int err = wire_accept(fd, tls, ACCEPT_MS, &c);

	if (err)
		return CMD_FAILED;
	wire_set_interrupted(c, cmd_interrupted);
	log_no_repeats(); // what cannot be read is asked for again each second
	if (!nr) // what VMs wait for
		wire_set_urgent(c);
	err = reader_init(&r, s, nr, line);
	if (err)
		log_err("%s: not enough memory for a page line", wire_peer(c));
	else
		err = serve(&r, c);
	reader_fini(&r);
	wire_close(c);
	return err ? CMD_FAILED : CMD_OK;
}
