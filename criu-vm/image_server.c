// SPDX-License-Identifier: GPL-2.0-only
#include "criu-vm/image_server.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <zstd.h>

#include "criu-vm/cmd.h"
#include "criu-vm/hello.h"
#include "criu-vm/image_server_int.h"
#include "criu-vm/owner.h"
#include "criu-vm/server.h"
#include "util/bitmap.h"
#include "util/cleanup.h"
#include "util/log.h"

#define ACCEPT_MS 10000
#define FINISH_MS 10000
#define PRESENT_LEVEL 1 // of zstd: runs of equal bytes, nearly all of it

// ---- what is served

// Through the page cache, and no more than is asked for: a page that nobody wants is not read.
static int open_for_all(const struct img_dir *d)
{
	for (; d; d = img_dir_parent(d)) {
		struct img_part any = { .dir = d };
		int fd = img_part_fd(&any), flags = fcntl(fd, F_GETFL), err;

		if (flags < 0 || fcntl(fd, F_SETFL, flags & ~O_DIRECT) < 0) {
			err = -errno;
			log_err("%s: its pages cannot be read through the page cache: %s", img_dir_path(d), strerror(-err));
			return err;
		}
		posix_fadvise(fd, 0, 0, POSIX_FADV_RANDOM);
	}
	return 0;
}

static int check(const struct img_dir *d)
{
	if (!img_dir_ram_only(d))
		return owner_check_chain(d);
	log_err("%s is a pre-dump: memory without a device state; serve the dump that was made after it", img_dir_path(d));
	return -EINVAL;
}

