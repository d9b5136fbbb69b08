// SPDX-License-Identifier: GPL-2.0-only
// A recorded command line whose disks get new files over them.
//
//	-hda and the like     the new file instead of the old one
//	-drive                file= and format= say the new file, which names the old one
//	-blockdev             the node of the disk gets another name and is read-only; one of its old name comes over it
#include <errno.h>
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "qemu/args.h"
#include "qemu/cmdline.h"
#include "qemu/cmdline_int.h"
#include "qemu/disks_int.h"
#include "util/cleanup.h"
#include "util/log.h"
#include "util/size.h"

static int refuse(const struct disk_rewrite *w, const char *why)
{
	log_err("the VM was dumped with a snapshot of its disk %s, so it needs a new file over that, but %s", w->path, why);
	return -EOPNOTSUPP;
}

static bool is_path(const struct disk_rewrite *w, const char *name)
{
	_cleanup_free_ char *path = name ? disk_path(w->cwd, name) : NULL;

	return path && !strcmp(path, w->path);
}

// Takes the text.
static int set(struct disk_rewrite *w, int at, char *text)
{
	if (!text)
		return -ENOMEM;
	free(w->v[at]);
	w->v[at] = text;
	return 0;
}

static int insert(struct disk_rewrite *w, int at, char *text)
{
	char **v = text ? reallocarray(w->v, (size_t)w->nr + 2, sizeof *v) : NULL;

	if (!v) {
		free(text);
		return -ENOMEM;
	}
	memmove(v + at + 1, v + at, (size_t)(w->nr + 1 - at) * sizeof *v);
	v[at] = text;
	w->v = v;
	w->nr++;
	return 0;
}

// ---- lists of words

static bool key_in(const struct cmdline_word *w, const char *const *keys)
{
	for (; *keys; keys++)
		if (w->key_len == strlen(*keys) && !memcmp(w->s, *keys, w->key_len))
			return true;
	return false;
}

// The list without the words of these keys, with ",key=value" for each pair at its end. The caller's; NULL: no memory.
static char *change_words(const char *list, const char *const *without, const char *const (*pairs)[2], size_t nr)
{
	const char *rest = list, *comma = "";
	struct cmdline_word w;
	char *text = NULL;
	size_t len;
	FILE *f = open_memstream(&text, &len);

	if (!f)
		return NULL;
	while (cmdline_next_word(&rest, &w)) {
		if (key_in(&w, without))
			continue;
		fprintf(f, "%s%.*s", comma, (int)w.len, w.s);
		comma = ",";
	}
	for (size_t i = 0; i < nr; i++) {
		fprintf(f, "%s%s=", comma, pairs[i][0]);
		cmdline_put_escaped(f, pairs[i][1]);
		comma = ",";
	}
	if (fclose(f)) {
		free(text);
		return NULL;
	}
	return text;
}

// ---- -drive

static bool has_backing(const char *list)
{
	struct cmdline_word w;

	while (cmdline_next_word(&list, &w))
		if (w.key_len >= 7 && !memcmp(w.s, "backing", 7))
			return true;
	return false;
}

// 1: it was this one.
static int rewrite_drive(struct disk_rewrite *w, int at)
{
	static const char *const without[] = { "file", "file.filename", "file.driver", "format", "driver", NULL };
	_cleanup_free_ char *file = qemu_opt_get(w->v[at], NULL, "file"), *filename = qemu_opt_get(w->v[at], NULL, "file.filename");

	if (!is_path(w, file ?: filename))
		return 0;
	if (has_backing(w->v[at]))
		return refuse(w, "its -drive has options for the file below it; open it by -blockdev instead");
	return set(w, at, change_words(w->v[at], without, (const char *const[][2]){ { "format", "qcow2" }, { "file", w->overlay } }, 2)) ?: 1;
}

// ---- -blockdev

// A value by its dotted key, whichever way it is written. The caller's.
static char *blockdev_get(const char *value, const char *key)
{
	_cleanup_free_ char *inner = NULL;
	const char *dot = strchr(key, '.');
	json_t *all, *sub;
	char *found = NULL, first[32];

	if (*value != '{' || !dot)
		return qemu_opt_get(value, "driver", key);
	all = json_loads(value, 0, NULL);
	snprintf(first, sizeof first, "%.*s", (int)(dot - key), key);
	sub = json_object_get(all, first);
	inner = json_is_object(sub) ? json_dumps(sub, 0) : NULL;
	found = inner ? blockdev_get(inner, dot + 1) : NULL;
	json_decref(all);
	return found;
}

