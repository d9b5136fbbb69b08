// SPDX-License-Identifier: GPL-2.0-only
// Devices, CPUs and netdevs: those that cannot be dumped, and those that the command line does not say.
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

#include "qemu/args.h"
#include "qemu/refuse_int.h"
#include "util/cleanup.h"
#include "util/size.h"

static const struct {
	const char *part, *why;
} bad_type[] = {
	{ "vhost-user", "a vhost-user back-end writes its memory unseen; use an emulated device" },
	{ "vhost-vdpa", "a vDPA device writes its memory unseen; use an emulated device" },
	{ "vfio", "a host device is passed through to it and writes its memory unseen; unplug it, or use an emulated device" },
	{ "ivshmem", "its memory is shared with other VMs, which write it unseen" },
	{ "nvdimm", "NVDIMMs are not supported; use a disk" },
	{ "virtio-pmem", "persistent memory devices are not supported; use a disk" },
	{ "virtio-mem", "virtio-mem is not supported; use -m or pc-dimm" },
};

static void refuse_type(struct refusal *r, const char *what, const char *name, const char *type)
{
	for (size_t i = 0; i < ARRAY_SIZE(bad_type); i++)
		if (strstr(type, bad_type[i].part))
			refuse_because(r, "%s %s is of type %s: %s", what, name, type, bad_type[i].why);
}

// Type T of a "child<T>" property, "" if it is none.
static void child_type(const json_t *o, char type[128])
{
	const char *s = json_string_value(json_object_get(o, "type"));

	if (!s || sscanf(s, "child<%127[^>]>", type) != 1)
		*type = 0;
}

static int list_children(struct refusal *r, const char *path, json_t **list)
{
	return qmp_call(r->vm->qmp, "qom-list", json_pack("{s:s}", "path", path), list);
}

// Whether -device DRIVER makes a device of this type: QEMU has aliases.
static bool is_driver_of(const char *driver, const char *type)
{
	static const char *const alias[][2] = {
		{ "ahci", "ich9-ahci" }, { "lsi", "lsi53c895a" }, { "e1000-82540em", "e1000" }, { "sun-keyboard", "escc" },
	};

	for (size_t i = 0; i < ARRAY_SIZE(alias); i++)
		if (!strcmp(driver, alias[i][0]) && !strcmp(type, alias[i][1]))
			return true;
	return !strncasecmp(driver, type, strlen(driver)); // virtio-blk is virtio-blk-pci, ac97 is AC97
}

// Which -device of the command line has this id; *driver is the caller's, NULL if there is none.
static void driver_of_id(const struct qemu_vm *vm, const char *id, char **driver)
{
	struct qemu_arg a;

	*driver = NULL;
	for (int i = 1; qemu_arg_next(vm->argv, vm->argc, &i, &a);) {
		if (!strcmp(a.name, "debugcon") && !strcmp(id, "debugcon"))
			*driver = strdup("isa-debugcon");
		else if (!strcmp(a.name, "device") && qemu_opt_is(a.value, "driver", "id", id))
			*driver = qemu_opt_get(a.value, "driver", "driver");
		if (*driver)
			return;
	}
}

static bool has_child(json_t *list, const char *name)
{
	json_t *o;
	size_t i;

	json_array_foreach(list, i, o) {
		const char *s = json_string_value(json_object_get(o, "name"));

		if (s && !strcmp(s, name))
			return true;
	}
	return false;
}

static int refuse_named_devices(struct refusal *r)
{
	struct qemu_arg a;
	json_t *list, *o;
	char type[128];
	size_t k;
	int ret = list_children(r, "/machine/peripheral", &list);

	if (ret)
		return ret;
	json_array_foreach(list, k, o) {
		const char *id = json_string_value(json_object_get(o, "name"));
		_cleanup_free_ char *driver = NULL;

		child_type(o, type);
		if (!id || !*type)
			continue;
		refuse_type(r, "device", id, type);
		driver_of_id(r->vm, id, &driver);
		if (!driver || !is_driver_of(driver, type))
			refuse_because(r,
				"device '%s' (%s) was plugged in while it ran, the command line does not say it; unplug it first",
				id, type);
	}
	for (int i = 1; qemu_arg_next(r->vm->argv, r->vm->argc, &i, &a);) {
		_cleanup_free_ char *id = strcmp(a.name, "device") ? NULL : qemu_opt_get(a.value, "driver", "id");

		if (id && !has_child(list, id))
			refuse_because(r,
				"device '%s' of its command line was unplugged; plug it in again, or restart the VM without it",
				id);
	}
	json_decref(list);
	return 0;
}

