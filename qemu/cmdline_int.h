// SPDX-License-Identifier: GPL-2.0-only
#pragma once
#include <stdbool.h>
#include <stddef.h>
#include <stdio.h>

#include "qemu/cmdline.h"

struct cmdline;

struct cmdline_option {
	const struct cmdline_rule *rule;
	char *value; // NULL if it takes none
	char *id; // NULL if it has none
	bool drop; // leave it out
	bool is_ram; // a memory backend
	bool ours; // given to the restore, not recorded
};

// What becomes of the options of one name.
struct cmdline_rule {
	const char *name; // without dashes
	bool flag; // takes no value
	bool opts; // the value is a list "key=value,..." or JSON
	bool drop; // without a word
	const char *refuse; // why not, and what to do
	int (*fix)(struct cmdline *c, struct cmdline_option *opt); // changes the value or sets opt->drop
};

// A command line while it is rebuilt.
struct cmdline {
	const struct qemu_cmdline_opts *o; // NULL: only checked
	struct cmdline_option *opt;
	size_t nr;
	char *machine_backend; // -machine memory-backend= as recorded, or NULL
	FILE *machine; // ",key=value..." of all -machine options
	char *machine_text;
	size_t machine_len;
	bool has_display, has_accel;
};

// NULL if QEMU 7.2 to 10 has no such option on x86. "" is a bare disk image's name.
const struct cmdline_rule *cmdline_rule(const char *name);

// Applies the option's rule and refuses what uses descriptors that QEMU inherited. 0, -EINVAL, -EOPNOTSUPP, -ENOMEM; logs.
int cmdline_apply(struct cmdline *c, struct cmdline_option *opt);

// The RAM that the backend of this id is for, NULL if there is none.
const struct qemu_cmdline_ram *cmdline_ram(const struct qemu_cmdline_opts *o, const char *id);

// Letters, digits, "-", "_", ".": the names that QEMU itself takes for ids and machine types; none ends a property.
bool cmdline_is_name(const char *s);

// -object of the memory backend that stands for this RAM.
#define CMDLINE_RAM_FMT "memory-backend-file,id=%s,size=%llu,mem-path=/proc/self/fd/%d,share=on"
#define CMDLINE_RAM_ARGS(id, ram) (id), (unsigned long long)(ram)->len, (ram)->fd
