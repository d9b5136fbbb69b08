// SPDX-License-Identifier: GPL-2.0-only
#include "criu-vm/arrival.h"

#include <errno.h>
#include <limits.h>
#include <string.h>
#include <unistd.h>

#include "util/cleanup.h"
#include "util/io.h"
#include "util/log.h"

#define TOKEN_FILE "token"
#define AGAIN_S 1

int arrival_mark(const struct run_dir *rd, const uint8_t token[WIRE_TOKEN_LEN])
{
	char text[WIRE_TOKEN_TEXT];

	return run_dir_mark(rd, TOKEN_FILE, wire_token_format(token, text));
}

int arrival_token(const struct run_dir *rd, uint8_t token[WIRE_TOKEN_LEN])
{
	_cleanup_free_ char *text = NULL;
	char path[PATH_MAX];
	size_t len;
	int r = io_read_file(run_dir_file(rd, TOKEN_FILE, path, sizeof path), WIRE_TOKEN_TEXT, &text, &len);

	if (!r)
		r = wire_token_parse(text, token);
	if (r && r != -ENOENT)
		log_err("cannot read %s: %s", path, strerror(-r));
	return r;
}

bool arrival_is_committed(const struct run_dir *rd)
{
	enum migration_decision is = MIGRATION_UNDECIDED;
	uint8_t token[WIRE_TOKEN_LEN];
	int r;

	while ((r = arrival_token(rd, token)) != -ENOENT) {
		if (!r && !migration_decided(token, &is, NULL))
			return is == MIGRATION_COMMITTED;
		sleep(AGAIN_S);
	}
	return false;
}
