// SPDX-License-Identifier: GPL-2.0-only
#include "criu-vm/migration_source.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <jansson.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include "criu-vm/migration_record_int.h"
#include "criu-vm/process.h"
#include "pvmem/swap_trailer.h"
#include "util/cleanup.h"
#include "util/io.h"

#define SUFFIX ".source"
#define SOURCE_MAX 65536

static const char *file_name(const uint8_t token[WIRE_TOKEN_LEN], char file[MIGRATION_FILE_LEN])
{
	char text[WIRE_TOKEN_TEXT];

	snprintf(file, MIGRATION_FILE_LEN, "%s" SUFFIX, wire_token_format(token, text));
	return file;
}

// ---- its text

static int to_text(const struct migration_source *s, char **text)
{
	char boot[PV_BOOT_ID_LEN + 1], id[WIRE_TOKEN_TEXT];
	json_t *j;
	int r = pv_boot_id(boot);

	if (r)
		return r;
	j = json_pack("{s:i s:I s:s s:b s:s s:s? s:s s:s s:s?}", "pid", (int)s->pid, "start", (json_int_t)s->start, "boot", boot, "was_running",
		      s->was_running, "vm", s->vm, "name", s->name, "host", s->host, "host_id", wire_token_format(s->host_id, id), "tls", s->tls);
	*text = j ? json_dumps(j, JSON_INDENT(1)) : NULL;
	json_decref(j);
	return *text ? 0 : -EINVAL;
}

static int take_string(const json_t *j, const char *key, char **to)
{
	const char *s = json_string_value(json_object_get(j, key));

	*to = s ? strdup(s) : NULL;
	return s && !*to ? -ENOMEM : 0;
}

static int from_json(json_t *j, const char *boot, struct migration_source *s, bool *of_this_boot)
{
	const char *was, *vm, *host, *id;
	int pid, was_running;
	json_int_t start;

	if (json_unpack(j, "{s:i s:I s:s s:b s:s s:s s:s}", "pid", &pid, "start", &start, "boot", &was, "was_running", &was_running, "vm", &vm, "host",
			&host, "host_id", &id) ||
	    wire_token_parse(id, s->host_id))
		return -EBADMSG;
	s->pid = pid;
	s->start = (uint64_t)start;
	s->was_running = was_running;
	*of_this_boot = !strcmp(was, boot);
	if (take_string(j, "vm", &s->vm) || take_string(j, "name", &s->name) || take_string(j, "host", &s->host) || take_string(j, "tls", &s->tls))
		return -ENOMEM;
	return 0;
}

// The one in this file, if it is of a process that there is: *alive.
static int load(int dir, const char *file, const char *boot, struct migration_source *s, bool *alive)
{
	_cleanup_free_ char *text = NULL;
	char path[40 + MIGRATION_FILE_LEN];
	bool of_this_boot = false;
	size_t len;
	json_t *j;
	int r;

	snprintf(path, sizeof path, "/proc/self/fd/%d/%s", dir, file);
	r = io_read_file(path, SOURCE_MAX, &text, &len);
	if (r)
		return r;
	j = json_loadb(text, len, 0, NULL);
	r = j ? from_json(j, boot, s, &of_this_boot) : -EBADMSG;
	json_decref(j);
	*alive = !r && of_this_boot && process_start(s->pid) == s->start;
	return r;
}

void migration_source_fini(struct migration_source *s)
{
	free(s->vm);
	free(s->name);
	free(s->host);
	free(s->tls);
	*s = (struct migration_source){ .pid = 0 };
}

// ---- among the others

// A token, and the suffix.
static bool is_source(const char *file, uint8_t token[WIRE_TOKEN_LEN])
{
	char text[WIRE_TOKEN_TEXT];

	if (strlen(file) != WIRE_TOKEN_TEXT - 1 + strlen(SUFFIX) || strcmp(file + WIRE_TOKEN_TEXT - 1, SUFFIX) != 0)
		return false;
	snprintf(text, sizeof text, "%.*s", WIRE_TOKEN_TEXT - 1, file);
	return !wire_token_parse(text, token);
}

