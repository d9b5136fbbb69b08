// SPDX-License-Identifier: GPL-2.0-only
#include "criu-vm/map_file.h"

#include <errno.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "criu-vm/tap.h"
#include "qemu/paths.h"
#include "util/cleanup.h"
#include "util/io.h"
#include "util/log.h"
#include "util/size.h"

enum kind { DISK, PATH, BRIDGE, NET, NR_KINDS };

static const char *const kind_name[NR_KINDS] = { "disk", "path", "bridge", "net" };

struct mapping {
	enum kind kind;
	char *old, *new;
};

struct map_file {
	struct mapping *v;
	size_t nr;
};

static bool is_path(enum kind k)
{
	return k == DISK || k == PATH;
}

static bool is_folder(const char *path)
{
	return path[strlen(path) - 1] == '/';
}

// ---- reading

struct line {
	const char *path; // of the file
	unsigned nr;
	char *rest;
};

// what: the word, or NULL.
static int invalid(const struct line *l, const char *why, const char *what)
{
	const char *quote = what ? "\"" : "";

	log_err("%s:%u: %s%s%s%s%s", l->path, l->nr, why, what ? " " : "", quote, what ?: "", quote);
	return -EINVAL;
}

// The next word, NULL at the line's end; in place.
static int next_word(struct line *l, char **word)
{
	char *from = l->rest + strspn(l->rest, " \t\r"), *to = from;
	bool quoted = *from == '"', closed = !quoted;

	*word = *from && *from != '#' ? to : NULL;
	if (!*word)
		return 0;
	for (from += quoted; *from && (quoted || !strchr(" \t\r", *from)); from++) {
		if (*from == '"' && quoted && from[1] != '"') {
			closed = true;
			from++;
			break;
		}
		if (*from == '"' && !quoted)
			return invalid(l, "a quote within a word", NULL);
		from += *from == '"';
		*to++ = *from;
	}
	if (!closed)
		return invalid(l, "a quote is not closed", NULL);
	if (*from && !strchr(" \t\r", *from))
		return invalid(l, "no blank behind a quote", NULL);
	l->rest = from + (*from != 0);
	*to = 0;
	return 0;
}

// Two slashes, or "/./", are one.
static void normalize(char *path)
{
	char *to = path;

	for (const char *from = path; *from; from++) {
		if (*from == '/' && (from[1] == '/' || (from[1] == '.' && (from[2] == '/' || !from[2])))) {
			from += from[1] == '.';
			if (!from[1]) // "/." is a folder
				*to++ = '/';
			continue;
		}
		*to++ = *from;
	}
	*to = 0;
}

static int check_name(const struct line *l, enum kind k, const char *name)
{
	if (is_path(k) && (*name != '/' || strlen(name) >= PATH_MAX))
		return invalid(l, "no absolute path:", name);
	if (!is_path(k) && !tap_is_name(name))
		return invalid(l, "no name of a network interface:", name);
	return 0;
}

static int add(struct map_file *m, const struct line *l, enum kind k, char *old, char *new)
{
	struct mapping *v;

	if (is_path(k)) {
		normalize(old);
		normalize(new);
		if (is_folder(old) != is_folder(new))
			return invalid(l, "one of them ends with a slash, a folder, and the other does not:", old);
	}
	for (const struct mapping *e = m->v; e < m->v + m->nr; e++)
		if (e->kind == k && !strcmp(e->old, old))
			return invalid(l, "mapped a second time:", old);
	v = reallocarray(m->v, m->nr + 1, sizeof *v);
	if (!v)
		return -ENOMEM;
	m->v = v;
	v[m->nr] = (struct mapping){ .kind = k, .old = strdup(old), .new = strdup(new) };
	m->nr++;
	return v[m->nr - 1].old && v[m->nr - 1].new ? 0 : -ENOMEM;
}

static int read_line(struct map_file *m, struct line *l)
{
	char *word[4] = { NULL };
	enum kind k = 0;

	for (unsigned i = 0; i < ARRAY_SIZE(word) && (!i || word[i - 1]); i++)
		if (next_word(l, &word[i]))
			return -EINVAL;
	if (!word[0])
		return 0;
	while (k < NR_KINDS && strcmp(word[0], kind_name[k]))
		k++;
	if (k == NR_KINDS)
		return invalid(l, "no \"disk\", \"path\", \"bridge\" or \"net\", but", word[0]);
	if (!word[1] || !word[2] || word[3])
		return invalid(l, "two names are needed behind the first word: the one there and the one here", NULL);
	return check_name(l, k, word[1]) ?: check_name(l, k, word[2]) ?: add(m, l, k, word[1], word[2]);
}

