// SPDX-License-Identifier: GPL-2.0-only
// VMs, as stat_vm.h knows them, for a person to read. before: the same a moment ago, for rates, or NULL.
#pragma once
#include <jansson.h>
#include <stdio.h>

// One in detail.
void stat_print_vm(FILE *f, const json_t *vm, const json_t *before);
// Some lines each. before: an array too; found by name.
void stat_print_table(FILE *f, const json_t *vms, const json_t *before, const char *run_dir);
