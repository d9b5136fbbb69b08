// SPDX-License-Identifier: GPL-2.0-only
//
// DOC: STATE_DIR/migrations/TOKEN.source
//
// Which VM it is that must not run before it is known what became of it, and who knows. Made before the VM stands, removed when it runs
// again here, or has ended. Only what one's own migration left is acted upon (the token), by one at a time (a lock), as the very
// destination said that the VM was offered to (its id, migration_host_id()).
#pragma once
#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

#include "wire/preamble.h"

struct migration_source {
	uint8_t token[WIRE_TOKEN_LEN], host_id[WIRE_TOKEN_LEN];
	pid_t pid;
	uint64_t start; // process_start()
	bool was_running;
	char *vm;	// as it is found: pid or QMP socket
	char *name;	// of a VM of criu-vm's own, or NULL
	char *host;	// "HOST:PORT"
	char *tls;	// folder of credentials, or NULL
};

// Synced before it returns; other records of its process are removed. Logs.
int migration_source_save(const struct migration_source *s);
// The one of this VM (pid, NAME, QMP socket) and token (NULL: any), the caller's (migration_source_fini()). -ENOENT, silently: there is
// none; or -errno, logged. Records of processes that have ended, or of before the host was booted, are removed.
int migration_source_find(const char *vm, const uint8_t token[WIRE_TOKEN_LEN], struct migration_source *s);
// It is ours alone to act upon as long as *fd is open. -ENOENT: somebody has; -EBUSY: somebody does. Silent.
int migration_source_claim(const uint8_t token[WIRE_TOKEN_LEN], int *fd);
void migration_source_remove(const uint8_t token[WIRE_TOKEN_LEN]);
void migration_source_fini(struct migration_source *s);
