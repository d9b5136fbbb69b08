// SPDX-License-Identifier: GPL-2.0-only
#include "criu-vm/stages.h"

#include <errno.h>

#include "criu-vm/cmd.h"
#include "criu-vm/fault.h"
#include "util/clock.h"
#include "util/log.h"

static int run_one(const struct stage *s, void *ctx)
{
	uint64_t begun = clock_now_ns();
	int r = fault_here(s->name);

	if (!r)
		r = s->run(ctx);
	log_dbg("stage '%s': %s, %lu us", s->name, r ? "failed" : "done", (clock_now_ns() - begun) / 1000);
	return r;
}

int stages_run(const struct stage *stages, size_t nr, void *ctx)
{
	size_t i;
	int r = 0;

	for (i = 0; i < nr; i++) {
		if (cmd_interrupted()) {
			log_err("interrupted before stage '%s'; all is being undone", stages[i].name);
			r = -EINTR;
			break;
		}
		r = run_one(&stages[i], ctx);
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

int stages_finish(const struct stage *stages, size_t nr, void *ctx)
{
	int r = 0;

	for (size_t i = 0; !r && i < nr; i++)
		r = run_one(&stages[i], ctx);
	return r;
}