static int read_all(struct map_file *m, const char *path, char *text, size_t len)
{
	struct line l = { .path = path };
	char *rest = text;
	int r = 0;

	if (strlen(text) != len) {
		log_err("%s: it is no text", path);
		return -EINVAL;
	}
	while (!r && (l.rest = strsep(&rest, "\n"))) {
		l.nr++;
		r = read_line(m, &l);
	}
	return r;
}

int map_file_load(const char *path, struct map_file **m)
{
	_cleanup_free_ char *text = NULL;
	size_t len;
	int r = io_read_file(path, MAP_FILE_MAX, &text, &len);

	if (r) {
		log_err("%s: %s", path, strerror(-r));
		return r;
	}
	*m = calloc(1, sizeof **m);
	r = *m ? read_all(*m, path, text, len) : -ENOMEM;
	if (!r)
		return 0;
	if (r == -ENOMEM)
		log_err("%s: no memory to read it", path);
	map_file_free(*m);
	*m = NULL;
	return r;
}

void map_file_free(struct map_file *m)
{
	for (size_t i = 0; m && i < m->nr; i++) {
		free(m->v[i].old);
		free(m->v[i].new);
	}
	if (m)
		free(m->v);
	free(m);
}

// ---- mapping

// How much of the path the mapping fits: all of it, or whole components at its beginning; a folder's own name is one of them.
static size_t fits(const struct mapping *e, const char *path)
{
	size_t len = strlen(e->old);

	if (!strcmp(e->old, path))
		return len;
	if (!is_folder(e->old))
		return 0;
	if (!strncmp(e->old, path, len))
		return len;
	return strlen(path) == len - 1 && !strncmp(e->old, path, len - 1) ? len - 1 : 0;
}

static const struct mapping *find_path(const struct map_file *m, enum kind k, const char *path)
{
	const struct mapping *best = NULL;
	size_t longest = 0;

	for (const struct mapping *e = m->v; e < m->v + m->nr; e++) {
		size_t len = e->kind == k ? fits(e, path) : 0;

		if (len > longest) {
			longest = len;
			best = e;
		}
	}
	return best;
}

int map_file_path(const struct map_file *m, const char *path, bool disk, char **new)
{
	_cleanup_free_ char *clean = m ? strdup(path) : NULL;
	const struct mapping *e;
	size_t len;

	*new = NULL;
	if (!m)
		return 0;
	if (!clean)
		return -ENOMEM;
	normalize(clean);
	e = disk ? find_path(m, DISK, clean) : NULL;
	e = e ?: find_path(m, PATH, clean);
	if (!e)
		return 0;
	len = fits(e, clean);
	// Of a folder without its slash the new name has none either.
	if (asprintf(new, "%.*s%s", (int)(strlen(e->new) - (strlen(e->old) - len)), e->new, clean + len) >= 0)
		return 0;
	*new = NULL;
	return -ENOMEM;
}

static const char *find_name(const struct map_file *m, enum kind k, const char *name)
{
	for (size_t i = 0; m && i < m->nr; i++)
		if (m->v[i].kind == k && !strcmp(m->v[i].old, name))
			return m->v[i].new;
	return NULL;
}

const char *map_file_bridge(const struct map_file *m, const char *name)
{
	return find_name(m, BRIDGE, name) ?: name;
}

const char *map_file_net(const struct map_file *m, const char *ifname)
{
	return find_name(m, NET, ifname);
}

// ---- a description

static int map_one(void *ctx, const char *path, bool disk, char **new)
{
	int r = map_file_path(ctx, path, disk, new);

	if (*new)
		log_info("%s: here %s (--map)", path, *new);
	return r;
}

static int replace(const struct map_file *m, char **path, bool disk)
{
	char *new = NULL;
	int r = *path ? map_one((void *)m, *path, disk, &new) : 0;

	if (new) {
		free(*path);
		*path = new;
	}
	return r;
}

// The command line first: its relative names begin where the VM's folder was.
int map_file_apply(const struct map_file *m, VmEntry *vm)
{
	struct qemu_paths p = { .map = map_one, .ctx = (void *)m, .cwd = vm->cwd };
	int r;

	if (!m)
		return 0;
	r = qemu_paths_map(vm->argv, vm->n_argv, &p);
	for (size_t i = 0; i < vm->n_disks && !r; i++)
		r = replace(m, &vm->disks[i]->path, true) ?: replace(m, &vm->disks[i]->snapshot, true);
	r = r ?: replace(m, &vm->cwd, false) ?: replace(m, &vm->qemu_path, false);
	if (r)
		log_err("no memory to map the names of the VM's files");
	return r;
}
