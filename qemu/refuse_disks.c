// SPDX-License-Identifier: GPL-2.0-only
// Disks: changed media, external snapshots, mirrors; images that were moved or replaced under QEMU.
//
// A device made by -drive and its like is known by its file name, one made by -blockdev by the node at its top.
#include <errno.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "qemu/args.h"
#include "qemu/disks_int.h"
#include "qemu/refuse_int.h"
#include "qemu/vm_int.h"
#include "util/cleanup.h"
#include "util/size.h"

static const char *text_of(const json_t *o, const char *key)
{
	const char *s = json_string_value(json_object_get(o, key));

	return s ? s : "";
}

// The file itself of a name as QEMU prints or takes it: "x", "file:x", or "json:{...}" with the file somewhere below. The caller's.
static char *file_of(const char *name)
{
	static const char json[] = "json:", file[] = "file:";
	json_t *all, *o;
	char *found;

	if (!strncmp(name, file, strlen(file)))
		return strdup(name + strlen(file));
	if (strncmp(name, json, strlen(json)))
		return strdup(name);
	all = o = json_loads(name + strlen(json), 0, NULL);
	while (json_is_object(o) && !json_object_get(o, "filename"))
		o = json_object_get(o, "file");
	found = strdup(o ? text_of(o, "filename") : name);
	json_decref(all);
	return found;
}

// The same for a name that may be that of a descriptor which QEMU was given.
static char *file_now(const struct refusal *r, const char *name)
{
	_cleanup_free_ char *file = file_of(name);
	const char *path = file ? json_string_value(json_object_get(r->fdsets, file)) : NULL;

	return path ? strdup(path) : steal_ptr(&file);
}

static int add_file(struct names *n, const char *name)
{
	_cleanup_free_ char *file = name ? file_of(name) : NULL;

	if (!name || !*name)
		return 0;
	return file ? names_add(n, file) : -ENOMEM;
}

static int add_option(struct names *n, const char *opts, const char *key)
{
	_cleanup_free_ char *value = qemu_opt_get(opts, NULL, key);

	return value && *value ? names_add(n, value) : 0;
}

// What the command line has: files of -drive and its like, and what devices have as their drive.
static int expect(const struct qemu_vm *vm, struct names *files, struct names *drives)
{
	static const char *const simple[] = { "", "hda", "hdb", "hdc", "hdd", "cdrom", "fda", "fdb", "pflash", "sd", "mtdblock" };
	static const char *const file_key[] = { "file", "file.filename", "file.file.filename", "filename" };
	static const char *const device_key[] = { "drive", "driveA", "driveB" }, *const machine_key[] = { "pflash0", "pflash1" };
	struct qemu_arg a;
	int ret = 0;

	for (int i = 1; !ret && qemu_arg_next(vm->argv, vm->argc, &i, &a);) {
		for (size_t k = 0; k < ARRAY_SIZE(simple) && !ret; k++)
			if (!strcmp(a.name, simple[k]))
				ret = add_file(files, a.value);
		for (size_t k = 0; k < ARRAY_SIZE(file_key) && !strcmp(a.name, "drive") && !ret; k++) {
			_cleanup_free_ char *name = qemu_opt_get(a.value, NULL, file_key[k]);

			if (!name)
				continue;
			ret = add_file(files, name);
			break;
		}
		for (size_t k = 0; k < ARRAY_SIZE(device_key) && !strcmp(a.name, "device") && !ret; k++)
			ret = add_option(drives, a.value, device_key[k]);
		for (size_t k = 0; k < ARRAY_SIZE(machine_key) && (!strcmp(a.name, "M") || !strcmp(a.name, "machine")) && !ret; k++)
			ret = add_option(drives, a.value, machine_key[k]);
	}
	return ret;
}