// How many devices without id QEMU makes of the command line.
static size_t count_nameless(const struct qemu_vm *vm)
{
	struct qemu_arg a;
	size_t n = 0;

	for (int i = 1; qemu_arg_next(vm->argv, vm->argc, &i, &a);)
		n += (!strcmp(a.name, "device") && !qemu_opt_has(a.value, "driver", "id")) || !strcmp(a.name, "virtfs") ||
		     !strcmp(a.name, "watchdog") || (!strcmp(a.name, "drive") && qemu_opt_is(a.value, NULL, "if", "virtio"));
	return n;
}

// QEMU numbers the children "device[N]" of these containers as it makes them and never again: a gap is a device unplugged. The
// highest number and one, in *next; *nr is how many there are.
static int count_numbered(struct refusal *r, const char *path, size_t *nr, size_t *next)
{
	json_t *list, *o;
	char type[128];
	size_t k;
	int ret = list_children(r, path, &list);

	*nr = *next = 0;
	if (ret)
		return ret;
	json_array_foreach(list, k, o) {
		const char *name = json_string_value(json_object_get(o, "name"));
		size_t n;

		if (!name || sscanf(name, "device[%zu]", &n) != 1)
			continue;
		child_type(o, type);
		refuse_type(r, "device", name, type);
		*nr += 1;
		if (n >= *next)
			*next = n + 1;
	}
	json_decref(list);
	return 0;
}

static int refuse_nameless_devices(struct refusal *r)
{
	size_t expected = count_nameless(r->vm), nr, next;
	int ret = count_numbered(r, "/machine/peripheral-anon", &nr, &next);

	if (ret)
		return ret;
	if (nr != expected || next != expected)
		refuse_because(r,
			"it has %zu devices without id, numbered up to %zu, its command line %zu: some were plugged in or "
			"unplugged while it ran",
			nr, next, expected);
	ret = count_numbered(r, "/machine/unattached", &nr, &next);
	if (!ret && nr != next)
		refuse_because(r, "a device that the machine or -nic brought was unplugged while it ran; plug it in again by "
				  "restarting the VM");
	return ret;
}

static int refuse_objects(struct refusal *r)
{
	json_t *list, *o;
	char type[128];
	size_t i;
	int ret = list_children(r, "/objects", &list);

	if (ret)
		return ret;
	json_array_foreach(list, i, o) {
		child_type(o, type);
		refuse_type(r, "object", json_string_value(json_object_get(o, "name")), type);
	}
	json_decref(list);
	return 0;
}

int refuse_devices(struct refusal *r)
{
	int ret = refuse_named_devices(r);

	if (!ret)
		ret = refuse_nameless_devices(r);
	if (!ret)
		ret = refuse_objects(r);
	return ret;
}

// ---- CPUs

static void take_number(const char *opts, const char *implied, const char *prefix, const char *key, unsigned *value)
{
	_cleanup_free_ char *name = NULL, *s = NULL;

	if (asprintf(&name, "%s%s", prefix, key) < 0)
		return;
	s = qemu_opt_get(opts, implied, name);
	if (s)
		*value = (unsigned)strtoul(s, NULL, 0);
}

