// SPDX-License-Identifier: GPL-2.0-only
#include <string.h>

#include "util/size.h"
#include "wire/pages.h"

_Static_assert(sizeof((struct wire_frame *)0)->present == WIRE_LINE_ID_LEN, "an id is where the pages are");

static int send_named(struct wire_pages *p, enum wire_frame_type type, uint32_t block, uint64_t chunk, const uint64_t pages[4])
{
	struct wire_frame f = { .type = (uint8_t)type, .block = block, .chunk = chunk };

	memcpy(f.present, pages, sizeof f.present);
	return wire_pages_send(p, &f, NULL, 0);
}

int wire_line_want(struct wire_pages *p, uint32_t block, uint64_t chunk, const uint64_t pages[4])
{
	return send_named(p, WIRE_WANT, block, chunk, pages);
}

int wire_line_cannot(struct wire_pages *p, const struct wire_frame *want)
{
	return send_named(p, WIRE_CANNOT, want->block, want->chunk, want->present);
}

// An id is bytes; what has its place in a header are numbers.
static void id_to_words(const uint8_t id[WIRE_LINE_ID_LEN], uint64_t words[4])
{
	for (unsigned i = 0; i < WIRE_LINE_ID_LEN; i++)
		words[i / 8] |= (uint64_t)id[i] << i % 8 * 8;
}

int wire_line_left(struct wire_pages *p, enum wire_line_state state, uint64_t missing, const uint8_t id[WIRE_LINE_ID_LEN])
{
	struct wire_frame f = { .type = WIRE_LEFT, .block = (uint32_t)state, .chunk = missing };

	id_to_words(id, f.present);
	return wire_pages_send(p, &f, NULL, 0);
}

bool wire_line_id_is(const struct wire_frame *left, const uint8_t id[WIRE_LINE_ID_LEN])
{
	uint64_t words[4] = { 0 };

	id_to_words(id, words);
	return left->type == WIRE_LEFT && !memcmp(left->present, words, sizeof words);
}

int wire_line_say(struct wire_pages *p, enum wire_frame_type type)
{
	struct wire_frame f = { .type = (uint8_t)type };

	return wire_pages_send(p, &f, NULL, 0);
}

int wire_line_refuse(struct wire_pages *p, enum wire_refusal why)
{
	struct wire_frame f = { .type = WIRE_REFUSED, .round = (uint16_t)why };

	return wire_pages_send(p, &f, NULL, 0);
}

const char *wire_refusal_text(enum wire_refusal why)
{
	static const char *const texts[] = {
		[WIRE_REFUSED_NOW] = "the VM's pager does not answer just now",
		[WIRE_REFUSED_UNKNOWN] = "no VM of this migration is there",
		[WIRE_REFUSED_KEY] = "the key is not that of the migration",
		[WIRE_REFUSED_CHECKPOINT] = "another checkpoint is served there",
		[WIRE_REFUSED_FULL] = "the server has as many connections as it takes",
	};

	return why < ARRAY_SIZE(texts) && texts[why] ? texts[why] : "it does not say why";
}
