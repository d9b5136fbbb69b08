// SPDX-License-Identifier: GPL-2.0-only
// A VM runs elsewhere, and its QEMU stands here, with pages that are missing there: they are served over its page lines (migrate_lines.h)
// until the other side needs nothing any more. Who does that has the claim on its record (migration_source.h).
#pragma once
#include "criu-vm/migrate_lines.h"
#include "criu-vm/migration_source.h"

struct serve_opts {
	struct migration_source *source; // its host changes when somebody changes it in the record
	struct lines *lines;
	int pidfd;	// QEMU's
	bool progress;	// on a terminal
};

struct serve_result {
	enum wire_line_state state; // how it came to an end; WANTS: not
	struct provided provided;
};

// Until it ends, 0; or cmd_interrupted(): -EINTR, silent; or what is here is not the VM's any more: migrate_say_run(). Keeps TOKEN.status.
int migrate_serve(const struct serve_opts *o, struct serve_result *result);
// Its QEMU was let run on here since the VM left: what is in its memory is of another life. Logs, and notes it for stat. -ESTALE.
int migrate_say_run(const struct migration_source *s);
