// SPDX-License-Identifier: GPL-2.0-only
// The control channel: protobuf messages, each behind its length (u32) and the XXH3 of its bytes (u64), little-endian; at most WIRE_MSG_MAX bytes; documents
// in pieces.
#pragma once
#include <stddef.h>
#include <stdint.h>

#include "wire/conn.h"
#include "wire/wire.pb-c.h"

#define WIRE_MSG_MAX (1U << 20)
#define WIRE_PIECE_MAX (512U << 10) // of a document, in a message; all but the last have so many bytes
#define WIRE_DOC_MAX (256UL << 20)
#define WIRE_VM_MAX (1UL << 20)		// the document `vm`
#define WIRE_HOTNESS_LEN 3		// bytes a chunk, in the document `hotness`
#define WIRE_ZSTD_MAX 19		// level
#define WIRE_KEEPALIVE_MS 2000
#define WIRE_PIECE_MS 60000 // for each piece of a document
#define WIRE_FEATURE_ZSTD 1
#define WIRE_FEATURE_LAZY 2 // page lines, LATER

// From several threads, too. As wire_write(); silent. -EINVAL (logged): not to be sent, as the other side would have to refuse it.
int wire_send(struct wire_conn *c, const WireMsg *m);
// The next message that is no keepalive: *m is freed with wire_msg__free_unpacked(m, NULL). Checked: exactly one kind, bounds of what
// it holds (docs/wire-protocol.md). timeout_ms: until it begins, keepalives do not count: -ETIMEDOUT, and all can go on; 0: for ever, while
// the line lives. -ECONNRESET: the line was closed, or is lost; -EBADMSG: no message, -EPROTO: of no kind that is known (logged both);
// -ECONNABORTED: the other side said ABORT (its reason is logged as "HOST: reason"); else as wire_read().
int wire_receive(struct wire_conn *c, unsigned timeout_ms, WireMsg **m);
// The same, and it has to be of this kind: offsetof(WireMsg, KIND). -EPROTO (logged) if it is another.
int wire_expect(struct wire_conn *c, unsigned timeout_ms, size_t kind, WireMsg **m);

// ABORT with a reason, printf-like, put into what a reason may be; errors are ignored.
void wire_send_abort(struct wire_conn *c, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
// A message without content: kind as above: ready, commit, committed, done, keepalive.
int wire_send_plain(struct wire_conn *c, size_t kind);

// -EFBIG (logged): longer than WIRE_DOC_MAX, or empty. Else as wire_send().
int wire_send_document(struct wire_conn *c, WireDocumentKind kind, const void *data, size_t len);
// *data is the caller's. -EFBIG (logged): longer than max (at most WIRE_DOC_MAX); memory is allocated as pieces arrive, not for what is
// promised. -EBADMSG (logged): what was sent does not make a document; else as wire_expect(), with WIRE_PIECE_MS.
int wire_receive_document(struct wire_conn *c, WireDocumentKind kind, size_t max, void **data, size_t *len);
// The same, of which wire_receive() has returned the first message already (NULL: it has not): a piece, which stays the caller's.
int wire_receive_document_from(struct wire_conn *c, const WireMsg *first, WireDocumentKind kind, size_t max, void **data, size_t *len);

// Sends a keepalive every WIRE_KEEPALIVE_MS from a thread of its own, beside what others send, until it is stopped or the line is
// gone; that, others learn themselves. -errno, silent.
struct wire_keepalive;
int wire_keepalive_start(struct wire_conn *c, struct wire_keepalive **k);
// Waits for one that is being sent; wire_shutdown() makes that short. Accepts NULL.
void wire_keepalive_stop(struct wire_keepalive *k);
