// SPDX-License-Identifier: GPL-2.0-only
// DOC: where a RAM block lies in QEMU's address space
//
// From QEMU 8 on the human monitor says it. Before, three sources together do:
//
//  1. what guest and devices see mapped: `info mtree -f` has the block's guest-physical address, `gpa2hva` QEMU's own address;
//  2. for the rest (an option ROM whose BAR is off, tables that only fw_cfg reads): QEMU makes each block a mapping of its own
//     with a guard page behind it, and marks it MADV_DONTFORK. What has that mark, the block's exact length and no owner yet
//     is a candidate, and a single one for a single block is it;
//  3. several candidates: QEMU's own record of the block, a structure in its heap where address, offset, lengths and name
//     stand close together in this order (include/exec/ramblock.h). The record only chooses among the candidates.
//
// Whatever the source, the address must be that of a fitting mapping, and no two blocks may overlap; else nothing is told.
#include "qemu/ramblock.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/uio.h>

#include "qemu/args.h"
#include "qemu/qmp.h"
#include "qemu/ramblock_int.h"
#include "qemu/vm.h"
#include "util/cleanup.h"
#include "util/io.h"
#include "util/log.h"
#include "util/size.h"

#define HEAP_MAX (512 * MiB)
#define RECORD_SPAN 64 // bytes before the name in which the record's lengths and address stand

struct finder {
	struct qemu_vm *vm;
	struct qemu_ram_info *info;
	struct qemu_ramblock *blocks;
	size_t nr;
	struct qemu_flat_range *flat;
	size_t nr_flat;
	struct qemu_mapping *maps;
	size_t nr_maps;
	char *heap; // a copy, NULL until needed
	size_t heap_len;
};

static int not_told(const struct finder *f, const struct qemu_ramblock *b, const char *why)
{
	log_err("process %d: cannot tell where QEMU %s keeps the RAM block %s: %s; QEMU 8 and newer tell it", f->vm->pid,
		qmp_version(f->vm->qmp), b->name, why);
	return -EOPNOTSUPP;
}

// ---- mappings

static size_t mapping_at(const struct finder *f, uint64_t addr)
{
	size_t i = 0;

	while (i < f->nr_maps && f->maps[i].end <= addr)
		i++;
	return i < f->nr_maps && f->maps[i].start <= addr ? i : f->nr_maps;
}

// End of the run of adjacent mappings of one kind that begins with mapping i.
static uint64_t run_end(const struct finder *f, size_t i)
{
	const struct qemu_mapping *m = f->maps + i;

	for (; i + 1 < f->nr_maps; i++, m++) {
		const struct qemu_mapping *n = m + 1;

		if (n->start != m->end || n->writable != m->writable || n->readable != m->readable || n->shared != m->shared ||
			n->dev != m->dev || n->ino != m->ino || n->dontfork != m->dontfork ||
			(m->ino && n->file_off != m->file_off + (m->end - m->start)))
			break;
	}
	return m->end;
}

static uint64_t mapped_len(const struct qemu_ramblock *b)
{
	return ROUND_UP(b->max_len, b->page_size);
}

static bool overlaps(const struct finder *f, const struct qemu_ramblock *b, uint64_t start, uint64_t len)
{
	for (size_t i = 0; i < f->nr; i++)
		if (f->blocks + i != b && f->blocks[i].hva && f->blocks[i].hva < start + len &&
			start < f->blocks[i].hva + mapped_len(f->blocks + i))
			return true;
	return false;
}

// Whether mapping i begins a run that looks like this block and is no other's.
static bool is_candidate(const struct finder *f, const struct qemu_ramblock *b, size_t i)
{
	const struct qemu_mapping *m = f->maps + i;
	uint64_t len = mapped_len(b);

	return m->dontfork && m->readable && m->writable && run_end(f, i) == m->start + len && !overlaps(f, b, m->start, len);
}

