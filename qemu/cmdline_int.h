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
	char *chardev; // instead of the value "chardev:ID", and before it this -chardev; or NULL
	bool drop; // leave it out
	bool is_ram; // a memory backend
	bool has_fds; // of ours: a tap's
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
	bool has_display, has_accel, has_sandbox;
	size_t nr_nets; // taps that got their descriptors
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

// Why this option cannot be had: logs and returns -EOPNOTSUPP, -EINVAL.
int cmdline_refuse(const struct cmdline_option *opt, const char *why);
int cmdline_invalid(const struct cmdline_option *opt, const char *why);

// ---- lists "key=value,...", commas within values doubled

struct cmdline_word {
	const char *s;
	size_t len, key_len; // key_len == len: a word without "="
};

// The list's next word; false at its end.
bool cmdline_next_word(const char **list, struct cmdline_word *w);

// QEMU knows a doubled comma in values only, in a key it ends the word: a list that would be read in two ways is refused. 0, -EINVAL.
int cmdline_check_keys(const struct cmdline_option *opt);

// The list's words of these keys, or all others, each with a comma before it.
void cmdline_put_words(FILE *f, const char *list, const char *const *keys, bool these);

// A value, its commas doubled.
void cmdline_put_escaped(FILE *f, const char *s);

// Whether a key has one of the values that QEMU takes for true.
bool cmdline_is_on(const char *list, const char *implied, const char *key);

// What was written to f, from open_memstream() on *text, or a copy of s, becomes the option's value. 0 or -ENOMEM; f is closed.
int cmdline_set_value(struct cmdline_option *opt, FILE *f, char **text);
int cmdline_set_string(struct cmdline_option *opt, const char *s);

// ---- rules for character devices: -chardev, -mon; -serial and the like, devices of the guest, which must stay; -monitor and the
// like, nothing of the guest

int cmdline_fix_chardev(struct cmdline *c, struct cmdline_option *opt);
int cmdline_fix_mon(struct cmdline *c, struct cmdline_option *opt);
int cmdline_fix_port(struct cmdline *c, struct cmdline_option *opt);
int cmdline_fix_monitor(struct cmdline *c, struct cmdline_option *opt);

// ---- another host's: cmdline_peer.c

// Recorded by another host, which is not to be trusted.
bool cmdline_is_theirs(const struct cmdline *c, const struct cmdline_option *opt);
// Of another host's VM the unix socket of a monitor gets a name that QEMU_CMDLINE_HIDDEN ends, and monitors elsewhere are left out; else
// sockets get their own names back. 0 or -ENOMEM.
int cmdline_hide_chardev(const struct cmdline *c, struct cmdline_option *opt);
void cmdline_hide_mon(const struct cmdline *c, struct cmdline_option *opt);
int cmdline_hide_monitor(const struct cmdline *c, struct cmdline_option *opt);
// "mon:BACKEND" of another host becomes "BACKEND".
void cmdline_split_port(const struct cmdline *c, struct cmdline_option *opt);
int cmdline_fix_s(struct cmdline *c, struct cmdline_option *opt);
int cmdline_fix_set(struct cmdline *c, struct cmdline_option *opt);
int cmdline_fix_sandbox(struct cmdline *c, struct cmdline_option *opt);
// The value of -sandbox that is still missing, or NULL.
const char *cmdline_sandbox(const struct cmdline *c);

// ---- rule for -netdev, -nic and -net: cmdline_net.c

int cmdline_fix_net(struct cmdline *c, struct cmdline_option *opt);