static int lay_out(struct image_server *s)
{
	unsigned nr = img_dir_nr_blocks(s->dir);

	s->block_len = calloc(nr + 1, sizeof *s->block_len);
	s->first = calloc(nr + 1, sizeof *s->first);
	if (!s->block_len || !s->first)
		return -ENOMEM;
	for (uint32_t i = 0; i < nr; i++) {
		s->block_len[i] = img_dir_block_len(s->dir, i);
		s->first[i] = s->nr_chunks;
		s->nr_chunks += img_dir_block_chunks(s->dir, i);
	}
	s->checked_len = BITMAP_WORDS(s->nr_chunks * img_dir_layers(s->dir)) * sizeof(uint64_t);
	s->checked = mmap(NULL, s->checked_len, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	if (s->checked != MAP_FAILED)
		return 0;
	s->checked = NULL;
	return -errno;
}

static int pack(struct document *doc, const ProtobufCMessage *m)
{
	doc->len = protobuf_c_message_get_packed_size(m);
	doc->data = malloc(doc->len);
	if (!doc->data)
		return -ENOMEM;
	protobuf_c_message_pack(m, doc->data);
	return 0;
}

static int pack_present(struct image_server *s)
{
	size_t len = s->nr_chunks * sizeof(uint64_t[4]), room = ZSTD_compressBound(len);
	_cleanup_free_ uint64_t(*map)[4] = malloc(len);
	_cleanup_free_ void *packed = malloc(room);

	if (!map || !packed)
		return -ENOMEM;
	for (uint32_t b = 0; b < img_dir_nr_blocks(s->dir); b++)
		for (uint64_t i = 0; i < img_dir_block_chunks(s->dir, b); i++) {
			uint64_t *at = map[s->first[b] + i];

			img_dir_pages(s->dir, b, i, at);
			s->nr_pages += bitmap_count(at, WIRE_CHUNK_PAGES);
			for (unsigned w = 0; w < 4; w++)
				at[w] = htole64(at[w]);
		}
	s->present.len = ZSTD_compress(packed, room, map, len, PRESENT_LEVEL);
	if (ZSTD_isError(s->present.len))
		return -ENOMEM;
	s->present.data = steal_ptr(&packed);
	return 0;
}

static int pack_all(struct image_server *s)
{
	int err = pack(&s->vm, &img_dir_vm(s->dir)->base);

	if (!err)
		err = pack(&s->state, &img_dir_device_state(s->dir)->base);
	if (!err)
		err = pack_present(s);
	if (err || (s->vm.len <= WIRE_VM_MAX && s->state.len <= WIRE_DOC_MAX && s->present.len <= WIRE_DOC_MAX))
		return err;
	log_err("%s cannot be served: what describes its VM is longer than can be sent", s->path);
	return -EFBIG;
}

int image_server_open(const char *dir, struct image_server **out)
{
	struct image_server *s = calloc(1, sizeof *s);
	int err = s ? img_dir_open(dir, &s->dir) : -ENOMEM;

	if (!err)
		err = check(s->dir);
	if (!err && !(s->path = realpath(dir, NULL)))
		err = -errno;
	if (!err)
		err = open_for_all(s->dir);
	if (!err)
		err = lay_out(s);
	if (!err)
		err = pack_all(s);
	if (err == -ENOMEM)
		log_err("%s: not enough memory to serve it", dir);
	if (err)
		image_server_close(s);
	else
		*out = s;
	return err;
}

void image_server_close(struct image_server *s)
{
	if (!s)
		return;
	if (s->checked)
		munmap(s->checked, s->checked_len);
	free(s->vm.data);
	free(s->state.data);
	free(s->present.data);
	free(s->block_len);
	free(s->first);
	free(s->path);
	img_dir_close(s->dir);
	free(s);
}

const char *image_server_dir(const struct image_server *s)
{
	return s->path;
}

const char *image_server_vm_name(const struct image_server *s)
{
	const char *name = img_dir_vm(s->dir)->name;

	return name ? name : "";
}

uint64_t image_server_pages(const struct image_server *s)
{
	return s->nr_pages;
}

uint64_t image_server_id(const struct image_server *s)
{
	return img_dir_id(s->dir);
}

// ---- what VM it is

static int greet(struct wire_conn *c, const uint8_t token[WIRE_TOKEN_LEN])
{
	WireMsg *m;
	int err = wire_expect(c, HELLO_MS, offsetof(WireMsg, hello), &m);

	if (err)
		return err;
	err = hello_answer(c, m->hello, token, WIRE_FEATURE_LAZY);
	if (err)
		wire_send_abort(c, "%s", log_last_error());
	wire_msg__free_unpacked(m, NULL);
	return err;
}

static int describe(const struct image_server *s, struct wire_conn *c)
{
	WireCheckpoint checkpoint = WIRE_CHECKPOINT__INIT;
	WireMsg m = WIRE_MSG__INIT;
	int err;

	checkpoint.id = img_dir_id(s->dir);
	checkpoint.vm_len = s->vm.len;
	checkpoint.chunks = s->nr_chunks;
	m.checkpoint = &checkpoint;
	err = wire_send(c, &m);
	if (!err)
		err = wire_send_document(c, WIRE_DOCUMENT_KIND__WIRE_DOC_VM, s->vm.data, s->vm.len);
	if (!err)
		err = wire_send_document(c, WIRE_DOCUMENT_KIND__WIRE_DOC_DEVICE_STATE, s->state.data, s->state.len);
	if (!err)
		err = wire_send_document(c, WIRE_DOCUMENT_KIND__WIRE_DOC_PRESENT, s->present.data, s->present.len);
	return err;
}

int image_server_describe(const struct image_server *s, const struct wire_tls *tls, const uint8_t token[WIRE_TOKEN_LEN], int line, int fd)
{
	struct wire_conn *c;
	int err = wire_accept(fd, tls, ACCEPT_MS, &c);

	if (err)
		return CMD_FAILED;
	wire_set_interrupted(c, cmd_interrupted);
	err = greet(c, token);
	if (!err) {
		server_line_introduced(line);
		err = describe(s, c);
	}
	if (!err)
		wire_poll(c, FINISH_MS); // who has asked hangs up, having looked at whom it speaks with
	if (!err)
		log_info("%s was told of the checkpoint", wire_peer(c));
	else
		log_warn("%s: it was not told of the checkpoint: %s", wire_peer(c), strerror(-err));
	wire_finish(c, FINISH_MS);
	wire_close(c);
	return err ? CMD_FAILED : CMD_OK;
}
