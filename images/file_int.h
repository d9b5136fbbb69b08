// SPDX-License-Identifier: GPL-2.0-only
// Metadata files: magic, then frames of a little-endian u32 length and that many bytes of protobuf. Errors are logged here.
#pragma once
#include <limits.h>
#include <protobuf-c/protobuf-c.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <xxhash.h>

// Both keep the length and the XXH3_64bits of all bytes that went through. dir is only for messages.
struct img_out {
	FILE *f;
	XXH3_state_t *hash;
	uint64_t len;
	char path[PATH_MAX];
};

struct img_in {
	FILE *f;
	XXH3_state_t *hash;
	uint64_t len, off;
	char path[PATH_MAX];
};

// Creates dirfd/name, mode 0600, which must not exist, and writes the magic (with CRIU's common or service magic before it).
int img_out_open(struct img_out *o, int dirfd, const char *dir, const char *name, uint32_t magic);
int img_out_put(struct img_out *o, const ProtobufCMessage *m);
int img_out_hashed(struct img_out *o, const void *buf, size_t len);
uint64_t img_out_digest(const struct img_out *o);
// Flushes, syncs and closes; len and the digest stay readable until img_out_fini().
int img_out_close(struct img_out *o);
void img_out_fini(struct img_out *o);

// Opens a regular file and reads the magic that says its type.
int img_in_open(struct img_in *in, int dirfd, const char *dir, const char *name, uint32_t *magic);
// Next frame, of at most max bytes: 1, 0 at the end of the file, -EBADMSG. *m is freed with protobuf_c_message_free_unpacked().
int img_in_get(struct img_in *in, const ProtobufCMessageDescriptor *type, uint32_t max, ProtobufCMessage **m);
// The frame and nothing behind it: 0 or -EBADMSG.
int img_in_get_last(struct img_in *in, const ProtobufCMessageDescriptor *type, uint32_t max, ProtobufCMessage **m);
uint64_t img_in_digest(const struct img_in *in);
void img_in_fini(struct img_in *in);

// Logs "PATH: damaged: ..." and returns -EBADMSG.
int img_damaged(const char *path, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
// Logs "PATH: cannot WHAT: ..." (with the space that is left where there is none) and returns err, which is negative.
int img_io_error(const char *path, const char *what, int err);
