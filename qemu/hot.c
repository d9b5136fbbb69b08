// SPDX-License-Identifier: GPL-2.0-only
#include "qemu/hot.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "qemu/qmp.h"
#include "qemu/ramblock_int.h"
#include "qemu/vm.h"
#include "util/cleanup.h"
#include "util/size.h"

#define MAX_PAGES 4096
#define MAX_QUEUES 64
#define MAX_VCPUS 64

struct hot {
	struct qemu_vm *vm;
	uint64_t *hvas;
	size_t nr;
};

static int add_physical(struct hot *h, uint64_t gpa)
{
	_cleanup_free_ char *text = NULL;
	char line[64], region[256];
	uint64_t hva;
	int r;

	if (h->nr == MAX_PAGES)
		return 0;
	snprintf(line, sizeof line, "gpa2hva 0x%" PRIx64, gpa);
	r = qmp_hmp(h->vm->qmp, line, &text);
	if (!r && !qemu_parse_gpa2hva(text, region, &hva))
		h->hvas[h->nr++] = hva & ~(PAGE_SIZE - 1);
	return r;
}

// ---- virtio

static int add_queue(struct hot *h, const char *path, int queue)
{
	static const char *const rings[] = { "vring-desc", "vring-avail", "vring-used" };
	json_t *status = NULL;
	int r = qmp_try(h->vm->qmp, "x-query-virtio-queue-status", json_pack("{s:s s:i}", "path", path, "queue", queue), &status);

	if (r == -EREMOTEIO) // there is no such queue
		return 0;
	for (size_t i = 0; !r && i < ARRAY_SIZE(rings); i++) {
		uint64_t gpa = (uint64_t)json_integer_value(json_object_get(status, rings[i]));

		if (gpa)
			r = add_physical(h, gpa);
	}
	json_decref(status);
	return r;
}

static int add_virtio(struct hot *h)
{
	json_t *list = NULL, *device;
	size_t i;
	int r = qmp_try(h->vm->qmp, "x-query-virtio", NULL, &list);

	if (r == -EREMOTEIO) // it came with QEMU 7.2
		return 0;
	json_array_foreach(list, i, device) {
		const char *path = json_string_value(json_object_get(device, "path"));
		json_t *status = NULL;
		int nr;

		if (r || !path)
			break;
		r = qmp_try(h->vm->qmp, "x-query-virtio-status", json_pack("{s:s}", "path", path), &status);
		nr = (int)json_integer_value(json_object_get(status, "num-vqs"));
		json_decref(status);
		r = r == -EREMOTEIO ? 0 : r;
		for (int q = 0; !r && q < nr && q < MAX_QUEUES; q++)
			r = add_queue(h, path, q);
	}
	json_decref(list);
	return r;
}

// ---- processors

static int hmp_of(struct hot *h, int cpu, const char *line, char **text)
{
	json_t *answer = NULL;
	int r = qmp_try(h->vm->qmp, "human-monitor-command", json_pack("{s:s s:i}", "command-line", line, "cpu-index", cpu), &answer);

	*text = json_is_string(answer) ? strdup(json_string_value(answer)) : strdup("");
	json_decref(answer);
	return *text ? r == -EREMOTEIO ? 0 : r : -ENOMEM;
}

static int add_virtual(struct hot *h, int cpu, uint64_t gva)
{
	_cleanup_free_ char *text = NULL;
	char line[64], *at;
	uint64_t gpa;
	int r;

	snprintf(line, sizeof line, "gva2gpa 0x%" PRIx64, gva);
	r = hmp_of(h, cpu, line, &text);
	at = text ? strstr(text, "gpa: ") : NULL;
	return r || !at || sscanf(at, "gpa: %" SCNx64, &gpa) != 1 ? r : add_physical(h, gpa);
}

// "RIP=ffffffff81a0b3c2", "GDT=     fffffe0000001000 0000007f". False: it has none.
static bool find_register(const char *text, const char *name, uint64_t *value)
{
	const char *at = strstr(text, name);

	return at && sscanf(at + strlen(name), " %" SCNx64, value) == 1;
}

static int add_processor(struct hot *h, int cpu)
{
	static const char *const pointers[] = { "RIP=", "EIP=", "RSP=", "ESP=", "GDT=", "IDT=" };
	_cleanup_free_ char *text = NULL;
	uint64_t value;
	int r = hmp_of(h, cpu, "info registers", &text);

	for (size_t i = 0; !r && i < ARRAY_SIZE(pointers); i++)
		if (find_register(text, pointers[i], &value))
			r = add_virtual(h, cpu, value);
	if (!r && find_register(text, "CR3=", &value))
		r = add_physical(h, value & ~(PAGE_SIZE - 1));
	return r;
}

static int add_processors(struct hot *h)
{
	json_t *list = NULL;
	size_t nr;
	int r = qmp_call(h->vm->qmp, "query-cpus-fast", NULL, &list);

	nr = json_array_size(list);
	json_decref(list);
	for (size_t i = 0; !r && i < nr && i < MAX_VCPUS; i++)
		r = add_processor(h, (int)i);
	return r;
}

int qemu_hot_pages(struct qemu_vm *vm, bool registers, uint64_t **hvas, size_t *nr)
{
	struct hot h = { .vm = vm, .hvas = calloc(MAX_PAGES, sizeof *h.hvas) };
	int r = h.hvas ? add_virtio(&h) : -ENOMEM;

	if (!r && registers)
		r = add_processors(&h);
	if (r)
		free(h.hvas);
	*hvas = r ? NULL : h.hvas;
	*nr = r ? 0 : h.nr;
	return r;
}
