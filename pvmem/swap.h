// SPDX-License-Identifier: GPL-2.0-only
// A swap image: a file as large as guest RAM, of one VM, used by O_DIRECT.
#pragma once
#include <stdbool.h>
#include <stdint.h>

struct pv_swap {
	int fd; // O_DIRECT; holds the lock of the file
	char *path;
	uint64_t len;
	bool sparse;
};

#define PV_SWAP_NONE ((struct pv_swap){ .fd = -1 })

// Makes the file `path`, mode 0600, locked (flock) for as long as any copy of the fd is open. Its space is reserved unless
// sparse. Blocks on the disk. Logs. -EEXIST, -EOPNOTSUPP (a tmpfs, or a file system without O_DIRECT), -ENOSPC, ...;
// nothing is left behind on an error.
int pv_swap_create(const char *path, uint64_t len, bool sparse, struct pv_swap *s);
// An image made by pv_swap_create() in another process. path is copied; fd is the callee's, on an error too.
int pv_swap_adopt(int fd, const char *path, uint64_t len, bool sparse, struct pv_swap *s);
// Closes; the file stays. Accepts PV_SWAP_NONE.
void pv_swap_close(struct pv_swap *s);
// Deletes the file at path, which fd is a descriptor of. Blocks while its space is given back, seconds on a slow disk.
void pv_swap_delete(int fd, const char *path, uint64_t len);
// Closes and deletes.
void pv_swap_destroy(struct pv_swap *s);
// Gives the space of a sparse image back; a reserved one keeps it. No I/O on the range may be in flight. Not an error if
// it does not work: nothing in the range is read again before it is written.
void pv_swap_forget(const struct pv_swap *s, uint64_t off, uint64_t len);
