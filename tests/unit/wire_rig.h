// SPDX-License-Identifier: GPL-2.0-only
// A connection of a migration whose other end is a bare socket, or a connection, too.
#pragma once
#include <check.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "util/io.h"
#include "util/log.h"
#include "wire/conn_int.h"

#define ok(expr) ck_assert_int_eq(expr, 0)

static struct wire_conn *ours;
static int theirs = -1;

static void rig_open(void)
{
	int fd[2];

	ok(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, fd));
	ok(wire_conn_new(fd[0], strdup("peer"), &ours));
	theirs = fd[1];
}

static void rig_hang_up(void)
{
	if (theirs >= 0)
		close(theirs);
	theirs = -1;
}

static void rig_close(void)
{
	rig_hang_up();
	wire_close(ours);
	ours = NULL;
}

// The bare socket becomes a connection, which is the caller's.
static struct wire_conn *rig_other(void)
{
	struct wire_conn *c;

	ok(wire_conn_new(theirs, strdup("other"), &c));
	theirs = -1;
	return c;
}

static void rig_quiet(void)
{
	log_init(getenv("VERBOSE") ? 2 : -1, LOG_WARN, NULL, false); // the messages are expected
	rig_open();
}

// What comes from the other side, after which it hangs up. Not more than a socket holds.
static inline void rig_feed(const void *bytes, size_t len)
{
	rig_close();
	rig_open();
	ok(io_write_full(theirs, bytes, len));
	rig_hang_up();
}