// The block's address becomes hva if the mappings agree.
static int settle(struct finder *f, struct qemu_ramblock *b, uint64_t hva)
{
	size_t i = mapping_at(f, hva);
	const struct qemu_mapping *m = f->maps + i;

	if (i == f->nr_maps || !m->readable || !m->writable || run_end(f, i) < hva + mapped_len(b))
		return not_told(f, b, "its mapping is not there, or is not writable memory of its length");
	if (overlaps(f, b, hva, mapped_len(b)))
		return not_told(f, b, "two blocks would overlap");
	b->hva = hva;
	if (m->shared || m->ino) {
		b->kind = m->shared ? QEMU_RAM_FILE_SHARED : QEMU_RAM_FILE_PRIVATE;
		b->map_off = m->file_off + (hva - m->start);
		b->map_dev = m->dev;
		b->map_ino = m->ino;
		strcpy(b->map_path, m->path);
	}
	return 0;
}

// ---- blocks that guest or devices see

// QEMU names a region, the block's name has the device before it.
static bool has_region_name(const struct qemu_ramblock *b, const char *region)
{
	size_t len = strlen(b->name), tail = strlen(region);

	return tail && tail <= len && !strcmp(b->name + len - tail, region) && (tail == len || b->name[len - tail - 1] == '/');
}

// The one block of this region name, NULL if there is none or are several.
static struct qemu_ramblock *block_of_region(struct finder *f, const char *region)
{
	struct qemu_ramblock *found = NULL;

	for (size_t i = 0; i < f->nr; i++) {
		if (!has_region_name(f->blocks + i, region))
			continue;
		if (found)
			return NULL;
		found = f->blocks + i;
	}
	return found;
}

// Ranges come in ascending order.
static void find_gpas(struct finder *f)
{
	for (size_t i = 0; i < f->nr_flat; i++) {
		struct qemu_ramblock *b = block_of_region(f, f->flat[i].region);

		if (b && b->gpa == UINT64_MAX)
			b->gpa = f->flat[i].gpa;
	}
}

// A running guest may move a BAR between `info mtree` and `gpa2hva`: only what begins a mapping of the block's length counts.
static int find_by_gpa(struct finder *f)
{
	for (size_t i = 0; i < f->nr_flat; i++) {
		const struct qemu_flat_range *r = f->flat + i;
		struct qemu_ramblock *b = block_of_region(f, r->region);
		_cleanup_free_ char *text = NULL;
		char line[64], region[256];
		uint64_t hva;
		size_t m;
		int ret;

		if (!b || b->hva)
			continue;
		snprintf(line, sizeof line, "gpa2hva 0x%" PRIx64, r->gpa);
		ret = qmp_hmp(f->vm->qmp, line, &text);
		if (ret)
			return ret;
		if (qemu_parse_gpa2hva(text, region, &hva) || strcmp(region, r->region))
			continue;
		m = mapping_at(f, hva - r->offset);
		if (m == f->nr_maps || f->maps[m].start != hva - r->offset || !is_candidate(f, b, m))
			continue;
		ret = settle(f, b, hva - r->offset);
		if (ret)
			return ret;
	}
	return 0;
}

// ---- the others

// After a fork (-daemonize) the heap is several mappings, one behind the other.
static int read_heap(struct finder *f)
{
	struct iovec theirs, ours;
	uint64_t start = 0, end = 0;

	for (size_t i = 0; i < f->nr_maps; i++) {
		const struct qemu_mapping *m = f->maps + i;

		if (strcmp(m->path, "[heap]"))
			continue;
		start = start ? start : m->start;
		end = m->end;
	}
	if (!start || end - start > HEAP_MAX)
		return -ENOENT;
	theirs = (struct iovec){ (void *)(uintptr_t)start, end - start };
	f->heap = malloc(theirs.iov_len);
	if (!f->heap)
		return -ENOMEM;
	ours = (struct iovec){ f->heap, theirs.iov_len };
	if (process_vm_readv(f->vm->pid, &ours, 1, &theirs, 1, 0) != (ssize_t)theirs.iov_len)
		return -EIO;
	f->heap_len = theirs.iov_len;
	return 0;
}

static uint64_t word_at(const char *p)
{
	uint64_t w;

	memcpy(&w, p, sizeof w);
	return w;
}

