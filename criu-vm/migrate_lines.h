// SPDX-License-Identifier: GPL-2.0-only
//
// DOC: the page lines of a VM that leaves, or has left
//
// One thread each: connects, shows the key, answers (provide.h); if the line is lost, it does so again, after a pause that grows from 0.2 to
// 10 s. Until the VM's memory cannot change any more nothing is answered: they are held. When who asks has said that it needs nothing any
// more, lines wait for lines_over().
#pragma once
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "criu-vm/provide.h"
#include "criu-vm/ram.h"
#include "wire/conn.h"

struct lines_opts {
	const uint8_t *token, *host_id, *key;
	const char *host; // of the first attempt
	uint16_t port;
	const struct wire_tls *tls; // NULL: in the clear
	unsigned nr;
	int zstd;	    // level, 0: raw
	uint64_t bandwidth; // bytes a second; line 0 does not wait for its turn; 0: no limit
	struct ram *ram;
	int pidfd;	    // of the VM's process
	const struct qemu_ramblock *blocks; // guest RAM
	size_t nr_blocks;
};

struct lines;

// Starts the threads; held. What o points to must outlive it. -errno, logged.
int lines_open(const struct lines_opts *o, struct lines **l);
// Until who asks has been heard on each of them: -ETIMEDOUT, logged. Or look(), some times a second, returns something: that. It may be
// NULL.
int lines_wait(struct lines *l, unsigned timeout_ms, int (*look)(void *ctx), void *ctx);
void lines_hold(struct lines *l, bool hold);
// What is missing until who asks says it.
void lines_set_missing(struct lines *l, uint64_t pages);
// Lines that are lost are tried there, at once.
void lines_redirect(struct lines *l, const char *host, uint16_t port);

struct lines_status {
	enum wire_line_state state; // COMPLETE and ENDED stay
	unsigned nr;		    // lines that there are now
	struct provided provided;
	char trouble[192];	    // why there are not all, or what cannot be read; ""
};
// Until who asks needs nothing any more, at most so long.
void lines_wait_change(struct lines *l, unsigned ms);
void lines_status(struct lines *l, struct lines_status *s);

// Each line that there is says OVER, if who asks has said that it needs nothing. Ends all of them, in some seconds. Frees.
// *all, which may be NULL: what they have provided; a line counts its last answer when the other side may have it all and have said so.
void lines_over(struct lines *l, struct provided *all);
// Ends all of them without a word. Frees. Accepts NULL.
void lines_close(struct lines *l);
