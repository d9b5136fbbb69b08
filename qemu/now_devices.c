// SPDX-License-Identifier: GPL-2.0-only
// Devices, memory and CPUs that were plugged or unplugged while the VM ran.
//
// What was plugged in becomes a -device with all of its properties that are not what they are by default, its place on the bus among
// them. The order matters to QEMU where a bus comes with a device. Where a device of the command line has gone, the places of those
// that stay are written down, since QEMU would give them others.
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "qemu/args.h"
#include "qemu/now_int.h"
#include "util/cleanup.h"
#include "util/size.h"

#define NAMED "/machine/peripheral"
#define NAMELESS "/machine/peripheral-anon"

static const char *last_word(const char *path)
{
	return strrchr(path, '/') ? strrchr(path, '/') + 1 : path;
}

// ---- which device is made by which option

static bool is_json(const struct now_opt *opt)
{
	return *opt->value == '{';
}

static bool is_nameless(const struct now_opt *opt)
{
	if (now_is(opt, "device"))
		return !qemu_opt_has(opt->value, "driver", "id");
	return now_is(opt, "virtfs") || now_is(opt, "watchdog") || (now_is(opt, "drive") && qemu_opt_is(opt->value, NULL, "if", "virtio"));
}

// QEMU makes those in JSON last.
void now_device_path(struct now *n, const struct now_opt *opt, char *path, size_t size)
{
	_cleanup_free_ char *id = qemu_opt_get(opt->value, "driver", "id");
	size_t nth = 0;

	if (id) {
		snprintf(path, size, NAMED "/%s", id);
		return;
	}
	for (const struct now_opt *o = n->opt; o < n->opt + n->nr; o++)
		nth += is_nameless(o) && (is_json(o) == is_json(opt) ? o < opt : is_json(opt));
	snprintf(path, size, NAMELESS "/device[%zu]", nth);
}

// ---- properties

// "int32" is the place on a PCI bus, which is written "slot.function"; memory has an address there.
static json_t *as_written(const char *name, const char *type, const json_t *v)
{
	json_int_t i = json_integer_value(v);

	if (!strcmp(name, "addr") && strcmp(type, "uint64") && json_is_integer(v))
		return i < 0 ? NULL : json_sprintf("%02llx.%llx", (long long)i >> 3, (long long)i & 7);
	return json_deep_copy(v);
}

// What a device is given has a default, but for names and "bootindex"; what it only tells ("attached", "guest-stats") has none.
static bool is_told_only(const char *type, const json_t *v, const json_t *by_default)
{
	return !by_default && strcmp(type, "str") && strcmp(type, "int32") && strncmp(type, "link<", 5) && !json_is_array(v);
}

static bool says_nothing(const char *name, const json_t *v, const json_t *by_default)
{
	return !v || json_is_null(v) || (json_is_string(v) && !json_string_length(v)) || (by_default && json_equal(v, by_default)) ||
	       (!strcmp(name, "bootindex") && json_integer_value(v) < 0);
}

// A USB device does not say in which port it is; "info usb" does: "  Device 0.0, Port 1, Speed 480 Mb/s, Product ..., ID: tab".
static int put_usb_port(struct now *n, const char *id, json_t *to)
{
	_cleanup_free_ char *text = NULL;
	int ret = qmp_hmp(n->r.vm->qmp, "info usb", &text);
	char *rest = text, *line;

	while (!ret && (line = strsep(&rest, "\n"))) {
		char *name = strstr(line, ", ID: "), *port = strstr(line, ", Port ");

		if (!name || !port || strncmp(name + 6, id, strlen(id)) || name[6 + strlen(id)] > ' ')
			continue;
		port += strlen(", Port ");
		port[strcspn(port, ",")] = 0;
		return json_object_set_new(to, "port", json_string(port)) ? -ENOMEM : 0;
	}
	if (!ret)
		refuse_because(&n->r, "USB devices were plugged in or unplugged while it ran, and in which port '%s' is cannot be told",
			       id);
	return ret;
}

static int put_property(struct now *n, const char *path, const json_t *property, json_t *to)
{
	const char *name = now_text(property, "name"), *type = now_text(property, "type");
	const json_t *by_default = json_object_get(property, "default-value");
	json_t *v = NULL, *written;
	bool can_write;
	int ret;

	if (!strncmp(type, "child<", 6) || !strncmp(name, "legacy-", 7))
		return 0;
	ret = now_qom_get(n, path, name, &v);
	if (!ret && !strcmp(name, "port") && !strncmp(type, "str", 3) && !json_string_length(v))
		ret = put_usb_port(n, last_word(path), to);
	else if (!ret && !says_nothing(name, v, by_default) && !is_told_only(type, v, by_default)) {
		can_write = json_is_string(v) || json_is_boolean(v) || json_is_integer(v);
		written = can_write ? as_written(name, type, v) : NULL;
		if (!can_write)
			refuse_because(&n->r, "the property '%s' of the device '%s', which was plugged in while it ran, cannot be written "
				       "on a command line; unplug it", name, last_word(path));
		if (written && json_object_set_new(to, name, written))
			ret = -ENOMEM;
	}
	json_decref(v);
	return ret;
}

