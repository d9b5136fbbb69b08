// SPDX-License-Identifier: GPL-2.0-only
#include "criu-vm/stages.h"

#include <errno.h>

#include "criu-vm/cmd.h"
#include "util/clock.h"
#include "util/log.h"

int stages_run(const struct stage *stages, size_t nr, void *ctx)
{
	size_t i;
	int r = 0;

	for (i = 0; i < nr && !r; i++) {
		uint64_t begun = clock_now_ns();

		if (cmd_interrupted()) {
			log_err("interrupted before stage '%s'; all is being undone", stages[i].name);
			r = -EINTR;
			break;
		}
		r = stages[i].run(ctx);
		log_dbg("stage '%s': %s, %lu us", stages[i].name, r ? "failed" : "done", (clock_now_ns() - begun) / 1000);
		if (r)
			break;
	}
	while (r && i--)
		if (stages[i].undo) {
			log_dbg("stage '%s': undone", stages[i].name);
			stages[i].undo(ctx);
		}
	return r;
}
