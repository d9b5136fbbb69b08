// SPDX-License-Identifier: GPL-2.0-only
// What another process has mapped, from /proc/PID/maps.
#pragma once
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

// One mapping. dev and ino are 0 for anonymous memory.
struct mm_vma {
	uint64_t start, end; // addresses in the process, [start, end)
	uint64_t off;	     // of start, in the file
	dev_t dev;
	ino_t ino;
	bool shared;   // MAP_SHARED
	char name[40]; // path or "[vdso]", cut at the end when longer
};

// A part of a file that a process has mapped MAP_SHARED.
struct mm_region {
	uint64_t hva, len; // bytes
	dev_t dev;
	ino_t ino;
	uint64_t file_off; // of hva, in the file
};

// All mappings of pid in address order; *v is the caller's to free. -ESRCH, -EACCES, -ENOMEM, -EPROTO (unreadable line); logs.
int mm_maps_read(pid_t pid, struct mm_vma **v, size_t *nr);

// Where pid maps the file MAP_SHARED, in address order; mappings that continue one another are one region. *r is the caller's to
// free, *nr may be 0. dev and ino are those of fstat() on a memfd (on overlayfs and btrfs, /proc names another device).
int mm_find_mappings(pid_t pid, dev_t dev, ino_t ino, struct mm_region **r, size_t *nr);

// Looking one mapping up, many times: a handle on /proc/PID/maps, using PROCMAP_QUERY (Linux 6.11) where it is.
struct mm_maps {
	pid_t pid;
	int fd; // -1: no PROCMAP_QUERY, read the text
};

int mm_maps_open(pid_t pid, struct mm_maps *m);
void mm_maps_close(struct mm_maps *m);
// The mapping that holds addr, without its name. -ENOENT: nothing is mapped there; -ESRCH: the process is gone.
int mm_maps_at(const struct mm_maps *m, uint64_t addr, struct mm_vma *v);
