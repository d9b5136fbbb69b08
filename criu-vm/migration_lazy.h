// SPDX-License-Identifier: GPL-2.0-only
//
// DOC: STATE_DIR/migrations/TOKEN.lazy
//
// At the destination: a VM whose pages are not all here. It tells a source that asks (over a page line, to the server) whose pages they
// are, or that they are not needed any more; so it stays until the source has said that it holds nothing. Made by the receiver before the
// source may connect its lines; removed with the migration if that fails.
//
//	wanted      the VM's pager takes the lines
//	complete    all have come
//	ended       the VM has ended; or the host was booted since
//
// While it is there the record of the commit (migration_record.h) is kept, too: a source that asks must not hear that its VM did not arrive.
#pragma once
#include "criu-vm/run_dir.h"
#include "lazy-pages/remote.h"
#include "wire/pages.h"

struct migration_lazy {
	enum wire_line_state state;
	char name[RUN_DIR_NAME_MAX + 1];
	char *run_root; // absolute
	uint8_t host_id[WIRE_TOKEN_LEN];
	uint8_t key[WIRE_KEY_LEN]; // that its source shows
};

// 0 or -errno, logged.
int migration_lazy_save(const uint8_t token[WIRE_TOKEN_LEN], const struct migration_lazy *l);
// -ENOENT: silently; or -errno, logged. l: migration_lazy_fini().
int migration_lazy_find(const uint8_t token[WIRE_TOKEN_LEN], struct migration_lazy *l);
void migration_lazy_fini(struct migration_lazy *l);
bool migration_lazy_is_there(const uint8_t token[WIRE_TOKEN_LEN]); // true also if that cannot be told
void migration_lazy_remove(const uint8_t token[WIRE_TOKEN_LEN]); // harmless if there is none

// How many page lines there are for a VM that came over so many data channels: line 0, and one for each of them, as far as there can be.
static inline unsigned migration_lazy_lines(unsigned channels)
{
	return channels < LP_REMOTE_LINES_MAX ? channels + 1 : LP_REMOTE_LINES_MAX;
}
