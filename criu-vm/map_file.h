// SPDX-License-Identifier: GPL-2.0-only
//
// DOC: --map FILE: what another host's names are called here
//
//	# a comment
//	disk   /var/images/vm.qcow2  /srv/images/vm.qcow2
//	disk   /var/images/          "/srv/my images/"     a folder: all below it
//	path   /home/a/              /home/b/              any file that a VM's command line names: disks, kernels, firmware, sockets, logs
//	bridge br0                   br-lan
//	net    tap0                  vm1                   an interface of a VM
//
// One mapping a line, words between blanks; one in quotes may hold blanks, and "" for a quote. Files are absolute. Of mappings that
// fit a name the longest counts, and for a disk first those of disks. A name that nothing fits stays what it is.
#pragma once
#include <stdbool.h>

#include "images/vm.pb-c.h"

#define MAP_FILE_MAX (1U << 20) // bytes

struct map_file;

// *m is freed by map_file_free(). Logs with the line's number; -EINVAL, -EFBIG, or what opening the file gave.
int map_file_load(const char *path, struct map_file **m);
void map_file_free(struct map_file *m); // accepts NULL

// m may be NULL in all of these: nothing is mapped.

// What a path is here; *new is the caller's, NULL: it is not mapped. 0, -ENOMEM.
int map_file_path(const struct map_file *m, const char *path, bool disk, char **new);
// These belong to m or are the name itself; of an interface NULL: it is not mapped.
const char *map_file_bridge(const struct map_file *m, const char *name);
const char *map_file_net(const struct map_file *m, const char *ifname);

// A description's folder, disks and command line become those here. Logs each that is changed. 0, -ENOMEM (logged; then some are changed).
int map_file_apply(const struct map_file *m, VmEntry *vm);