// The candidate whose address stands in a record that ends with the name at p, 0 if this is no such record.
static uint64_t record_address(const struct finder *f, const struct qemu_ramblock *b, const struct qemu_ram_info *info, const char *p)
{
	for (const char *w = p - RECORD_SPAN; w <= p - 24; w += 4) {
		if (word_at(w) != info->offset || word_at(w + 8) != info->used || word_at(w + 16) != info->max)
			continue;
		for (const char *a = w - 24; a < w; a += 8) {
			size_t i = mapping_at(f, word_at(a));

			if (i < f->nr_maps && f->maps[i].start == word_at(a) && is_candidate(f, b, i))
				return word_at(a);
		}
	}
	return 0;
}

static int find_by_record(struct finder *f, struct qemu_ramblock *b, const struct qemu_ram_info *info)
{
	size_t name_len = strlen(b->name) + 1;
	uint64_t found = 0;
	const char *p, *end;

	if (!f->heap && read_heap(f))
		return not_told(f, b, "several mappings have its length, and QEMU's heap cannot be read");
	p = f->heap;
	end = p + f->heap_len;
	while ((p = memmem(p, (size_t)(end - p), b->name, name_len))) {
		uint64_t hva = p - f->heap >= RECORD_SPAN + 24 ? record_address(f, b, info, p) : 0;

		if (hva && found && hva != found)
			return not_told(f, b, "several mappings have its length, and QEMU's heap has contradicting records");
		if (hva)
			found = hva;
		p += name_len;
	}
	return found ? settle(f, b, found) : not_told(f, b, "several mappings have its length");
}

// The only mapping that fits, if no other block is in want of one as long.
static uint64_t only_candidate(const struct finder *f, const struct qemu_ramblock *b, const char **why)
{
	uint64_t only = 0;

	*why = "no mapping has its length";
	for (size_t i = 0; i < f->nr_maps; i++) {
		if (!is_candidate(f, b, i))
			continue;
		*why = NULL;
		if (only)
			return 0;
		only = f->maps[i].start;
	}
	for (size_t i = 0; i < f->nr; i++)
		if (f->blocks + i != b && !f->blocks[i].hva && mapped_len(f->blocks + i) == mapped_len(b))
			return 0;
	return only;
}

static int find_the_rest(struct finder *f)
{
	for (size_t i = 0; i < f->nr; i++) {
		struct qemu_ramblock *b = f->blocks + i;
		const char *why;
		uint64_t hva;
		int ret;

		if (b->hva)
			continue;
		hva = only_candidate(f, b, &why);
		if (why)
			ret = not_told(f, b, why);
		else
			ret = hva ? settle(f, b, hva) : find_by_record(f, b, f->info + i);
		if (ret)
			return ret;
	}
	return 0;
}

// ---- asking

static bool in_argv(const struct qemu_vm *vm, const char *backend)
{
	struct qemu_arg a;

	for (int i = 1; qemu_arg_next(vm->argv, vm->argc, &i, &a);)
		if (!strcmp(a.name, "object") && qemu_opt_is(a.value, "qom-type", "id", backend))
			return true;
	return false;
}

// Old machine types name a backend's block by its whole path.
static bool is_block_of(const char *block, const char *backend)
{
	static const char objects[] = "/objects/";

	return !strcmp(block, backend) || (!strncmp(block, objects, strlen(objects)) && !strcmp(block + strlen(objects), backend));
}

// Whether it is what the machine made of a plain -m. Others that the command line does not say were added while the VM ran.
static int is_machines_own(struct finder *f, const char *backend, bool *own)
{
	json_t *reply;
	int ret;

	*own = false;
	if (in_argv(f->vm, backend))
		return 0;
	ret = qmp_call(f->vm->qmp, "qom-get", json_pack("{s:s, s:s}", "path", "/machine", "property", "memory-backend"), &reply);
	if (ret)
		return ret;
	*own = json_is_string(reply) && is_block_of(json_string_value(reply), backend);
	json_decref(reply);
	return 0;
}

