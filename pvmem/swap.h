// SPDX-License-Identifier: GPL-2.0-only
// A swap image: as large as guest RAM, of one VM, used by O_DIRECT; a file, or a whole block device.
#pragma once
#include <stdbool.h>
#include <stdint.h>

#include "pvmem/swap_trailer.h"

struct pv_swap {
	int fd;     // O_DIRECT. Keeps others away while any copy of it is open: a file by flock, a device by its exclusive use
	char *path; // absolute, without symbolic links
	char token[PV_SWAP_TOKEN_LEN + 1]; // what this image, and no other, is known by
	uint64_t len; // of guest RAM, bytes
	bool sparse;
	bool device;
	bool unnamed; // not published yet
};

#define PV_SWAP_NONE ((struct pv_swap){ .fd = -1 })

// Makes the image `path` with a new token: a file, mode 0600, its space reserved unless sparse; or all of a block device
// that exists, has room, and holds nothing: no file system, no partitions, no image of a VM of this boot. Blocks on the
// disk. Logs. -EEXIST (a file is there, or the device holds something), -EBUSY (the device is used), -EOPNOTSUPP (a tmpfs,
// or a file system without O_DIRECT), -ENOSPC, ...; nothing is left behind on an error.
int pv_swap_create(const char *path, uint64_t len, bool sparse, struct pv_swap *s);
// The same in two steps. In between path and token are known, and can be noted, but nothing is at that path yet (on most file
// systems), so that nothing is left, and not known of, if the caller is killed. s is closed by the caller if publishing fails.
int pv_swap_prepare(const char *path, uint64_t len, bool sparse, struct pv_swap *s);
int pv_swap_publish(struct pv_swap *s);
// The image of that token, wherever it is now. Blocks on the disk. Logs. -EWOULDBLOCK: another process uses it; -EMEDIUMTYPE:
// it is another VM's; -EBADMSG: it is none, damaged, or cut; -EPROTO: of another version of criu-vm; -ENOENT, -EIO, ...
//
// A token cannot tell how old a copy is: a copy must have been made while no pager ran.
int pv_swap_open(const char *path, uint64_t len, const char *token, bool sparse, struct pv_swap *s);
// What an error of pv_swap_open() and of those below means.
const char *pv_swap_reason(int err);
// The same to look at it, or to delete it: does not log, and does not care who uses it.
int pv_swap_find(const char *path, uint64_t len, const char *token, struct pv_swap *s);
// An image whose VM ended with an earlier boot of this host, and that nobody uses: now the caller does, to delete it. Does
// not log. -EBUSY: it was made since the boot. Others as pv_swap_open().
int pv_swap_find_stale(const char *path, struct pv_swap *s);
// Closes; the image stays. Accepts PV_SWAP_NONE.
void pv_swap_close(struct pv_swap *s);
// Deletes the file, if it still is the one at its path; wipes the trailer of a device, and discards the rest. Blocks while
// space is given back, seconds on a slow disk; of a file that goes on in the close.
void pv_swap_delete(const struct pv_swap *s);
// Deletes and closes. Accepts PV_SWAP_NONE.
void pv_swap_destroy(struct pv_swap *s);
// Gives the space of a sparse image back; a reserved one keeps it. No I/O on the range may be in flight. Not an error if
// it does not work: nothing in the range is read again before it is written.
void pv_swap_forget(const struct pv_swap *s, uint64_t off, uint64_t len);
