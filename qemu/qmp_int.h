// SPDX-License-Identifier: GPL-2.0-only
// The QMP client within: what its opening (qmp_open.c) shares with the rest (qmp.c).
#pragma once
#include "qemu/qmp.h"
#include "util/list.h"

struct qmp {
	int fd;
	char *path;
	int timeout_ms;
	int broken; // -errno once the connection is of no more use
	char *buf; // received and not yet parsed
	size_t len, room;
	size_t lines; // the whole lines at its beginning, in bytes; 0 too when they hold no whole message
	uint64_t last_id; // of our own calls: sent negated, so that it never meets a qmp_send() id
	struct list queue; // what came while a call waited for its reply
	size_t nr_queued;
	char version[32];
	unsigned version_num;
	char *last_error;
	bool (*gives_up)(void *ctx); // may be NULL
	void *gives_up_ctx;
	// While it is being opened:
	bool quiet;
	int watch_fd; // -1: none
	bool (*interrupted)(void);
};

// Logs why what came is no QMP; -EPROTO, and the client is of no more use.
int qmp_bad_message(struct qmp *q, const char *why);

// When an answer that is asked for now is late, by CLOCK_MONOTONIC in nanoseconds.
uint64_t qmp_deadline(const struct qmp *q);

// Blocks until the socket (none yet: nothing) is ready. -ETIMEDOUT; -ESRCH, -EINTR: by what is watched. Logs nothing.
int qmp_wait(struct qmp *q, short events, uint64_t deadline);

// The next JSON value that came, the caller's; never blocks. -EAGAIN: none is complete; -EPIPE; -ESRCH; -EPROTO (logged).
int qmp_next_value(struct qmp *q, json_t **value);
