// SPDX-License-Identifier: GPL-2.0-only
// Of pages that another host has, and of VMs that have left and have pages here (leaving.h), for a person to read.
#pragma once
#include <stdbool.h>
#include <stddef.h>

#include "criu-vm/stat_draw.h"

// It has left: "leaving" is all that is said of it.
bool stat_is_leaving(const json_t *vm);
// What another host has of it. False: none has anything.
bool stat_format_remote(const json_t *vm, char *buf, size_t size);
// Why these pages do not come. False: they do.
bool stat_format_remote_trouble(const json_t *vm, char *buf, size_t size);
// Of one that has left: some lines, or one in a table whose names are so wide.
void stat_print_leaving(const struct stat_pen *pen, const json_t *vm);
void stat_print_leaving_row(const struct stat_pen *pen, const json_t *vm, int width);