// CPUs at start, as QEMU reckons them: those given, else the most there can be, which is the product of the topology if not given.
static unsigned expected_cpus(const struct qemu_vm *vm)
{
	static const char *const level[] = { "drawers", "books", "sockets", "dies", "clusters", "modules", "cores", "threads" };
	unsigned cpus = 0, most = 0, count[ARRAY_SIZE(level)] = { 0 }, product = 1;
	struct qemu_arg a;

	for (int i = 1; qemu_arg_next(vm->argv, vm->argc, &i, &a);) {
		bool smp = !strcmp(a.name, "smp"), machine = !strcmp(a.name, "M") || !strcmp(a.name, "machine");
		const char *prefix = smp ? "" : "smp.", *implied = smp ? "cpus" : "type";

		if (!smp && !machine)
			continue;
		take_number(a.value, implied, prefix, "cpus", &cpus);
		take_number(a.value, implied, prefix, "maxcpus", &most);
		for (size_t k = 0; k < ARRAY_SIZE(level); k++)
			take_number(a.value, implied, prefix, level[k], count + k);
	}
	for (size_t k = 0; k < ARRAY_SIZE(level); k++)
		product *= count[k] ? count[k] : 1;
	return cpus ? cpus : most ? most : product;
}

// Hot-plugged CPUs are devices with or without id; what stands here are those that the machine made.
int refuse_cpus(struct refusal *r)
{
	static const char own[] = "/machine/unattached/";
	unsigned expected = expected_cpus(r->vm), n = 0;
	json_t *list, *o;
	size_t i;
	int ret = qmp_call(r->vm->qmp, "query-cpus-fast", NULL, &list);

	if (ret)
		return ret;
	json_array_foreach(list, i, o) {
		const char *path = json_string_value(json_object_get(o, "qom-path"));

		n += path && !strncmp(path, own, strlen(own));
	}
	json_decref(list);
	if (n != expected)
		refuse_because(r, "the machine has %u CPUs, its command line says %u: CPUs were unplugged while it ran", n, expected);
	return 0;
}

// ---- netdevs

static bool is_netdev_of_argv(const struct qemu_vm *vm, const char *id)
{
	struct qemu_arg a;

	for (int i = 1; qemu_arg_next(vm->argv, vm->argc, &i, &a);)
		if ((!strcmp(a.name, "netdev") || !strcmp(a.name, "nic") || !strcmp(a.name, "net")) &&
		    (qemu_opt_is(a.value, "type", "id", id) || qemu_opt_is(a.value, "type", "name", id)))
			return true;
	return false;
}

// A line of `info network`: "[hub0port0: ]NAME: index=0,type=user,..." with " \ " before it if it is a peer.
static int refuse_net_client(struct refusal *r, char *line, struct names *seen)
{
	char *index = strstr(line, ": index="), *type = index ? strstr(index, ",type=") : NULL, *name;

	if (!type)
		return 0;
	*index = 0;
	name = strrchr(line, ' ');
	name = name ? name + 1 : line;
	type += strlen(",type=");
	type[strcspn(type, ",\r")] = 0;
	if (!strcmp(type, "nic"))
		return 0;
	refuse_type(r, "netdev", name, type);
	// What has no id gets a name with "#".
	if (*name != '#' && strcmp(type, "hubport") && !is_netdev_of_argv(r->vm, name))
		refuse_because(r, "netdev '%s' (%s) was added while it ran, the command line does not say it; remove it first",
			name, type);
	return names_add(seen, name);
}

int refuse_netdevs(struct refusal *r)
{
	_cleanup_free_ char *text = NULL;
	struct names seen = { 0 };
	char *rest, *line;
	struct qemu_arg a;
	int ret = qmp_hmp(r->vm->qmp, "info network", &text);

	for (rest = text; !ret && (line = strsep(&rest, "\n"));)
		ret = refuse_net_client(r, line, &seen);
	for (int i = 1; !ret && qemu_arg_next(r->vm->argv, r->vm->argc, &i, &a);) {
		_cleanup_free_ char *id = strcmp(a.name, "netdev") ? NULL : qemu_opt_get(a.value, "type", "id");

		if (id && !names_take(&seen, id))
			refuse_because(
				r, "netdev '%s' of its command line was removed; add it again, or restart the VM without it", id);
	}
	names_fini(&seen);
	return ret;
}
