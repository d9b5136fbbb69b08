// SPDX-License-Identifier: GPL-2.0-only
// The block graph as it is: devices, nodes, and which node is below which.
#include <errno.h>
#include <limits.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "qemu/disks_int.h"
#include "qemu/now_int.h"
#include "qemu/vm_int.h"
#include "util/log.h"

static void take_nodes(struct now *n, const struct disk_graph *from, struct now_graph *g)
{
	json_t *node;
	size_t i;

	json_array_foreach(from->infos, i, node) {
		json_t *given = json_object_get(n->r.fdsets, now_text(node, "file"));

		if (given)
			json_object_set(node, "file", given);
		json_object_set(g->nodes, now_text(node, "node-name"), node);
	}
}

static void take_edges(const struct disk_graph *from, struct now_graph *g)
{
	const json_t *edge;
	size_t i;

	json_array_foreach(json_object_get(from->graph, "edges"), i, edge) {
		const char *parent = disk_graph_name(from, json_integer_value(json_object_get(edge, "parent")));
		const char *child = disk_graph_name(from, json_integer_value(json_object_get(edge, "child")));

		if (!parent || !child)
			continue;
		if (!json_object_get(g->children, parent))
			json_object_set_new(g->children, parent, json_object());
		json_object_set_new(json_object_get(g->children, parent), now_text(edge, "name"), json_string(child));
	}
}

// Nodes below this one, as deep as that; whoever walks the graph relies on it to end.
#define DEPTH_MAX 256

static bool ends(const struct now_graph *g, const char *name, int depth, json_t *good)
{
	const char *as;
	json_t *child;

	if (json_object_get(good, name))
		return true;
	if (depth == DEPTH_MAX)
		return false;
	json_object_foreach(json_object_get(g->children, name), as, child)
		if (!ends(g, json_string_value(child), depth + 1, good))
			return false;
	return !json_object_set_new(good, name, json_true());
}

static int check_edges(const struct now *n, const struct now_graph *g)
{
	json_t *good = json_object(), *children;
	const char *name;
	bool all = good;

	json_object_foreach(g->children, name, children)
		all = all && ends(g, name, 0, good);
	json_decref(good);
	if (all)
		return 0;
	log_err("process %d cannot be dumped: its block nodes are stacked more than %d deep", n->r.vm->pid, DEPTH_MAX);
	return -EOPNOTSUPP;
}

int now_graph_read(struct now *n, struct now_graph *g)
{
	struct disk_graph from = { 0 };
	int ret = disk_graph_read(n->r.vm->qmp, &from);

	*g = (struct now_graph){ .blocks = json_incref(from.devices), .nodes = json_object(), .children = json_object() };
	if (!ret && (!g->nodes || !g->children))
		ret = -ENOMEM;
	if (!ret) {
		take_nodes(n, &from, g);
		take_edges(&from, g);
		ret = check_edges(n, g);
	}
	disk_graph_fini(&from);
	if (ret)
		now_graph_fini(g);
	return ret;
}

void now_graph_fini(struct now_graph *g)
{
	json_decref(g->blocks);
	json_decref(g->nodes);
	json_decref(g->children);
	*g = (struct now_graph){ 0 };
}

const json_t *now_node(const struct now_graph *g, const char *name)
{
	return name ? json_object_get(g->nodes, name) : NULL;
}

const char *now_child(const struct now_graph *g, const char *name, const char *as)
{
	return json_string_value(json_object_get(json_object_get(g->children, name), as));
}

// A format's own name of its file may be "json:{...}", the file's never is.
const char *now_file(const struct now_graph *g, const char *name)
{
	const json_t *node = now_node(g, name);
	const char *file, *child;

	while (node) {
		child = now_child(g, now_text(node, "node-name"), "file");
		if (!child) {
			file = now_text(node, "file");
			return *file && strncmp(file, "json:", 5) ? file : NULL;
		}
		node = now_node(g, child);
	}
	return NULL;
}

const char *now_root(const json_t *block)
{
	return json_string_value(json_object_get(json_object_get(block, "inserted"), "node-name"));
}

bool now_same_file(const struct now *n, const char *a, const char *b)
{
	char path_a[PATH_MAX], path_b[PATH_MAX];
	struct stat st_a, st_b;

	if (!strcmp(a, b))
		return true;
	return !qemu_vm_path(n->r.vm, a, path_a, sizeof path_a) && !qemu_vm_path(n->r.vm, b, path_b, sizeof path_b) &&
	       !stat(path_a, &st_a) && !stat(path_b, &st_b) && st_a.st_dev == st_b.st_dev && st_a.st_ino == st_b.st_ino;
}