// Each one of a process that there is; 1 from fn ends it, and leaves s to fn. Others are removed.
static int for_each(int (*fn)(void *ctx, struct migration_source *s), void *ctx)
{
	char path[PATH_MAX], boot[PV_BOOT_ID_LEN + 1];
	const struct dirent *e;
	int ret = pv_boot_id(boot);
	DIR *d = ret ? NULL : opendir(state_dir(MIGRATION_FOLDER, path));

	if (!d)
		return ret ? migration_failed("", ret) : errno == ENOENT ? 0 : migration_failed("", -errno);
	while (!ret && (e = readdir(d))) {
		struct migration_source s = { .pid = 0 };
		bool alive = false;
		int r;

		if (!is_source(e->d_name, s.token))
			continue;
		r = load(dirfd(d), e->d_name, boot, &s, &alive);
		if (r && r != -ENOENT)
			migration_failed(e->d_name, r); // whose it is nobody knows
		else if (!r && !alive)
			unlinkat(dirfd(d), e->d_name, 0);
		else if (!r)
			ret = fn(ctx, &s);
		if (ret != 1)
			migration_source_fini(&s);
	}
	closedir(d);
	return ret;
}

struct search {
	const char *vm;
	const uint8_t *token;
	struct migration_source *found;
};

static int is_wanted(void *ctx, struct migration_source *s)
{
	const struct search *w = ctx;
	char pid[12];

	snprintf(pid, sizeof pid, "%d", s->pid);
	if (strcmp(w->vm, pid) != 0 && strcmp(w->vm, s->vm) != 0 && (!s->name || strcmp(w->vm, s->name) != 0))
		return 0;
	if (w->token && memcmp(w->token, s->token, WIRE_TOKEN_LEN) != 0)
		return 0;
	*w->found = *s;
	return 1;
}

int migration_source_find(const char *vm, const uint8_t token[WIRE_TOKEN_LEN], struct migration_source *s)
{
	struct search w = { .vm = vm, .token = token, .found = s };
	int r;

	*s = (struct migration_source){ .pid = 0 };
	r = for_each(is_wanted, &w);
	return r == 1 ? 0 : r ? r : -ENOENT;
}

static int remove_other(void *ctx, struct migration_source *s)
{
	const struct migration_source *stays = ctx;

	if (s->pid == stays->pid && memcmp(s->token, stays->token, WIRE_TOKEN_LEN) != 0)
		migration_source_remove(s->token);
	return 0;
}

int migration_source_save(const struct migration_source *s)
{
	char file[MIGRATION_FILE_LEN], tmp[MIGRATION_FILE_LEN + 1];
	_cleanup_close_ int dir = -1;
	_cleanup_free_ char *text = NULL;
	int r = for_each(remove_other, (void *)s);

	file_name(s->token, file);
	snprintf(tmp, sizeof tmp, ".%s", file);
	if (!r)
		r = migration_open_folder(&dir);
	if (!r)
		r = to_text(s, &text);
	if (!r)
		r = migration_write_synced(dir, tmp, text);
	if (!r && (renameat(dir, tmp, dir, file) < 0 || fsync(dir) < 0))
		r = -errno;
	return r ? migration_failed(file, r) : 0;
}

void migration_source_remove(const uint8_t token[WIRE_TOKEN_LEN])
{
	migration_remove_file(token, SUFFIX);
}

int migration_source_claim(const uint8_t token[WIRE_TOKEN_LEN], int *claimed)
{
	char path[PATH_MAX], file[MIGRATION_FILE_LEN];
	_cleanup_close_ int dir = open(state_dir(MIGRATION_FOLDER, path), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	_cleanup_close_ int fd = dir < 0 ? -1 : openat(dir, file_name(token, file), O_RDONLY | O_CLOEXEC | O_NOFOLLOW);
	struct stat st;

	if (fd < 0)
		return -errno;
	if (flock(fd, LOCK_EX | LOCK_NB) < 0)
		return errno == EWOULDBLOCK ? -EBUSY : -errno;
	if (fstat(fd, &st) < 0)
		return -errno;
	if (!st.st_nlink) // who had it before us is done
		return -ENOENT;
	*claimed = steal_fd(&fd);
	return 0;
}
