// SPDX-License-Identifier: GPL-2.0-only
// Private virtual memory as an object of stat's answer; criu-vm(1) says what each key means.
#pragma once
#include <jansson.h>

#include "pvmem/engine.h"

// The caller's. Does not block, but looks at every chunk, some 50 us for a GiB of RAM. NULL: out of memory.
json_t *lp_describe_paging(const struct pv_engine *e, const struct pv_block *blocks, size_t nr_blocks);
