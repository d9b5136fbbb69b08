// SPDX-License-Identifier: GPL-2.0-only
// Option values that are lists, changed word by word, as they are written.
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "qemu/args.h"
#include "qemu/cmdline_int.h"
#include "util/cleanup.h"

bool cmdline_next_word(const char **list, struct cmdline_word *w)
{
	const char *s = *list, *eq;

	if (!*s)
		return false;
	w->s = s;
	while (*s && (*s != ',' || s[1] == ','))
		s += *s == ',' ? 2 : 1;
	w->len = (size_t)(s - w->s);
	eq = memchr(w->s, '=', w->len);
	w->key_len = eq ? (size_t)(eq - w->s) : w->len;
	*list = *s ? s + 1 : s;
	return true;
}

int cmdline_check_keys(const struct cmdline_option *opt)
{
	const char *list = opt->value;
	struct cmdline_word w;

	while (cmdline_next_word(&list, &w))
		if (memchr(w.s, ',', w.key_len) && (w.key_len < w.len || w.s != opt->value))
			return cmdline_invalid(opt, "a comma in the name of a key");
	return 0;
}

// "key=...", "key.0=...", "key", "nokey".
static bool word_is(const struct cmdline_word *w, const char *key)
{
	size_t n = strlen(key);

	if (w->key_len >= n && !memcmp(w->s, key, n) && (w->key_len == n || w->s[n] == '.'))
		return true;
	return w->key_len == w->len && w->len == n + 2 && !memcmp(w->s, "no", 2) && !memcmp(w->s + 2, key, n);
}

static bool word_in(const struct cmdline_word *w, const char *const *keys)
{
	for (; *keys; keys++)
		if (word_is(w, *keys))
			return true;
	return false;
}

void cmdline_put_words(FILE *f, const char *list, const char *const *keys, bool these)
{
	struct cmdline_word w;

	while (cmdline_next_word(&list, &w))
		if (w.len && word_in(&w, keys) == these)
			fprintf(f, ",%.*s", (int)w.len, w.s);
}

void cmdline_put_escaped(FILE *f, const char *s)
{
	for (; *s; s++)
		fprintf(f, "%s%c", *s == ',' ? "," : "", *s);
}

bool cmdline_is_on(const char *list, const char *implied, const char *key)
{
	_cleanup_free_ char *v = qemu_opt_get(list, implied, key);

	return v && (!strcmp(v, "on") || !strcmp(v, "yes") || !strcmp(v, "true") || !strcmp(v, "y"));
}

int cmdline_set_value(struct cmdline_option *opt, FILE *f, char **text)
{
	bool failed = ferror(f);

	if (fclose(f) || failed) {
		free(*text);
		return -ENOMEM;
	}
	free(opt->value);
	opt->value = *text;
	return 0;
}

int cmdline_set_string(struct cmdline_option *opt, const char *s)
{
	char *text = strdup(s);

	if (!text)
		return -ENOMEM;
	free(opt->value);
	opt->value = text;
	return 0;
}
