// SPDX-License-Identifier: GPL-2.0-only
//
// DOC: how a swap image knows itself
//
//   0                                        len   len + 4096         the end of a device
//   +------------------ guest RAM -----------+---------+                      +---------+
//   | the page at offset o of RAM lies at o  | trailer |   (unused)           | trailer |
//   +----------------------------------------+---------+                      +---------+
//
// A page read from the wrong image would be a wrong page in a guest, so each image says whose it is: behind the last page
// of RAM stands a page with a random token, which the VM's state has too. Wherever an operator moves the image, the token
// tells it from another VM's, and from an older one with its path. Nothing in it changes, so that it is valid however its
// VM ends. The boot id tells whether that VM can be alive at all.
//
// Who does not know how much RAM the VM has looks into the last page: of a file that is the same one, a device has a
// second copy there, so that nobody takes it for unused while its VM waits for a pager.
//
// All numbers are little-endian, text has no NUL behind it, and what is not used is zero.
#pragma once
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "util/size.h"

#define PV_SWAP_TOKEN_LEN 32 // 16 random bytes in lower-case hex
#define PV_BOOT_ID_LEN 36

struct pv_swap_trailer {
	char magic[8];
	uint32_t version;
	uint32_t reserved;
	uint64_t len; // of guest RAM, bytes
	char token[PV_SWAP_TOKEN_LEN];
	char boot_id[PV_BOOT_ID_LEN]; // of the host, when the image was made
	uint8_t unused[PAGE_SIZE - 100];
	uint64_t checksum; // XXH3, 64 bits, of all before
} __attribute__((packed, aligned(PAGE_SIZE))); // aligned for O_DIRECT

_Static_assert(sizeof(struct pv_swap_trailer) == PAGE_SIZE && offsetof(struct pv_swap_trailer, checksum) == PAGE_SIZE - 8, "a page on disk");

// This boot of the host, without the newline. 0 or -errno.
int pv_boot_id(char id[PV_BOOT_ID_LEN + 1]);
// A new token and this boot, for an image of len bytes. 0 or -errno.
int pv_swap_trailer_new(struct pv_swap_trailer *t, uint64_t len);
// Writes it, with its checksum, to byte off of an O_DIRECT descriptor; blocks until it is on disk. 0 or -errno.
int pv_swap_trailer_write(int fd, uint64_t off, struct pv_swap_trailer *t);
// Reads and checks what stands at byte off. -EBADMSG: there is no trailer, or a damaged one; -EPROTO: one of another version
// of criu-vm; or what reading says.
int pv_swap_trailer_read(int fd, uint64_t off, struct pv_swap_trailer *t);
// False also if this boot is not known.
bool pv_swap_trailer_is_stale(const struct pv_swap_trailer *t);
