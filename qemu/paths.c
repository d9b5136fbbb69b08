// SPDX-License-Identifier: GPL-2.0-only
#include "qemu/paths.h"

#include <errno.h>
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "qemu/args.h"
#include "qemu/cmdline_int.h"
#include "util/cleanup.h"
#include "util/size.h"

// How a name is to be read.
struct reading {
	bool disk;
	bool relative; // a name without a slash at its beginning is one in the VM's folder; else it is none of ours
};

static int map_json(const struct qemu_paths *p, json_t *o, bool disk, bool *changed);

// ---- one name

// "nbd:...", "rbd:...": a colon before any slash.
static bool has_protocol(const char *name)
{
	return name[strcspn(name, ":/")] == ':';
}

static int map_json_text(const struct qemu_paths *p, const char *prefix, const char *text, bool disk, char **new)
{
	json_t *o = json_loads(text, 0, NULL);
	_cleanup_free_ char *is = NULL;
	bool changed = false;
	int r = o ? map_json(p, o, disk, &changed) : 0;

	is = !r && changed ? json_dumps(o, JSON_COMPACT) : NULL;
	json_decref(o);
	if (r || !changed)
		return r;
	return is && asprintf(new, "%s%s", prefix, is) >= 0 ? 0 : -ENOMEM;
}

// *new NULL: it stays.
static int map_name(const struct qemu_paths *p, const char *name, const struct reading *how, char **new)
{
	_cleanup_free_ char *path = NULL;

	*new = NULL;
	if (how->disk && !strncmp(name, "json:", 5))
		return map_json_text(p, "json:", name + 5, true, new);
	if (how->disk && !strncmp(name, "file:", 5))
		name += 5;
	if (!*name || (*name != '/' && (!how->relative || has_protocol(name))))
		return 0;
	if (asprintf(&path, "%s%s%s", *name == '/' ? "" : p->cwd, *name == '/' ? "" : "/", name) < 0) {
		path = NULL;
		return -ENOMEM;
	}
	return p->map(p->ctx, path, how->disk, new);
}

// ---- values by their keys

// The last part of a key: "file.filename". Those that are marked may be relative; what others take as such QEMU looks up elsewhere.
static const struct {
	const char *key;
	bool relative;
} file_key[] = {
	{ "file", true }, { "filename", true }, { "path", true }, { "logfile", true }, { "input-path", true }, { "dir", true },
	{ "kernel", true }, { "initrd", true }, { "dtb", true }, { "firmware", false }, { "romfile", false }, { "splash", false },
	{ "tftp", true }, { "smb", true }, { "script", false }, { "downscript", false }, { "helper", false }, { "socket", true },
	{ "evdev", true }, { "cancel-path", true }, { "chroot", true }, { "events", true }, { "addr", false }, { "x509-dir", true },
	{ "x509-key-file", true }, { "x509-cert-file", true }, { "x509-cacert-file", true }, { "x509-dh-key-file", true }, { "rundir", true },
};

// False: the key's value names no file. disk: of a -drive or -blockdev. node: "file" may be the name of a block node.
static bool read_key(const char *key, size_t len, bool disk, bool node, struct reading *how)
{
	const char *dot = memrchr(key, '.', len);

	if (dot) {
		len -= (size_t)(dot + 1 - key);
		key = dot + 1;
	}
	for (size_t i = 0; i < ARRAY_SIZE(file_key); i++) {
		const char *k = file_key[i].key;
		bool file = !strcmp(k, "file");

		if (len != strlen(k) || memcmp(key, k, len))
			continue;
		how->disk = disk && (file || !strcmp(k, "filename"));
		how->relative = file_key[i].relative && !(file && node);
		return true;
	}
	return false;
}

// All values in it, and in what is in it.
static int map_json(const struct qemu_paths *p, json_t *o, bool disk, bool *changed)
{
	json_t *v;
	const char *key;
	size_t i;
	int r = 0;

	json_array_foreach(o, i, v)
		r = r ?: map_json(p, v, disk, changed);
	json_object_foreach(o, key, v) {
		_cleanup_free_ char *new = NULL;
		struct reading how;

		if (!json_is_string(v)) {
			r = r ?: map_json(p, v, disk, changed);
		} else if (!r && read_key(key, strlen(key), disk, true, &how)) {
			r = map_name(p, json_string_value(v), &how, &new);
			if (!r && new) {
				*changed = true;
				r = json_string_set(v, new) ? -ENOMEM : 0;
			}
		}
	}
	return r;
}

