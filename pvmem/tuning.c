// SPDX-License-Identifier: GPL-2.0-only
#include "pvmem/tuning.h"

#include <stdio.h>
#include <string.h>

#include "pvmem/queues.h"
#include "util/size.h"

#define SHOWN 24 // of what somebody wrote, in a message

enum key { METHOD, ACCESS, QUEUE_BITS, SPIN, FOLIOS, NR_KEYS };

static const char *const methods[PV_NR_METHODS] = { [PV_METHOD_ADAPTIVE] = "adaptive", [PV_METHOD_1] = "1", [PV_METHOD_2] = "2" };
static const char *const accesses[PV_NR_ACCESS_KINDS] = { [PV_ACCESS_AUTO] = "auto", [PV_ACCESS_IDLE] = "idle", [PV_ACCESS_MINOR] = "minor",
							  [PV_ACCESS_NONE] = "none" };
static const char *const switches[] = { [false] = "off", [true] = "auto" };

static const struct {
	const char *name;
	const char *const *words; // its values; NULL: a number
	unsigned nr;
	const char *values;       // for a message
} keys[NR_KEYS] = {
	[METHOD] = { "method", methods, PV_NR_METHODS, "adaptive, 1 or 2" },
	[ACCESS] = { "access", accesses, PV_NR_ACCESS_KINDS, "auto, idle, minor or none" },
	[QUEUE_BITS] = { "queue-bits", NULL, 0, "a number from 1 to 12" },
	[SPIN] = { "spin", switches, 2, "auto or off" },
	[FOLIOS] = { "folios", switches, 2, "auto or off" },
};

_Static_assert(PV_MAX_QUEUE_BITS == 12, "as the message says");

static void set(struct pv_tuning *t, enum key k, unsigned value)
{
	switch (k) {
	case METHOD:
		t->method = value;
		break;
	case ACCESS:
		t->access = value;
		break;
	case QUEUE_BITS:
		t->queue_bits = value;
		break;
	case SPIN:
		t->spin = value;
		break;
	default:
		t->folios = value;
	}
}

static bool is(const char *word, const char *text, size_t len)
{
	return strlen(word) == len && !memcmp(word, text, len);
}

static bool parse_number(const char *text, size_t len, unsigned *value)
{
	*value = 0;
	for (size_t i = 0; i < len; i++) {
		if (text[i] < '0' || text[i] > '9' || i == 2)
			return false;
		*value = *value * 10 + (unsigned)(text[i] - '0');
	}
	return *value >= 1 && *value <= PV_MAX_QUEUE_BITS;
}

static bool parse_value(enum key k, const char *text, size_t len, unsigned *value)
{
	if (!keys[k].words)
		return parse_number(text, len, value);
	for (*value = 0; *value < keys[k].nr; ++*value)
		if (is(keys[k].words[*value], text, len))
			return true;
	return false;
}

static int shown(size_t len)
{
	return len < SHOWN ? (int)len : SHOWN;
}

// KEY=VALUE, of len bytes.
static bool parse_one(const char *text, size_t len, struct pv_tuning *t, char why[128])
{
	const char *equals = memchr(text, '=', len);
	size_t key_len = equals ? (size_t)(equals - text) : len;
	unsigned value;

	for (enum key k = 0; k < NR_KEYS; k++) {
		if (!is(keys[k].name, text, key_len))
			continue;
		if (equals && parse_value(k, equals + 1, len - key_len - 1, &value)) {
			set(t, k, value);
			return true;
		}
		snprintf(why, 128, "%.*s: %s is %s", shown(len), text, keys[k].name, keys[k].values);
		return false;
	}
	snprintf(why, 128, "there is no '%.*s', only method, access, queue-bits, spin and folios", shown(key_len), text);
	return false;
}

bool pv_tuning_parse(const char *text, struct pv_tuning *t, char why[128])
{
	for (;;) {
		size_t len = strcspn(text, ",");

		if (!parse_one(text, len, t, why))
			return false;
		if (!text[len])
			return true;
		text += len + 1;
	}
}

void pv_tuning_print(const struct pv_tuning *t, char *buf, size_t len)
{
	snprintf(buf, len, "method=%s,access=%s,queue-bits=%u,spin=%s,folios=%s", methods[t->method], accesses[t->access], t->queue_bits,
		 switches[t->spin], switches[t->folios]);
}

const char *pv_method_name(enum pv_method m)
{
	return methods[m];
}

const char *pv_access_name(enum pv_access_kind k)
{
	return accesses[k];
}