// Those whose names are in only (NULL-terminated), or all.
static int put_properties(struct now *n, const char *path, const char *type, const char *const *only, json_t *to)
{
	json_t *list, *property;
	size_t i;
	int ret = qmp_call(n->r.vm->qmp, "device-list-properties", json_pack("{s:s}", "typename", type), &list);

	if (ret)
		return ret;
	json_array_foreach(list, i, property) {
		bool wanted = !only;

		for (const char *const *k = only; k && *k; k++)
			wanted |= !strcmp(*k, now_text(property, "name"));
		if (wanted && !ret)
			ret = put_property(n, path, property, to);
	}
	json_decref(list);
	return ret;
}

static int put_bus(struct now *n, const char *path, json_t *to, char *bus, size_t size)
{
	json_t *v;
	int ret = now_qom_get(n, path, "parent_bus", &v);

	if (ret)
		return ret;
	snprintf(bus, size, "%s", json_string_value(v) ?: "");
	json_decref(v);
	if (*bus && json_object_set_new(to, "bus", json_string(last_word(bus))))
		return -ENOMEM;
	return 0;
}

// ---- what was plugged in

struct plugged {
	char *path, *bus; // in QEMU's tree of objects
	json_t *option;
	bool done;
};

struct plugs {
	struct plugged *v;
	size_t nr;
	json_t *cpus; // query-hotpluggable-cpus
};

static void plugs_fini(struct plugs *p)
{
	for (size_t i = 0; i < p->nr; i++) {
		free(p->v[i].path);
		free(p->v[i].bus);
		json_decref(p->v[i].option);
	}
	free(p->v);
	json_decref(p->cpus);
}

// Where a CPU is; its features are those of -cpu. node-id follows from -numa.
static const json_t *cpu_place(const struct plugs *p, const char *path)
{
	const json_t *cpu;
	size_t i;

	json_array_foreach(p->cpus, i, cpu)
		if (!strcmp(now_text(cpu, "qom-path"), path))
			return json_object_get(cpu, "props");
	return NULL;
}

// Objects are named by their path where a device refers to them.
static int shorten(json_t *option, const char *key)
{
	const char *path = json_string_value(json_object_get(option, key));

	if (path && !strncmp(path, "/objects/", 9))
		return json_object_set_new(option, key, json_string(path + 9)) ? -ENOMEM : 0;
	return 0;
}

static int describe(struct now *n, const struct plugs *p, const char *type, struct plugged *d)
{
	static const char *const of_dimm[] = { "memdev", "addr", "slot", "node", NULL };
	const json_t *place = cpu_place(p, d->path);
	char bus[512] = "";
	const char *chardev;
	int ret;

	if (place) {
		if (json_object_update(d->option, (json_t *)place))
			return -ENOMEM;
		json_object_del(d->option, "node-id");
		return 0;
	}
	ret = put_bus(n, d->path, d->option, bus, sizeof bus);
	d->bus = strdup(bus);
	ret = ret ?: d->bus ? 0 : -ENOMEM;
	if (!ret)
		ret = put_properties(n, d->path, type, strcmp(type, "pc-dimm") ? NULL : of_dimm, d->option);
	ret = ret ?: shorten(d->option, "memdev") ?: shorten(d->option, "iothread") ?: shorten(d->option, "rng");
	chardev = json_string_value(json_object_get(d->option, "chardev"));
	return ret || !chardev ? ret : now_chardev(n, chardev);
}

static int add_plugged(struct now *n, struct plugs *p, const char *path, const char *id, const char *type)
{
	struct plugged *d = reallocarray(p->v, p->nr + 1, sizeof *d);

	if (!d)
		return -ENOMEM;
	p->v = d;
	d += p->nr++;
	*d = (struct plugged){ .path = strdup(path), .option = json_pack("{s:s}", "driver", type) };
	if (!d->path || !d->option || (id && json_object_set_new(d->option, "id", json_string(id))))
		return -ENOMEM;
	return describe(n, p, type, d);
}

// Behind the device that its bus is on.
static bool can_come_now(const struct plugs *p, const struct plugged *d)
{
	for (const struct plugged *other = p->v; other < p->v + p->nr; other++) {
		size_t len = strlen(other->path);

		if (other != d && !other->done && d->bus && !strncmp(d->bus, other->path, len) && d->bus[len] == '/')
			return false;
	}
	return true;
}