static bool blockdev_is(const char *value, const char *key, const char *want)
{
	_cleanup_free_ char *is = blockdev_get(value, key);

	return is && want && !strcmp(is, want);
}

// The index of the value of the -blockdev for which a key has a value (a path, or a text); 0: there is none.
static int find_blockdev(const struct disk_rewrite *w, const char *key, const char *want, bool path)
{
	struct qemu_arg a;

	for (int i = 1; qemu_arg_next(w->v, w->nr, &i, &a);) {
		_cleanup_free_ char *is = a.value && !strcmp(a.name, "blockdev") ? blockdev_get(a.value, key) : NULL;

		if (is && (path ? is_path(w, is) : !strcmp(is, want)) && !blockdev_is(a.value, "read-only", "on"))
			return i - 1;
	}
	return 0;
}

static char *below_as_json(const char *value, const char *name, const char *path)
{
	json_t *all = json_loads(value, 0, NULL), *file = json_object_get(all, "file");
	char *text;

	if (json_object_get(all, "filename"))
		json_object_set_new(all, "filename", json_string(path));
	if (json_object_get(file, "filename"))
		json_object_set_new(file, "filename", json_string(path));
	if (json_is_object(file))
		json_object_del(file, "read-only");
	json_object_set_new(all, "read-only", json_true());
	json_object_set_new(all, "node-name", json_string(name));
	text = json_dumps(all, JSON_COMPACT);
	json_decref(all);
	return text;
}

// A node of the disk as it is below the new one: of another name, read-only, with an absolute path as the new file has it.
static char *below(const char *value, const char *name, const char *path)
{
	static const char *const without[] = { "node-name", "read-only", "file.read-only", "filename", "file.filename", NULL };
	const char *pairs[3][2] = { { "node-name", name }, { "read-only", "on" } };
	_cleanup_free_ char *direct = NULL, *nested = NULL;

	if (*value == '{')
		return below_as_json(value, name, path);
	direct = qemu_opt_get(value, "driver", "filename");
	nested = qemu_opt_get(value, "driver", "file.filename");
	pairs[2][0] = nested ? "file.filename" : "filename";
	pairs[2][1] = path;
	return change_words(value, without, (const char *const (*)[2])pairs, direct || nested ? 3 : 2);
}

static void copy_text(json_t *to, const char *key, const char *value, const char *from)
{
	_cleanup_free_ char *text = blockdev_get(value, from);

	if (text)
		json_object_set_new(to, key, json_string(text));
}

static void copy_cache(json_t *to, const char *value)
{
	_cleanup_free_ char *direct = blockdev_get(value, "cache.direct"), *no_flush = blockdev_get(value, "cache.no-flush");
	json_t *cache = json_object();

	if (direct)
		json_object_set_new(cache, "direct", json_boolean(!strcmp(direct, "on")));
	if (no_flush)
		json_object_set_new(cache, "no-flush", json_boolean(!strcmp(no_flush, "on")));
	if (json_object_size(cache))
		json_object_set_new(to, "cache", cache);
	else
		json_decref(cache);
}

// The node that takes the place of image, of which file is the separate file node or NULL. aio, cache and the like stay.
static char *over(const struct disk_rewrite *w, const char *name, const char *below_name, const char *image, const char *file)
{
	bool nested = !file && !blockdev_is(image, "driver", "file");
	json_t *protocol = json_pack("{s:s, s:s}", "driver", "file", "filename", w->overlay);
	json_t *node = json_pack("{s:s, s:s, s:s, s:o}", "driver", "qcow2", "node-name", name, "backing", below_name, "file", protocol);
	char *text;

	copy_cache(node, image);
	copy_text(node, "discard", image, "discard");
	copy_text(node, "detect-zeroes", image, "detect-zeroes");
	copy_text(protocol, "aio", file ?: image, nested ? "file.aio" : "aio");
	copy_text(protocol, "locking", file ?: image, nested ? "file.locking" : "locking");
	if (file)
		copy_cache(protocol, file);
	text = node ? json_dumps(node, JSON_COMPACT) : NULL;
	json_decref(node);
	return text;
}

