// SPDX-License-Identifier: GPL-2.0-only
#include "criu-vm/stat_paging.h"

#include "criu-vm/stat_vm.h"
#include "util/size.h"

#define LABEL "  %-10s "

// Of how much comes with a touched page, and whether that was worth it.
static void print_windows(const struct stat_pen *pen, const json_t *vm)
{
	uint64_t page = stat_number(vm, "counts", "page_ins_page"), block = stat_number(vm, "counts", "page_ins_block");
	uint64_t chunk = stat_number(vm, "counts", "page_ins_chunk"), ahead = stat_number(vm, "counts", "pages_ahead");
	uint64_t sampled = stat_number(vm, "counts", "pages_sampled"), used = stat_number(vm, "counts", "pages_sampled_used");
	double all = (double)page + (double)block + (double)chunk;
	char size[16];

	if (all <= 0)
		return;
	fprintf(pen->f, LABEL "a page-in brings 4 KiB (%.0f %%), 64 KiB (%.0f %%) or 1 MiB (%.0f %%)", "", 100 * (double)page / all,
		100 * (double)block / all, 100 * (double)chunk / all);
	if (sampled)
		fprintf(pen->f, "; of what came unasked %.0f %% were used", 100 * (double)(used < sampled ? used : sampled) / (double)sampled);
	fputc('\n', pen->f);
	if (ahead)
		fprintf(pen->f, LABEL "%s ahead of sequential or strided accesses\n", "", size_format(ahead * PAGE_SIZE, size));
}

// Of what was in memory at the dump.
static void print_replay(const struct stat_pen *pen, const json_t *vm)
{
	uint64_t replayed = stat_number(vm, NULL, "replayed");
	char a[16], b[16];

	if (json_is_true(json_object_get(vm, "replaying")))
		fprintf(pen->f, LABEL "of what was in memory at the dump %s are back, at most %s follow\n", "", size_format(replayed, a),
			size_format(stat_number(vm, NULL, "replay_left"), b));
	else if (replayed)
		fprintf(pen->f, LABEL "of what was in memory at the dump %s were brought back\n", "", size_format(replayed, a));
}

void stat_print_paging(const struct stat_pen *pen, const json_t *vm)
{
	const char *method = json_string_value(json_object_get(json_object_get(vm, "tuning"), "method")), *access = stat_string(vm, "access");
	uint64_t idle = stat_number(vm, "memory", "idle");
	char size[16];

	if (!method || !access) // a pager of an earlier version
		return;
	fprintf(pen->f, LABEL "method ", "paging");
	stat_draw_text(pen, STAT_PLAIN, method);
	fputs(", access ", pen->f);
	stat_draw_text(pen, STAT_PLAIN, access);
	if (idle)
		fprintf(pen->f, " (%s are watched)", size_format(idle, size));
	fputs(json_is_true(json_object_get(vm, "folios")) ? ", folios of 1 MiB\n" : "\n", pen->f);
	print_windows(pen, vm);
	print_replay(pen, vm);
}