static int add_options(struct now *n, struct plugs *p)
{
	int ret = 0;

	for (bool more = true; more && !ret;) {
		more = false;
		for (size_t i = 0; i < p->nr && !ret; i++) {
			if (p->v[i].done || !can_come_now(p, &p->v[i]))
				continue;
			ret = now_add_json(n, "device", p->v[i].option);
			p->v[i].done = more = true;
		}
	}
	return ret;
}

static int is_hotplugged(struct now *n, const char *path, bool *yes)
{
	json_t *v;
	int ret = now_qom_get(n, path, "hotplugged", &v);

	*yes = !ret && json_is_true(v);
	json_decref(v);
	return ret;
}

// A device of the command line's name may be another one by now: QEMU knows which were plugged in.
static int find_named(struct now *n, const json_t *children, struct plugs *p)
{
	const char *id;
	json_t *type;
	int ret = 0;

	json_object_foreach((json_t *)children, id, type) {
		struct now_opt *opt = now_find(n, "device", "id", id);
		char path[256];
		bool yes;

		snprintf(path, sizeof path, NAMED "/%s", id);
		ret = is_hotplugged(n, path, &yes);
		if (!ret && yes) {
			if (opt)
				now_drop(opt);
			ret = add_plugged(n, p, path, id, json_string_value(type));
		}
		if (ret)
			return ret;
	}
	return 0;
}

// In the order in which they came, which their numbers tell.
static int find_nameless(struct now *n, struct plugs *p)
{
	json_t *children = NULL, *type;
	int ret = now_children(n, NAMELESS, &children);

	for (size_t i = 0, found = 0; !ret && found < json_object_size(children) && i < 65536; i++) {
		char name[64], path[256];
		bool yes;

		snprintf(name, sizeof name, "device[%zu]", i);
		type = json_object_get(children, name);
		if (!type)
			continue;
		found++;
		snprintf(path, sizeof path, NAMELESS "/%s", name);
		ret = is_hotplugged(n, path, &yes);
		if (!ret && yes)
			ret = add_plugged(n, p, path, NULL, json_string_value(type));
	}
	json_decref(children);
	return ret;
}

// ---- what was unplugged

static int pin(struct now *n, struct now_opt *opt)
{
	static const char *const place[] = { "addr", "scsi-id", "channel", "lun", "unit", "nr", "port", "mac", NULL };
	json_t *pins = json_object(), *type = NULL, *v;
	char path[256], bus[512];
	const char *key;
	int ret = pins ? 0 : -ENOMEM;

	now_device_path(n, opt, path, sizeof path);
	if (!ret)
		ret = now_qom_get(n, path, "type", &type);
	if (!ret && json_is_string(type))
		ret = put_bus(n, path, pins, bus, sizeof bus) ?: put_properties(n, path, json_string_value(type), place, pins);
	json_object_foreach(pins, key, v)
		if (!ret)
			ret = now_set(opt, key, v);
	json_decref(type);
	json_decref(pins);
	return ret;
}

static int unplug(struct now *n, const json_t *children)
{
	for (struct now_opt *o = n->opt; o < n->opt + n->nr; o++) {
		_cleanup_free_ char *id = now_is(o, "device") ? qemu_opt_get(o->value, "driver", "id") : NULL;

		if (id && !json_object_get(children, id))
			now_drop(o);
	}
	return 0;
}

static int pin_all(struct now *n)
{
	int ret = 0;

	for (size_t i = 0; i < n->nr && !ret; i++) {
		if (now_is(&n->opt[i], "device"))
			ret = pin(n, &n->opt[i]);
		else if (is_nameless(&n->opt[i]))
			refuse_because(&n->r,
				"a device of its command line was unplugged, and -%s %s would get its place on the bus; plug it in again",
				n->opt[i].name, n->opt[i].value);
	}
	return ret;
}

static size_t count(const struct now *n)
{
	size_t nr = 0;

	for (const struct now_opt *o = n->opt; o < n->opt + n->nr; o++)
		nr += now_is(o, "device");
	return nr;
}

int now_devices(struct now *n)
{
	size_t before = count(n);
	struct plugs p = { 0 };
	json_t *children;
	int ret = now_children(n, NAMED, &children);

	if (ret)
		return ret;
	// A machine without CPUs to plug says so by an error.
	ret = qmp_try(n->r.vm->qmp, "query-hotpluggable-cpus", NULL, &p.cpus);
	if (ret == -EREMOTEIO) {
		p.cpus = NULL;
		ret = 0;
	}
	ret = ret ?: unplug(n, children) ?: find_named(n, children, &p) ?: find_nameless(n, &p);
	if (!ret && count(n) < before)
		ret = pin_all(n);
	ret = ret ?: add_options(n, &p);
	plugs_fini(&p);
	json_decref(children);
	return ret;
}
