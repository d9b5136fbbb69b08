// SPDX-License-Identifier: GPL-2.0-only
#include <errno.h>
#include <string.h>
#include <xxhash.h>

#include "qemu/now.h"
#include "qemu/qmp.h"
#include "qemu/vm.h"
#include "util/cleanup.h"
#include "util/log.h"
#include "util/size.h"

// What is plugged in, by name: devices with an id and without, memory backends and other objects, character devices.
static const char *const folders[] = { "/machine/peripheral", "/machine/peripheral-anon", "/objects", "/chardevs" };

static uint64_t add(uint64_t mark, const char *text)
{
	return XXH3_64bits_withSeed(text ? text : "", text ? strlen(text) : 0, mark);
}

static int mark_folder(struct qmp *q, const char *folder, uint64_t *mark)
{
	_cleanup_free_ char *text = NULL;
	json_t *list = NULL;
	int r = qmp_call(q, "qom-list", json_pack("{s:s}", "path", folder), &list);

	if (r)
		return r;
	text = json_dumps(list, JSON_COMPACT | JSON_SORT_KEYS);
	*mark = add(*mark, text);
	json_decref(list);
	return 0;
}

// How large a file is, and what was done with it, is not looked at.
static int mark_disks(struct qmp *q, uint64_t *mark)
{
	static const char *const keys[] = { "node-name", "drv", "file" };
	json_t *nodes = NULL, *node;
	int r = qmp_call(q, "query-named-block-nodes", json_pack("{s:b}", "flat", true), &nodes);
	size_t i;

	json_array_foreach(nodes, i, node)
		for (size_t k = 0; k < ARRAY_SIZE(keys); k++)
			*mark = add(*mark, json_string_value(json_object_get(node, keys[k])));
	json_decref(nodes);
	return r;
}

int qemu_now_mark(struct qemu_vm *vm, uint64_t *mark)
{
	int r;

	*mark = 0;
	r = mark_disks(vm->qmp, mark);

	for (size_t i = 0; !r && i < ARRAY_SIZE(folders); i++)
		r = mark_folder(vm->qmp, folders[i], mark);
	return r;
}

int qemu_now_same(struct qemu_vm *vm, uint64_t mark)
{
	uint64_t now;
	int r = qemu_now_mark(vm, &now);

	if (!r && now != mark) {
		log_err("a device, a disk or a medium of QEMU %d was changed while it was being dumped; try again", vm->pid);
		r = -EAGAIN;
	}
	return r;
}
