// SPDX-License-Identifier: GPL-2.0-only
#pragma once
#include <jansson.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/stat.h>
#include <sys/types.h>

#include "qemu/disks.h"

struct qmp;

// QEMU's block graph: devices on top, formats and filters below them, files at its ends. All json_t are the graph's.
struct disk_graph {
	json_t *devices; // query-block
	json_t *infos; // query-named-block-nodes
	json_t *graph; // x-debug-query-block-graph
};

int disk_graph_read(struct qmp *q, struct disk_graph *g);
void disk_graph_fini(struct disk_graph *g);

// The name of a block node by its id; NULL if it is something else that has edges, such as a device.
const char *disk_graph_name(const struct disk_graph *g, json_int_t id);
// What query-named-block-nodes says of a node; NULL if there is none of this name.
json_t *disk_graph_info(const struct disk_graph *g, const char *node);
// The node at the end of an edge ("file", "backing") from node; NULL if there is none.
const char *disk_graph_below(const struct disk_graph *g, const char *node, const char *edge);
// A node that node is below; NULL if only devices are over it.
const char *disk_graph_above(const struct disk_graph *g, const char *node);
// The node that is on node for a device: node itself, or the last of the filters over it.
const char *disk_graph_root(const struct disk_graph *g, const char *node);

// "" if there is no such string.
const char *disk_text(const json_t *o, const char *key);
// The file itself of a name as QEMU prints or takes it, "x" or "file:x", as an absolute path. The caller's; NULL: no memory.
char *disk_path(const char *cwd, const char *name);

// The name of a new file beside an image: "DIR/NAME.SUFFIX.qcow2", not repeating the ".qcow2" of NAME. -ENAMETOOLONG, -ENOMEM; *out
// is the caller's, NULL after an error. Does not log.
int disk_beside(const char *path, const char *suffix, char **out);
// A format that QEMU can read below a qcow2 file, and that is opened the same way again by a file's name.
bool disk_format_is_plain(const char *driver);

// ---- the new files (disks_file.c), all of it done with the rights of this user alone, when we are root

struct disk_user {
	const struct qemu_vm *vm; // paths are as it sees them; NULL: as we do
	uid_t uid;
	gid_t gid;
};

struct disk_user disk_user_of(const struct qemu_vm *vm);

// An empty file that was not there; paths are absolute. Does not log; -EEXIST, -EACCES, ...
int disk_file_make(const struct disk_user *u, const char *path, mode_t mode);
// Logs.
void disk_file_delete(const struct disk_user *u, const char *path);
// Fills an empty file by qemu-img, which is looked for beside qemu and then in PATH: a qcow2 file of that size over base, which is
// not looked at, or, size being 0, of base's. -ENOENT: there is no qemu-img, not logged. Others are: -EIO, it failed. Blocks.
int disk_create(const struct disk_user *u, const char *qemu, const char *base, const char *format, uint64_t size, const char *file);

// Whether QEMU has the file open. pid: QEMU's.
bool disk_is_open(int pid, const struct stat *file);
// Takes size, inode and modification time of a local file into its entry. Logs; -ENOENT, -ESTALE: it is not what QEMU has open.
int disk_stat(const struct qemu_vm *vm, VmDiskEntry *e);

// A new file over a disk, by its path as QEMU sees it: does QEMU have it open? Delete it (logs). Forget it, in the disk's entry.
bool disk_overlay_is_open(const struct qemu_vm *vm, const char *path);
void disk_overlay_delete(const struct qemu_vm *vm, const char *path);
void disk_overlay_forget(VmDiskEntry *e);

// A command line that gets new files over its disks, one after another.
struct disk_rewrite {
	char **v; // argv, NULL-terminated: freed by qemu_cmdline_free()
	int nr;
	const char *cwd, *path, *overlay; // the disk at hand: its file, and the new one; the caller's
};

// Copies argv. -ENOMEM; w->v is to be freed then too.
int disk_rewrite_init(struct disk_rewrite *w, char *const *argv, int argc);
// Puts w->overlay over w->path. Logs; -EOPNOTSUPP: that disk is not found or not understood.
int disk_rewrite(struct disk_rewrite *w);
// Does what an image file says of a disk with a snapshot make sense? Logs; -EINVAL.
int disk_check_recorded(const VmDiskEntry *e);
