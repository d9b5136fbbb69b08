// SPDX-License-Identifier: GPL-2.0-only
// What devices are connected to: objects, netdevs and character devices that were added or removed while the VM ran.
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "qemu/args.h"
#include "qemu/now_int.h"
#include "util/cleanup.h"
#include "util/size.h"

// ---- objects

// Properties that can be read back; of memory only the size is needed, a restore provides it in its own way.
static const struct {
	const char *type;
	const char *property[8];
} known_object[] = {
	{ "memory-backend-ram", { "size" } },
	{ "memory-backend-memfd", { "size" } },
	{ "iothread", { "poll-max-ns", "poll-grow", "poll-shrink", "aio-max-batch", "thread-pool-min", "thread-pool-max" } },
	{ "rng-random", { "filename" } },
	{ "rng-builtin", { NULL } },
};

static int add_object(struct now *n, const char *id, const char *type)
{
	char path[256];
	json_t *o;
	int ret = 0;

	snprintf(path, sizeof path, "/objects/%s", id);
	for (size_t i = 0; i < ARRAY_SIZE(known_object); i++) {
		if (strcmp(type, known_object[i].type))
			continue;
		o = json_pack("{s:s, s:s}", "qom-type", type, "id", id);
		for (const char *const *k = known_object[i].property; *k && !ret; k++) {
			json_t *v;

			ret = now_qom_get(n, path, *k, &v);
			if (!ret && v && json_object_set_new(o, *k, v))
				ret = -ENOMEM;
		}
		ret = ret ?: now_add_json(n, "object", o);
		json_decref(o);
		return ret;
	}
	refuse_because(&n->r, "object '%s' (%s) was added while it ran, and how cannot be told; remove it by QMP object-del", id, type);
	return 0;
}

// The one that the machine makes of a plain -m.
static int is_machines(struct now *n, const char *id, bool *yes)
{
	const char *name;
	json_t *v;
	int ret = now_qom_get(n, "/machine", "memory-backend", &v);

	name = json_string_value(v) ?: "";
	name = strrchr(name, '/') ? strrchr(name, '/') + 1 : name;
	*yes = !strcmp(name, id);
	json_decref(v);
	return ret;
}

int now_objects(struct now *n)
{
	json_t *live, *type;
	const char *id;
	int ret = now_children(n, "/objects", &live);

	if (ret)
		return ret;
	for (struct now_opt *o = n->opt; o < n->opt + n->nr; o++) {
		_cleanup_free_ char *name = now_is(o, "object") ? qemu_opt_get(o->value, "qom-type", "id") : NULL;
		const char *is = name ? json_string_value(json_object_get(live, name)) : NULL;

		if (name && (!is || !qemu_opt_is(o->value, "qom-type", "qom-type", is)))
			now_drop(o);
	}
	json_object_foreach(live, id, type) {
		bool machines = false;

		if (now_find(n, "object", "id", id))
			continue;
		ret = is_machines(n, id, &machines);
		if (!ret && !machines)
			ret = add_object(n, id, json_string_value(type));
		if (ret)
			break;
	}
	json_decref(live);
	return ret;
}

// ---- netdevs

// "TCP[HOST_FORWARD]  13  127.0.0.1  2222  10.0.2.15  22  0  0" below "Hub -1 (n2):" becomes ",hostfwd=tcp:127.0.0.1:2222-10.0.2.15:22".
static void put_forwards(FILE *f, char *usernet, const char *id)
{
	char *rest = usernet, *line;
	bool mine = false;

	while ((line = strsep(&rest, "\n"))) {
		char what[64], from[64], to[64];
		unsigned from_port, to_port;
		char *open = strchr(line, '('), *close = open ? strchr(open, ')') : NULL;

		if (!strncmp(line, "Hub ", 4) && close) {
			mine = (size_t)(close - open - 1) == strlen(id) && !strncmp(open + 1, id, strlen(id));
			continue;
		}
		if (mine && sscanf(line, " %63s %*d %63s %u %63s %u", what, from, &from_port, to, &to_port) == 5 &&
		    strstr(what, "[HOST_FORWARD]"))
			fprintf(f, ",hostfwd=%s:%s:%u-%s:%u", *what == 'U' ? "udp" : "tcp", strcmp(from, "*") ? from : "", from_port, to,
				to_port);
	}
}

