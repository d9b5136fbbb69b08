// SPDX-License-Identifier: GPL-2.0-only
// The disks of a VM: which files they are, whether somebody has changed them since, and snapshots under them.
#pragma once
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#include "images/vm.pb-c.h"

struct qemu_vm;

// Every file that the VM's block devices have open now, backing files included, with what is known of it: node, path, whether it
// is writable, size, inode, modification time. For a VM that stands still, after its last write. *disks is the caller's: free
// with qemu_disks_free(). Blocks on QMP. Logs.
int qemu_disks(struct qemu_vm *vm, VmDiskEntry ***disks, size_t *nr);
void qemu_disks_free(VmDiskEntry **disks, size_t nr);

// Makes the files that a snapshot needs while the VM still runs, so that it stands still for less: their creation waits for the disk.
// suffix is added to the names of the disks' files. Blocks on QMP and qemu-img. Logs; the errors of the snapshot itself. Without
// qemu-img *p is NULL.
struct qemu_prepared;
int qemu_disks_prepare(struct qemu_vm *vm, const char *suffix, struct qemu_prepared **p);
// Deletes those that no snapshot has taken. Accepts NULL.
void qemu_prepared_free(struct qemu_prepared *p);

// Puts a new qcow2 file over each writable disk, all in one transaction: suffix is added to the file's name. prepared (may be NULL):
// those that were made for this suffix; what is missing is made. From then on the VM writes to these; the files below are as they
// are now. The entries of disks get their `snapshot`. The VM stands still. Logs. -EOPNOTSUPP: a disk that cannot have one, named.
// -EINPROGRESS: the VM needs attention, it may write to the new files, or does, and they are left. After any other error nothing is
// changed, no file is left.
int qemu_disks_snapshot(struct qemu_vm *vm, const char *suffix, struct qemu_prepared *prepared, VmDiskEntry **disks, size_t nr);
// Undoes it, for a dump that failed: the VM writes to the files below again (block-commit), the new ones are deleted.
int qemu_disks_snapshot_undo(struct qemu_vm *vm, VmDiskEntry **disks, size_t nr);

// At restore: is each as it was? Logs every difference, with what to do; -ESTALE. Without a recorded file: -ENOENT.
int qemu_disks_check(VmDiskEntry *const *disks, size_t nr);

// ---- restoring what was dumped with a snapshot
//
// The VM that was dumped, and others that are restored from the same checkpoint, read the files below too: none may write to them.
// So each restored VM gets new qcow2 files of its own over them, beside them: "PATH.NAME-restored.qcow2". They are the disks of that
// VM from then on, and stay when it ends.

struct qemu_overlay_opts {
	VmDiskEntry *const *disks; // those with a `snapshot` get a new file
	size_t nr;
	char *const *argv; // recorded command line
	int argc;
	const char *cwd; // recorded
	const char *name; // of the restored VM
	const char *qemu; // binary: qemu-img is looked for beside it, then in PATH
	uid_t uid; // whose the new files are: they are made with no more than this user's rights
	gid_t gid;
};

struct qemu_overlays {
	char **argv; // with the new files in it, for qemu_cmdline_rebuild(); NULL-terminated
	int argc;
	char **files;
	size_t nr_files;
	uid_t uid; // whose they are
	gid_t gid;
};

// Makes the files, and the command line that uses them. Blocks. Logs; -EOPNOTSUPP (a disk whose place in the command line is not
// found or not understood, named), -ENOENT (no qemu-img), -EIO (it failed), -EINVAL (entries that make no sense), what making a
// file gave. After an error no file is left. Nothing of opts is kept.
int qemu_disks_overlay(const struct qemu_overlay_opts *opts, struct qemu_overlays *o);
// Deletes the files, for a restore that failed.
void qemu_disks_overlay_undo(struct qemu_overlays *o);
void qemu_disks_overlay_fini(struct qemu_overlays *o); // accepts a zeroed one

// At dump, after qemu_disks_snapshot(): will qemu_disks_overlay() find its way in the command line? The same errors; touches no file.
int qemu_disks_overlay_check(VmDiskEntry *const *disks, size_t nr, const char *cwd, char *const *argv, int argc);
