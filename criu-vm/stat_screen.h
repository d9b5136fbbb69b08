// SPDX-License-Identifier: GPL-2.0-only
// VMs, as stat_vm.h and stat_interval.h know them, for a person to read.
#pragma once
#include <jansson.h>

#include "criu-vm/stat_draw.h"

#define STAT_HISTORY 40 // rounds

// One in detail. history: its intervals, the newest last, or NULL.
void stat_print_vm(const struct stat_pen *pen, const json_t *vm, const json_t *history);
// All, some lines each.
void stat_print_table(const struct stat_pen *pen, const json_t *vms, const char *run_dir);
