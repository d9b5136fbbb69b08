// SPDX-License-Identifier: GPL-2.0-only
#include "criu-vm/state_dir.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "util/cleanup.h"

const char *state_dir(const char *sub, char buf[PATH_MAX])
{
	const char *dir = getenv("CRIU_VM_STATE_DIR");

	snprintf(buf, PATH_MAX, "%s/%s", dir && *dir ? dir : STATE_DIR_DEFAULT, sub);
	return buf;
}

// 1: it is new. above: the folder that it is in, which has to know of it.
static int make_one(const char *path, const char *above)
{
	_cleanup_close_ int fd = -1;

	if (mkdir(path, 0700) < 0)
		return errno == EEXIST ? 0 : -errno;
	fd = open(above, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	return fd < 0 || fsync(fd) < 0 ? -errno : 1;
}

int state_dir_make(const char *path)
{
	char at[PATH_MAX], above[PATH_MAX] = "/";
	int r = 0;

	snprintf(at, sizeof at, "%s", path);
	for (char *p = at + 1; r >= 0; p++)
		if (!*p || *p == '/') {
			char c = *p;

			*p = 0;
			r = make_one(at, at[0] == '/' || strchr(at, '/') ? above : ".");
			memcpy(above, at, sizeof above);
			*p = c;
			if (!c)
				break;
		}
	return r;
}
