// SPDX-License-Identifier: GPL-2.0-only
// Shared by migration_record.c, migration_source.c and migration_lazy.c only: the folder of the records.
#pragma once
#include <jansson.h>

#include "criu-vm/migration_record.h"
#include "criu-vm/state_dir.h"

#define MIGRATION_FOLDER "migrations"
#define MIGRATION_FILE_LEN (WIRE_TOKEN_TEXT + 32)

// Logs that of this file; returns err.
int migration_failed(const char *file, int err);
// Makes it if need be. *fd is the caller's. Silent.
int migration_open_folder(int *fd);
// A new file with this content, on disk; but that it has this name may be forgotten in a crash. Silent.
int migration_write_synced(int dir, const char *file, const char *text);
// What is in a file of at most so many bytes; *json is the caller's. -EBADMSG: no JSON. Silent.
int migration_read_json(int dir, const char *file, size_t max, json_t **json);
// TOKEN and suffix. Harmless if it is not there.
void migration_remove_file(const uint8_t token[WIRE_TOKEN_LEN], const char *suffix);
// Is this a TOKEN.lazy of which only the source may want to know yet?
bool migration_lazy_may_go(int dir, const char *file);
