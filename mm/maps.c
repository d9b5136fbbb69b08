// SPDX-License-Identifier: GPL-2.0-only
#include "mm/maps.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#include "mm/uapi.h"
#include "util/cleanup.h"
#include "util/io.h"
#include "util/log.h"
#include "util/size.h"

#define MAPS_MAX (64 * MiB) // text of some 700,000 mappings, ten times what vm.max_map_count allows by default

static int parse_line(char *line, struct mm_vma *v)
{
	unsigned major, minor;
	uint64_t ino;
	char perm[5];
	int name = 0;

	if (sscanf(line, "%" SCNx64 "-%" SCNx64 " %4s %" SCNx64 " %x:%x %" SCNu64 " %n", &v->start, &v->end, perm, &v->off, &major,
		   &minor, &ino, &name) != 7 || v->end <= v->start || strlen(perm) != 4)
		return -EPROTO;
	v->dev = makedev(major, minor);
	v->ino = ino;
	v->shared = perm[3] == 's';
	snprintf(v->name, sizeof v->name, "%.*s", (int)sizeof v->name - 1, line + name);
	return 0;
}

int mm_maps_read(pid_t pid, struct mm_vma **vmas, size_t *nr)
{
	_cleanup_free_ struct mm_vma *v = NULL;
	_cleanup_free_ char *text = NULL;
	size_t len, n = 0, room = 0;
	char path[32], *rest, *line;
	int ret;

	snprintf(path, sizeof path, "/proc/%d/maps", pid);
	ret = io_read_file(path, MAPS_MAX, &text, &len);
	if (ret == -ENOENT || (!ret && !len)) // a zombie and a kernel thread have no mapping
		ret = -ESRCH;
	if (ret) {
		log_err("cannot read the memory map of process %d: %s", pid, strerror(-ret));
		return ret;
	}
	rest = text;
	while ((line = strsep(&rest, "\n"))) {
		if (!*line)
			continue;
		if (n == room) {
			struct mm_vma *bigger = reallocarray(v, room = room ? 2 * room : 128, sizeof *v);

			if (!bigger)
				return -ENOMEM;
			v = bigger;
		}
		if (parse_line(line, &v[n++])) {
			log_err("%s: cannot make sense of the line '%.80s'", path, line);
			return -EPROTO;
		}
	}
	*nr = n;
	*vmas = steal_ptr(&v);
	return 0;
}

int mm_find_mappings(pid_t pid, dev_t dev, ino_t ino, struct mm_region **regions, size_t *nr)
{
	_cleanup_free_ struct mm_vma *v = NULL;
	struct mm_region *r;
	size_t nr_vmas, n = 0;
	int ret = mm_maps_read(pid, &v, &nr_vmas);

	if (ret)
		return ret;
	r = calloc(nr_vmas, sizeof *r);
	if (!r)
		return -ENOMEM;
	for (size_t i = 0; i < nr_vmas; i++) {
		struct mm_region *last = n ? &r[n - 1] : NULL;

		if (!v[i].shared || v[i].dev != dev || v[i].ino != ino)
			continue;
		if (last && last->hva + last->len == v[i].start && last->file_off + last->len == v[i].off)
			last->len += v[i].end - v[i].start;
		else
			r[n++] = (struct mm_region){ v[i].start, v[i].end - v[i].start, dev, ino, v[i].off };
	}
	*regions = r;
	*nr = n;
	return 0;
}

static int query(int fd, uint64_t addr, struct mm_vma *v)
{
	struct procmap_query q = { .size = sizeof q, .query_addr = addr };

	if (ioctl(fd, PROCMAP_QUERY, &q))
		return -errno;
	*v = (struct mm_vma){ .start = q.vma_start, .end = q.vma_end, .off = q.vma_offset, .dev = makedev(q.dev_major, q.dev_minor),
			      .ino = q.inode, .shared = q.vma_flags & PROCMAP_QUERY_VMA_SHARED };
	return 0;
}

int mm_maps_open(pid_t pid, struct mm_maps *m)
{
	struct mm_vma v;
	char path[32];

	snprintf(path, sizeof path, "/proc/%d/maps", pid);
	m->pid = pid;
	m->fd = open(path, O_RDONLY | O_CLOEXEC);
	if (m->fd < 0) {
		int ret = errno == ENOENT ? -ESRCH : -errno;

		log_err("cannot open the memory map of process %d: %s", pid, strerror(-ret));
		return ret;
	}
	if (query(m->fd, 0, &v) == -ENOTTY)
		mm_maps_close(m);
	return 0;
}

void mm_maps_close(struct mm_maps *m)
{
	if (m->fd >= 0)
		close(m->fd);
	m->fd = -1;
}

int mm_maps_at(const struct mm_maps *m, uint64_t addr, struct mm_vma *v)
{
	_cleanup_free_ struct mm_vma *all = NULL;
	size_t nr;
	int ret;

	if (m->fd >= 0)
		return query(m->fd, addr, v);
	ret = mm_maps_read(m->pid, &all, &nr);
	if (ret)
		return ret;
	for (size_t i = 0; i < nr; i++)
		if (addr >= all[i].start && addr < all[i].end) {
			*v = all[i];
			return 0;
		}
	return -ENOENT;
}
