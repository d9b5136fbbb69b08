// SPDX-License-Identifier: GPL-2.0-only
// -drive and its like: other media, external snapshots, drives that have gone with their device.
//
// QEMU calls such a drive by its id, or else by interface and place, "ide1-cd0": counted here as QEMU counts (drive_new() in its
// blockdev.c). What its file is now takes the place of what it was; below that, the chain of backing files is found from the
// names in the files, which is checked.
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "qemu/args.h"
#include "qemu/now_int.h"
#include "util/cleanup.h"
#include "util/size.h"

// ---- which drive is made by which option

static const struct {
	const char *name, *type, *index, *media;
} simple[] = {
	{ "", NULL, "0", NULL }, { "hda", NULL, "0", NULL }, { "hdb", NULL, "1", NULL }, { "hdc", NULL, "2", NULL },
	{ "hdd", NULL, "3", NULL }, { "cdrom", NULL, "2", "cdrom" }, { "fda", "floppy", "0", NULL }, { "fdb", "floppy", "1", NULL },
	{ "pflash", "pflash", NULL, NULL }, { "sd", "sd", NULL, NULL }, { "mtdblock", "mtd", NULL, NULL },
};

struct drive {
	size_t opt; // its index
	char type[16];
	int bus, unit;
	bool cdrom, has_id;
	char name[64];
};

struct drives {
	struct drive *v;
	size_t nr;
};

static bool is_drive(const struct now_opt *o)
{
	bool yes = now_is(o, "drive");

	for (size_t i = 0; i < ARRAY_SIZE(simple); i++)
		yes |= now_is(o, simple[i].name);
	return yes;
}

static int most_units(const struct now *n, const char *type)
{
	bool q35 = strstr(n->r.vm->machine, "q35");

	return !strcmp(type, "ide") ? (q35 ? 1 : 2) : !strcmp(type, "scsi") ? 7 : 0;
}

static bool is_taken(const struct drives *all, const struct drive *d)
{
	for (const struct drive *o = all->v; o < all->v + all->nr; o++)
		if (!strcmp(o->type, d->type) && o->bus == d->bus && o->unit == d->unit)
			return true;
	return false;
}

static int number(const char *list, const char *key, int if_none)
{
	_cleanup_free_ char *s = qemu_opt_get(list, NULL, key);

	return s ? atoi(s) : if_none;
}

static void place(const struct now *n, const struct drives *all, struct drive *d, const char *list)
{
	int most = most_units(n, d->type), index = number(list, "index", -1);

	d->bus = number(list, "bus", 0);
	d->unit = number(list, "unit", -1);
	if (index >= 0) {
		d->bus = most ? index / most : 0;
		d->unit = most ? index % most : index;
	}
	if (d->unit >= 0)
		return;
	for (d->unit = 0; is_taken(all, d);)
		if (++d->unit == most && most) {
			d->unit = 0;
			d->bus++;
		}
}

static void name_drive(const struct now *n, struct drive *d, const char *id)
{
	bool has_media = !strcmp(d->type, "ide") || !strcmp(d->type, "scsi");
	const char *media = !has_media ? "" : d->cdrom ? "-cd" : "-hd";

	d->has_id = id;
	if (id)
		snprintf(d->name, sizeof d->name, "%s", id);
	else if (most_units(n, d->type))
		snprintf(d->name, sizeof d->name, "%s%d%s%d", d->type, d->bus, media, d->unit);
	else
		snprintf(d->name, sizeof d->name, "%s%s%d", d->type, media, d->unit);
}

// What QEMU makes of a simple one. The caller's.
static char *as_list(const struct now_opt *o)
{
	size_t k = 0;
	char *list;

	if (now_is(o, "drive"))
		return strdup(o->value);
	while (!now_is(o, simple[k].name))
		k++;
	if (asprintf(&list, "%s%s%s%s%s%s", simple[k].type ? "if=" : "media=", simple[k].type ?: simple[k].media ?: "disk",
		     simple[k].type && simple[k].media ? ",media=" : "", simple[k].type ? simple[k].media ?: "" : "",
		     simple[k].index ? ",index=" : "", simple[k].index ?: "") < 0)
		return NULL;
	return list;
}

static int add_drive(const struct now *n, struct drives *all, size_t opt)
{
	const struct now_opt *o = &n->opt[opt];
	_cleanup_free_ char *list = NULL, *type = NULL, *id = NULL;
	struct drive *d = reallocarray(all->v, all->nr + 1, sizeof *d);

	if (!d)
		return -ENOMEM;
	all->v = d;
	d += all->nr;
	*d = (struct drive){ .opt = opt };
	list = as_list(o);
	if (!list)
		return -ENOMEM;
	type = qemu_opt_get(list, NULL, "if");
	id = qemu_opt_get(list, NULL, "id");
	snprintf(d->type, sizeof d->type, "%s", type ?: strstr(n->r.vm->machine, "microvm") ? "none" : "ide");
	d->cdrom = qemu_opt_is(list, NULL, "media", "cdrom");
	place(n, all, d, list);
	name_drive(n, d, id);
	all->nr++;
	return 0;
}

