// SPDX-License-Identifier: GPL-2.0-only
// Of a VM that comes from another host, in its run directory: the token of its migration, and so the record that decides whose it is.
#pragma once
#include "criu-vm/migration_record.h"
#include "criu-vm/run_dir.h"

// Notes the token. Logs.
int arrival_mark(const struct run_dir *rd, const uint8_t token[WIRE_TOKEN_LEN]);
// -ENOENT, silently: it did not come from another host; or -errno, logged.
int arrival_token(const struct run_dir *rd, uint8_t token[WIRE_TOKEN_LEN]);
// It ends, or is given up: a source that has pages of it yet can be told (migration_lazy.h). Nothing, if it did not come from another host.
// Blocks on the disk. Logs.
void arrival_note_end(const struct run_dir *rd);
// It has run here, and whoever started it knew.
bool arrival_has_run(const struct run_dir *rd);
// Notes the monitors that nobody may reach before the VM is this host's: QEMU, of this user, has them under other names. Logs.
int arrival_hide_monitors(const struct run_dir *rd, uid_t uid, gid_t gid, char *const *argv);
// They get the names that they had. May be called again. Logs what cannot be.
void arrival_show_monitors(const struct run_dir *rd, pid_t qemu);
// Is it this host's, for certain? False if it did not come from another one. As long as that cannot be known it is waited for: who
// asks is to end or to run a VM by it. Logs.
bool arrival_is_committed(const struct run_dir *rd);
