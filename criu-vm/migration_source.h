// SPDX-License-Identifier: GPL-2.0-only
//
// DOC: STATE_DIR/migrations/TOKEN.source
//
// Which VM it is that must not run before it is known what became of it, and who knows. Made before the VM stands, removed when it runs
// again here, or has ended. Only what one's own migration left is acted upon (the token), by one at a time (a lock), as the very
// destination said that the VM was offered to (its id, migration_host_id()).
//
// Of a VM whose pages are to be had here when it runs there already (lazy) it has all that is needed to find them without QEMU's monitor,
// since QEMU is stopped; and that the destination has committed, since that will forget. Beside it are
//
//     TOKEN.claim       locked by who acts upon it
//     TOKEN.status      what who serves the pages says of it (migrate_status.h)
#pragma once
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#include "wire/preamble.h"

struct qemu_ramblock;

struct migration_source {
	uint8_t token[WIRE_TOKEN_LEN], host_id[WIRE_TOKEN_LEN];
	pid_t pid;
	uint64_t start; // process_start()
	bool was_running;
	char *vm;	// as it is found: pid or QMP socket
	char *name;	// of a VM of criu-vm's own, or NULL
	char *host;	// "HOST:PORT"
	char *tls;	// folder of credentials, or NULL
	bool insecure;	// it may be another host, in the clear

	bool lazy;
	bool committed;	    // the VM is there
	uint64_t left_ns;   // since when, by clock_now_ns()
	uint64_t ran_ns;    // then: qemu_ran_ns()
	uint8_t key[WIRE_KEY_LEN];
	unsigned lines;
	int zstd;	    // level, 0: raw
	uint64_t bandwidth; // bytes a second, 0: no limit
	char *there;	    // its name there
	char *run_root;	    // of a VM of criu-vm's own, absolute
	struct qemu_ramblock *blocks; // guest RAM: name, len, hva
	size_t nr_blocks;
};

// Synced before it returns; other records of its process are removed. Logs.
int migration_source_save(const struct migration_source *s);
// The one of this VM (pid, NAME, QMP socket) and token (NULL: any), the caller's (migration_source_fini()). -ENOENT, silently: there is
// none; or -errno, logged. Records of processes that have ended, or of before the host was booted, are removed, unless somebody serves
// what can be read of such a VM yet.
int migration_source_find(const char *vm, const uint8_t token[WIRE_TOKEN_LEN], struct migration_source *s);
// The one of this token, whether its process is there or not. As above, but that nothing is removed or logged.
int migration_source_load(const uint8_t token[WIRE_TOKEN_LEN], struct migration_source *s);
// Each one, until fn returns something else than 0; 1: fn has taken s over. Removes as above. 0, what fn returned, or -errno, logged.
int migration_source_for_each(int (*fn)(void *ctx, struct migration_source *s), void *ctx);
// It is ours alone to act upon as long as *fd is open, whether it is saved anew or not. -ENOENT: somebody has; -EBUSY: somebody does.
// Silent.
int migration_source_claim(const uint8_t token[WIRE_TOKEN_LEN], int *fd);
bool migration_source_is_claimed(const uint8_t token[WIRE_TOKEN_LEN]);
void migration_source_remove(const uint8_t token[WIRE_TOKEN_LEN]);
void migration_source_fini(struct migration_source *s);
