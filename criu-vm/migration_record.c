// SPDX-License-Identifier: GPL-2.0-only
#include "criu-vm/migration_record.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "criu-vm/process.h"
#include "criu-vm/state_dir.h"
#include "pvmem/swap_trailer.h"
#include "util/cleanup.h"
#include "util/io.h"
#include "util/log.h"

#define FOLDER "migrations"
#define KEEP_S (30 * 24 * 3600)
#define COMMITTED "committed "
#define ABORTED "aborted\n"
#define RECORD_MAX (sizeof COMMITTED + RUN_DIR_NAME_MAX + 1)
#define SOURCE_SUFFIX ".source"
#define SOURCE_MAX 65536
#define FILE_LEN (WIRE_TOKEN_TEXT + 32)

static int failed(const char *file, int err)
{
	char dir[PATH_MAX];

	log_err("the record of a migration, %s/%s: %s", state_dir(FOLDER, dir), file, strerror(-err));
	return err;
}

static int open_folder(int *fd)
{
	char dir[PATH_MAX];
	int r = state_dir_make(state_dir(FOLDER, dir));

	if (r < 0)
		return r;
	*fd = open(dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	return *fd < 0 ? -errno : 0;
}

// A new file with this content, on disk; but that it has this name may be forgotten in a crash.
static int write_synced(int dir, const char *file, const char *text)
{
	_cleanup_close_ int fd = openat(dir, file, O_WRONLY | O_CREAT | O_TRUNC | O_NOFOLLOW | O_CLOEXEC, 0600);
	int r = fd < 0 ? -errno : io_write_full(fd, text, strlen(text));

	if (!r && fsync(fd) < 0)
		r = -errno;
	if (r && fd >= 0)
		unlinkat(dir, file, 0);
	return r;
}

static const char *prepared_name(const uint8_t token[WIRE_TOKEN_LEN], char buf[FILE_LEN])
{
	char text[WIRE_TOKEN_TEXT];

	snprintf(buf, FILE_LEN, ".%s.prepared", wire_token_format(token, text));
	return buf;
}

int migration_prepare(const uint8_t token[WIRE_TOKEN_LEN], const char *name)
{
	char file[FILE_LEN], text[RECORD_MAX + 1];
	_cleanup_close_ int dir = -1;
	int r = open_folder(&dir);

	snprintf(text, sizeof text, COMMITTED "%s\n", name);
	if (!r)
		r = write_synced(dir, prepared_name(token, file), text);
	return r ? failed(file, r) : 0;
}

void migration_unprepare(const uint8_t token[WIRE_TOKEN_LEN])
{
	char file[FILE_LEN], path[PATH_MAX];
	_cleanup_close_ int dir = open(state_dir(FOLDER, path), O_RDONLY | O_DIRECTORY | O_CLOEXEC);

	if (dir >= 0)
		unlinkat(dir, prepared_name(token, file), 0);
}

static int parse(char *text, size_t len, enum migration_decision *is, char name[RUN_DIR_NAME_MAX + 1])
{
	if (!strcmp(text, ABORTED)) {
		*is = MIGRATION_ABORTED;
		return 0;
	}
	if (strncmp(text, COMMITTED, strlen(COMMITTED)) != 0 || len != strlen(text) || text[len - 1] != '\n')
		return -EBADMSG;
	text[len - 1] = 0;
	if (!run_dir_name_ok(text + strlen(COMMITTED)))
		return -EBADMSG;
	*is = MIGRATION_COMMITTED;
	if (name)
		snprintf(name, RUN_DIR_NAME_MAX + 1, "%.*s", RUN_DIR_NAME_MAX, text + strlen(COMMITTED));
	return 0;
}

// *is is set as soon as it is known; an error behind that: it may be forgotten.
static int read_record(int dir, const char *file, enum migration_decision *is, char name[RUN_DIR_NAME_MAX + 1])
{
	_cleanup_close_ int fd = openat(dir, file, O_RDONLY | O_NOFOLLOW | O_CLOEXEC);
	char text[RECORD_MAX + 1] = "";
	struct stat st;
	int r;

	if (fd < 0)
		return errno == ENOENT ? 0 : -errno;
	if (fstat(fd, &st) < 0)
		return -errno;
	if (!S_ISREG(st.st_mode) || st.st_size <= 0 || st.st_size > (off_t)RECORD_MAX)
		return -EBADMSG;
	r = io_pread_full(fd, text, (size_t)st.st_size, 0);
	if (!r)
		r = parse(text, (size_t)st.st_size, is, name);
	// Who made it may have been killed before it was known to be on disk.
	return r ? r : fsync(fd) < 0 || fsync(dir) < 0 ? -errno : 0;
}

// *tmp: a file with this text that is on disk.
static int make_text(int dir, const uint8_t token[WIRE_TOKEN_LEN], enum migration_decision want, const char *name, char tmp[FILE_LEN])
{
	char file[WIRE_TOKEN_TEXT], text[RECORD_MAX + 1] = ABORTED;

	if (want == MIGRATION_COMMITTED) {
		if (!faccessat(dir, prepared_name(token, tmp), F_OK, 0))
			return 0;
		snprintf(text, sizeof text, COMMITTED "%s\n", name);
	}
	snprintf(tmp, FILE_LEN, ".%s.%d", wire_token_format(token, file), getpid());
	return write_synced(dir, tmp, text);
}

int migration_decide(const uint8_t token[WIRE_TOKEN_LEN], enum migration_decision want, const char *name, enum migration_decision *is)
{
	char file[WIRE_TOKEN_TEXT], tmp[FILE_LEN];
	_cleanup_close_ int dir = -1;
	int made, r;

	*is = MIGRATION_UNDECIDED;
	wire_token_format(token, file);
	r = open_folder(&dir);
	if (r)
		return failed(file, r);
	made = make_text(dir, token, want, name, tmp);
	if (!made && !renameat2(dir, tmp, dir, file, RENAME_NOREPLACE)) {
		*is = want;
		return fsync(dir) < 0 ? failed(file, -errno) : 0;
	}
	if (!made) {
		made = errno == EEXIST ? 0 : -errno;
		unlinkat(dir, tmp, 0);
	}
	// Whatever went wrong with making it: what others see is what counts.
	r = read_record(dir, file, is, NULL);
	if (!r && *is == MIGRATION_UNDECIDED)
		r = made ? made : -ENOENT;
	return r ? failed(file, r) : 0;
}

int migration_decided(const uint8_t token[WIRE_TOKEN_LEN], enum migration_decision *is, char name[RUN_DIR_NAME_MAX + 1])
{
	char file[WIRE_TOKEN_TEXT], path[PATH_MAX];
	_cleanup_close_ int dir = open(state_dir(FOLDER, path), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	int r;

	*is = MIGRATION_UNDECIDED;
	wire_token_format(token, file);
	r = dir >= 0 ? read_record(dir, file, is, name) : errno == ENOENT ? 0 : -errno;
	return r ? failed(file, r) : 0;
}

static void remove_file(const uint8_t token[WIRE_TOKEN_LEN], const char *suffix)
{
	char file[WIRE_TOKEN_TEXT], name[FILE_LEN], path[PATH_MAX];
	_cleanup_close_ int dir = open(state_dir(FOLDER, path), O_RDONLY | O_DIRECTORY | O_CLOEXEC);

	snprintf(name, sizeof name, "%s%s", wire_token_format(token, file), suffix);
	if (dir >= 0 && unlinkat(dir, name, 0) < 0 && errno != ENOENT)
		log_warn("cannot remove %s/%s: %s", path, name, strerror(errno));
	else if (dir >= 0)
		fsync(dir);
}

void migration_forget(const uint8_t token[WIRE_TOKEN_LEN])
{
	remove_file(token, "");
}

// An aborted one that is missing is made anew for who asks; a committed one never goes but by migration_forget().
static void sweep_one(int dir, const char *file)
{
	enum migration_decision is = MIGRATION_UNDECIDED;
	uint8_t token[WIRE_TOKEN_LEN];
	struct stat st;

	if (fstatat(dir, file, &st, AT_SYMLINK_NOFOLLOW) < 0 || time(NULL) - st.st_mtime < KEEP_S)
		return;
	if (file[0] == '.' || (!wire_token_parse(file, token) && !read_record(dir, file, &is, NULL) && is == MIGRATION_ABORTED))
		unlinkat(dir, file, 0);
}

void migration_sweep(void)
{
	char path[PATH_MAX];
	DIR *d = opendir(state_dir(FOLDER, path));
	const struct dirent *e;

	while (d && (e = readdir(d)))
		if (strcmp(e->d_name, ".") != 0 && strcmp(e->d_name, "..") != 0)
			sweep_one(dirfd(d), e->d_name);
	if (d)
		closedir(d);
}

// ---- of the source

static int source_text(const struct migration_source *s, char **text)
{
	char boot[PV_BOOT_ID_LEN + 1];
	json_t *j;
	int r = pv_boot_id(boot);

	if (r)
		return r;
	j = json_pack("{s:i s:I s:s s:b s:s s:s s:s?}", "pid", (int)s->pid, "start", (json_int_t)s->start, "boot", boot, "was_running",
		      s->was_running, "vm", s->vm, "host", s->host, "tls", s->tls);
	*text = j ? json_dumps(j, JSON_INDENT(1)) : NULL;
	json_decref(j);
	return *text ? 0 : -EINVAL;
}

int migration_source_save(const struct migration_source *s)
{
	char token[WIRE_TOKEN_TEXT], file[FILE_LEN], tmp[FILE_LEN];
	_cleanup_close_ int dir = -1;
	_cleanup_free_ char *text = NULL;
	int r = open_folder(&dir);

	snprintf(file, sizeof file, "%s" SOURCE_SUFFIX, wire_token_format(s->token, token));
	snprintf(tmp, sizeof tmp, ".%s" SOURCE_SUFFIX, token);
	if (!r)
		r = source_text(s, &text);
	if (!r)
		r = write_synced(dir, tmp, text);
	if (!r && (renameat(dir, tmp, dir, file) < 0 || fsync(dir) < 0))
		r = -errno;
	return r ? failed(file, r) : 0;
}

void migration_source_remove(const uint8_t token[WIRE_TOKEN_LEN])
{
	remove_file(token, SOURCE_SUFFIX);
}

void migration_source_fini(struct migration_source *s)
{
	free(s->vm);
	free(s->host);
	free(s->tls);
	*s = (struct migration_source){ .pid = 0 };
}

static int from_json(json_t *j, const char *boot, struct migration_source *s, bool *of_this_boot)
{
	const char *was, *vm, *host, *tls = json_string_value(json_object_get(j, "tls"));
	int pid, was_running;
	json_int_t start;

	if (json_unpack(j, "{s:i s:I s:s s:b s:s s:s}", "pid", &pid, "start", &start, "boot", &was, "was_running", &was_running, "vm", &vm, "host",
			&host))
		return -EBADMSG;
	s->pid = pid;
	s->start = (uint64_t)start;
	s->was_running = was_running;
	s->vm = strdup(vm);
	s->host = strdup(host);
	s->tls = tls ? strdup(tls) : NULL;
	*of_this_boot = !strcmp(was, boot);
	return s->vm && s->host && (!tls || s->tls) ? 0 : -ENOMEM;
}

// The one in this file, if it is of a process that there is: *alive.
static int load_source(int dir, const char *file, const char *boot, struct migration_source *s, bool *alive)
{
	_cleanup_free_ char *text = NULL;
	char path[40 + FILE_LEN];
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

// A token, and the suffix.
static bool is_source(const char *file, uint8_t token[WIRE_TOKEN_LEN])
{
	char text[WIRE_TOKEN_TEXT];

	if (strlen(file) != WIRE_TOKEN_TEXT - 1 + strlen(SOURCE_SUFFIX) || strcmp(file + WIRE_TOKEN_TEXT - 1, SOURCE_SUFFIX) != 0)
		return false;
	snprintf(text, sizeof text, "%.*s", WIRE_TOKEN_TEXT - 1, file);
	return !wire_token_parse(text, token);
}

static int find_in(DIR *d, pid_t pid, const char *boot, struct migration_source *found)
{
	const struct dirent *e;

	while ((e = readdir(d))) {
		struct migration_source s = { .pid = 0 };
		bool alive = false;
		int r;

		if (!is_source(e->d_name, s.token))
			continue;
		r = load_source(dirfd(d), e->d_name, boot, &s, &alive);
		if (!r && alive && s.pid == pid) {
			*found = s;
			return 0;
		}
		migration_source_fini(&s);
		if (r && r != -ENOENT)
			failed(e->d_name, r); // whose it is nobody knows
		else if (!r && !alive)
			unlinkat(dirfd(d), e->d_name, 0);
	}
	return -ENOENT;
}

int migration_source_find(pid_t pid, struct migration_source *s)
{
	char path[PATH_MAX], boot[PV_BOOT_ID_LEN + 1];
	DIR *d;
	int r = pv_boot_id(boot);

	*s = (struct migration_source){ .pid = 0 };
	if (r)
		return failed("", r);
	d = opendir(state_dir(FOLDER, path));
	if (!d)
		return errno == ENOENT ? -ENOENT : failed("", -errno);
	r = find_in(d, pid, boot, s);
	closedir(d);
	return r;
}
