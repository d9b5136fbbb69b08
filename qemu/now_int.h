// SPDX-License-Identifier: GPL-2.0-only
// A command line while it is made into that of the VM as it is now. Functions that return int: 0 or -errno (logged, but for
// -ENOMEM); what cannot be rebuilt is told by refuse_because(&now->r, ...) and is no error.
#pragma once
#include <jansson.h>
#include <stdbool.h>
#include <stddef.h>

#include "qemu/refuse_int.h"

struct now_opt {
	char *name; // without dashes, "" for a bare disk image; NULL: dropped
	char *value; // NULL if it takes none
};

struct now {
	struct refusal r; // its vm is the one that runs, with the command line of its start
	struct now_opt *opt;
	size_t nr;
};

// ---- now_edit.c: the options. Pointers to them end with the next now_add().

int now_load(struct now *n, char *const *argv, int argc);
void now_fini(struct now *n);
int now_add(struct now *n, const char *name, const char *value);
int now_add_json(struct now *n, const char *name, const json_t *value);
void now_drop(struct now_opt *opt);

bool now_is(const struct now_opt *opt, const char *name);
// The option of this name whose key has the value; NULL if there is none.
struct now_opt *now_find(const struct now *n, const char *name, const char *key, const char *value);

// A property of an option that is a list or JSON: a string, number or boolean, or NULL to have it gone, and all "key.*" with it.
int now_set(struct now_opt *opt, const char *key, const json_t *value);
int now_set_string(struct now_opt *opt, const char *key, const char *value); // NULL: -ENOMEM
int now_set_value(struct now_opt *opt, const char *value);

// A list or JSON as nested objects, a list's values being strings; the caller's. NULL without memory or if it is neither.
json_t *now_parse(const char *opts, const char *implied);

// What is given to qemu_cmdline_check() and recorded; argv[0] is that of the VM.
int now_export(const struct now *n, char ***argv, int *argc);

// ---- asking

const char *now_text(const json_t *o, const char *key); // "" if it is no string
// qom-get; *value NULL if there is no such property.
int now_qom_get(struct now *n, const char *path, const char *property, json_t **value);
// Children "child<TYPE>" of a container as {name: TYPE}.
int now_children(struct now *n, const char *path, json_t **children);

// ---- the stages, in this order

int now_fds(struct now *n); // now_fds.c
int now_objects(struct now *n); // now_backends.c
int now_netdevs(struct now *n);
int now_drives(struct now *n); // now_drives.c
int now_devices(struct now *n); // now_devices.c
int now_unused(struct now *n); // now_fds.c
int now_blockdevs(struct now *n); // now_blockdevs.c

// The character device that a plugged device uses. now_backends.c
int now_chardev(struct now *n, const char *label);

// ---- now_graph.c: the block graph

struct now_graph {
	json_t *blocks; // query-block
	json_t *nodes; // {node-name: its entry of query-named-block-nodes}
	json_t *children; // {node-name: {"file": node-name, "backing": ...}}
};

int now_graph_read(struct now *n, struct now_graph *g);
void now_graph_fini(struct now_graph *g);
const json_t *now_node(const struct now_graph *g, const char *name); // NULL: none
const char *now_child(const struct now_graph *g, const char *name, const char *as); // NULL: none
// The node's file as QEMU has it: of a file node its name, of a format node that of its file. NULL: it has none, or not only one.
const char *now_file(const struct now_graph *g, const char *name);
// The root of a device of query-block, NULL if it is empty.
const char *now_root(const json_t *block);
bool now_same_file(const struct now *n, const char *a, const char *b);

// ---- devices

// Where the VM has the device of a -device; "" if it cannot be told. Its name is in the option, or it is the nth without one.
void now_device_path(struct now *n, const struct now_opt *opt, char *path, size_t size);
