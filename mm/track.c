// SPDX-License-Identifier: GPL-2.0-only
/*
 * DOC: what is marked, and what is not
 *
 * A page is "written" when its page-table entry does not say that it is write-protected. What has no entry is told apart by what
 * kind of memory it is.
 *
 *   anonymous     Only what is there is write-protected. Memory that was never touched gets no marks, which would cost page tables
 *                 of 2 MiB a GiB: when it comes into being, it comes without write-protection, and is "written". So does what was
 *                 discarded (a balloon) and touched again.
 *   shared        Everything is marked, as the file may hold pages that the process has not mapped yet: reading them does not make
 *                 them "written". A discard of an unwritten page leaves the mark: the next read maps a page of zeros that counts as
 *                 unwritten (mm_source_hides_discards()). Where there is neither entry nor mark, a written page was unmapped.
 *   private file  A discard brings the file's page back, with the mark of the one that is gone: only pages of the process's own can
 *                 be said to be unwritten, all others count as written.
 */
#include "mm/track.h"

#include <dirent.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "mm/maps.h"
#include "mm/plant.h"
#include "mm/uapi.h"
#include "mm/uffd.h"
#include "util/bitmap.h"
#include "util/cleanup.h"
#include "util/io.h"
#include "util/log.h"
#include "util/size.h"

#define UFFD_KIND "anon_inode:[userfaultfd]"
#define FEATURES (UFFD_FEATURE_PAGEFAULT_FLAG_WP | UFFD_FEATURE_WP_HUGETLBFS_SHMEM | UFFD_FEATURE_WP_UNPOPULATED | UFFD_FEATURE_WP_ASYNC)

#define PIECE (16 * MiB)

enum kind { ANON, SHARED, PRIVATE_FILE };

static int kind_of(pid_t pid, uint64_t hva, enum kind *kind)
{
	struct mm_maps maps;
	struct mm_vma v;
	int ret = mm_maps_open(pid, &maps);

	if (ret)
		return ret;
	ret = mm_maps_at(&maps, hva, &v);
	mm_maps_close(&maps);
	if (ret) {
		log_err("process %d: nothing can be tracked at 0x%llx: %s", pid, (unsigned long long)hva, strerror(-ret));
		return ret;
	}
	*kind = v.shared ? SHARED : v.ino ? PRIVATE_FILE : ANON;
	return 0;
}

// Scans, and adds to the bitmap what is found, or what is not.
static int add(struct mm_pagemap *pm, const struct mm_range *r, enum mm_scan what, bool invert, uint64_t *bitmap)
{
	const size_t words = BITMAP_WORDS(r->len / PAGE_SIZE);
	_cleanup_free_ uint64_t *found = malloc(words * sizeof *found);
	int ret;

	if (!found)
		return -ENOMEM;
	ret = mm_pagemap_scan(pm, r->hva, r->len, what, found);
	for (size_t w = 0; w < words; w++)
		bitmap[w] |= invert ? ~found[w] : found[w];
	return ret;
}

// The order matters: what happens between two scans is found by the second, or by the first one next time.
int mm_track_take(struct mm_pagemap *pm, const struct mm_range *r, uint64_t *bitmap)
{
	const size_t nr = r->len / PAGE_SIZE;
	enum kind kind;
	int ret;

	memset(bitmap, 0, BITMAP_WORDS(nr) * sizeof *bitmap);
	ret = kind_of(mm_pagemap_pid(pm), r->hva, &kind);
	if (!ret)
		ret = mm_pagemap_scan(pm, r->hva, r->len, kind == SHARED ? MM_SCAN_WRITTEN_CLEAR : MM_SCAN_HELD_CLEAR, bitmap);
	if (!ret && kind == SHARED) // behind the first: what the kernel unmaps between the two is then in one of them
		ret = add(pm, r, MM_SCAN_NONE_CLEAR, false, bitmap);
	if (!ret && kind == PRIVATE_FILE)
		ret = add(pm, r, MM_SCAN_COPIED_CLEAN, true, bitmap);
	if (nr % 64)
		bitmap[nr / 64] &= (1ULL << nr % 64) - 1;
	return ret;
}

