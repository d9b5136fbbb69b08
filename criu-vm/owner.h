// SPDX-License-Identifier: GPL-2.0-only
// A checkpoint says which program is to be run, as whom, and with which files. Who could write it must not become anybody else by
// that, nor by what is made of it.
#pragma once
#include <sys/stat.h>

#include "images/reader.h"

// As root: what holds the checkpoint is root's, or that of the user whom its VM is to run as, in a group of that user's; and no others
// may write it. Who is not root can give nothing away. what: its name in messages. 0, or -EPERM (logged).
int owner_check(const struct stat *holder, const VmEntry *vm, const char *what);
// Of a checkpoint, for its own VM, and of all that it is an increment of. Also what fstat() gave (logged).
int owner_check_chain(const struct img_dir *newest);
