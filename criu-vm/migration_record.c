// SPDX-License-Identifier: GPL-2.0-only
#include "criu-vm/migration_record_int.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "util/cleanup.h"
#include "util/io.h"
#include "util/log.h"

#define KEEP_S (30 * 24 * 3600)
#define LEFT_S 3600 // written within a second, but for what is prepared: without that, a commit writes it itself
#define ID_FILE "id"
#define COMMITTED "committed "
#define ABORTED "aborted\n"
#define RECORD_MAX (sizeof COMMITTED + RUN_DIR_NAME_MAX + 1)

int migration_failed(const char *file, int err)
{
	char dir[PATH_MAX];

	log_err("the record of a migration, %s/%s: %s", state_dir(MIGRATION_FOLDER, dir), file, strerror(-err));
	return err;
}

int migration_open_folder(int *fd)
{
	char dir[PATH_MAX];
	int r = state_dir_make(state_dir(MIGRATION_FOLDER, dir));

	if (r < 0)
		return r;
	*fd = open(dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	return *fd < 0 ? -errno : 0;
}

int migration_write_synced(int dir, const char *file, const char *text)
{
	_cleanup_close_ int fd = openat(dir, file, O_WRONLY | O_CREAT | O_TRUNC | O_NOFOLLOW | O_CLOEXEC, 0600);
	int r = fd < 0 ? -errno : io_write_full(fd, text, strlen(text));

	if (!r && fsync(fd) < 0)
		r = -errno;
	if (r && fd >= 0)
		unlinkat(dir, file, 0);
	return r;
}

static const char *prepared_name(const uint8_t token[WIRE_TOKEN_LEN], char buf[MIGRATION_FILE_LEN])
{
	char text[WIRE_TOKEN_TEXT];

	snprintf(buf, MIGRATION_FILE_LEN, ".%s.prepared", wire_token_format(token, text));
	return buf;
}

int migration_prepare(const uint8_t token[WIRE_TOKEN_LEN], const char *name)
{
	char file[MIGRATION_FILE_LEN], text[RECORD_MAX + 1];
	_cleanup_close_ int dir = -1;
	int r = migration_open_folder(&dir);

	snprintf(text, sizeof text, COMMITTED "%s\n", name);
	if (!r)
		r = migration_write_synced(dir, prepared_name(token, file), text);
	return r ? migration_failed(file, r) : 0;
}

void migration_unprepare(const uint8_t token[WIRE_TOKEN_LEN])
{
	char file[MIGRATION_FILE_LEN], path[PATH_MAX];
	_cleanup_close_ int dir = open(state_dir(MIGRATION_FOLDER, path), O_RDONLY | O_DIRECTORY | O_CLOEXEC);

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
static int make_text(int dir, const uint8_t token[WIRE_TOKEN_LEN], enum migration_decision want, const char *name, char tmp[MIGRATION_FILE_LEN])
{
	char file[WIRE_TOKEN_TEXT], text[RECORD_MAX + 1] = ABORTED;

	if (want == MIGRATION_COMMITTED) {
		if (!faccessat(dir, prepared_name(token, tmp), F_OK, 0))
			return 0;
		snprintf(text, sizeof text, COMMITTED "%s\n", name);
	}
	snprintf(tmp, MIGRATION_FILE_LEN, ".%s.%d", wire_token_format(token, file), getpid());
	return migration_write_synced(dir, tmp, text);
}

int migration_decide(const uint8_t token[WIRE_TOKEN_LEN], enum migration_decision want, const char *name, enum migration_decision *is)
{
	char file[WIRE_TOKEN_TEXT], tmp[MIGRATION_FILE_LEN];
	_cleanup_close_ int dir = -1;
	int made, r;

	*is = MIGRATION_UNDECIDED;
	wire_token_format(token, file);
	r = migration_open_folder(&dir);
	if (r)
		return migration_failed(file, r);
	made = make_text(dir, token, want, name, tmp);
	if (!made && !renameat2(dir, tmp, dir, file, RENAME_NOREPLACE)) {
		*is = want;
		return fsync(dir) < 0 ? migration_failed(file, -errno) : 0;
	}
	if (!made) {
		made = errno == EEXIST ? 0 : -errno;
		unlinkat(dir, tmp, 0);
	}
	// Whatever went wrong with making it: what others see is what counts.
	r = read_record(dir, file, is, NULL);
	if (!r && *is == MIGRATION_UNDECIDED)
		r = made ? made : -ENOENT;
	return r ? migration_failed(file, r) : 0;
}

int migration_decided(const uint8_t token[WIRE_TOKEN_LEN], enum migration_decision *is, char name[RUN_DIR_NAME_MAX + 1])
{
	char file[WIRE_TOKEN_TEXT], path[PATH_MAX];
	_cleanup_close_ int dir = open(state_dir(MIGRATION_FOLDER, path), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	int r;

	*is = MIGRATION_UNDECIDED;
	wire_token_format(token, file);
	r = dir >= 0 ? read_record(dir, file, is, name) : errno == ENOENT ? 0 : -errno;
	return r ? migration_failed(file, r) : 0;
}

int migration_read_json(int dir, const char *file, size_t max, json_t **json)
{
	_cleanup_free_ char *text = NULL;
	char path[40 + MIGRATION_FILE_LEN];
	size_t len;
	int r;

	snprintf(path, sizeof path, "/proc/self/fd/%d/%s", dir, file);
	r = io_read_file(path, max, &text, &len);
	if (r)
		return r;
	*json = json_loadb(text, len, 0, NULL);
	return *json ? 0 : -EBADMSG;
}

void migration_remove_file(const uint8_t token[WIRE_TOKEN_LEN], const char *suffix)
{
	char file[WIRE_TOKEN_TEXT], name[MIGRATION_FILE_LEN], path[PATH_MAX];
	_cleanup_close_ int dir = open(state_dir(MIGRATION_FOLDER, path), O_RDONLY | O_DIRECTORY | O_CLOEXEC);

	snprintf(name, sizeof name, "%s%s", wire_token_format(token, file), suffix);
	if (dir >= 0 && unlinkat(dir, name, 0) < 0 && errno != ENOENT)
		log_warn("cannot remove %s/%s: %s", path, name, strerror(errno));
	else if (dir >= 0)
		fsync(dir);
}

void migration_forget(const uint8_t token[WIRE_TOKEN_LEN])
{
	migration_remove_file(token, "");
}

// An aborted one that is missing is made anew for who asks; a committed one never goes but by migration_forget().
static void sweep_one(int dir, const char *file)
{
	enum migration_decision is = MIGRATION_UNDECIDED;
	uint8_t token[WIRE_TOKEN_LEN];
	struct stat st;

	if (fstatat(dir, file, &st, AT_SYMLINK_NOFOLLOW) < 0 || time(NULL) - st.st_mtime < (file[0] == '.' ? LEFT_S : KEEP_S))
		return;
	if (file[0] == '.' || migration_lazy_may_go(dir, file) ||
	    (!wire_token_parse(file, token) && !read_record(dir, file, &is, NULL) && is == MIGRATION_ABORTED))
		unlinkat(dir, file, 0);
}

void migration_sweep(void)
{
	char path[PATH_MAX];
	DIR *d = opendir(state_dir(MIGRATION_FOLDER, path));
	const struct dirent *e;

	while (d && (e = readdir(d)))
		if (strcmp(e->d_name, ".") != 0 && strcmp(e->d_name, "..") != 0)
			sweep_one(dirfd(d), e->d_name);
	if (d)
		closedir(d);
}

// ---- whose these are

static int read_id(int dir, uint8_t id[WIRE_TOKEN_LEN])
{
	_cleanup_close_ int fd = openat(dir, ID_FILE, O_RDONLY | O_NOFOLLOW | O_CLOEXEC);
	char text[WIRE_TOKEN_TEXT] = "";
	int r = fd < 0 ? -errno : io_read_full(fd, text, sizeof text - 1);

	if (!r)
		r = wire_token_parse(text, id);
	// Who made it may have been killed before it was known to be on disk.
	return r ? r : fsync(fd) < 0 || fsync(dir) < 0 ? -errno : 0;
}

int migration_host_id(uint8_t id[WIRE_TOKEN_LEN])
{
	char text[WIRE_TOKEN_TEXT], tmp[MIGRATION_FILE_LEN];
	_cleanup_close_ int dir = -1;
	int r = migration_open_folder(&dir);

	if (!r)
		r = read_id(dir, id);
	if (r != -ENOENT)
		return r ? migration_failed(ID_FILE, r) : 0;
	snprintf(tmp, sizeof tmp, ".%s.%d", ID_FILE, getpid());
	r = wire_token_new(id);
	if (!r)
		r = migration_write_synced(dir, tmp, wire_token_format(id, text));
	if (!r && renameat2(dir, tmp, dir, ID_FILE, RENAME_NOREPLACE) < 0) {
		r = errno == EEXIST ? 0 : -errno;
		unlinkat(dir, tmp, 0);
	}
	if (!r)
		r = read_id(dir, id); // another process may have been first
	return r ? migration_failed(ID_FILE, r) : 0;
}
