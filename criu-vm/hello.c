// SPDX-License-Identifier: GPL-2.0-only
#include "criu-vm/hello.h"

#include <errno.h>
#include <stddef.h>
#include <string.h>

#include "util/log.h"

#define SOFTWARE "criu-vm"

static int send_hello(struct wire_conn *c, const uint8_t token[WIRE_TOKEN_LEN], uint64_t features)
{
	WireHello hello = WIRE_HELLO__INIT;
	WireMsg m = WIRE_MSG__INIT;

	hello.version = hello.version_min = WIRE_VERSION;
	hello.features = features;
	hello.software = SOFTWARE;
	hello.token = (ProtobufCBinaryData){ .len = WIRE_TOKEN_LEN, .data = (uint8_t *)token };
	m.hello = &hello;
	return wire_send(c, &m);
}

static bool has_token(const WireHello *hello, const uint8_t token[WIRE_TOKEN_LEN])
{
	return hello->token.len == WIRE_TOKEN_LEN && !memcmp(hello->token.data, token, WIRE_TOKEN_LEN);
}

int hello_say(struct wire_conn *c, const uint8_t token[WIRE_TOKEN_LEN], uint64_t features, uint64_t *both)
{
	WireMsg *m;
	int err = send_hello(c, token, features);

	if (!err)
		err = wire_expect(c, HELLO_MS, offsetof(WireMsg, hello), &m);
	if (err)
		return err;
	*both = features & m->hello->features;
	if (m->hello->version != WIRE_VERSION) {
		log_err("%s speaks version %u of the protocol, this is version %u", wire_peer(c), m->hello->version, WIRE_VERSION);
		err = -EPROTONOSUPPORT;
	} else if (!has_token(m->hello, token)) {
		log_err("%s answers for somebody else: somebody has changed what was sent to it", wire_peer(c));
		err = -EPROTO;
	}
	wire_msg__free_unpacked(m, NULL);
	return err;
}

int hello_answer(struct wire_conn *c, const WireHello *hello, const uint8_t token[WIRE_TOKEN_LEN], uint64_t features)
{
	if (!has_token(hello, token)) {
		log_err("%s: its connection began with another token than it says it has: somebody in between has changed it", wire_peer(c));
		return -EPROTO;
	}
	if (hello->version_min > WIRE_VERSION || hello->version < WIRE_VERSION) {
		log_err("%s speaks versions %u to %u of the protocol, and this host version %u; use the same criu-vm on both", hello->software,
			hello->version_min, hello->version, WIRE_VERSION);
		return -EPROTONOSUPPORT;
	}
	return send_hello(c, token, hello->features & features);
}
