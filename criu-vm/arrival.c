// SPDX-License-Identifier: GPL-2.0-only
#include "criu-vm/arrival.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "criu-vm/migration_lazy.h"
#include "qemu/cmdline.h"
#include "util/cleanup.h"
#include "util/io.h"
#include "util/log.h"
#include "util/size.h"
#include "util/user.h"

#define TOKEN_FILE "token"
#define RUNNING_FILE "running"
#define MONITORS_FILE "monitors"
#define AGAIN_S 1

int arrival_mark(const struct run_dir *rd, const uint8_t token[WIRE_TOKEN_LEN])
{
	char text[WIRE_TOKEN_TEXT];

	return run_dir_mark(rd, TOKEN_FILE, wire_token_format(token, text));
}

int arrival_token(const struct run_dir *rd, uint8_t token[WIRE_TOKEN_LEN])
{
	_cleanup_free_ char *text = NULL;
	char path[PATH_MAX];
	size_t len;
	int r = io_read_file(run_dir_file(rd, TOKEN_FILE, path, sizeof path), WIRE_TOKEN_TEXT, &text, &len);

	if (!r)
		r = wire_token_parse(text, token);
	if (r && r != -ENOENT)
		log_err("cannot read %s: %s", path, strerror(-r));
	return r;
}

// Has it never become this host's, for certain?
static bool has_not_come(const struct run_dir *rd, const uint8_t token[WIRE_TOKEN_LEN])
{
	enum migration_decision is;

	return !run_dir_has(rd, RUNNING_FILE) && !migration_decided(token, &is, NULL) && is != MIGRATION_COMMITTED;
}

void arrival_note_end(const struct run_dir *rd)
{
	uint8_t token[WIRE_TOKEN_LEN];
	struct migration_lazy l;

	if (arrival_token(rd, token) || migration_lazy_find(token, &l))
		return;
	if (has_not_come(rd, token)) {
		migration_lazy_remove(token);
	} else if (l.state == WIRE_LINE_WANTS) {
		l.state = WIRE_LINE_ENDED;
		migration_lazy_save(token, &l);
	}
	migration_lazy_fini(&l);
}

bool arrival_has_run(const struct run_dir *rd)
{
	_cleanup_free_ char *text = NULL;
	char path[PATH_MAX];
	size_t len;

	return !io_read_file(run_dir_file(rd, RUNNING_FILE, path, sizeof path), PATH_MAX, &text, &len) && !len;
}

int arrival_hide_monitors(const struct run_dir *rd, uid_t uid, gid_t gid, char *const *argv)
{
	_cleanup_free_ char *text = NULL;
	size_t len;
	FILE *f = open_memstream(&text, &len);
	int r;

	if (!f)
		return -ENOMEM;
	fprintf(f, "%u %u\n", uid, gid);
	r = qemu_cmdline_hidden(argv, f);
	return fclose(f) || r ? -ENOMEM : run_dir_mark(rd, MONITORS_FILE, text);
}

struct monitors {
	char *paths; // a line each
	int cwd;
};

// The directory is one that QEMU's user can write, the socket is QEMU's: nothing is done that the user could not do.
static int show(void *ctx)
{
	const struct monitors *m = ctx;
	char *rest = m->paths, *path;
	int r = 0;

	while ((path = strsep(&rest, "\n"))) {
		size_t len = strlen(path), ending = strlen(QEMU_CMDLINE_HIDDEN);
		_cleanup_free_ char *own = len > ending ? strndup(path, len - ending) : NULL;

		if (own && renameat(m->cwd, path, m->cwd, own) < 0 && errno != ENOENT)
			r = -errno;
	}
	return r;
}

void arrival_show_monitors(const struct run_dir *rd, pid_t qemu)
{
	_cleanup_free_ char *text = NULL;
	_cleanup_close_ int cwd = -1;
	struct monitors m;
	unsigned uid, gid;
	char path[PATH_MAX];
	size_t len;
	int r = io_read_file(run_dir_file(rd, MONITORS_FILE, path, sizeof path), MiB, &text, &len);

	if (r || sscanf(text, "%u %u", &uid, &gid) != 2 || !strchr(text, '\n') || !strchr(text, '\n')[1])
		return; // it has none
	snprintf(path, sizeof path, "/proc/%d/cwd", qemu);
	cwd = open(path, O_PATH | O_DIRECTORY | O_CLOEXEC);
	m = (struct monitors){ .paths = strchr(text, '\n') + 1, .cwd = cwd };
	r = cwd < 0 ? -errno : user_call(uid, gid, show, &m);
	if (r)
		log_warn("a monitor of the VM has not got its name back, and is still called ..." QEMU_CMDLINE_HIDDEN ": %s", strerror(-r));
}

bool arrival_is_committed(const struct run_dir *rd)
{
	enum migration_decision is = MIGRATION_UNDECIDED;
	uint8_t token[WIRE_TOKEN_LEN];
	int r;

	while ((r = arrival_token(rd, token)) != -ENOENT) {
		if (!r && !migration_decided(token, &is, NULL))
			return is == MIGRATION_COMMITTED;
		sleep(AGAIN_S);
	}
	return false;
}
