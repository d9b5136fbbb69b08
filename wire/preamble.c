// SPDX-License-Identifier: GPL-2.0-only
#include "wire/preamble.h"

#include <errno.h>
#include <string.h>
#include <sys/random.h>

#define MAGIC "CRIUVMW1"
#define FLAG_TLS 1

// Where things stand.
enum { AT_VERSION = 8, AT_KIND = 10, AT_FLAGS, AT_CHANNEL, AT_ZEROS, AT_TOKEN = 16 };

void wire_preamble_pack(const struct wire_preamble *p, uint8_t buf[WIRE_PREAMBLE_LEN])
{
	memset(buf, 0, WIRE_PREAMBLE_LEN);
	memcpy(buf, MAGIC, AT_VERSION);
	buf[AT_VERSION] = WIRE_VERSION & 0xff;
	buf[AT_VERSION + 1] = WIRE_VERSION >> 8;
	buf[AT_KIND] = (uint8_t)p->kind;
	buf[AT_FLAGS] = p->tls ? FLAG_TLS : 0;
	buf[AT_CHANNEL] = p->channel;
	memcpy(buf + AT_TOKEN, p->token, WIRE_TOKEN_LEN);
}

static bool has_channels(uint8_t kind)
{
	return kind == WIRE_DATA || kind == WIRE_LINE || kind == WIRE_IMAGE_LINE;
}

int wire_preamble_parse(const uint8_t buf[WIRE_PREAMBLE_LEN], struct wire_preamble *p)
{
	static const uint8_t zeros[AT_TOKEN - AT_ZEROS];
	uint8_t kind = buf[AT_KIND], channel = buf[AT_CHANNEL];

	if (memcmp(buf, MAGIC, AT_VERSION))
		return -EBADMSG;
	if ((buf[AT_VERSION] | buf[AT_VERSION + 1] << 8) != WIRE_VERSION)
		return -EPROTONOSUPPORT;
	if (kind < WIRE_CONTROL || kind > WIRE_IMAGE_LINE || buf[AT_FLAGS] & ~FLAG_TLS || memcmp(buf + AT_ZEROS, zeros, sizeof zeros))
		return -EBADMSG;
	if (channel >= (has_channels(kind) ? WIRE_MAX_CHANNELS : 1))
		return -EBADMSG;
	*p = (struct wire_preamble){ .kind = kind, .tls = buf[AT_FLAGS] & FLAG_TLS, .channel = channel };
	memcpy(p->token, buf + AT_TOKEN, WIRE_TOKEN_LEN);
	return 0;
}

int wire_token_new(uint8_t token[WIRE_TOKEN_LEN])
{
	ssize_t n;

	do
		n = getrandom(token, WIRE_TOKEN_LEN, 0);
	while (n < 0 && errno == EINTR);
	return n == WIRE_TOKEN_LEN ? 0 : n < 0 ? -errno : -EIO;
}

const char *wire_token_format(const uint8_t token[WIRE_TOKEN_LEN], char text[WIRE_TOKEN_TEXT])
{
	static const char digits[] = "0123456789abcdef";

	for (size_t i = 0; i < WIRE_TOKEN_LEN; i++) {
		text[2 * i] = digits[token[i] >> 4];
		text[2 * i + 1] = digits[token[i] & 15];
	}
	text[WIRE_TOKEN_TEXT - 1] = '\0';
	return text;
}

static int digit(char c)
{
	return c >= '0' && c <= '9' ? c - '0' : c >= 'a' && c <= 'f' ? c - 'a' + 10 : -1;
}

int wire_token_parse(const char *text, uint8_t token[WIRE_TOKEN_LEN])
{
	uint8_t t[WIRE_TOKEN_LEN];

	if (strlen(text) != WIRE_TOKEN_TEXT - 1)
		return -EINVAL;
	for (size_t i = 0; i < WIRE_TOKEN_LEN; i++) {
		int high = digit(text[2 * i]), low = digit(text[2 * i + 1]);

		if (high < 0 || low < 0)
			return -EINVAL;
		t[i] = (uint8_t)(high << 4 | low);
	}
	memcpy(token, t, sizeof t);
	return 0;
}