// A word of a list as it is to be; *new NULL: it stays.
static int map_word(const struct qemu_paths *p, const char *option, const struct cmdline_word *w, char **new)
{
	_cleanup_free_ char *word = strndup(w->s, w->len), *key = strndup(w->s, w->key_len), *value = NULL;
	bool node = !strcmp(option, "blockdev"), disk = node || !strcmp(option, "drive");
	struct reading how;

	*new = NULL;
	if (!word || !key)
		return -ENOMEM;
	disk |= !strcmp(option, "set") && !strncmp(key, "drive.", 6);
	if (w->key_len == w->len || !read_key(w->s, w->key_len, disk, node, &how))
		return 0;
	value = qemu_opt_get(word, NULL, key); // commas halved
	return value ? map_name(p, value, &how, new) : -ENOMEM;
}

static int map_list(const struct qemu_paths *p, const char *option, const char *list, char **new)
{
	_cleanup_free_ char *text = NULL;
	const char *comma = "";
	bool changed = false;
	struct cmdline_word w;
	size_t len;
	FILE *f = open_memstream(&text, &len);
	int r = f ? 0 : -ENOMEM;

	while (!r && cmdline_next_word(&list, &w)) {
		_cleanup_free_ char *value = NULL;

		r = map_word(p, option, &w, &value);
		fprintf(f, "%s%.*s", comma, (int)(value ? w.key_len + 1 : w.len), w.s);
		if (value)
			cmdline_put_escaped(f, value);
		changed |= value != NULL;
		comma = ",";
	}
	if (f && fclose(f))
		r = r ?: -ENOMEM;
	if (!r && changed)
		*new = steal_ptr(&text);
	return r;
}

// ---- options that are a name

static const struct {
	const char *option;
	struct reading how;
} plain[] = {
	{ "", { true, true } }, { "hda", { true, true } }, { "hdb", { true, true } }, { "hdc", { true, true } }, { "hdd", { true, true } },
	{ "cdrom", { true, true } }, { "fda", { true, true } }, { "fdb", { true, true } }, { "pflash", { true, true } },
	{ "sd", { true, true } }, { "mtdblock", { true, true } }, { "kernel", { false, true } }, { "initrd", { false, true } },
	{ "dtb", { false, true } }, { "D", { false, true } }, { "chroot", { false, true } }, { "bios", { false, false } }, { "L", { false, false } },
};

// "[mon:]file:PATH", "pipe:PATH", "unix:PATH[,...]", "/dev/ttyS0".
static int map_legacy(const struct qemu_paths *p, const char *value, char **new)
{
	static const char *const before[] = { "file:", "pipe:", "unix:" };
	_cleanup_free_ char *name = NULL, *is = NULL;
	struct reading how = { 0 };
	const char *s = value, *end;
	int r;

	if (!strncmp(s, "mon:", 4))
		s += 4;
	end = s + strlen(s);
	for (size_t i = 0; i < ARRAY_SIZE(before) && !how.relative; i++)
		if (!strncmp(s, before[i], 5)) {
			s += 5;
			end = *before[i] == 'u' ? s + strcspn(s, ",") : end;
			how.relative = true;
		}
	name = strndup(s, (size_t)(end - s));
	r = name ? map_name(p, name, &how, &is) : -ENOMEM;
	if (r || !is)
		return r;
	if (asprintf(new, "%.*s%s%s", (int)(s - value), value, is, end) >= 0)
		return 0;
	*new = NULL;
	return -ENOMEM;
}

static bool is_legacy(const char *option)
{
	static const char *const names[] = { "serial", "parallel", "monitor", "qmp", "qmp-pretty", "gdb", "debugcon", "vnc" };

	for (size_t i = 0; i < ARRAY_SIZE(names); i++)
		if (!strcmp(option, names[i]))
			return true;
	return false;
}

static int map_value(const struct qemu_paths *p, const struct qemu_arg *a, char **new)
{
	*new = NULL;
	if (!a->value || !strcmp(a->name, "append") || !strcmp(a->name, "name"))
		return 0;
	for (size_t i = 0; i < ARRAY_SIZE(plain); i++)
		if (!strcmp(a->name, plain[i].option))
			return map_name(p, a->value, &plain[i].how, new);
	if (is_legacy(a->name))
		return map_legacy(p, a->value, new);
	if (*a->value == '{')
		return map_json_text(p, "", a->value, !strcmp(a->name, "blockdev"), new);
	return map_list(p, a->name, a->value, new);
}

int qemu_paths_map(char **argv, size_t argc, const struct qemu_paths *p)
{
	struct qemu_arg a;
	int r = 0;

	for (int i = 1; !r && qemu_arg_next(argv, (int)argc, &i, &a);) {
		char *new;

		r = map_value(p, &a, &new);
		if (!r && new) {
			free(argv[i - 1]); // the value is the last that was taken
			argv[i - 1] = new;
		}
	}
	return r;
}
