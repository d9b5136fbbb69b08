// SPDX-License-Identifier: GPL-2.0-only
#include "qemu/args.h"

#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "util/cleanup.h"
#include "util/size.h"

// All that QEMU 7.2 to 10 has for x86; every other option takes one argument.
static const char *const without_value[] = {
	"S", "async-teardown", "audio-help", "daemonize", "enable-fips", "enable-kvm", "enable-sync-profile", "full-screen",
	"h", "help", "jitdump", "mem-prealloc", "no-acpi", "no-fd-bootchk", "no-hpet", "no-reboot", "no-shutdown",
	"no-user-config", "nodefaults", "nographic", "one-insn-per-tb", "only-migratable", "perfmap", "portrait",
	"preconfig", "s", "singlestep", "snapshot", "usb", "version", "win2k-hack", "xen-attach", "xen-domid-restrict",
};

bool qemu_arg_next(char *const *argv, int argc, int *i, struct qemu_arg *a)
{
	const char *s;

	if (*i >= argc)
		return false;
	s = argv[(*i)++];
	if (*s != '-') {
		*a = (struct qemu_arg){ .name = "", .value = s };
		return true;
	}
	s += s[1] == '-' ? 2 : 1;
	*a = (struct qemu_arg){ .name = s };
	for (size_t k = 0; k < ARRAY_SIZE(without_value); k++)
		if (!strcmp(s, without_value[k]))
			return true;
	if (*i < argc)
		a->value = argv[(*i)++];
	return true;
}

// Up to the next single comma, doubled ones halved; *s moves behind the comma.
static char *next_word(const char **s)
{
	char *word = malloc(strlen(*s) + 1), *to = word;

	if (!word)
		return NULL;
	for (; **s && (**s != ',' || (*s)[1] == ','); (*s)++) {
		*to++ = **s;
		if (**s == ',')
			(*s)++;
	}
	*to = 0;
	if (**s)
		(*s)++;
	return word;
}

static char *json_get(const char *opts, const char *key)
{
	json_t *o = json_loads(opts, 0, NULL), *v = json_object_get(o, key);
	char number[32], *value = NULL;

	snprintf(number, sizeof number, "%lld", (long long)json_integer_value(v));
	if (json_is_string(v))
		value = strdup(json_string_value(v));
	else if (json_is_boolean(v))
		value = strdup(json_is_true(v) ? "on" : "off");
	else if (json_is_integer(v))
		value = strdup(number);
	json_decref(o);
	return value;
}

char *qemu_opt_get(const char *opts, const char *implied, const char *key)
{
	char *value = NULL;

	if (!opts)
		return NULL;
	if (*opts == '{')
		return json_get(opts, key);
	for (bool first = true; *opts; first = false) {
		_cleanup_free_ char *word = next_word(&opts);
		char *eq = word ? strchr(word, '=') : NULL, *found = NULL;

		if (!word)
			break;
		if (eq)
			*eq = 0;
		if (!eq && first && implied)
			found = strcmp(implied, key) ? NULL : strdup(word);
		else if (!strcmp(word, key))
			found = strdup(eq ? eq + 1 : "on");
		else if (!eq && !strncmp(word, "no", 2) && !strcmp(word + 2, key))
			found = strdup("off");
		if (found) {
			free(value);
			value = found;
		}
	}
	return value;
}

bool qemu_opt_has(const char *opts, const char *implied, const char *key)
{
	_cleanup_free_ char *value = qemu_opt_get(opts, implied, key);

	return value;
}

bool qemu_opt_is(const char *opts, const char *implied, const char *key, const char *want)
{
	_cleanup_free_ char *value = qemu_opt_get(opts, implied, key);

	return value && !strcmp(value, want);
}
