// SPDX-License-Identifier: GPL-2.0-only
#include "criu-vm/migration_lazy.h"

#include <errno.h>
#include <fcntl.h>
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "criu-vm/migration_record_int.h"
#include "pvmem/swap_trailer.h"
#include "util/cleanup.h"
#include "util/size.h"

#define SUFFIX ".lazy"
#define LAZY_MAX 16384

_Static_assert(WIRE_KEY_LEN == WIRE_TOKEN_LEN, "a key is written as a token is");

static const char *const state_name[] = { [WIRE_LINE_WANTS] = "wanted", [WIRE_LINE_COMPLETE] = "complete", [WIRE_LINE_ENDED] = "ended" };

static const char *file_name(const uint8_t token[WIRE_TOKEN_LEN], char file[MIGRATION_FILE_LEN])
{
	char text[WIRE_TOKEN_TEXT];

	snprintf(file, MIGRATION_FILE_LEN, "%s" SUFFIX, wire_token_format(token, text));
	return file;
}

static int to_text(const struct migration_lazy *l, char **text)
{
	char boot[PV_BOOT_ID_LEN + 1], id[WIRE_TOKEN_TEXT], key[WIRE_TOKEN_TEXT];
	json_t *j;
	int r = pv_boot_id(boot);

	if (r)
		return r;
	j = json_pack("{s:s s:s s:s s:s s:s s:s}", "state", state_name[l->state], "name", l->name, "run_root", l->run_root, "host_id",
		      wire_token_format(l->host_id, id), "key", wire_token_format(l->key, key), "boot", boot);
	*text = j ? json_dumps(j, JSON_INDENT(1)) : NULL;
	json_decref(j);
	return *text ? 0 : -EINVAL;
}

int migration_lazy_save(const uint8_t token[WIRE_TOKEN_LEN], const struct migration_lazy *l)
{
	char file[MIGRATION_FILE_LEN], tmp[MIGRATION_FILE_LEN + 16];
	_cleanup_close_ int dir = -1;
	_cleanup_free_ char *text = NULL;
	int r = migration_open_folder(&dir);

	file_name(token, file);
	snprintf(tmp, sizeof tmp, ".%s.%d", file, getpid());
	if (!r)
		r = to_text(l, &text);
	if (!r)
		r = migration_write_synced(dir, tmp, text);
	if (!r && (renameat(dir, tmp, dir, file) < 0 || fsync(dir) < 0))
		r = -errno;
	return r ? migration_failed(file, r) : 0;
}

static int take_state(const char *text, enum wire_line_state *state)
{
	for (size_t i = 0; i < ARRAY_SIZE(state_name); i++)
		if (!strcmp(text, state_name[i])) {
			*state = (enum wire_line_state)i;
			return 0;
		}
	return -EBADMSG;
}

static int from_json(json_t *j, struct migration_lazy *l)
{
	char boot[PV_BOOT_ID_LEN + 1];
	const char *state, *name, *run_root, *id, *key, *was;
	int r = pv_boot_id(boot);

	if (r)
		return r;
	if (json_unpack(j, "{s:s s:s s:s s:s s:s s:s}", "state", &state, "name", &name, "run_root", &run_root, "host_id", &id, "key", &key, "boot",
			&was) ||
	    take_state(state, &l->state) || !run_dir_name_ok(name) || run_root[0] != '/' || wire_token_parse(id, l->host_id) ||
	    wire_token_parse(key, l->key))
		return -EBADMSG;
	if (l->state == WIRE_LINE_WANTS && strcmp(was, boot) != 0)
		l->state = WIRE_LINE_ENDED;
	snprintf(l->name, sizeof l->name, "%s", name);
	l->run_root = strdup(run_root);
	return l->run_root ? 0 : -ENOMEM;
}

static int load(int dir, const char *file, struct migration_lazy *l)
{
	json_t *j;
	int r;

	*l = (struct migration_lazy){ .run_root = NULL };
	r = migration_read_json(dir, file, LAZY_MAX, &j);
	if (!r) {
		r = from_json(j, l);
		json_decref(j);
	}
	return r;
}

int migration_lazy_find(const uint8_t token[WIRE_TOKEN_LEN], struct migration_lazy *l)
{
	char file[MIGRATION_FILE_LEN], path[PATH_MAX];
	_cleanup_close_ int dir = open(state_dir(MIGRATION_FOLDER, path), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	int r = dir < 0 ? -errno : 0;

	*l = (struct migration_lazy){ .run_root = NULL };
	file_name(token, file);
	if (!r)
		r = load(dir, file, l);
	return !r || r == -ENOENT ? r : migration_failed(file, r);
}

bool migration_lazy_is_there(const uint8_t token[WIRE_TOKEN_LEN])
{
	struct migration_lazy l;
	int r = migration_lazy_find(token, &l);

	migration_lazy_fini(&l);
	return r != -ENOENT;
}

void migration_lazy_fini(struct migration_lazy *l)
{
	free(l->run_root);
	l->run_root = NULL;
}

void migration_lazy_remove(const uint8_t token[WIRE_TOKEN_LEN])
{
	migration_remove_file(token, SUFFIX);
}

bool migration_lazy_may_go(int dir, const char *file)
{
	struct migration_lazy l;
	bool may;

	if (strlen(file) != WIRE_TOKEN_TEXT - 1 + strlen(SUFFIX) || strcmp(file + WIRE_TOKEN_TEXT - 1, SUFFIX) != 0)
		return false;
	may = !load(dir, file, &l) && l.state != WIRE_LINE_WANTS;
	migration_lazy_fini(&l);
	return may;
}
