// SPDX-License-Identifier: GPL-2.0-only
// How a VM is paged, where its owner has a choice: `--paging KEY=VALUE[,KEY=VALUE...]`.
#pragma once
#include <stdbool.h>
#include <stddef.h>

enum pv_method {
	PV_METHOD_ADAPTIVE, // learns how much to bring in with a touched page
	PV_METHOD_1,        // the whole chunk, and the guest waits for all of it
	PV_METHOD_2,        // the touched page first, and the guest goes on; then the rest of the chunk
	PV_NR_METHODS
};

enum pv_access_kind {
	PV_ACCESS_AUTO,  // the first of those below that works here
	PV_ACCESS_IDLE,  // the kernel's bitmap of idle pages
	PV_ACCESS_MINOR, // chunks near eviction are unmapped, to see who comes back
	PV_ACCESS_NONE,
	PV_NR_ACCESS_KINDS
};

struct pv_tuning {
	enum pv_method method;
	enum pv_access_kind access;
	unsigned queue_bits; // 2^queue_bits chunk queues: 1 to 12
	bool spin;           // before the pager sleeps, where there is a CPU to spare
	bool folios;         // of 1 MiB, where the host permits them
};

#define PV_TUNING_DEFAULT ((struct pv_tuning){ .queue_bits = 8, .spin = true, .folios = true })

// Changes what text names, and leaves the rest of t as it is. False: *why says what is wrong with which part (static or into buf, which
// is at least 128 bytes); t may be half changed.
bool pv_tuning_parse(const char *text, struct pv_tuning *t, char why[128]);
// All of it, as pv_tuning_parse() takes it. buf: at least 128 bytes.
void pv_tuning_print(const struct pv_tuning *t, char *buf, size_t len);
const char *pv_method_name(enum pv_method m);
const char *pv_access_name(enum pv_access_kind k);
