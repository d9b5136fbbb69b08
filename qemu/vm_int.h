// SPDX-License-Identifier: GPL-2.0-only
#pragma once
#include <stdbool.h>
#include <stddef.h>

struct qemu_vm;

// Where a path of QEMU's (relative to its folder, in its mount namespace) is reached from here. 0 or -ENAMETOOLONG.
int qemu_vm_path(const struct qemu_vm *vm, const char *path, char *out, size_t size);

// Where a QEMU serves QMP: the path of a unix socket, or, that being NULL, the descriptor of one that it was started with.
struct qmp_listener {
	char *path;
	int fd;
};

// The nth of a command line, from 0; path is the caller's (free()). false if there is none.
bool qemu_argv_qmp(char *const *argv, int argc, size_t nth, struct qmp_listener *l);

// The absolute path of the socket of this inode in a /proc/net/unix. The caller's (free()); NULL if it has none.
char *qemu_unix_path(const char *table, unsigned long ino);

// The name that a listening unix socket among QEMU's descriptors was given. The caller's (free()); NULL if it is no such socket.
char *qemu_fd_path(const struct qemu_vm *vm, int fd);

// The file behind a name "/dev/fdset/N", which QEMU has of a descriptor that it was given; the caller's, NULL if it is no file that still
// has its name. Blocks on QMP; 0, or what qmp_call() gave.
int qemu_fdset_path(struct qemu_vm *vm, const char *name, char **path);