static int mark_guest_ram(struct finder *f)
{
	bool any = false;
	json_t *reply, *dev;
	size_t k;
	int ret = qmp_call(f->vm->qmp, "query-memdev", NULL, &reply);

	if (ret)
		return ret;
	json_array_foreach(reply, k, dev) {
		const char *id = json_string_value(json_object_get(dev, "id"));
		bool own = false;

		ret = !ret && id ? is_machines_own(f, id, &own) : ret;
		for (size_t i = 0; id && i < f->nr; i++) {
			struct qemu_ramblock *b = f->blocks + i;

			if (!is_block_of(b->name, id))
				continue;
			b->guest_ram = any = true;
			if (!own)
				snprintf(b->backend_id, sizeof b->backend_id, "%s", id);
		}
	}
	json_decref(reply);
	if (ret || any)
		return ret;
	log_err("process %d: QEMU names no guest RAM", f->vm->pid);
	return -EOPNOTSUPP;
}

static int not_understood(const struct finder *f, const char *what, int ret)
{
	log_err("process %d: what QEMU %s prints of `%s` is not understood", f->vm->pid, qmp_version(f->vm->qmp), what);
	return ret;
}

static int ask_blocks(struct finder *f)
{
	_cleanup_free_ char *text = NULL;
	size_t nr;
	int ret = qmp_hmp(f->vm->qmp, "info ramblock", &text);

	if (ret)
		return ret;
	ret = qemu_parse_ramblocks(text, &f->info, &nr);
	if (ret || !nr)
		return not_understood(f, "info ramblock", ret ? ret : -EBADMSG);
	f->blocks = calloc(nr, sizeof *f->blocks);
	if (!f->blocks)
		return -ENOMEM;
	for (size_t i = 0; i < nr; i++) {
		struct qemu_ramblock *b = f->blocks + f->nr;

		// Nameless blocks are not part of the VM's state for QEMU either: a memory backend that nothing uses.
		if (!f->info[i].name[0])
			continue;
		f->info[f->nr] = f->info[i];
		*b = (struct qemu_ramblock){
			.len = f->info[i].used, .max_len = f->info[i].max, .page_size = f->info[i].page_size, .gpa = UINT64_MAX
		};
		strcpy(b->name, f->info[i].name);
		f->nr++;
	}
	return 0;
}

static int ask_places(struct finder *f)
{
	_cleanup_free_ char *tree = NULL, *smaps = NULL;
	char path[64];
	size_t len;
	int ret = qmp_hmp(f->vm->qmp, "info mtree -f", &tree);

	if (ret)
		return ret;
	ret = qemu_parse_mtree(tree, &f->flat, &f->nr_flat);
	if (ret)
		return not_understood(f, "info mtree -f", ret);
	// smaps has the kernel walk all page tables: only where its flags are needed.
	snprintf(path, sizeof path, "/proc/%d/%s", f->vm->pid, f->nr && f->info[0].hva ? "maps" : "smaps");
	ret = io_read_file(path, 64 * MiB, &smaps, &len);
	if (!ret)
		ret = qemu_parse_smaps(smaps, &f->maps, &f->nr_maps);
	if (ret)
		log_err("%s: cannot be read: %s", path, strerror(-ret));
	return ret;
}

static int by_place(const void *a, const void *b)
{
	const struct qemu_ramblock *x = a, *y = b;

	if (x->guest_ram != y->guest_ram)
		return x->guest_ram ? -1 : 1;
	if (x->guest_ram && x->gpa != y->gpa)
		return x->gpa < y->gpa ? -1 : 1;
	return strcmp(x->name, y->name);
}

static int find_all(struct finder *f)
{
	int ret = ask_blocks(f);

	if (!ret)
		ret = ask_places(f);
	if (!ret)
		ret = mark_guest_ram(f);
	if (ret)
		return ret;
	find_gpas(f);
	for (size_t i = 0; i < f->nr && !ret; i++)
		if (f->info[i].hva)
			ret = settle(f, f->blocks + i, f->info[i].hva);
	if (!ret)
		ret = find_by_gpa(f);
	if (!ret)
		ret = find_the_rest(f);
	return ret;
}

int qemu_ramblocks(struct qemu_vm *vm, struct qemu_ramblock **blocks, size_t *nr)
{
	struct finder f = { .vm = vm };
	int ret = find_all(&f);

	if (!ret) {
		qsort(f.blocks, f.nr, sizeof *f.blocks, by_place);
		*blocks = steal_ptr(&f.blocks);
		*nr = f.nr;
	}
	free(f.info);
	free(f.blocks);
	free(f.flat);
	free(f.maps);
	free(f.heap);
	return ret;
}
