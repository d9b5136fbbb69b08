// SPDX-License-Identifier: GPL-2.0-only
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>
#include <xxhash.h>

#include "images/format.h"
#include "images/stream.h"
#include "images/stream_int.h"
#include "util/bitmap.h"
#include "util/cleanup.h"
#include "util/log.h"

// So little at a time that who interrupts need not wait for a slow reader.
#define PIECE (64 * KiB)
#define PIPE_LEN ((int)MiB)

struct img_stream_out {
	int fd, err;
	bool (*interrupted)(void);
	XXH3_state_t *digest;
	uint64_t nr_chunks, nr_pages, stored;
};

static int failed(struct img_stream_out *s, int err)
{
	s->err = err;
	if (err == -EPIPE)
		log_err("the stream cannot be written: who read it has gone");
	else if (err == -EINTR)
		log_err("interrupted; the stream is not complete");
	else
		log_err("the stream cannot be written: %s", strerror(-err));
	return err;
}

static int write_piece(struct img_stream_out *s, const uint8_t **p, size_t *left)
{
	struct pollfd ready = { .fd = s->fd, .events = POLLOUT };
	ssize_t n;

	if (s->interrupted && s->interrupted())
		return -EINTR;
	if (poll(&ready, 1, STREAM_POLL_MS) <= 0)
		return 0;
	n = write(s->fd, *p, *left < PIECE ? *left : PIECE);
	if (n < 0)
		return errno == EINTR || errno == EAGAIN ? 0 : -errno;
	*p += n;
	*left -= (size_t)n;
	return 0;
}

static int write_all(struct img_stream_out *s, const void *buf, size_t len)
{
	const uint8_t *p = buf;
	int err = s->err;

	if (err)
		return err;
	while (len && !err)
		err = write_piece(s, &p, &len);
	return err ? failed(s, err) : 0;
}

// payload stands STREAM_RECORD_LEN behind the beginning of record.
static int put_record(struct img_stream_out *s, uint32_t type, uint8_t *record, size_t len)
{
	put_le32(record, type);
	put_le32(record + 4, 0);
	put_le64(record + 8, len);
	put_le64(record + 16, XXH3_64bits(record + STREAM_RECORD_LEN, len));
	put_le64(record + 24, XXH3_64bits(record, 24));
	if (type != STREAM_END)
		XXH3_64bits_update(s->digest, record, STREAM_RECORD_LEN);
	return write_all(s, record, STREAM_RECORD_LEN + len);
}

int img_stream_out_open(int fd, uint64_t features, bool (*interrupted)(void), struct img_stream_out **out)
{
	struct img_stream_out *s = calloc(1, sizeof *s);
	uint8_t header[STREAM_HEADER_LEN] = STREAM_MAGIC;
	int err;

	if (s)
		s->digest = XXH3_createState();
	if (!s || !s->digest) {
		free(s);
		log_err("the stream cannot be written: out of memory");
		return -ENOMEM;
	}
	s->fd = fd;
	s->interrupted = interrupted;
	XXH3_64bits_reset(s->digest);
	fcntl(fd, F_SETPIPE_SZ, PIPE_LEN); // fewer turns, where it is a pipe
	put_le32(header + 8, STREAM_VERSION);
	put_le64(header + 16, features);
	put_le64(header + 24, XXH3_64bits(header, 24));
	XXH3_64bits_update(s->digest, header, sizeof header);
	err = write_all(s, header, sizeof header);
	if (err)
		img_stream_out_free(s);
	else
		*out = s;
	return err;
}

static int put_message(struct img_stream_out *s, uint32_t type, const ProtobufCMessage *m, uint32_t max)
{
	size_t len = protobuf_c_message_get_packed_size(m);
	_cleanup_free_ uint8_t *record = NULL;

	if (s->err)
		return s->err;
	if (len > max) {
		log_err("the stream cannot be written: a message of %zu bytes, more than the %u that the format allows", len, max);
		return s->err = -EFBIG;
	}
	record = malloc(STREAM_RECORD_LEN + len);
	if (!record)
		return failed(s, -ENOMEM);
	protobuf_c_message_pack(m, record + STREAM_RECORD_LEN);
	return put_record(s, type, record, len);
}

int img_stream_out_vm(struct img_stream_out *s, const VmEntry *vm)
{
	return put_message(s, STREAM_VM, &vm->base, IMG_VM_MAX);
}

int img_stream_out_device_state(struct img_stream_out *s, const DeviceStateEntry *ds)
{
	return put_message(s, STREAM_DEVICE_STATE, &ds->base, IMG_DEVICE_STATE_MAX);
}

int img_stream_out_chunk(struct img_stream_out *s, uint32_t block, uint64_t chunk, const struct img_chunk *c, const void *stored)
{
	uint8_t record[STREAM_RECORD_LEN + STREAM_CHUNK_LEN], *p = record + STREAM_RECORD_LEN;
	int err;

	put_le32(p, block);
	put_le32(p + 4, c->stored);
	put_le64(p + 8, chunk);
	put_le64(p + 16, c->checksum);
	for (unsigned w = 0; w < IMG_CHUNK_WORDS; w++)
		put_le64(p + 24 + 8 * w, c->present[w]);
	s->nr_chunks++;
	s->nr_pages += bitmap_count(c->present, IMG_CHUNK_PAGES);
	s->stored += c->stored;
	err = put_record(s, STREAM_CHUNK, record, STREAM_CHUNK_LEN);
	return err ? err : write_all(s, stored, c->stored);
}

int img_stream_out_commit(struct img_stream_out *s)
{
	uint8_t record[STREAM_RECORD_LEN + STREAM_END_LEN], *p = record + STREAM_RECORD_LEN;
	struct stat st;
	int err;

	put_le64(p, s->nr_chunks);
	put_le64(p + 8, s->nr_pages);
	put_le64(p + 16, s->stored);
	put_le64(p + 24, XXH3_64bits_digest(s->digest));
	err = put_record(s, STREAM_END, record, STREAM_END_LEN);
	if (!err && !fstat(s->fd, &st) && S_ISREG(st.st_mode) && fsync(s->fd))
		err = failed(s, -errno);
	return err;
}

void img_stream_out_free(struct img_stream_out *s)
{
	if (!s)
		return;
	XXH3_freeState(s->digest);
	free(s);
}
