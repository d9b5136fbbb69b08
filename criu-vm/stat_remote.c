// SPDX-License-Identifier: GPL-2.0-only
#include "criu-vm/stat_remote.h"

#include <stdio.h>

#include "criu-vm/stat_vm.h"
#include "util/size.h"

#define LABEL "  %-10s "

bool stat_is_leaving(const json_t *vm)
{
	return json_is_object(json_object_get(vm, "leaving"));
}

static const char *text_of(const json_t *vm, const char *group, const char *key)
{
	return stat_string(json_object_get(vm, group), key);
}

static const char *or_unknown(const char *s)
{
	return s ? s : "?";
}

bool stat_format_remote(const json_t *vm, char *buf, size_t size)
{
	char left[16];

	if (!json_is_object(json_object_get(vm, "remote")))
		return false;
	if (!stat_is_served(vm))
		snprintf(buf, size, "some of its pages are at %s yet", or_unknown(text_of(vm, "remote", "from")));
	else
		snprintf(buf, size, "%s are at %s yet; %lu of %lu lines", size_format(stat_number(vm, "remote", "pages_left") * PAGE_SIZE, left),
			 or_unknown(text_of(vm, "remote", "from")), stat_number(vm, "remote", "lines"), stat_number(vm, "remote", "lines_wanted"));
	return true;
}

bool stat_format_remote_trouble(const json_t *vm, char *buf, size_t size)
{
	const char *trouble = text_of(vm, "remote", "trouble");
	double alone = stat_real(vm, "remote", "alone_s");
	uint64_t waiting = stat_number(vm, "remote", "waiting");
	char t[32], reads[64] = "";

	if (!trouble && alone <= 0)
		return false;
	if (waiting)
		snprintf(reads, sizeof reads, "; %lu reads wait for that", waiting);
	if (alone > 0)
		snprintf(buf, size, "pages that %s has: no line from there for %s%s%s%s", or_unknown(text_of(vm, "remote", "from")),
			 stat_format_duration(alone, t), trouble ? ": " : "", trouble ? trouble : "", reads);
	else
		snprintf(buf, size, "pages that %s has: %s%s", or_unknown(text_of(vm, "remote", "from")), trouble, reads);
	return true;
}

void stat_print_leaving(const struct stat_pen *pen, const json_t *vm)
{
	char left[16], served[16], bytes[16], t[32];
	const char *trouble = text_of(vm, "leaving", "trouble");
	uint64_t server = stat_number(vm, "leaving", "server_pid");

	stat_draw_text(pen, STAT_PLAIN, or_unknown(stat_string(vm, "name")));
	fputs(": ", pen->f);
	stat_draw_text(pen, trouble ? STAT_RED : STAT_YELLOW, "leaving");
	fprintf(pen->f, ", QEMU %lu", stat_number(vm, "leaving", "qemu_pid"));
	if (server)
		fprintf(pen->f, ", served by %lu", server);
	fprintf(pen->f, "\n" LABEL, "where");
	stat_draw_text(pen, STAT_PLAIN, or_unknown(text_of(vm, "leaving", "host")));
	fprintf(pen->f, ", for %s\n", stat_format_duration(stat_real(vm, "leaving", "since_s"), t));
	if (trouble) {
		fprintf(pen->f, LABEL, "waits");
		stat_draw_text(pen, STAT_RED, trouble);
		fputc('\n', pen->f);
	}
	fprintf(pen->f, LABEL "%s needed there yet; %s served in %s; %lu of %lu lines\n", "pages",
		size_format(stat_number(vm, "leaving", "pages_left") * PAGE_SIZE, left),
		size_format(stat_number(vm, "leaving", "pages_served") * PAGE_SIZE, served),
		size_format(stat_number(vm, "leaving", "bytes"), bytes), stat_number(vm, "leaving", "lines"),
		stat_number(vm, "leaving", "lines_wanted"));
}

void stat_print_leaving_row(const struct stat_pen *pen, const json_t *vm, int width)
{
	const char *trouble = text_of(vm, "leaving", "trouble");
	char left[16];

	fprintf(pen->f, "%-*s  ", width, or_unknown(stat_string(vm, "name")));
	stat_draw_text(pen, trouble ? STAT_RED : STAT_YELLOW, "leaving");
	fprintf(pen->f, " %8lu  runs at ", stat_number(vm, "leaving", "qemu_pid"));
	stat_draw_text(pen, STAT_PLAIN, or_unknown(text_of(vm, "leaving", "host")));
	fprintf(pen->f, ", which needs %s from here\n", size_format(stat_number(vm, "leaving", "pages_left") * PAGE_SIZE, left));
	if (!trouble)
		return;
	fprintf(pen->f, "%*s  ^ ", width, "");
	stat_draw_text(pen, STAT_RED, trouble);
	fputc('\n', pen->f);
}
