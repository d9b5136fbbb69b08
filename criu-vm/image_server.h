// SPDX-License-Identifier: GPL-2.0-only
//
// DOC: a served checkpoint
//
//	criu-vm lazy-pages --images DIR     opens the checkpoint, once, with those that it is an increment of
//	    |-- IMAGES           a process for each host that restores from it: says what VM it is, and which pages it has
//	    +-- IMAGE_LINE       a process for each page line (wire/pages.h) of a VM that was restored from it
//
// Nothing is written. All of them read the same open files through the kernel's page cache, so that what one has read from the disk the
// others find in memory; and what one has found to be undamaged the others do not check again.
#pragma once
#include <stdint.h>
#include <string.h>

#include "wire/pages.h"

struct image_server;

// What LEFT says of a checkpoint's page line.
static inline void image_server_line_id(const uint8_t token[WIRE_TOKEN_LEN], uint64_t id, uint8_t line[WIRE_LINE_ID_LEN])
{
	memset(line, 0, WIRE_LINE_ID_LEN);
	memcpy(line, token, WIRE_TOKEN_LEN);
	for (unsigned i = 0; i < sizeof id; i++)
		line[WIRE_TOKEN_LEN + i] = (uint8_t)(id >> 8 * i);
}

// Opens a checkpoint that a VM can be restored from, as restore would. Blocks on the disk. Logs; -EINVAL: a pre-dump; -EPERM: restore would
// not take it either; -EFBIG: what describes the VM is more than can be sent; or as img_dir_open().
int image_server_open(const char *dir, struct image_server **s);
void image_server_close(struct image_server *s); // accepts NULL
const char *image_server_dir(const struct image_server *s);    // absolute
const char *image_server_vm_name(const struct image_server *s); // as recorded; "" if it had none
uint64_t image_server_pages(const struct image_server *s);     // that it has, those of its parents included
uint64_t image_server_id(const struct image_server *s);

// In a process of its own each: fd is a connection whose preamble, with this token, was read; taken over. tls: NULL: in the clear. Until it
// ends, or a signal asks for it. nr: of the page line; line: to the server (server.h). An exit status (cmd.h). Log.
int image_server_describe(const struct image_server *s, const struct wire_tls *tls, const uint8_t token[WIRE_TOKEN_LEN], int line, int fd);
int image_server_line(const struct image_server *s, const struct wire_tls *tls, unsigned nr, int line, int fd);
