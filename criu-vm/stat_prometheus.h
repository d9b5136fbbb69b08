// SPDX-License-Identifier: GPL-2.0-only
// VMs, as stat_vm.h knows them, in Prometheus' text format: a sample for each VM that has the figure, label vm its name.
#pragma once
#include <jansson.h>
#include <stdio.h>

void stat_print_prometheus(FILE *f, const json_t *vms);
