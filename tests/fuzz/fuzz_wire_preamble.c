// SPDX-License-Identifier: GPL-2.0-only
// What a connection begins with; as text, a token.
#include <errno.h>

#include "tests/fuzz/fuzz.h"
#include "wire/preamble.h"

int LLVMFuzzerInitialize(int *argc, char ***argv)
{
	(void)argc, (void)argv;
	fuzz_quiet();
	return 0;
}

static void parse_token(const uint8_t *data, size_t len)
{
	char *text = fuzz_text(data, len), again[WIRE_TOKEN_TEXT];
	uint8_t token[WIRE_TOKEN_LEN];

	if (!wire_token_parse(text, token))
		FUZZ_HOLDS(!strcmp(wire_token_format(token, again), text));
	free(text);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t len)
{
	uint8_t again[WIRE_PREAMBLE_LEN];
	struct wire_preamble p;
	int ret;

	parse_token(data, len);
	if (len != WIRE_PREAMBLE_LEN)
		return 0;
	ret = wire_preamble_parse(data, &p);
	FUZZ_HOLDS(!ret || ret == -EBADMSG || ret == -EPROTONOSUPPORT);
	if (ret)
		return 0;
	FUZZ_HOLDS(p.kind >= WIRE_CONTROL && p.kind <= WIRE_IMAGE_LINE && p.channel < WIRE_MAX_CHANNELS);
	FUZZ_HOLDS(!p.channel || p.kind == WIRE_DATA || p.kind == WIRE_LINE || p.kind == WIRE_IMAGE_LINE);
	wire_preamble_pack(&p, again);
	FUZZ_HOLDS(!memcmp(data, again, sizeof again));
	return 0;
}