static int begin(struct mm_pagemap *pm, int uffd, const struct mm_range *ranges, size_t nr)
{
	int ret = mm_uffd_api(uffd, FEATURES, NULL);

	for (size_t i = 0; !ret && i < nr; i++)
		ret = mm_uffd_register_wp(uffd, ranges[i].hva, ranges[i].len);
	for (size_t i = 0; !ret && i < nr; i++) {
		_cleanup_free_ uint64_t *dropped = calloc(BITMAP_WORDS(ranges[i].len / PAGE_SIZE), sizeof *dropped);

		ret = dropped ? mm_track_take(pm, &ranges[i], dropped) : -ENOMEM;
	}
	return ret;
}

int mm_track_begin(pid_t pid, int target_uffd_dev, const struct mm_range *ranges, size_t nr, int *target_uffd)
{
	const struct mm_plant_opts o = { .target_uffd_dev = target_uffd_dev };
	struct mm_pagemap *pm;
	struct mm_plant p;
	int ret = mm_pagemap_open(pid, &pm);

	if (ret)
		return ret == -EOPNOTSUPP ? -ENOSYS : ret;
	ret = mm_plant(pid, &o, &p);
	if (!ret) {
		ret = begin(pm, p.uffd, ranges, nr);
		if (ret)
			mm_plant_remove(pid, p.target_uffd, UFFD_KIND);
		*target_uffd = p.target_uffd;
		mm_plant_fini(&p);
	}
	mm_pagemap_close(pm);
	return ret;
}

// Each userfaultfd has an inode of its own (Linux 5.12).
uint64_t mm_track_id(pid_t pid, int target_uffd)
{
	char path[48], link[64] = "";
	struct stat st;

	snprintf(path, sizeof path, "/proc/%d/fd/%d", pid, target_uffd);
	if (readlink(path, link, sizeof link - 1) <= 0 || strcmp(link, UFFD_KIND) || stat(path, &st) < 0)
		return 0;
	return st.st_ino;
}

// QEMU itself never asks for asynchronous write-protection; what is asked for is told by fdinfo: "API: version:features:all features".
static bool is_tracker(pid_t pid, int fd)
{
	_cleanup_free_ char *text = NULL;
	unsigned long long version;
	unsigned features;
	const char *api;
	char path[48];
	size_t len;

	snprintf(path, sizeof path, "/proc/%d/fdinfo/%d", pid, fd);
	if (!mm_track_id(pid, fd) || io_read_file(path, 64 * KiB, &text, &len) || !(api = strstr(text, "API:\t")))
		return false;
	if (sscanf(api + 5, "%llx:%x", &version, &features) != 2 || features & UFFD_FEATURE_MINOR_SHMEM) // a pager's
		return false;
	return !features || features & UFFD_FEATURE_WP_ASYNC; // none: who planted it was killed before it could ask
}

int mm_track_find(pid_t pid)
{
	const struct dirent *e;
	char path[32];
	int found = -1;
	DIR *d;

	snprintf(path, sizeof path, "/proc/%d/fd", pid);
	d = opendir(path);
	while (d && found < 0 && (e = readdir(d)))
		if (e->d_name[0] != '.' && is_tracker(pid, atoi(e->d_name)))
			found = atoi(e->d_name);
	if (d)
		closedir(d);
	return found;
}

// The last close lifts the write-protection that is left, and no page fault of the process is served meanwhile. So most of it is lifted
// before, and the last close is ours, not the process's main thread's.
int mm_track_end(pid_t pid, int target_uffd, const struct mm_range *ranges, size_t nr)
{
	_cleanup_close_ int uffd = -1;
	int ret;

	if (!mm_track_id(pid, target_uffd))
		return 0;
	ret = mm_fetch_fd(pid, target_uffd, UFFD_KIND, &uffd);
	for (size_t i = 0; !ret && i < nr; i++)
		for (uint64_t off = 0; off < ranges[i].len; off += PIECE)
			mm_uffd_writeprotect(uffd, ranges[i].hva + off, ranges[i].len - off < PIECE ? ranges[i].len - off : PIECE, false);
	return ret ? ret : mm_plant_remove(pid, target_uffd, UFFD_KIND);
}
