// SPDX-License-Identifier: GPL-2.0-only
// VMs that have left this host, and have pages here yet, for stat: as those who serve their pages say (STATE_DIR/migrations/TOKEN.status).
#pragma once
#include <jansson.h>

// An array of {"name": ..., "leaving": {"host", "qemu_pid", "server_pid" (0: nobody serves), "pages_left", "pages_served", "bytes", "lines",
// "lines_wanted", "trouble" (null: none), "since_s"}}; the caller's. Empty if there are none. -errno, logged.
int leaving_list(json_t **array);
