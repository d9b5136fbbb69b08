// SPDX-License-Identifier: GPL-2.0-only
// -blockdev: nodes that were added, removed or reopened, overlays above them, and other nodes under a device.
//
// A -blockdev that still is what it says stays as it is. Any other node that has a name, or is at the top under a device, is written
// down anew with all that is below it, the nodes without a name inside it.
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "qemu/args.h"
#include "qemu/now_int.h"
#include "util/cleanup.h"
#include "util/log.h"
#include "util/size.h"

struct blockdevs {
	struct now *n;
	struct now_graph g;
	json_t *known; // names of the nodes that options make
};

// ---- is it what the option says?

static bool says_on(const json_t *o, const char *key)
{
	return json_is_true(json_object_get(o, key)) || !strcmp(now_text(o, key), "on");
}

static bool is_as_said(struct blockdevs *b, const json_t *o, const char *name);

static bool is_child_as_said(struct blockdevs *b, const json_t *o, const char *name, const char *as)
{
	const char *child = now_child(&b->g, name, as);
	const json_t *said = json_object_get(o, as);

	const char *node_name = now_text(said, "node-name");

	if (json_is_object(said))
		return child && is_as_said(b, said, child) && (!*node_name || !strcmp(node_name, child));
	if (json_is_string(said) && *json_string_value(said))
		return child && !strcmp(json_string_value(said), child);
	return !child;
}

// Nothing is said of what is below it, so it is what the file's own header says.
static bool is_as_in_header(struct blockdevs *b, const char *name)
{
	const json_t *image = json_object_get(now_node(&b->g, name), "image");
	const char *child = now_child(&b->g, name, "backing"), *header = now_text(image, "full-backing-filename");
	const char *format = now_text(image, "backing-filename-format"), *file;

	if (!child || !*header)
		return !child && !*header;
	file = now_file(&b->g, child);
	return *child == '#' && file && now_same_file(b->n, file, header) && !strcmp(format, now_text(now_node(&b->g, child), "drv")) &&
	       is_as_in_header(b, child);
}

static bool is_as_said(struct blockdevs *b, const json_t *o, const char *name)
{
	const json_t *node = now_node(&b->g, name);
	const char *filename = now_text(o, "filename");

	if (!node || strcmp(now_text(o, "driver"), now_text(node, "drv")))
		return false;
	if (*filename && !now_same_file(b->n, filename, now_text(node, "file")))
		return false;
	if (says_on(o, "read-only") && !json_is_true(json_object_get(node, "ro")))
		return false;
	if (json_object_get(o, "file") && !is_child_as_said(b, o, name, "file"))
		return false;
	return json_object_get(o, "backing") ? is_child_as_said(b, o, name, "backing") : is_as_in_header(b, name);
}

// ---- a node as an option

static json_t *describe(struct blockdevs *b, const char *name);

static int put_child(struct blockdevs *b, json_t *o, const char *name, const char *as)
{
	const char *child = now_child(&b->g, name, as);
	json_t *v;

	if (!child && !strcmp(as, "backing"))
		v = strcmp(now_text(o, "driver"), "qcow2") ? NULL : json_null();
	else if (!child)
		v = NULL;
	else
		v = *child == '#' ? describe(b, child) : json_string(child);
	if (!v)
		return !child ? 0 : -ENOMEM;
	return json_object_set_new(o, as, v) ? -ENOMEM : 0;
}