static void unused_name(const struct disk_rewrite *w, char *name, size_t size)
{
	bool used = true;

	for (unsigned n = 0; used; n++) {
		snprintf(name, size, "criu-vm-below-%u", n);
		used = false;
		for (int i = 1; i < w->nr; i++)
			used |= strstr(w->v[i], name) != NULL;
	}
}

static int put_over(struct disk_rewrite *w, int image, int file)
{
	_cleanup_free_ char *name = blockdev_get(w->v[image], "node-name"), *file_name = file ? blockdev_get(w->v[file], "node-name") : NULL;
	char *new, below_name[32];
	int r;

	if (!name || (file && !file_name))
		return refuse(w, "a -blockdev of it has no node-name");
	unused_name(w, below_name, sizeof below_name);
	new = over(w, name, below_name, w->v[image], file ? w->v[file] : NULL);
	r = insert(w, image + 1, new);
	if (!r)
		r = insert(w, image + 1, strdup("-blockdev"));
	if (file > image)
		file += 2;
	if (!r)
		r = set(w, image, below(w->v[image], below_name, w->path));
	if (!r && file)
		r = set(w, file, below(w->v[file], file_name, w->path));
	return r ?: 1;
}

static int rewrite_blockdev(struct disk_rewrite *w)
{
	int image = find_blockdev(w, "file.filename", NULL, true), file = 0;
	_cleanup_free_ char *name = NULL;

	if (!image) {
		file = find_blockdev(w, "filename", NULL, true);
		if (!file)
			return 0;
		name = blockdev_get(w->v[file], "node-name");
		image = name ? find_blockdev(w, "file", name, false) : 0;
		if (!image) {
			image = file; // a device has it without a format
			file = 0;
		}
	}
	return put_over(w, image, file);
}

// ---- all of it

int disk_rewrite(struct disk_rewrite *w)
{
	static const char *const simple[] = { "", "hda", "hdb", "hdc", "hdd", "fda", "fdb", "pflash", "sd", "mtdblock" };
	struct qemu_arg a;
	int r = rewrite_blockdev(w);

	for (int i = 1; !r && qemu_arg_next(w->v, w->nr, &i, &a);) {
		if (!strcmp(a.name, "drive") && a.value)
			r = rewrite_drive(w, i - 1);
		for (size_t k = 0; k < ARRAY_SIZE(simple) && !r; k++)
			if (!strcmp(a.name, simple[k]) && is_path(w, a.value))
				r = set(w, i - 1, strdup(w->overlay)) ?: 1;
	}
	if (!r)
		return refuse(w, "its command line does not name the disk in a way that is understood");
	return r < 0 ? r : 0;
}

int disk_rewrite_init(struct disk_rewrite *w, char *const *argv, int argc)
{
	w->v = calloc((size_t)argc + 1, sizeof *w->v);
	for (; w->v && w->nr < argc; w->nr++) {
		w->v[w->nr] = strdup(argv[w->nr]);
		if (!w->v[w->nr])
			break;
	}
	return w->nr == argc ? 0 : -ENOMEM;
}

int disk_check_recorded(const VmDiskEntry *e)
{
	if (*e->path == '/' && e->format && disk_format_is_plain(e->format))
		return 0;
	log_err("the checkpoint names its disk '%s' of the format '%s': that makes no sense", e->path, e->format ?: "?");
	return -EINVAL;
}

int qemu_disks_overlay_check(VmDiskEntry *const *disks, size_t nr, const char *cwd, char *const *argv, int argc)
{
	struct disk_rewrite w = { .cwd = cwd };
	int r = disk_rewrite_init(&w, argv, argc);

	for (size_t i = 0; i < nr && !r; i++) {
		if (!disks[i]->snapshot)
			continue;
		w.path = disks[i]->path;
		w.overlay = disks[i]->snapshot;
		r = disk_check_recorded(disks[i]) ?: disk_rewrite(&w);
	}
	qemu_cmdline_free(w.v);
	return r;
}
