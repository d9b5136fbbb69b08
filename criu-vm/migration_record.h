// SPDX-License-Identifier: GPL-2.0-only
//
// DOC: what outlives everybody who takes part in a migration
//
//   STATE_DIR/migrations/        (CRIU_VM_STATE_DIR in the environment, or /var/lib/criu-vm); mode 0700
//     TOKEN                      of the destination: "committed NAME" or "aborted". Made once, by whoever is first; never changed
//     TOKEN.source               of the source (migration_source.h)
//     TOKEN.lazy                 of the destination, as long as pages are missing there (migration_lazy.h)
//     id                         16 random bytes: whose records these are
//
// The first one is the commit point. It is made by the pager of the VM when the source says COMMIT, or by who answers a source that asks;
// renameat2(RENAME_NOREPLACE) lets one of them win, and folder and file are synced before anybody is told.
#pragma once
#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

#include "criu-vm/run_dir.h"
#include "wire/preamble.h"

enum migration_decision { MIGRATION_UNDECIDED, MIGRATION_COMMITTED, MIGRATION_ABORTED };

// Writes what is left to be renamed when the VM of that name is committed: a full disk is found early, and the commit itself is
// short. Logs.
int migration_prepare(const uint8_t token[WIRE_TOKEN_LEN], const char *name);
void migration_unprepare(const uint8_t token[WIRE_TOKEN_LEN]); // harmless if nothing was
// Decides, if nobody has: *is is what was decided, by us or before, and is on disk. name: of the VM, for MIGRATION_COMMITTED. Blocks on the
// disk. -errno, logged: *is UNDECIDED: nothing was decided by us; else others see this decision, but a crash of the host may undo it, so
// that nobody may be told, nor act on it: try again.
int migration_decide(const uint8_t token[WIRE_TOKEN_LEN], enum migration_decision want, const char *name, enum migration_decision *is);
// What is decided, on disk; name (may be NULL) gets the VM's. 0, also when nothing is; errors as of migration_decide().
int migration_decided(const uint8_t token[WIRE_TOKEN_LEN], enum migration_decision *is, char name[RUN_DIR_NAME_MAX + 1]);
// The source knows. Harmless if there is none.
void migration_forget(const uint8_t token[WIRE_TOKEN_LEN]);

// Removes aborted ones that are older than 30 days, TOKEN.lazy of VMs that have been complete, or have ended, for so long, and what killed
// processes have left an hour ago; never a committed one.
void migration_sweep(void);

// Who answers for these records: made once, and lost with them. Blocks on the disk. Logs.
int migration_host_id(uint8_t id[WIRE_TOKEN_LEN]);
