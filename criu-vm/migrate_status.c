// SPDX-License-Identifier: GPL-2.0-only
#include "criu-vm/migrate_status.h"

#include <fcntl.h>
#include <jansson.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "criu-vm/migration_record_int.h"
#include "util/cleanup.h"
#include "util/io.h"

#define SUFFIX ".status"
#define STATUS_MAX 4096

void migrate_status_save(const uint8_t token[WIRE_TOKEN_LEN], const struct migrate_status *s)
{
	char text[WIRE_TOKEN_TEXT], file[MIGRATION_FILE_LEN], tmp[MIGRATION_FILE_LEN + 1];
	_cleanup_close_ int dir = -1, fd = -1;
	json_t *j = json_pack("{s:i s:I s:I s:I s:i s:i s:s}", "server", (int)s->server, "pages_left", (json_int_t)s->pages_left, "pages_served",
			      (json_int_t)s->pages_served, "bytes", (json_int_t)s->bytes, "lines", (int)s->lines, "lines_wanted",
			      (int)s->lines_wanted, "trouble", s->trouble);

	snprintf(file, sizeof file, "%s" SUFFIX, wire_token_format(token, text));
	snprintf(tmp, sizeof tmp, ".%s", file);
	if (j && !migration_open_folder(&dir))
		fd = openat(dir, tmp, O_WRONLY | O_CREAT | O_TRUNC | O_NOFOLLOW | O_CLOEXEC, 0600);
	if (fd >= 0 && (json_dumpfd(j, fd, JSON_INDENT(1)) || renameat(dir, tmp, dir, file) < 0))
		unlinkat(dir, tmp, 0);
	json_decref(j);
}

void migrate_status_load(const uint8_t token[WIRE_TOKEN_LEN], struct migrate_status *s)
{
	char text[WIRE_TOKEN_TEXT], folder[PATH_MAX], path[PATH_MAX + MIGRATION_FILE_LEN];
	_cleanup_free_ char *content = NULL;
	json_int_t left = 0, served = 0, bytes = 0;
	int server = 0, lines = 0, wanted = 0;
	const char *trouble = "";
	json_t *j = NULL;
	size_t len;

	snprintf(path, sizeof path, "%s/%s" SUFFIX, state_dir(MIGRATION_FOLDER, folder), wire_token_format(token, text));
	if (!io_read_file(path, STATUS_MAX, &content, &len))
		j = json_loadb(content, len, 0, NULL);
	*s = (struct migrate_status){ .server = 0 };
	if (!json_unpack(j, "{s:i s:I s:I s:I s:i s:i s:s}", "server", &server, "pages_left", &left, "pages_served", &served, "bytes", &bytes, "lines",
			 &lines, "lines_wanted", &wanted, "trouble", &trouble)) {
		*s = (struct migrate_status){ .server = server, .pages_left = (uint64_t)left, .pages_served = (uint64_t)served,
					      .bytes = (uint64_t)bytes, .lines = (unsigned)lines, .lines_wanted = (unsigned)wanted };
		snprintf(s->trouble, sizeof s->trouble, "%s", trouble);
	}
	json_decref(j);
}