// ---- what is in it

// The file that the option names: of a plain one its whole value. The caller's; NULL: none that can be told.
static char *file_in_option(const struct now_opt *o)
{
	static const char *const key[] = { "file", "file.filename", "file.file.filename", "filename" };
	char *file = NULL;

	if (!now_is(o, "drive"))
		return strdup(o->value);
	for (size_t i = 0; i < ARRAY_SIZE(key) && !file; i++)
		file = qemu_opt_get(o->value, NULL, key[i]);
	if (file && !strncmp(file, "file:", 5))
		memmove(file, file + 5, strlen(file + 5) + 1);
	return file;
}

static const json_t *block_of(const struct now_graph *g, const char *name)
{
	const json_t *block;
	size_t i;

	json_array_foreach(g->blocks, i, block)
		if (!strcmp(now_text(block, "device"), name))
			return block;
	return NULL;
}

// Files below the first are found by the names that are in the files.
static bool has_chain(struct now *n, const struct now_graph *g, const char *name, const char *drive)
{
	const char *below;

	for (; (below = now_child(g, name, "backing")); name = below) {
		const json_t *image = json_object_get(now_node(g, name), "image");
		const char *file = now_file(g, below), *drv = now_text(now_node(g, below), "drv");

		if (file && now_same_file(n, file, now_text(image, "full-backing-filename")) &&
		    !strcmp(drv, now_text(image, "backing-filename-format")))
			continue;
		refuse_because(&n->r,
			"its drive '%s' has %s, which does not name %s (%s) as the file below it, and so it cannot be opened again as it "
			"is; write it there by QMP change-backing-file and qemu-img rebase -u -F", drive, now_file(g, name) ?: name,
			file ?: below, drv);
		return false;
	}
	return true;
}

static bool has_in_chain(struct now *n, const struct now_graph *g, const char *name, const char *file)
{
	for (; name; name = now_child(g, name, "backing"))
		if (now_file(g, name) && now_same_file(n, now_file(g, name), file))
			return true;
	return false;
}

// A -drive can have all of it again: a format on a file, without encryption, offsets and the like.
static bool is_plain(const struct now_graph *g, const char *root)
{
	const json_t *node = now_node(g, root);
	const char *drv = now_text(node, "drv"), *child = now_child(g, root, "file") ?: "", *as;
	const char *below = now_text(now_node(g, child), "drv");
	bool good = now_file(g, root) && !json_object_get(g->children, child) && !json_is_true(json_object_get(node, "encrypted"));
	const json_t *edges = json_object_get(g->children, root), *edge;

	json_object_foreach((json_t *)edges, as, edge)
		good &= !strcmp(as, "file") || !strcmp(as, "backing");
	good &= !strcmp(below, "file") || !strcmp(below, "host_device") || !strcmp(below, "host_cdrom");
	// "json:" of a raw node says an offset or the like; of a qcow2 node what is below it, which has_chain() looks at.
	return good && (!strcmp(drv, "qcow2") || (!strcmp(drv, "raw") && strncmp(now_text(node, "file"), "json:", 5)));
}

// ---- what becomes of the option

// A list in which what is about the file is left out, and nothing that may not fit another one is in.
static int without_file(struct now *n, struct now_opt *o, const char *drive)
{
	static const char *const about_file[] = { "file", "driver", "format", "backing", "filename", "node-name", "readonly", "read-only" };
	static const char *const fits_all[] = { "if", "index", "bus", "unit", "id", "media", "cache", "aio", "discard", "detect-zeroes",
						"werror", "rerror", "throttling", "copy-on-read", "auto-read-only", "snapshot" };
	const char *key;
	json_t *all, *v;
	int ret = 0;

	for (size_t i = 0; i < ARRAY_SIZE(about_file) && !ret; i++)
		ret = now_set(o, about_file[i], NULL);
	all = ret ? NULL : now_parse(o->value, NULL);
	json_object_foreach(all, key, v) {
		bool good = false;

		for (size_t i = 0; i < ARRAY_SIZE(fits_all); i++)
			good |= !strcmp(key, fits_all[i]);
		if (!good)
			refuse_because(&n->r, "its drive '%s' has another file than it was started with, for which the option '%s' may "
				       "not be right; go back to the first one", drive, key);
	}
	ret = ret ?: all ? 0 : -ENOMEM;
	json_decref(all);
	return ret;
}

static int put_file(struct now_opt *o, const struct now_graph *g, const json_t *block, bool cdrom)
{
	const json_t *inserted = json_object_get(block, "inserted");
	const char *root = now_root(block);
	int ret = now_set_string(o, "file", now_file(g, root)) ?: now_set_string(o, "format", now_text(inserted, "drv"));

	if (!ret && json_is_true(json_object_get(inserted, "ro")) && !cdrom)
		ret = now_set_string(o, "readonly", "on");
	if (!ret && *root != '#')
		ret = now_set_string(o, "node-name", root);
	return ret;
}