// Whether all that matters of a node can be asked.
static bool can_describe(struct blockdevs *b, const char *name)
{
	const json_t *node = now_node(&b->g, name), *edges = json_object_get(b->g.children, name), *edge;
	const char *drv = now_text(node, "drv"), *file = now_text(node, "file"), *as;
	bool is_file = !strcmp(drv, "file") || !strcmp(drv, "host_device") || !strcmp(drv, "host_cdrom");
	bool good = is_file || !strcmp(drv, "raw") || !strcmp(drv, "qcow2");

	json_object_foreach((json_t *)edges, as, edge)
		good &= !strcmp(as, "file") || !strcmp(as, "backing");
	good &= !json_is_true(json_object_get(node, "encrypted"));
	// "json:" of a raw node is an offset or the like, or is that of a node below.
	good &= strncmp(file, "json:", 5) || (!is_file && !strstr(file, "\"offset\"") && !strstr(file, "\"size\""));
	if (!good)
		refuse_because(&b->n->r, "the block node '%s' (%s, %s) is not as the command line says, and how to make it again cannot be "
			       "told; go back to what it was started with, or restart it with what it has now", name, drv, file);
	return good;
}

static int put_options(json_t *o, const json_t *node)
{
	const json_t *cache = json_object_get(node, "cache");
	const char *zeroes = now_text(node, "detect_zeroes");
	int err = json_object_set_new(o, "read-only", json_boolean(json_is_true(json_object_get(node, "ro"))));

	err |= json_object_set_new(o, "cache", json_pack("{s:O, s:O}", "direct", json_object_get(cache, "direct"), "no-flush",
							 json_object_get(cache, "no-flush")));
	if (strcmp(zeroes, "off"))
		err |= json_object_set_new(o, "detect-zeroes", json_string(zeroes));
	if (!strcmp(zeroes, "unmap")) // QEMU takes the one only with the other
		err |= json_object_set_new(o, "discard", json_string("unmap"));
	return err ? -ENOMEM : 0;
}

// Without its name. NULL without memory.
static json_t *describe(struct blockdevs *b, const char *name)
{
	const json_t *node = now_node(&b->g, name);
	json_t *o = json_pack("{s:s}", "driver", now_text(node, "drv"));
	int ret = o ? put_options(o, node) : -ENOMEM;

	can_describe(b, name);
	if (!ret && !json_object_get(b->g.children, name))
		ret = json_object_set_new(o, "filename", json_string(now_text(node, "file")));
	ret = ret ?: put_child(b, o, name, "file") ?: put_child(b, o, name, "backing");
	if (!ret)
		return o;
	json_decref(o);
	return NULL;
}

static int add_node(struct blockdevs *b, const char *name)
{
	json_t *o = describe(b, name);
	int ret = o && !json_object_set_new(o, "node-name", json_string(name)) ? 0 : -ENOMEM;

	if (!ret && json_object_set_new(b->known, name, json_true()))
		ret = -ENOMEM;
	ret = ret ?: now_add_json(b->n, "blockdev", o);
	json_decref(o);
	if (!ret)
		log_info("process %d: the block node '%s' was added or changed while it ran; a restored VM opens it with QEMU's "
			 "defaults for aio, discard and locking", b->n->r.vm->pid, name);
	return ret;
}

// ---- which nodes have to be written down

static int know_names(struct blockdevs *b, const json_t *o)
{
	const char *key;
	json_t *v;

	if (*now_text(o, "node-name") && json_object_set_new(b->known, now_text(o, "node-name"), json_true()))
		return -ENOMEM;
	json_object_foreach((json_t *)o, key, v)
		if (json_is_object(v) && know_names(b, v))
			return -ENOMEM;
	return 0;
}

// All that is under a -drive: its option makes it.
static int know_below(struct blockdevs *b, const char *name)
{
	json_t *child;
	const char *as;

	if (json_object_set_new(b->known, name, json_true()))
		return -ENOMEM;
	json_object_foreach(json_object_get(b->g.children, name), as, child)
		if (!json_object_get(b->known, json_string_value(child)) && know_below(b, json_string_value(child)))
			return -ENOMEM;
	return 0;
}

static int look_at_options(struct blockdevs *b)
{
	int ret = 0;

	for (struct now_opt *o = b->n->opt; o < b->n->opt + b->n->nr && !ret; o++) {
		json_t *said = now_is(o, "blockdev") ? now_parse(o->value, "driver") : NULL;

		if (said && is_as_said(b, said, now_text(said, "node-name")))
			ret = know_names(b, said);
		else if (said)
			now_drop(o);
		json_decref(said);
	}
	return ret;
}

