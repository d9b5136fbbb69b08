// SPDX-License-Identifier: GPL-2.0-only
// Whole reads and writes. All return 0 or -errno, -ENODATA when the input ends early; EINTR is retried; none logs.
#pragma once
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

int io_read_full(int fd, void *buf, size_t len);
int io_write_full(int fd, const void *buf, size_t len);
int io_pread_full(int fd, void *buf, size_t len, uint64_t off);
int io_pwrite_full(int fd, const void *buf, size_t len, uint64_t off);

// A whole file of unknown size (/proc included) into a fresh buffer with a NUL behind it, *len not counting the NUL.
// -EFBIG if it is longer than max. The buffer is the caller's.
int io_read_file(const char *path, size_t max, char **buf, size_t *len);
