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
#include <sys/stat.h>
#include <unistd.h>

#include "criu-vm/migration_record_int.h"
#include "pvmem/swap_trailer.h"
#include "qemu/ramblock.h"
#include "util/cleanup.h"
#include "util/process.h"
#include "util/size.h"

#define SUFFIX ".source"
#define CLAIM ".claim"
#define STATUS ".status"
#define SOURCE_MAX (1 << 20)
#define MAX_BLOCKS 256

static const char *file_name(const uint8_t token[WIRE_TOKEN_LEN], const char *suffix, char file[MIGRATION_FILE_LEN])
{
	char text[WIRE_TOKEN_TEXT];

	snprintf(file, MIGRATION_FILE_LEN, "%s%s", wire_token_format(token, text), suffix);
	return file;
}

// ---- its text

_Static_assert(WIRE_KEY_LEN == WIRE_TOKEN_LEN, "a key is written as a token is");

static json_t *lazy_to_json(const struct migration_source *s)
{
	char key[WIRE_TOKEN_TEXT];
	json_t *blocks = json_array();

	for (size_t i = 0; i < s->nr_blocks; i++)
		json_array_append_new(blocks, json_pack("{s:s s:I s:I}", "name", s->blocks[i].name, "len", (json_int_t)s->blocks[i].len, "hva",
							(json_int_t)s->blocks[i].hva));
	return json_pack("{s:b s:I s:I s:s s:i s:i s:I s:s s:s? s:o}", "committed", s->committed, "left_ns", (json_int_t)s->left_ns,
			 "ran_ns", (json_int_t)s->ran_ns, "key", wire_token_format(s->key, key), "lines", (int)s->lines, "zstd", s->zstd, "bandwidth", (json_int_t)s->bandwidth, "there",
			 s->there, "run_root", s->run_root, "blocks", blocks);
}