static int change(struct now *n, const struct now_graph *g, const struct drive *d, const json_t *block)
{
	struct now_opt *o = &n->opt[d->opt];
	char *list = as_list(o), *name = strdup("drive");
	const char *root = now_root(block);
	int ret;

	if (!list || !name) {
		free(list);
		free(name);
		return -ENOMEM;
	}
	free(o->name);
	free(o->value);
	*o = (struct now_opt){ .name = name, .value = list };
	ret = without_file(n, o, d->name);
	if (ret || !root)
		return ret;
	if (!is_plain(g, root)) {
		refuse_because(&n->r, "its drive '%s' has %s (%s) now, which cannot be opened again as it is; go back to what it was "
			       "started with", d->name, now_text(now_node(g, root), "file"), now_text(now_node(g, root), "drv"));
		return 0;
	}
	return has_chain(n, g, root, d->name) ? put_file(o, g, block, d->cdrom) : 0;
}

// Whether the drive still has what the option says. What is no plain file is left to the comparison that comes last.
static bool is_as_started(struct now *n, const struct now_graph *g, const struct now_opt *o, const json_t *block, const char *file)
{
	_cleanup_free_ char *format = now_is(o, "drive") ? qemu_opt_get(o->value, NULL, "format") : NULL;
	const char *root = now_root(block), *now = root ? now_file(g, root) : NULL;

	if (!file || !*file)
		return !root || !now;
	if (!strncmp(file, "json:", 5))
		return true;
	return now && now_same_file(n, file, now) && (!format || !strcmp(format, now_text(now_node(g, root), "drv")));
}

static int look_at_drive(struct now *n, const struct now_graph *g, const struct drive *d, unsigned *nr_unsure)
{
	struct now_opt *o = &n->opt[d->opt];
	_cleanup_free_ char *file = file_in_option(o);
	const json_t *block = block_of(g, d->name);

	if (!block && d->has_id) {
		now_drop(o); // it went with its device
		return 0;
	}
	if (!block) {
		refuse_because(&n->r, "the drive '%s' of its option -%s %s is gone, and without an id others would get its name; add it "
			       "again", d->name, o->name, o->value);
		return 0;
	}
	if (is_as_started(n, g, o, block, file))
		return 0;
	if (!d->has_id && !(file && now_root(block) && has_in_chain(n, g, now_root(block), file)) && (*nr_unsure)++) {
		refuse_because(&n->r, "its drive '%s' and another one without id have other files than they were started with; give the "
			       "drives an id, or go back to what they had", d->name);
		return 0;
	}
	return change(n, g, d, block);
}

// ---- drives that the command line does not have

static int add_found(struct now *n, const struct now_graph *g, const json_t *block)
{
	const char *name = now_text(block, "device"), *cdrom = most_units(n, "ide") == 1 ? "ide2-cd0" : "ide1-cd0";
	_cleanup_free_ char *list = NULL;
	struct drive d = { .cdrom = !strcmp(name, cdrom) };
	int ret;

	if (!now_root(block)) // an empty drive that the machine brings
		return 0;
	if (d.cdrom)
		list = strdup("index=2,media=cdrom");
	else if (!strcmp(name, "floppy0"))
		list = strdup("if=floppy,index=0");
	else if (asprintf(&list, "if=none,id=%s", name) < 0)
		list = NULL;
	snprintf(d.name, sizeof d.name, "%s", name);
	ret = list ? now_add(n, "drive", list) : -ENOMEM;
	d.opt = n->nr - 1;
	return ret ?: change(n, g, &d, block);
}

static int find_more(struct now *n, const struct now_graph *g, const struct drives *all)
{
	const json_t *block;
	size_t i;
	int ret = 0;

	json_array_foreach(g->blocks, i, block) {
		bool known = !*now_text(block, "device");

		for (size_t k = 0; k < all->nr; k++)
			known |= !strcmp(all->v[k].name, now_text(block, "device"));
		if (!known && !ret)
			ret = add_found(n, g, block);
	}
	return ret;
}

int now_drives(struct now *n)
{
	struct drives all = { 0 };
	unsigned nr_unsure = 0;
	struct now_graph g;
	int ret = now_graph_read(n, &g);

	if (ret)
		return ret;
	for (size_t i = 0; i < n->nr && !ret; i++)
		if (is_drive(&n->opt[i]))
			ret = add_drive(n, &all, i);
	for (size_t i = 0; i < all.nr && !ret; i++)
		ret = look_at_drive(n, &g, &all.v[i], &nr_unsure);
	ret = ret ?: find_more(n, &g, &all);
	free(all.v);
	now_graph_fini(&g);
	return ret;
}
