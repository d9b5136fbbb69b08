// SPDX-License-Identifier: GPL-2.0-only
#pragma once
#include <stdint.h>

#include "images/dir_int.h"
#include "images/format.h"
#include "images/vm.pb-c.h"

// What is packed of a chunk: its age, and a bit a page.
#define IMG_RESIDENT_LEN (1 + IMG_CHUNK_PAGES / 8)

// Unpacks an entry: the ages of nr chunks, then their bitmaps, little-endian. raw: IMG_RESIDENT_GROUP * IMG_RESIDENT_LEN bytes. NULL, or
// what is wrong. Silent.
const char *img_resident_unpack(const ResidentEntry *e, uint8_t *raw, unsigned *nr);

// Is all of the file as it has to be? 0 or as img_dir_resident().
int img_resident_check(const struct img_dir *d);
