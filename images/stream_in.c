// SPDX-License-Identifier: GPL-2.0-only
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <poll.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>
#include <xxhash.h>

#include "images/format.h"
#include "images/frame_int.h"
#include "images/stream.h"
#include "images/stream_int.h"
#include "images/valid.h"
#include "util/bitmap.h"
#include "util/cleanup.h"
#include "util/log.h"

#define PIPE_LEN ((int)MiB)

struct img_stream_in {
	int fd;
	bool (*interrupted)(void);
	uint64_t features;
	XXH3_state_t *digest;
	ZSTD_DCtx *zstd;
	uint8_t *stored; // of a chunk that is not raw
	VmEntry *vm;
	DeviceStateEntry *ds;
	uint64_t *seen[IMG_BLOCKS_MAX]; // a bit a chunk
	uint64_t nr_chunks, nr_pages, nr_stored;
};

static int damaged(const char *fmt, ...) __attribute__((format(printf, 1, 2)));
static int damaged(const char *fmt, ...)
{
	char what[200];
	va_list ap;

	va_start(ap, fmt);
	vsnprintf(what, sizeof what, fmt, ap);
	va_end(ap);
	log_err("the stream is damaged: %s", what);
	return -EBADMSG;
}

// Bytes that are there, at most len, 0 at the end; or -EAGAIN, -EINTR, ...
static ssize_t read_piece(const struct img_stream_in *s, void *buf, size_t len)
{
	struct pollfd ready = { .fd = s->fd, .events = POLLIN };
	ssize_t n;

	if (s->interrupted && s->interrupted())
		return -EINTR;
	if (poll(&ready, 1, STREAM_POLL_MS) <= 0)
		return -EAGAIN;
	n = read(s->fd, buf, len);
	return n >= 0 ? n : errno == EINTR ? -EAGAIN : -errno;
}

static int read_failed(int err)
{
	if (err == -EINTR)
		log_err("interrupted; the stream was not taken");
	else
		log_err("the stream cannot be read: %s", strerror(-err));
	return err;
}

// Bytes that were read: fewer than len only at the end. Errors are logged.
static ssize_t read_to_end(const struct img_stream_in *s, uint8_t *buf, size_t len)
{
	size_t done = 0;

	while (done < len) {
		ssize_t n = read_piece(s, buf + done, len - done);

		if (n == -EAGAIN)
			continue;
		if (n < 0)
			return read_failed((int)n);
		if (!n)
			break;
		done += (size_t)n;
	}
	return (ssize_t)done;
}

static int ended_too_early(void)
{
	log_err("the stream has ended too early: who wrote it has failed");
	return -ENODATA;
}

static int read_all(const struct img_stream_in *s, void *buf, size_t len)
{
	ssize_t n = read_to_end(s, buf, len);

	return n < 0 ? (int)n : (size_t)n < len ? ended_too_early() : 0;
}

// Its checksum; if it is a record's, its features as well.
static int read_header(struct img_stream_in *s)
{
	uint8_t h[STREAM_HEADER_LEN];
	ssize_t n = read_to_end(s, h, sizeof h);

	if (n < 0)
		return (int)n;
	if (memcmp(h, STREAM_MAGIC, n < 8 ? (size_t)n : 8)) {
		log_err("this is no stream of criu-vm dump --stream");
		return -EINVAL;
	}
	if (n < (ssize_t)sizeof h)
		return ended_too_early();
	if (get_le64(h + 24) != XXH3_64bits(h, 24))
		return damaged("the checksum of its header is wrong");
	s->features = get_le64(h + 16);
	if (get_le32(h + 8) != STREAM_VERSION || get_le32(h + 12) || s->features & ~IMG_FEATURE_ZSTD) {
		log_err("the stream is of version %u with features %#" PRIx64 ", which this criu-vm does not know", get_le32(h + 8),
			s->features);
		return -EOPNOTSUPP;
	}
	XXH3_64bits_update(s->digest, h, sizeof h);
	return 0;
}

struct record {
	uint32_t type;
	uint64_t len, checksum;
};

