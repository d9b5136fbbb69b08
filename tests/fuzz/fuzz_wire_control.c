// SPDX-License-Identifier: GPL-2.0-only
// What comes on a control channel, then the line is closed. An input is messages, each behind its length (two bytes, little-endian; what
// is left if there is less), which are framed here. The checksums of documents are put right.
#include <endian.h>
#include <errno.h>
#include <sys/socket.h>
#include <unistd.h>
#include <xxhash.h>

#include "tests/fuzz/fuzz.h"
#include "util/io.h"
#include "wire/conn_int.h"
#include "wire/control.h"
#include "wire/document_int.h"
#include "wire/messages_int.h"

#define LEN_MAX (32U << 10) // a socket takes that at once, framed
#define DOC_MAX (2UL << 20)
#define INPUT_HEAD 2
#define HEAD 12

int LLVMFuzzerInitialize(int *argc, char ***argv)
{
	(void)argc, (void)argv;
	fuzz_quiet();
	return 0;
}

// In one go: many small writes would fill a socket with what the kernel needs for each.
static void feed(int fd, const uint8_t *data, size_t len)
{
	uint8_t *bytes = malloc(HEAD * len + 1), *at = bytes;

	FUZZ_HOLDS(bytes);
	while (len > INPUT_HEAD) {
		size_t n = data[0] | (size_t)data[1] << 8;

		uint64_t checksum;

		memcpy(at, (uint8_t[4]){ data[0], data[1] }, 4);
		data += INPUT_HEAD;
		len -= INPUT_HEAD;
		n = n < len ? n : len;
		checksum = htole64(XXH3_64bits(data, n));
		memcpy(at + 4, &checksum, sizeof checksum);
		at += HEAD;
		memcpy(at, data, n);
		at += n;
		data += n;
		len -= n;
	}
	FUZZ_HOLDS(!io_write_full(fd, bytes, (size_t)(at - bytes)));
	free(bytes);
}

// Fields of later versions. Nothing has them sent on: protobuf-c would send some that have no number.
static bool has_unknown_fields(const WireMsg *m)
{
	const ProtobufCMessage *content = *(ProtobufCMessage *const *)((const char *)m + wire_msg_kind(m));
	bool has = m->base.n_unknown_fields || content->n_unknown_fields;

	for (size_t i = 0; m->offer && i < m->offer->n_blocks; i++)
		has |= !!m->offer->blocks[i]->base.n_unknown_fields;
	for (size_t i = 0; m->offer && i < m->offer->n_nets; i++)
		has |= !!m->offer->nets[i]->base.n_unknown_fields;
	return has;
}

// What was accepted can be sent, and is accepted again as the same.
static void send_again(const WireMsg *m)
{
	size_t len = wire_msg__get_packed_size(m);
	uint8_t *packed = malloc(2 * len + 1);
	WireMsg *again = NULL;
	const char *fault;

	FUZZ_HOLDS(packed && wire_msg__pack(m, packed) == len);
	FUZZ_HOLDS(!wire_msg_parse(packed, len, &again, &fault));
	FUZZ_HOLDS(wire_msg_kind(again) == wire_msg_kind(m) && wire_msg__get_packed_size(again) == len);
	wire_msg__pack(again, packed + len);
	FUZZ_HOLDS(!memcmp(packed, packed + len, len));
	wire_msg__free_unpacked(again, NULL);
	free(packed);
}

// A document that is whole, or cannot be one any more, makes room for another.
static void add(struct wire_document *d, WirePiece *p)
{
	const char *fault = NULL;
	bool whole = false;
	uint8_t *all;
	int ret;

	if (!d->data)
		d->kind = p->kind;
	if (p->has_checksum) {
		all = malloc(d->have + p->data.len);
		FUZZ_HOLDS(all);
		if (d->have)
			memcpy(all, d->data, d->have);
		memcpy(all + d->have, p->data.data, p->data.len);
		p->checksum = XXH3_64bits(all, d->have + p->data.len);
		free(all);
	}
	ret = wire_document_add(d, p, &whole, &fault);
	FUZZ_HOLDS(!ret == !fault);
	FUZZ_HOLDS(d->have <= d->len && d->have <= d->room && d->room <= d->len && d->len <= DOC_MAX);
	FUZZ_HOLDS(ret || whole == (d->have == d->len));
	if (ret || whole) {
		free(d->data);
		*d = (struct wire_document){ .max = DOC_MAX };
	}
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t len)
{
	struct wire_document d = { .max = DOC_MAX };
	struct wire_conn *c;
	int pair[2], ret;

	if (len > LEN_MAX)
		return 0;
	FUZZ_HOLDS(!socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair));
	FUZZ_HOLDS(!wire_conn_new(pair[0], strdup("fuzz"), &c));
	feed(pair[1], data, len);
	close(pair[1]);
	do {
		WireMsg *m;

		ret = wire_receive(c, 0, &m);
		FUZZ_HOLDS(!ret == !!m);
		if (!m)
			continue;
		FUZZ_HOLDS(!wire_msg_fault(m) && !m->abort && !m->keepalive);
		if (!has_unknown_fields(m))
			send_again(m);
		if (m->piece)
			add(&d, m->piece);
		wire_msg__free_unpacked(m, NULL);
	} while (!ret || ret == -EBADMSG || ret == -EPROTO || ret == -ECONNABORTED);
	FUZZ_HOLDS(ret == -ECONNRESET);
	free(d.data);
	wire_close(c);
	return 0;
}
