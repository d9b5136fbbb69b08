// SPDX-License-Identifier: GPL-2.0-only
// How a VM in private virtual memory is paged: what was chosen, and what it has brought.
#pragma once
#include <jansson.h>

#include "criu-vm/stat_draw.h"

// A few lines. Nothing of a VM whose pager does not tell.
void stat_print_paging(const struct stat_pen *pen, const json_t *vm);
