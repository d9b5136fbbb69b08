// SPDX-License-Identifier: GPL-2.0-only
#include "wire/document_int.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <xxhash.h>

#include "util/log.h"
#include "wire/control.h"

static int make_room(struct wire_document *d, size_t need)
{
	size_t room = need > 2 * d->room ? need : 2 * d->room;
	uint8_t *data;

	if (need <= d->room)
		return 0;
	if (room > d->len)
		room = d->len;
	data = realloc(d->data, room);
	if (!data)
		return -ENOMEM;
	d->data = data;
	d->room = room;
	return 0;
}

int wire_document_add(struct wire_document *d, const WirePiece *p, bool *whole, const char **fault)
{
	int ret = -EBADMSG;

	*fault = NULL;
	if (p->kind != d->kind)
		*fault = "it is another document";
	else if (p->off != d->have || (d->have && p->len != d->len))
		*fault = "a piece is not the next one";
	else if (p->len > d->max)
		*fault = "it is too long", ret = -EFBIG;
	if (*fault)
		return ret;
	d->len = p->len;
	if (make_room(d, d->have + p->data.len)) {
		*fault = "there is not enough memory for it";
		return -ENOMEM;
	}
	if (d->data)
		memcpy(d->data + d->have, p->data.data, p->data.len);
	d->have += p->data.len;
	*whole = d->have == d->len;
	if (*whole && XXH3_64bits(d->data, d->len) != p->checksum) {
		*fault = "its checksum is wrong";
		return -EBADMSG;
	}
	return 0;
}

static const char *name_of(WireDocumentKind kind)
{
	const ProtobufCEnumValue *v = protobuf_c_enum_descriptor_get_value(&wire_document_kind__descriptor, (int)kind);

	return v ? v->name : "?";
}

int wire_send_document(struct wire_conn *c, WireDocumentKind kind, const void *data, size_t len)
{
	WirePiece p = WIRE_PIECE__INIT;
	WireMsg m = WIRE_MSG__INIT;
	int ret = 0;

	if (!len || len > WIRE_DOC_MAX) {
		log_err("%s: %s cannot be sent: it has %zu bytes, which is nothing or too much", wire_peer(c), name_of(kind), len);
		return -EFBIG;
	}
	p.kind = kind;
	p.len = len;
	m.piece = &p;
	for (size_t off = 0; off < len && !ret; off += p.data.len) {
		p.off = off;
		p.data.data = (uint8_t *)data + off;
		p.data.len = len - off < WIRE_PIECE_MAX ? len - off : WIRE_PIECE_MAX;
		p.has_checksum = off + p.data.len == len;
		p.checksum = p.has_checksum ? XXH3_64bits(data, len) : 0;
		ret = wire_send(c, &m);
	}
	return ret;
}

static int add(struct wire_conn *c, struct wire_document *d, const WirePiece *p, bool *whole)
{
	const char *fault;
	int ret = wire_document_add(d, p, whole, &fault);

	if (ret)
		log_err("%s: %s is not accepted: %s", wire_peer(c), name_of(d->kind), fault);
	return ret;
}

int wire_receive_document_from(struct wire_conn *c, const WireMsg *first, WireDocumentKind kind, size_t max, void **data, size_t *len)
{
	struct wire_document d = { .kind = kind, .max = max };
	bool whole = false;
	int ret = first ? add(c, &d, first->piece, &whole) : 0;

	while (!ret && !whole) {
		WireMsg *m;

		ret = wire_expect(c, WIRE_PIECE_MS, offsetof(WireMsg, piece), &m);
		if (ret)
			break;
		ret = add(c, &d, m->piece, &whole);
		wire_msg__free_unpacked(m, NULL);
	}
	if (ret) {
		free(d.data);
		return ret;
	}
	*data = d.data;
	*len = d.len;
	return 0;
}

int wire_receive_document(struct wire_conn *c, WireDocumentKind kind, size_t max, void **data, size_t *len)
{
	return wire_receive_document_from(c, NULL, kind, max, data, len);
}
