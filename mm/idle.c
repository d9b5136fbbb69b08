// SPDX-License-Identifier: GPL-2.0-only
#include "mm/idle.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/kernel-page-flags.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "util/log.h"
#include "util/size.h"

#define BITMAP "/sys/kernel/mm/page_idle/bitmap"
#define KPAGEFLAGS "/proc/kpageflags"

// From Documentation/admin-guide/mm/pagemap.rst.
#define PAGEMAP_PRESENT (1ULL << 63)
#define PAGEMAP_FRAME ((1ULL << 55) - 1)

#define MAX_FOLIO_ORDER 18 // of 4 KiB pages, 1 GiB

struct mm_idle {
	int pagemap, bitmap, flags;
};

static int open_one(const char *path, int mode)
{
	int fd = open(path, mode | O_CLOEXEC), err = errno;

	if (fd >= 0)
		return fd;
	log_err("cannot open %s, to see which pages are used: %s", path, strerror(err));
	return err == ENOENT ? -ESRCH : -err;
}

int mm_idle_open(pid_t pid, struct mm_idle **out)
{
	struct mm_idle *idle;
	char path[32];
	int r = 0;

	if (access(BITMAP, F_OK) < 0)
		return -EOPNOTSUPP;
	idle = malloc(sizeof *idle);
	if (!idle)
		return -ENOMEM;
	snprintf(path, sizeof path, "/proc/%d/pagemap", pid);
	*idle = (struct mm_idle){ .pagemap = -1, .bitmap = -1, .flags = -1 };
	r = idle->bitmap = open_one(BITMAP, O_RDWR);
	if (r >= 0)
		r = idle->flags = open_one(KPAGEFLAGS, O_RDONLY);
	if (r >= 0)
		r = idle->pagemap = open_one(path, O_RDONLY);
	if (r < 0) {
		mm_idle_close(idle);
		return r;
	}
	*out = idle;
	return 0;
}

void mm_idle_close(struct mm_idle *idle)
{
	if (!idle)
		return;
	for (int *fd = (int[]){ idle->pagemap, idle->bitmap, idle->flags, -2 }; *fd != -2; fd++)
		if (*fd >= 0)
			close(*fd);
	free(idle);
}

// All three files are arrays of 64-bit words. 0 where a file has none, or does not show it to us.
static uint64_t word(int fd, uint64_t index)
{
	uint64_t w;

	return pread(fd, &w, sizeof w, (off_t)(index * sizeof w)) == sizeof w ? w : 0;
}

// 0: nothing is mapped there; frame 0 is never a process's.
static uint64_t frame_of(const struct mm_idle *idle, uint64_t hva)
{
	uint64_t entry = word(idle->pagemap, hva / PAGE_SIZE);

	return entry & PAGEMAP_PRESENT ? entry & PAGEMAP_FRAME : 0;
}

// The mark is at a folio's first frame. Folios are aligned to their size, which nobody says: of the frames that may be the first, the
// nearest one that is some folio's first is this one's. 0: it is none any more.
static uint64_t head_of(const struct mm_idle *idle, uint64_t frame)
{
	if (!(word(idle->flags, frame) >> KPF_COMPOUND_TAIL & 1))
		return frame;
	for (unsigned order = 1; order <= MAX_FOLIO_ORDER; order++) {
		uint64_t first = frame >> order << order;

		if (first != frame && word(idle->flags, first) >> KPF_COMPOUND_HEAD & 1)
			return first;
	}
	return 0;
}

int mm_idle_mark(struct mm_idle *idle, uint64_t hva, struct mm_idle_page *mark)
{
	uint64_t frame = frame_of(idle, hva), head = frame ? head_of(idle, frame) : 0, bit = 1ULL << head % 64;

	if (!frame)
		return -ENOENT;
	if (!head || pwrite(idle->bitmap, &bit, sizeof bit, (off_t)(head / 64 * sizeof bit)) != sizeof bit)
		return -EAGAIN;
	// What cannot be marked is passed over in silence. The flags say what the bitmap would, and look at no page table.
	if (!(word(idle->flags, head) >> KPF_IDLE & 1))
		return -EAGAIN;
	*mark = (struct mm_idle_page){ .hva = hva, .frame = frame, .head = head };
	return 0;
}

enum mm_idle_answer mm_idle_look(struct mm_idle *idle, const struct mm_idle_page *mark)
{
	uint64_t w;

	if (frame_of(idle, mark->hva) != mark->frame)
		return MM_IDLE_UNKNOWN;
	if (pread(idle->bitmap, &w, sizeof w, (off_t)(mark->head / 64 * sizeof w)) != sizeof w)
		return MM_IDLE_UNKNOWN;
	return w >> mark->head % 64 & 1 ? MM_IDLE_UNTOUCHED : MM_IDLE_TOUCHED;
}
