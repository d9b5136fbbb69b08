// SPDX-License-Identifier: GPL-2.0-only
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/sysmacros.h>

#include "qemu/ramblock_int.h"
#include "util/cleanup.h"
#include "util/size.h"

// One more element, zeroed, at the end of an array, whose room is the next power of two.
static void *append(void **v, size_t *nr, size_t size)
{
	bool full = !(*nr & (*nr - 1));
	void *bigger = full ? reallocarray(*v, *nr ? *nr * 2 : 1, size) : *v;

	if (!bigger)
		return NULL;
	*v = bigger;
	return memset((char *)bigger + (*nr)++ * size, 0, size);
}

// Calls parse(line) for each line of text; hands over what it gathered, or frees it.
struct gathering {
	void *v;
	size_t nr;
	bool inside; // qemu_parse_mtree: in the view of the address space "memory"
};

static int each_line(const char *text, int (*parse)(struct gathering *g, char *line), void **v, size_t *nr)
{
	_cleanup_free_ char *copy = strdup(text);
	struct gathering g = { 0 };
	char *rest = copy, *line;
	int ret = copy ? 0 : -ENOMEM;

	while (!ret && (line = strsep(&rest, "\n"))) {
		size_t len = strlen(line);

		if (len && line[len - 1] == '\r') // the human monitor ends its lines so
			line[len - 1] = 0;
		ret = parse(&g, line);
	}
	if (ret) {
		free(g.v);
		return ret;
	}
	*v = g.v;
	*nr = g.nr;
	return 0;
}

// ---- info ramblock

static int unit_shift(const char *unit)
{
	static const char *const units[] = { "B", "KiB", "MiB", "GiB", "TiB" };

	for (size_t i = 0; i < ARRAY_SIZE(units); i++)
		if (!strcmp(unit, units[i]))
			return (int)i * 10;
	return -1;
}

// "              pc.ram    4 KiB  0x... 0x... 0x..." and from QEMU 8 on a host address and "rw" or "ro" behind it. The name is
// padded on its left, so that the page size is what stands before the two spaces in front of the first number.
static int parse_ramblock_line(struct gathering *g, char *line)
{
	char *numbers = strstr(line, "  0x"), *name = line + strspn(line, " "), *size, unit[8];
	struct qemu_ram_info *b;
	uint64_t pages;

	if (!numbers)
		return !*name || !strncmp(name, "Block Name", 10) ? 0 : -EBADMSG;
	*numbers = 0;
	size = strrchr(line, ' ');
	while (size && size > line && size[-1] != ' ')
		size--;
	if (!size || sscanf(size, "%" SCNu64 " %7s", &pages, unit) != 2 || unit_shift(unit) < 0 || !pages || pages >= 1 << 16)
		return -EBADMSG;
	b = append(&g->v, &g->nr, sizeof *b);
	if (!b)
		return -ENOMEM;
	b->page_size = pages << unit_shift(unit);
	while (size > name && size[-1] == ' ')
		size--;
	if (size < name)
		size = name;
	*size = 0;
	if (strlen(name) >= sizeof b->name)
		return -EBADMSG;
	strcpy(b->name, name);
	if (sscanf(numbers + 2, "%" SCNx64 " %" SCNx64 " %" SCNx64 " %" SCNx64, &b->offset, &b->used, &b->max, &b->hva) < 3)
		return -EBADMSG;
	return b->used <= b->max && b->max ? 0 : -EBADMSG;
}

int qemu_parse_ramblocks(const char *text, struct qemu_ram_info **v, size_t *nr)
{
	return each_line(text, parse_ramblock_line, (void **)v, nr);
}

// ---- info mtree -f

// "  0000000000100000-000000000fffffff (prio 0, ram): pc.ram @0000000000100000 KVM"
static int parse_mtree_line(struct gathering *g, char *line)
{
	struct qemu_flat_range r = { 0 }, *new;
	uint64_t last;
	char kind[16];

	if (!strncmp(line, "FlatView", 8))
		g->inside = false;
	if (!strcmp(line, " AS \"memory\", root: system"))
		g->inside = true;
	if (!g->inside || sscanf(line, " %" SCNx64 "-%" SCNx64 " (prio %*d, %15[a-z]): %255s @%" SCNx64, &r.gpa, &last, kind,
				  r.region, &r.offset) < 4)
		return 0;
	if (strcmp(kind, "ram") && strcmp(kind, "rom") && strcmp(kind, "romd"))
		return 0;
	new = append(&g->v, &g->nr, sizeof *new);
	if (!new)
		return -ENOMEM;
	*new = r;
	return 0;
}

int qemu_parse_mtree(const char *text, struct qemu_flat_range **v, size_t *nr)
{
	return each_line(text, parse_mtree_line, (void **)v, nr);
}

int qemu_parse_gpa2hva(const char *text, char region[256], uint64_t *hva)
{
	return sscanf(text, "Host virtual address for 0x%*x (%255[^)]) is 0x%" SCNx64, region, hva) == 2 ? 0 : -EBADMSG;
}

// ---- /proc/PID/smaps

static int parse_smaps_line(struct gathering *g, char *line)
{
	struct qemu_mapping *m = g->nr ? (struct qemu_mapping *)g->v + g->nr - 1 : NULL;
	unsigned major, minor;
	uint64_t start, end, off, ino;
	char perms[5];
	int path = 0;

	if (!strncmp(line, "VmFlags:", 8)) {
		if (m)
			m->dontfork = strstr(line, " dc ") || (strlen(line) > 3 && !strcmp(line + strlen(line) - 3, " dc"));
		return 0;
	}
	if (sscanf(line, "%" SCNx64 "-%" SCNx64 " %4s %" SCNx64 " %x:%x %" SCNu64 " %n", &start, &end, perms, &off, &major,
		    &minor, &ino, &path) < 7)
		return 0; // "Rss:  4 kB" and the like
	if (end <= start || strlen(perms) < 4 || strlen(line + path) >= sizeof m->path)
		return -EBADMSG;
	m = append(&g->v, &g->nr, sizeof *m);
	if (!m)
		return -ENOMEM;
	*m = (struct qemu_mapping){ .start = start, .end = end, .file_off = off, .dev = makedev(major, minor), .ino = ino,
		.readable = perms[0] == 'r', .writable = perms[1] == 'w', .shared = perms[3] == 's' };
	strcpy(m->path, line + path);
	return 0;
}

int qemu_parse_smaps(const char *text, struct qemu_mapping **v, size_t *nr)
{
	return each_line(text, parse_smaps_line, (void **)v, nr);
}
