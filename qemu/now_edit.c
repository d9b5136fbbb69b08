// SPDX-License-Identifier: GPL-2.0-only
// The options of a command line, one by one, as lists or JSON; and the questions that all stages ask.
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "qemu/args.h"
#include "qemu/cmdline_int.h"
#include "qemu/now_int.h"
#include "util/cleanup.h"

int now_add(struct now *n, const char *name, const char *value)
{
	struct now_opt *opt = reallocarray(n->opt, n->nr + 1, sizeof *opt);

	if (!opt)
		return -ENOMEM;
	n->opt = opt;
	opt += n->nr;
	*opt = (struct now_opt){ .name = strdup(name), .value = value ? strdup(value) : NULL };
	n->nr++;
	return opt->name && (opt->value || !value) ? 0 : -ENOMEM;
}

int now_add_json(struct now *n, const char *name, const json_t *value)
{
	_cleanup_free_ char *text = json_dumps(value, JSON_COMPACT);

	return text ? now_add(n, name, text) : -ENOMEM;
}

int now_load(struct now *n, char *const *argv, int argc)
{
	struct qemu_arg a;
	int ret = 0;

	for (int i = 1; !ret && qemu_arg_next(argv, argc, &i, &a);)
		ret = now_add(n, a.name, a.value);
	return ret;
}

void now_drop(struct now_opt *opt)
{
	free(opt->name);
	free(opt->value);
	*opt = (struct now_opt){ 0 };
}

void now_fini(struct now *n)
{
	for (size_t i = 0; i < n->nr; i++)
		now_drop(&n->opt[i]);
	free(n->opt);
	json_decref(n->r.fdsets);
}

bool now_is(const struct now_opt *opt, const char *name)
{
	return opt->name && opt->value && !strcmp(opt->name, name);
}

struct now_opt *now_find(const struct now *n, const char *name, const char *key, const char *value)
{
	for (struct now_opt *o = n->opt; o < n->opt + n->nr; o++)
		if (now_is(o, name) && qemu_opt_is(o->value, NULL, key, value))
			return o;
	return NULL;
}

// ---- properties

static void put_value(FILE *f, const json_t *v)
{
	if (json_is_boolean(v))
		fputs(json_is_true(v) ? "on" : "off", f);
	else if (json_is_integer(v))
		fprintf(f, "%" JSON_INTEGER_FORMAT, json_integer_value(v));
	for (const char *s = json_string_value(v); s && *s; s++)
		fprintf(f, "%s%c", *s == ',' ? "," : "", *s);
}

static int set_in_json(struct now_opt *opt, const char *key, const json_t *value)
{
	json_t *o = json_loads(opt->value, 0, NULL);
	char *text;

	if (value)
		json_object_set(o, key, (json_t *)value);
	else
		json_object_del(o, key);
	text = o ? json_dumps(o, JSON_COMPACT) : NULL;
	json_decref(o);
	if (!text)
		return -ENOMEM;
	free(opt->value);
	opt->value = text;
	return 0;
}

int now_set(struct now_opt *opt, const char *key, const json_t *value)
{
	char *text = NULL;
	size_t len;
	FILE *f;

	if (*opt->value == '{')
		return set_in_json(opt, key, value);
	f = open_memstream(&text, &len);
	if (!f)
		return -ENOMEM;
	cmdline_put_words(f, opt->value, (const char *const[]){ key, NULL }, false);
	if (value) {
		fprintf(f, ",%s=", key);
		put_value(f, value);
	}
	if (fclose(f)) {
		free(text);
		return -ENOMEM;
	}
	memmove(text, text + (*text == ','), strlen(text) + (*text != ','));
	free(opt->value);
	opt->value = text;
	return 0;
}

int now_set_string(struct now_opt *opt, const char *key, const char *value)
{
	json_t *v = value ? json_string(value) : NULL;
	int ret = v ? now_set(opt, key, v) : -ENOMEM;

	json_decref(v);
	return ret;
}

int now_set_value(struct now_opt *opt, const char *value)
{
	char *text = strdup(value);

	if (!text)
		return -ENOMEM;
	free(opt->value);
	opt->value = text;
	return 0;
}

// "a.b.c" becomes an object in an object.
static int put_nested(json_t *o, char *key, const char *value)
{
	char *dot;

	for (; (dot = strchr(key, '.')); key = dot + 1) {
		json_t *inner;

		*dot = 0;
		inner = json_object_get(o, key);
		if (!json_is_object(inner)) {
			inner = json_object();
			if (json_object_set_new(o, key, inner))
				return -ENOMEM;
		}
		o = inner;
	}
	return json_object_set_new(o, key, json_string(value)) ? -ENOMEM : 0;
}

static int put_word(json_t *o, const struct cmdline_word *w, const char *implied, const char *opts)
{
	_cleanup_free_ char *key = NULL, *value = NULL;

	if (w->key_len < w->len)
		key = strndup(w->s, w->key_len);
	else if (w->s == opts && implied)
		key = strdup(implied);
	else
		key = strndup(w->s, w->len);
	if (!key)
		return -ENOMEM;
	value = qemu_opt_get(opts, implied, key);
	return put_nested(o, key, value ?: "on");
}

json_t *now_parse(const char *opts, const char *implied)
{
	const char *list = opts;
	struct cmdline_word w;
	json_t *o;

	if (*opts == '{')
		return json_loads(opts, 0, NULL);
	o = json_object();
	while (o && cmdline_next_word(&list, &w))
		if (put_word(o, &w, implied, opts)) {
			json_decref(o);
			return NULL;
		}
	return o;
}

int now_export(const struct now *n, char ***argv, int *argc)
{
	char **v = calloc(2 * n->nr + 2, sizeof *v);
	int nr = 0;
	bool failed = !v;

	if (!failed)
		failed = !(v[nr++] = strdup(n->r.vm->argv[0]));
	for (size_t i = 0; i < n->nr && !failed; i++) {
		const struct now_opt *o = &n->opt[i];

		if (!o->name)
			continue;
		if (*o->name && asprintf(&v[nr], "-%s", o->name) < 0)
			v[nr] = NULL;
		if (*o->name)
			failed = !v[nr++];
		if (o->value && !failed)
			failed = !(v[nr++] = strdup(o->value));
	}
	if (failed) {
		qemu_cmdline_free(v);
		return -ENOMEM;
	}
	*argv = v;
	*argc = nr;
	return 0;
}

// ---- asking

const char *now_text(const json_t *o, const char *key)
{
	return json_string_value(json_object_get(o, key)) ?: "";
}

int now_qom_get(struct now *n, const char *path, const char *property, json_t **value)
{
	int ret = qmp_try(n->r.vm->qmp, "qom-get", json_pack("{s:s, s:s}", "path", path, "property", property), value);

	if (ret == -EREMOTEIO)
		*value = NULL;
	return ret == -EREMOTEIO ? 0 : ret;
}

int now_children(struct now *n, const char *path, json_t **children)
{
	json_t *list, *o;
	size_t i;
	int ret = qmp_call(n->r.vm->qmp, "qom-list", json_pack("{s:s}", "path", path), &list);

	if (ret)
		return ret;
	*children = json_object();
	json_array_foreach(list, i, o) {
		char type[128];

		if (sscanf(now_text(o, "type"), "child<%127[^>]>", type) == 1)
			json_object_set_new(*children, now_text(o, "name"), json_string(type));
	}
	json_decref(list);
	return *children ? 0 : -ENOMEM;
}
