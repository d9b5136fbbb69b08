// SPDX-License-Identifier: GPL-2.0-only
// The first words on a control connection (docs/wire-protocol.md): which version is spoken, and that both mean the same token.
#pragma once
#include "wire/control.h"

#define HELLO_MS 15000

// Who has connected: sends HELLO with these WIRE_FEATURE_*, and waits for the answer. *both: the features that the other side has, too.
// As wire_send() and wire_expect(); or, logged, -EPROTONOSUPPORT, -EPROTO: another version, another token.
int hello_say(struct wire_conn *c, const uint8_t token[WIRE_TOKEN_LEN], uint64_t features, uint64_t *both);
// Who was connected to, once HELLO has come. token: of the preamble. As above.
int hello_answer(struct wire_conn *c, const WireHello *hello, const uint8_t token[WIRE_TOKEN_LEN], uint64_t features);