static int to_text(const struct migration_source *s, char **text)
{
	char boot[PV_BOOT_ID_LEN + 1], id[WIRE_TOKEN_TEXT];
	json_t *j;
	int r = pv_boot_id(boot);

	if (r)
		return r;
	j = json_pack("{s:i s:I s:s s:b s:s s:s? s:s s:s s:s? s:b}", "pid", (int)s->pid, "start", (json_int_t)s->start, "boot", boot, "was_running",
		      s->was_running, "vm", s->vm, "name", s->name, "host", s->host, "host_id", wire_token_format(s->host_id, id), "tls", s->tls,
		      "insecure", s->insecure);
	if (j && s->lazy && json_object_set_new(j, "lazy", lazy_to_json(s))) {
		json_decref(j);
		j = NULL;
	}
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

static int blocks_from_json(const json_t *blocks, struct migration_source *s)
{
	size_t nr = json_array_size(blocks);

	if (!nr || nr > MAX_BLOCKS)
		return -EBADMSG;
	s->blocks = calloc(nr, sizeof *s->blocks);
	if (!s->blocks)
		return -ENOMEM;
	for (s->nr_blocks = 0; s->nr_blocks < nr; s->nr_blocks++) {
		struct qemu_ramblock *b = &s->blocks[s->nr_blocks];
		json_int_t len, hva;
		const char *name;

		if (json_unpack(json_array_get(blocks, s->nr_blocks), "{s:s s:I s:I}", "name", &name, "len", &len, "hva", &hva) || len <= 0 ||
		    (uint64_t)len % PAGE_SIZE || strlen(name) >= sizeof b->name)
			return -EBADMSG;
		strcpy(b->name, name);
		b->len = (uint64_t)len;
		b->hva = (uint64_t)hva;
	}
	return 0;
}

static int lazy_from_json(json_t *j, struct migration_source *s)
{
	const char *key, *there;
	json_int_t left_ns, ran_ns, bandwidth;
	json_t *blocks;
	int committed, lines;

	if (!j)
		return 0;
	if (json_unpack(j, "{s:b s:I s:I s:s s:i s:i s:I s:s s:o}", "committed", &committed, "left_ns", &left_ns, "ran_ns", &ran_ns, "key", &key, "lines", &lines, "zstd",
			&s->zstd, "bandwidth", &bandwidth, "there", &there, "blocks", &blocks) ||
	    wire_token_parse(key, s->key) || lines < 1 || lines > WIRE_MAX_CHANNELS)
		return -EBADMSG;
	s->lazy = true;
	s->committed = committed;
	s->left_ns = (uint64_t)left_ns;
	s->ran_ns = (uint64_t)ran_ns;
	s->lines = (unsigned)lines;
	s->bandwidth = (uint64_t)bandwidth;
	if (take_string(j, "there", &s->there) || take_string(j, "run_root", &s->run_root))
		return -ENOMEM;
	return blocks_from_json(blocks, s);
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
	s->insecure = json_is_true(json_object_get(j, "insecure"));
	*of_this_boot = !strcmp(was, boot);
	if (take_string(j, "vm", &s->vm) || take_string(j, "name", &s->name) || take_string(j, "host", &s->host) || take_string(j, "tls", &s->tls))
		return -ENOMEM;
	return lazy_from_json(json_object_get(j, "lazy"), s);
}

// Only that it is not there, or that it is another one, says so.
static bool has_ended(const struct migration_source *s)
{
	uint64_t start = process_start(s->pid);
	char path[32];

	snprintf(path, sizeof path, "/proc/%d", s->pid);
	return start ? start != s->start : access(path, F_OK) < 0 && errno == ENOENT;
}

// The one in this file. *alive: of a process that there is; or of one whose pages somebody serves, as far as they can be read.
static int load(int dir, const char *file, const char *boot, struct migration_source *s, bool *alive)
{
	bool of_this_boot = false;
	json_t *j;
	int r = migration_read_json(dir, file, SOURCE_MAX, &j);

	if (r)
		return r;
	r = from_json(j, boot, s, &of_this_boot);
	json_decref(j);
	*alive = !r && of_this_boot && (!has_ended(s) || (s->lazy && migration_source_is_claimed(s->token)));
	return r;
}

void migration_source_fini(struct migration_source *s)
{
	free(s->vm);
	free(s->name);
	free(s->host);
	free(s->tls);
	free(s->there);
	free(s->run_root);
	free(s->blocks);
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

int migration_source_for_each(int (*fn)(void *ctx, struct migration_source *s), void *ctx)
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
			migration_source_remove(s.token);
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
	r = migration_source_for_each(is_wanted, &w);
	return r == 1 ? 0 : r ? r : -ENOENT;
}

int migration_source_load(const uint8_t token[WIRE_TOKEN_LEN], struct migration_source *s)
{
	char path[PATH_MAX], file[MIGRATION_FILE_LEN], boot[PV_BOOT_ID_LEN + 1];
	_cleanup_close_ int dir = open(state_dir(MIGRATION_FOLDER, path), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	bool alive;
	int r = dir < 0 ? -errno : pv_boot_id(boot);

	*s = (struct migration_source){ .pid = 0 };
	memcpy(s->token, token, WIRE_TOKEN_LEN);
	if (!r)
		r = load(dir, file_name(token, SUFFIX, file), boot, s, &alive);
	if (r)
		migration_source_fini(s);
	return r;
}

static int remove_other(void *ctx, struct migration_source *s)
{
	const struct migration_source *stays = ctx;

	if (s->pid == stays->pid && !s->committed && memcmp(s->token, stays->token, WIRE_TOKEN_LEN) != 0)
		migration_source_remove(s->token);
	return 0;
}

int migration_source_save(const struct migration_source *s)
{
	char file[MIGRATION_FILE_LEN], tmp[MIGRATION_FILE_LEN + 1];
	_cleanup_close_ int dir = -1;
	_cleanup_free_ char *text = NULL;
	int r = migration_source_for_each(remove_other, (void *)s);

	file_name(s->token, SUFFIX, file);
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
	migration_remove_file(token, STATUS);
	migration_remove_file(token, CLAIM);
}

// ---- one at a time

// Who claims: locked by the open file, as flock() does, but that it can be looked at without being taken.
static int lock(int fd, int command, bool *locked)
{
	struct flock l = { .l_type = F_WRLCK, .l_whence = SEEK_SET };

	if (fcntl(fd, command, &l) < 0)
		return errno == EAGAIN || errno == EACCES ? -EBUSY : -errno;
	if (locked)
		*locked = l.l_type != F_UNLCK;
	return 0;
}

static int open_claim(int dir, const char *file)
{
	return openat(dir, file, O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0600);
}

int migration_source_claim(const uint8_t token[WIRE_TOKEN_LEN], int *claimed)
{
	char path[PATH_MAX], record[MIGRATION_FILE_LEN], file[MIGRATION_FILE_LEN];
	_cleanup_close_ int dir = open(state_dir(MIGRATION_FOLDER, path), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	_cleanup_close_ int fd = -1;
	struct stat st;
	int r;

	file_name(token, SUFFIX, record);
	if (dir < 0 || faccessat(dir, record, F_OK, AT_SYMLINK_NOFOLLOW) < 0 || (fd = open_claim(dir, file_name(token, CLAIM, file))) < 0)
		return -errno;
	r = lock(fd, F_OFD_SETLK, NULL);
	if (r)
		return r;
	if (fstat(fd, &st) < 0)
		return -errno;
	// Who had it before us is done, and has removed both, or is about to: the record goes first.
	if (!st.st_nlink || faccessat(dir, record, F_OK, AT_SYMLINK_NOFOLLOW) < 0) {
		if (st.st_nlink)
			unlinkat(dir, file, 0);
		return -ENOENT;
	}
	*claimed = steal_fd(&fd);
	return 0;
}

bool migration_source_is_claimed(const uint8_t token[WIRE_TOKEN_LEN])
{
	char path[PATH_MAX], file[MIGRATION_FILE_LEN];
	_cleanup_close_ int dir = open(state_dir(MIGRATION_FOLDER, path), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	_cleanup_close_ int fd = dir < 0 ? -1 : openat(dir, file_name(token, CLAIM, file), O_RDWR | O_CLOEXEC | O_NOFOLLOW);
	bool locked = false;

	return fd >= 0 && !lock(fd, F_OFD_GETLK, &locked) && locked;
}
