// SPDX-License-Identifier: GPL-2.0-only
// The host's files that a command line names: disks, kernels, firmware, sockets, logs, folders.
#pragma once
#include <stdbool.h>
#include <stddef.h>

struct qemu_paths {
	// What an absolute path is to become: *new is then the caller's (free()), or left NULL: it stays. 0 or -errno. disk: an image of one.
	int (*map)(void *ctx, const char *path, bool disk, char **new);
	void *ctx;
	const char *cwd; // of the VM: where relative names begin
};

// Changes the arguments that name files, in place: a changed one is freed and made anew. -blockdev, -drive (also file=json:{...}) and
// all options that are lists or JSON, by their keys; -kernel, -cdrom and the like; -serial unix:PATH and the like. What begins
// with a protocol ("nbd:...") is no file, and -append is the guest's. 0, -ENOMEM or what map gave: some are changed then. Does not log.
int qemu_paths_map(char **argv, size_t argc, const struct qemu_paths *p);
