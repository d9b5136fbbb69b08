// SPDX-License-Identifier: GPL-2.0-only
#include "util/user.h"

#include <errno.h>
#include <grp.h>
#include <limits.h>
#include <linux/close_range.h>
#include <pwd.h>
#include <stdlib.h>
#include <sys/wait.h>
#include <unistd.h>


struct groups {
	gid_t *list;
	int nr;
};

// Of the user, and this one.
static int groups_get(const struct passwd *pw, gid_t gid, struct groups *g)
{
	g->nr = NGROUPS_MAX;
	g->list = calloc((size_t)g->nr, sizeof *g->list);
	if (!g->list)
		return -ENOMEM;
	if (pw)
		return getgrouplist(pw->pw_name, gid, g->list, &g->nr) < 0 ? -E2BIG : 0;
	g->list[0] = gid;
	g->nr = 1;
	return 0;
}

bool user_in_group(uid_t uid, gid_t gid)
{
	const struct passwd *pw = getpwuid(uid);
	struct groups g = { 0 };
	bool found = false;

	if (pw && !groups_get(pw, pw->pw_gid, &g))
		for (int i = 0; i < g.nr; i++)
			found |= g.list[i] == gid;
	free(g.list);
	return found;
}

static bool stays(uid_t uid)
{
	return geteuid() || !uid;
}

static int become(uid_t uid, gid_t gid, const struct groups *g)
{
	return setgroups((size_t)g->nr, g->list) || setresgid(gid, gid, gid) || setresuid(uid, uid, uid) ? -errno : 0;
}

int user_become(uid_t uid, gid_t gid)
{
	struct groups g = { 0 };
	int r;

	if (stays(uid))
		return 0;
	r = groups_get(getpwuid(uid), gid, &g);
	if (!r)
		r = become(uid, gid, &g);
	free(g.list);
	return r;
}

// The session: a program of that user's must not reach our terminal.
static void __attribute__((noreturn)) be_child(uid_t uid, gid_t gid, const struct groups *g, int (*fn)(void *ctx), void *ctx)
{
	int r;

	setsid();
	close_range(STDERR_FILENO + 1, ~0U, CLOSE_RANGE_CLOEXEC);
	r = become(uid, gid, g);
	_exit(-(r ? r : fn(ctx)));
}

int user_call(uid_t uid, gid_t gid, int (*fn)(void *ctx), void *ctx)
{
	struct groups g = { 0 };
	int r, status;
	pid_t pid;

	if (stays(uid))
		return fn(ctx);
	r = groups_get(getpwuid(uid), gid, &g); // not in the child: another thread may have held the database's lock
	pid = r ? 0 : fork();
	if (!r && !pid)
		be_child(uid, gid, &g, fn, ctx);
	if (!r && pid < 0)
		r = -errno;
	free(g.list);
	if (r)
		return r;
	while (waitpid(pid, &status, 0) < 0)
		if (errno != EINTR)
			return -errno;
	return WIFEXITED(status) ? -WEXITSTATUS(status) : -ECHILD;
}
