// SPDX-License-Identifier: GPL-2.0-only
// Reading a QEMU command line. Pure functions.
#pragma once
#include <stdbool.h>

struct qemu_arg {
	const char *name; // without its dashes; "" for a bare disk image
	const char *value; // NULL if the option takes none
};

// The next argument of argv, *i being 1 before the first. false at the end.
bool qemu_arg_next(char *const *argv, int argc, int *i, struct qemu_arg *a);

// A key's value in "first,key=value,flag,noflag", commas within values doubled; the last one counts, as in QEMU. implied is the
// key that a first word without "=" is the value of, or NULL. A flag has the value "on" or "off". In a value that is JSON
// ("{...}"), what stands at the top level as a string, number or boolean. The caller's (free()); NULL if there is none.
char *qemu_opt_get(const char *opts, const char *implied, const char *key);

// Whether the key has a value, and whether that is the one given.
bool qemu_opt_has(const char *opts, const char *implied, const char *key);
bool qemu_opt_is(const char *opts, const char *implied, const char *key, const char *value);