static int read_record(struct img_stream_in *s, struct record *r)
{
	uint8_t h[STREAM_RECORD_LEN];
	int err = read_all(s, h, sizeof h);

	if (err)
		return err;
	*r = (struct record){ get_le32(h), get_le64(h + 8), get_le64(h + 16) };
	if (get_le64(h + 24) != XXH3_64bits(h, 24) || get_le32(h + 4))
		return damaged("the checksum before a record is wrong");
	if (r->type != STREAM_END)
		XXH3_64bits_update(s->digest, h, sizeof h);
	return 0;
}

// What follows a record's beginning, into buf of want bytes.
static int read_fixed(const struct img_stream_in *s, const struct record *r, uint8_t *buf, size_t want)
{
	int err = r->len == want ? read_all(s, buf, want) : damaged("a record of type %u has %" PRIu64 " bytes", r->type, r->len);

	if (!err && XXH3_64bits(buf, want) != r->checksum)
		err = damaged("the checksum of a record of type %u is wrong", r->type);
	return err;
}

static int read_message(const struct img_stream_in *s, const struct record *r, const ProtobufCMessageDescriptor *type, uint32_t max,
			ProtobufCMessage **m)
{
	_cleanup_free_ uint8_t *buf = NULL;
	int err;

	if (r->len > max)
		return damaged("a record of type %u has %" PRIu64 " bytes", r->type, r->len);
	buf = malloc(r->len + 1);
	if (!buf)
		return -ENOMEM;
	err = read_fixed(s, r, buf, r->len);
	if (err)
		return err;
	*m = protobuf_c_message_unpack(type, NULL, r->len, buf);
	return *m ? 0 : damaged("a record of type %u cannot be understood", r->type);
}

static uint64_t nr_chunks_of(const struct img_stream_in *s, uint32_t block)
{
	return DIV_ROUND_UP(s->vm->blocks[block]->len, IMG_CHUNK_SIZE);
}

static int read_vm(struct img_stream_in *s)
{
	ProtobufCMessage *m = NULL;
	struct record r;
	const char *fault;
	int err = read_record(s, &r);

	if (!err && r.type != STREAM_VM)
		err = damaged("it does not begin with a VM");
	if (!err)
		err = read_message(s, &r, &vm_entry__descriptor, IMG_VM_MAX, &m);
	s->vm = (VmEntry *)m;
	if (err || !m)
		return err;
	fault = img_vm_fault(s->vm);
	if (fault)
		return damaged("%s", fault);
	for (uint32_t i = 0; i < s->vm->n_blocks; i++) {
		s->seen[i] = calloc(BITMAP_WORDS(nr_chunks_of(s, i)), sizeof **s->seen);
		if (!s->seen[i])
			return -ENOMEM;
	}
	return 0;
}

int img_stream_in_open(int fd, bool (*interrupted)(void), struct img_stream_in **out)
{
	struct img_stream_in *s = calloc(1, sizeof *s);
	int err = -ENOMEM;

	if (s) {
		s->fd = fd;
		s->interrupted = interrupted;
		s->digest = XXH3_createState();
		s->zstd = ZSTD_createDCtx();
		s->stored = aligned_alloc(PAGE_SIZE, IMG_CHUNK_SIZE);
	}
	if (s && s->digest && s->zstd && s->stored) {
		XXH3_64bits_reset(s->digest);
		fcntl(fd, F_SETPIPE_SZ, PIPE_LEN); // fewer turns, where it is a pipe
		err = read_header(s);
		if (!err)
			err = read_vm(s);
	}
	if (err == -ENOMEM)
		log_err("the stream cannot be read: out of memory");
	if (err)
		img_stream_in_free(s);
	else
		*out = s;
	return err;
}

void img_stream_in_free(struct img_stream_in *s)
{
	if (!s)
		return;
	for (uint32_t i = 0; i < IMG_BLOCKS_MAX; i++)
		free(s->seen[i]);
	if (s->vm)
		vm_entry__free_unpacked(s->vm, NULL);
	if (s->ds)
		device_state_entry__free_unpacked(s->ds, NULL);
	XXH3_freeState(s->digest);
	ZSTD_freeDCtx(s->zstd);
	free(s->stored);
	free(s);
}

const VmEntry *img_stream_in_vm(const struct img_stream_in *s)
{
	return s->vm;
}

const DeviceStateEntry *img_stream_in_device_state(const struct img_stream_in *s)
{
	return s->ds;
}

