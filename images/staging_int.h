// SPDX-License-Identifier: GPL-2.0-only
// A directory that exists whole or not at all: filled under another name beside its place, then renamed. Errors are logged here.
#pragma once
#include <limits.h>
#include <stdbool.h>

struct img_staging {
	int fd;				// the directory while it is being filled
	bool made;			// and not yet committed
	int parent_fd;
	char path[PATH_MAX];		// to be filled, for messages
	char final_path[PATH_MAX];
	char name[NAME_MAX + 1], final_name[NAME_MAX + 1];	// of the two, in parent_fd
};

// Refuses a place that is taken before it creates anything: see img_writer_open().
int img_staging_open(struct img_staging *s, const char *dir);
// Syncs the directory, renames it into its place and syncs the parent. On an error nothing is in place.
int img_staging_commit(struct img_staging *s);
// Removes an uncommitted directory and the files in it. Accepts what img_staging_open() did not finish.
void img_staging_fini(struct img_staging *s);
