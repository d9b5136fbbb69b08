// SPDX-License-Identifier: GPL-2.0-only
// What every connection begins with, in the clear, before TLS: so the server can hand it to the process whose it is.
#pragma once
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define WIRE_PREAMBLE_LEN 32
#define WIRE_VERSION 1
#define WIRE_TOKEN_LEN 16
#define WIRE_KEY_LEN 16
#define WIRE_MAX_CHANNELS 32

enum wire_kind {
	WIRE_CONTROL = 1,
	WIRE_DATA = 2,
	WIRE_ASK = 3,
	WIRE_LINE = 4,	     // a page line of a VM that has left (wire/pages.h)
	WIRE_IMAGES = 5,     // a served checkpoint: control
	WIRE_IMAGE_LINE = 6, // and a page line of it
};

struct wire_preamble {
	enum wire_kind kind;
	bool tls;
	uint8_t channel; // of DATA and the page lines
	uint8_t token[WIRE_TOKEN_LEN];
};

void wire_preamble_pack(const struct wire_preamble *p, uint8_t buf[WIRE_PREAMBLE_LEN]);
// -EBADMSG: no preamble; -EPROTONOSUPPORT: of another version.
int wire_preamble_parse(const uint8_t buf[WIRE_PREAMBLE_LEN], struct wire_preamble *p);

// Random. -errno.
int wire_token_new(uint8_t token[WIRE_TOKEN_LEN]);
#define WIRE_TOKEN_TEXT (2 * WIRE_TOKEN_LEN + 1)
const char *wire_token_format(const uint8_t token[WIRE_TOKEN_LEN], char text[WIRE_TOKEN_TEXT]); // lower-case hexadecimal
int wire_token_parse(const char *text, uint8_t token[WIRE_TOKEN_LEN]); // -EINVAL