static int refuse_drive(struct refusal *r, const json_t *block, struct names *files, struct names *drives)
{
	const json_t *inserted = json_object_get(block, "inserted");
	const char *device = text_of(block, "device"), *node = text_of(inserted, "node-name");
	_cleanup_free_ char *file = NULL;

	names_take(drives, device); // a device on a -drive, which is told by its file
	if (!inserted)
		return 0;
	file = file_now(r, text_of(json_object_get(inserted, "image"), "filename"));
	if (!file)
		return -ENOMEM;
	if (*device && !names_take(files, file))
		refuse_because(r,
			"its drive '%s' has %s, which the command line does not say: another medium, an external snapshot "
			"or a mirror; go back to what it was started with, or restart it with what it has now",
			device, file);
	if (!*device && *text_of(block, "qdev") && !names_take(drives, node))
		refuse_because(r,
			"its disk %s has the block node '%s' (%s), which the command line does not say: another medium, an "
			"external snapshot or a mirror; go back to what it was started with, or restart it with what it has now",
			text_of(block, "qdev"), node, file);
	return 0;
}

static int refuse_drives(struct refusal *r)
{
	struct names files = { 0 }, drives = { 0 };
	json_t *list = NULL, *block;
	size_t k;
	int ret = expect(r->vm, &files, &drives);

	if (!ret)
		ret = qmp_call(r->vm->qmp, "query-block", NULL, &list);
	json_array_foreach(list, k, block)
		if (!ret)
			ret = refuse_drive(r, block, &files, &drives);
	for (size_t i = 0; i < files.nr && !ret; i++)
		refuse_because(r, "%s of its command line is in none of its drives: it was ejected or replaced; insert it again",
			files.v[i]);
	for (size_t i = 0; i < drives.nr && !ret; i++)
		refuse_because(r,
			"the drive '%s' of its command line is on none of its devices: it was ejected or replaced; insert it again",
			drives.v[i]);
	json_decref(list);
	names_fini(&files);
	names_fini(&drives);
	return ret;
}

// ---- the image files themselves

static int refuse_image(struct refusal *r, const json_t *node)
{
	static const char *const local[] = { "file", "host_device", "host_cdrom" };
	_cleanup_free_ char *file = file_now(r, text_of(node, "file"));
	char path[PATH_MAX];
	bool is_local = false;
	struct stat st;

	if (!file)
		return -ENOMEM;
	for (size_t i = 0; i < ARRAY_SIZE(local); i++)
		is_local |= !strcmp(text_of(node, "drv"), local[i]);
	if (!is_local)
		return 0;
	if (qemu_vm_path(r->vm, file, path, sizeof path) || stat(path, &st))
		refuse_because(r,
			"its disk image %s is not there any more (seen from %s); put it back, or start QEMU with absolute paths",
			file, r->vm->cwd);
	else if (!disk_is_open(r->vm->pid, &st))
		refuse_because(r, "its disk image %s is not the file that it has open: it was replaced; put the old one back", file);
	return 0;
}

static int refuse_nodes(struct refusal *r)
{
	struct names nodes = { 0 };
	json_t *list, *node, *bitmap;
	struct qemu_arg a;
	size_t i, k;
	int ret = qmp_call(r->vm->qmp, "query-named-block-nodes", json_pack("{s:b}", "flat", 1), &list);

	json_array_foreach(list, i, node) {
		if (!ret)
			ret = refuse_image(r, node);
		if (!ret)
			ret = names_add(&nodes, text_of(node, "node-name"));
		json_array_foreach(json_object_get(node, "dirty-bitmaps"), k,
			bitmap) if (json_is_true(json_object_get(bitmap, "persistent"))) refuse_because(r,
			"disk %s has the persistent dirty bitmap '%s', which would be lost; remove it by QMP "
			"block-dirty-bitmap-remove",
			text_of(node, "file"), text_of(bitmap, "name"));
	}
	json_decref(list);
	for (int n = 1; !ret && qemu_arg_next(r->vm->argv, r->vm->argc, &n, &a);) {
		_cleanup_free_ char *name = strcmp(a.name, "blockdev") ? NULL : qemu_opt_get(a.value, "driver", "node-name");

		if (name && !names_take(&nodes, name))
			refuse_because(r, "the block node '%s' of its command line is gone; add it again, or restart the VM", name);
	}
	names_fini(&nodes);
	return ret;
}

int refuse_disks(struct refusal *r)
{
	int ret = refuse_drives(r);

	return ret ? ret : refuse_nodes(r);
}
