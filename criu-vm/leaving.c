// SPDX-License-Identifier: GPL-2.0-only
#include "criu-vm/leaving.h"

#include <errno.h>
#include <stdlib.h>

#include "criu-vm/migrate_status.h"
#include "criu-vm/migration_source.h"
#include "util/clock.h"

static int add(void *ctx, struct migration_source *s)
{
	bool served = migration_source_is_claimed(s->token);
	const char *nobody = "nobody serves them: criu-vm migrate --resume";
	struct migrate_status st;
	json_t *j;

	if (!s->lazy || !s->committed)
		return 0;
	migrate_status_load(s->token, &st);
	j = json_pack("{s:s s:{s:s s:i s:i s:I s:I s:I s:i s:i s:s? s:I}}", "name", s->there, "leaving", "host", s->host, "qemu_pid", (int)s->pid,
		      "server_pid", served ? (int)st.server : 0, "pages_left", (json_int_t)st.pages_left, "pages_served",
		      (json_int_t)st.pages_served, "bytes", (json_int_t)st.bytes, "lines", served ? (int)st.lines : 0, "lines_wanted",
		      (int)s->lines, "trouble", !served && st.server ? nobody : *st.trouble ? st.trouble : served ? NULL : nobody,
		      "since_s", (json_int_t)((clock_now_ns() - s->left_ns) / NSEC_PER_SEC));
	return j && !json_array_append_new(ctx, j) ? 0 : -ENOMEM;
}

int leaving_list(json_t **array)
{
	int r;

	*array = json_array();
	r = *array ? migration_source_for_each(add, *array) : -ENOMEM;
	if (r) {
		json_decref(*array);
		*array = NULL;
	}
	return r;
}
