// SPDX-License-Identifier: GPL-2.0-only
// Which pages of a VM only another host has: what would be lost with it.
#pragma once
#include <jansson.h>
#include <stdbool.h>

// Looks at the page table of its pagers, whether one is there or not, for all of it. *missing: {"name", "pages", "missing": [{"block",
// "offset", "length"}, ...]}, bytes, the caller's. -ENOENT (not logged): no such VM; or -errno, logged.
int stat_missing(const char *root, const char *name, json_t **missing);
void stat_print_missing(FILE *f, const json_t *missing);
