// SPDX-License-Identifier: GPL-2.0-only
// A document that comes in pieces. Silent, no I/O.
#pragma once
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "wire/wire.pb-c.h"

struct wire_document {
	WireDocumentKind kind; // set by the caller, as max
	size_t max;
	uint8_t *data; // with free()
	size_t len, have, room;
};

// Adds the next piece, which is within its bounds (wire_msg_fault()). -EFBIG: the document is longer than max; -EBADMSG: no piece of
// it, or the checksum is wrong; -ENOMEM. *fault says why. *whole: it was the last.
int wire_document_add(struct wire_document *d, const WirePiece *p, bool *whole, const char **fault);