static int read_device_state(struct img_stream_in *s, const struct record *r)
{
	ProtobufCMessage *m = NULL;
	const char *fault;
	int err;

	if (s->ds)
		return damaged("it has two device states");
	err = read_message(s, r, &device_state_entry__descriptor, IMG_DEVICE_STATE_MAX, &m);
	if (err)
		return err;
	s->ds = (DeviceStateEntry *)m;
	fault = img_device_state_fault(s->ds);
	return fault ? damaged("%s", fault) : 0;
}

// Is there such a chunk, and may it have these pages in so many bytes? Takes note of it.
static const char *chunk_fault(struct img_stream_in *s, const struct img_stream_chunk *c, uint32_t stored)
{
	size_t len = bitmap_count(c->present, IMG_CHUNK_PAGES) * PAGE_SIZE;
	uint64_t left;

	if (c->block >= s->vm->n_blocks || c->chunk >= nr_chunks_of(s, c->block))
		return "a chunk beyond the VM's RAM";
	left = s->vm->blocks[c->block]->len - c->chunk * IMG_CHUNK_SIZE;
	if (left < IMG_CHUNK_SIZE && bitmap_next(c->present, IMG_CHUNK_PAGES, left / PAGE_SIZE, true) < IMG_CHUNK_PAGES)
		return "pages beyond the VM's RAM";
	if (bitmap_test(s->seen[c->block], c->chunk))
		return "a chunk comes twice";
	if (!stored || stored % PAGE_SIZE || stored > len || (stored < len && !(s->features & IMG_FEATURE_ZSTD)))
		return "a chunk has not the length of its pages";
	bitmap_set(s->seen[c->block], c->chunk);
	return NULL;
}

static int read_chunk(struct img_stream_in *s, const struct record *r, struct img_stream_chunk *c, void *packed)
{
	uint8_t h[STREAM_CHUNK_LEN];
	const char *fault;
	uint32_t stored;
	size_t len;
	int err = read_fixed(s, r, h, sizeof h);

	if (err)
		return err;
	c->block = get_le32(h);
	c->chunk = get_le64(h + 8);
	for (unsigned w = 0; w < IMG_CHUNK_WORDS; w++)
		c->present[w] = get_le64(h + 24 + 8 * w);
	stored = get_le32(h + 4);
	len = bitmap_count(c->present, IMG_CHUNK_PAGES) * PAGE_SIZE;
	fault = chunk_fault(s, c, stored);
	if (fault)
		return damaged("%s", fault);
	err = read_all(s, stored < len ? s->stored : packed, stored);
	if (err)
		return err;
	if (XXH3_64bits(stored < len ? s->stored : packed, stored) != get_le64(h + 16))
		fault = "the checksum of a chunk is wrong";
	else if (stored < len)
		fault = img_frame_unpack(s->zstd, s->stored, stored, packed, len);
	s->nr_chunks++;
	s->nr_pages += len / PAGE_SIZE;
	s->nr_stored += stored;
	return fault ? damaged("chunk %" PRIu64 " of block %u: %s", c->chunk, c->block, fault) : 1;
}

static int read_end(const struct img_stream_in *s, const struct record *r)
{
	uint8_t end[STREAM_END_LEN], more;
	int err = read_fixed(s, r, end, sizeof end);
	ssize_t n;

	if (err)
		return err;
	if (get_le64(end) != s->nr_chunks || get_le64(end + 8) != s->nr_pages || get_le64(end + 16) != s->nr_stored ||
	    get_le64(end + 24) != XXH3_64bits_digest(s->digest))
		return damaged("it has other records than its end says");
	if (!s->ds)
		return damaged("it has no device state");
	// Who wrote it closes it when all else is done, too: its QEMU has ended by then, if it was to end.
	while ((n = read_piece(s, &more, 1)) == -EAGAIN)
		;
	if (n > 0)
		return damaged("there is something behind its end");
	return n ? read_failed((int)n) : 0;
}

int img_stream_in_next(struct img_stream_in *s, struct img_stream_chunk *c, void *packed)
{
	for (;;) {
		struct record r;
		int err = read_record(s, &r);

		if (err)
			return err;
		if (r.type == STREAM_CHUNK)
			return read_chunk(s, &r, c, packed);
		if (r.type == STREAM_END)
			return read_end(s, &r);
		err = r.type == STREAM_DEVICE_STATE ? read_device_state(s, &r) : damaged("a record of type %u is not known", r.type);
		if (err)
			return err;
	}
}
