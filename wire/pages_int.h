// SPDX-License-Identifier: GPL-2.0-only
// A frame in memory: what of a data channel does not need one. frame.c: the header; pages.c: what it is sent and received with. Silent.
#pragma once
#include <stddef.h>
#include <stdint.h>

#include "wire/pages.h"

size_t wire_frame_pages_len(const struct wire_frame *f); // bytes of its payload, unpacked: of its present pages if it is of PAGES, else 0

// NULL, or the rule that is broken: by its header alone.
const char *wire_frame_fault(const struct wire_frame *f);
// As wire_frame_parse(), and it says what is wrong: NULL if nothing is.
const char *wire_frame_read(const uint8_t buf[WIRE_FRAME_LEN], struct wire_frame *f, uint64_t *checksum);

// Of the header, its own field taken as 0, and so many bytes of payload. By who sends.
uint64_t wire_frame_checksum(struct wire_pages *p, const uint8_t head[WIRE_FRAME_LEN], const void *payload, size_t len);

// head, accepted by wire_frame_parse(), and f->length bytes of payload: the present pages, unpacked, to pages, where a raw payload may be
// already. NULL, or what is wrong: then what is in pages is of no use. By who receives.
const char *wire_frame_unpack(struct wire_pages *p, const uint8_t head[WIRE_FRAME_LEN], const void *payload, void *pages);