// list: what QEMU says of it, behind its type.
static int add_netdev(struct now *n, const char *id, const char *type, const char *list)
{
	_cleanup_free_ char *usernet = NULL, *text = NULL, *net = qemu_opt_get(list, NULL, "net"),
			    *restrict_ = qemu_opt_get(list, NULL, "restrict"), *ifname = qemu_opt_get(list, NULL, "ifname");
	size_t len;
	int ret = strcmp(type, "user") ? 0 : qmp_hmp(n->r.vm->qmp, "info usernet", &usernet);
	FILE *f = ret ? NULL : open_memstream(&text, &len);

	if (!f)
		return ret ?: -ENOMEM;
	fprintf(f, "%s,id=%s", type, id);
	if (!strcmp(type, "user") && net && !strcmp(net, "10.0.2.0") && restrict_) {
		fprintf(f, ",restrict=%s", restrict_); // of another network the mask is not told
		put_forwards(f, usernet, id);
	} else if (!strcmp(type, "tap") && ifname) {
		fprintf(f, ",ifname=%s,script=no,downscript=no", ifname);
	} else {
		refuse_because(&n->r, "netdev '%s' (%s) was added while it ran, and how cannot be told; remove it by QMP netdev_del", id,
			       type);
	}
	if (fclose(f))
		return -ENOMEM;
	return now_add(n, "netdev", text);
}

static bool is_known_netdev(const struct now *n, const char *id, const char *type)
{
	struct now_opt *o = now_find(n, "netdev", "id", id);

	if (o && !qemu_opt_is(o->value, "type", "type", type)) {
		now_drop(o); // removed, and another one added by this name
		return false;
	}
	return o || now_find(n, "nic", "id", id) || now_find(n, "net", "id", id) || now_find(n, "net", "name", id);
}

// A line of `info network`: "[hub0port0: ]NAME: index=0,type=user,..." with " \ " before it if it is a peer.
static int look_at_client(struct now *n, char *line, struct names *seen)
{
	char *index = strstr(line, ": index="), *type = index ? strstr(index, ",type=") : NULL, *name, *list;

	if (!type)
		return 0;
	*index = 0;
	name = strrchr(line, ' ');
	name = name ? name + 1 : line;
	type += strlen(",type=");
	list = type + strcspn(type, ",\r");
	list += *list == ',';
	list[strcspn(list, "\r")] = 0;
	type[strcspn(type, ",\r")] = 0;
	if (*name == '#' || !strcmp(type, "nic") || !strcmp(type, "hubport"))
		return names_add(seen, name);
	if (names_add(seen, name))
		return -ENOMEM;
	return is_known_netdev(n, name, type) ? 0 : add_netdev(n, name, type, list);
}

int now_netdevs(struct now *n)
{
	_cleanup_free_ char *text = NULL;
	struct names seen = { 0 };
	size_t nr = n->nr;
	char *rest, *line;
	int ret = qmp_hmp(n->r.vm->qmp, "info network", &text);

	for (rest = text; !ret && (line = strsep(&rest, "\n"));)
		ret = look_at_client(n, line, &seen);
	for (size_t i = 0; i < nr && !ret; i++) {
		struct now_opt *o = &n->opt[i];
		_cleanup_free_ char *id = now_is(o, "netdev") ? qemu_opt_get(o->value, "type", "id") : NULL;

		if (id && !names_take(&seen, id))
			now_drop(o);
	}
	names_fini(&seen);
	return ret;
}

// ---- character devices

// What `query-chardev` calls a listening socket: "[disconnected:]unix:PATH,server=on" and, while somebody is connected, "unix:PATH".
static int add_socket(struct now *n, const char *label, const char *filename)
{
	static const char unix_[] = "unix:", away[] = "disconnected:", server[] = ",server=on";
	char text[512];
	const char *end;

	if (!strncmp(filename, away, strlen(away)))
		filename += strlen(away);
	end = strstr(filename, server);
	if (strncmp(filename, unix_, strlen(unix_)) || !end || strcspn(filename, ",") != (size_t)(end - filename))
		return -EOPNOTSUPP;
	filename += strlen(unix_);
	snprintf(text, sizeof text, "socket,id=%s,path=%.*s,server=on,wait=off", label, (int)(end - filename), filename);
	return now_add(n, "chardev", text);
}

static int add_chardev(struct now *n, const char *label, const char *filename)
{
	char text[512];
	int ret = -EOPNOTSUPP;

	if (!strcmp(filename, "null") || !strncmp(filename, "pty:", 4)) {
		snprintf(text, sizeof text, "%.*s,id=%s", (int)strcspn(filename, ":"), filename, label);
		ret = now_add(n, "chardev", text);
	} else {
		ret = add_socket(n, label, filename);
	}
	if (ret != -EOPNOTSUPP)
		return ret;
	refuse_because(&n->r,
		"character device '%s' (%s) was added while it ran, and how cannot be told; unplug the device that uses it", label,
		filename);
	return 0;
}

int now_chardev(struct now *n, const char *label)
{
	json_t *list, *o;
	size_t i;
	int ret;

	if (now_find(n, "chardev", "id", label))
		return 0;
	ret = qmp_call(n->r.vm->qmp, "query-chardev", NULL, &list);
	if (ret)
		return ret;
	json_array_foreach(list, i, o)
		if (!strcmp(now_text(o, "label"), label) && !ret)
			ret = add_chardev(n, label, now_text(o, "filename"));
	json_decref(list);
	return ret;
}