static int look_at_devices(struct blockdevs *b)
{
	const json_t *block;
	size_t i;
	int ret = 0;

	json_array_foreach(b->g.blocks, i, block)
		if (!ret && now_root(block) && *now_text(block, "device"))
			ret = know_below(b, now_root(block));
	json_array_foreach(b->g.blocks, i, block) {
		const char *root = *now_text(block, "device") ? NULL : now_root(block);

		if (!ret && root && *root == '#')
			ret = add_node(b, root);
	}
	return ret;
}

static int add_nodes(struct blockdevs *b)
{
	const char *name;
	json_t *node;
	int ret = 0;

	json_object_foreach(b->g.nodes, name, node)
		if (!ret && *name != '#' && !json_object_get(b->known, name))
			ret = add_node(b, name);
	return ret;
}

// ---- the order, since QEMU makes them one by one

static bool needs(const struct blockdevs *b, const char *name, const char *other)
{
	json_t *child;
	const char *as;

	json_object_foreach(json_object_get(b->g.children, name), as, child)
		if (!strcmp(json_string_value(child), other) || needs(b, json_string_value(child), other))
			return true;
	return false;
}

static bool is_earlier(const struct blockdevs *b, const struct now_opt *first, const struct now_opt *second)
{
	_cleanup_free_ char *a = qemu_opt_get(first->value, "driver", "node-name"), *c = qemu_opt_get(second->value, "driver", "node-name");

	return a && c && needs(b, c, a);
}

// Whatever is needed by an option before it changes places with that; the graph has no loops, so this ends.
static void sort(struct blockdevs *b)
{
	struct now *n = b->n;

	for (size_t i = 0; i < n->nr; i++) {
		if (!now_is(&n->opt[i], "blockdev"))
			continue;
		for (size_t k = i + 1; k < n->nr; k++)
			if (now_is(&n->opt[k], "blockdev") && is_earlier(b, &n->opt[k], &n->opt[i])) {
				struct now_opt o = n->opt[i];

				n->opt[i] = n->opt[k];
				n->opt[k] = o;
				k = i; // what stands here now may need another one
			}
	}
}

// ---- which node a device has

static struct now_opt *device_of(struct blockdevs *b, const char *qdev)
{
	char path[256];

	for (struct now_opt *o = b->n->opt; o < b->n->opt + b->n->nr; o++) {
		size_t len;

		if (!now_is(o, "device"))
			continue;
		now_device_path(b->n, o, path, sizeof path);
		len = strlen(path);
		if (!strcmp(strrchr(path, '/') + 1, qdev) || (!strncmp(qdev, path, len) && (!qdev[len] || qdev[len] == '/')))
			return o;
	}
	return NULL;
}

static int set_roots(struct blockdevs *b)
{
	const json_t *block;
	size_t i;
	int ret = 0;

	json_array_foreach(b->g.blocks, i, block) {
		const char *root = now_root(block), *qdev = now_text(block, "qdev");
		struct now_opt *o = *now_text(block, "device") || !*qdev ? NULL : device_of(b, qdev);

		if (!o || ret)
			continue;
		if (root && !qemu_opt_is(o->value, "driver", "drive", root))
			ret = now_set_string(o, "drive", root);
		else if (!root && json_is_true(json_object_get(block, "removable")))
			ret = now_set(o, "drive", NULL);
	}
	return ret;
}

int now_blockdevs(struct now *n)
{
	struct blockdevs b = { .n = n, .known = json_object() };
	int ret = b.known ? now_graph_read(n, &b.g) : -ENOMEM;

	if (!ret) {
		ret = look_at_options(&b) ?: look_at_devices(&b) ?: add_nodes(&b) ?: set_roots(&b);
		sort(&b);
		now_graph_fini(&b.g);
	}
	json_decref(b.known);
	return ret;
}
