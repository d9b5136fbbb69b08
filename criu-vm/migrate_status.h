// SPDX-License-Identifier: GPL-2.0-only
// STATE_DIR/migrations/TOKEN.status: what who serves the pages of a VM that has left says of it, once a second. Nothing is decided by it.
#pragma once
#include <stdint.h>
#include <sys/types.h>

#include "wire/preamble.h"

struct migrate_status {
	pid_t server;
	uint64_t pages_left; // as the destination has said last
	uint64_t pages_served, bytes;
	unsigned lines, lines_wanted;
	char trouble[256]; // "": none
};

void migrate_status_save(const uint8_t token[WIRE_TOKEN_LEN], const struct migrate_status *s); // errors are ignored
// All zero if there is none. Silent.
void migrate_status_load(const uint8_t token[WIRE_TOKEN_LEN], struct migrate_status *s);
