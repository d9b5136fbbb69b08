// SPDX-License-Identifier: GPL-2.0-only
// A frame in memory: what of a data channel does not need one. Silent.
#pragma once
#include <stddef.h>
#include <stdint.h>

#include "wire/pages.h"

size_t wire_frame_pages_len(const struct wire_frame *f); // bytes of the present pages

// Of the header, its own field taken as 0, and so many bytes of payload.
uint64_t wire_frame_checksum(struct wire_pages *p, const uint8_t head[WIRE_FRAME_LEN], const void *payload, size_t len);

// head, accepted by wire_frame_parse(), and f->length bytes of payload: the present pages, unpacked, to pages, where a raw payload may be
// already. NULL, or what is wrong: then what is in pages is of no use.
const char *wire_frame_unpack(struct wire_pages *p, const uint8_t head[WIRE_FRAME_LEN], const void *payload, void *pages);
