// SPDX-License-Identifier: GPL-2.0-only
//
// DOC: which VMs are tracked
//
// An increment has the pages that were written since its parent was made. That is known of a VM only if its writes were
// tracked all the time, and taken at no other occasion. What says so is a file RUN_DIR/.tracked-PID:
//
//	before written pages are taken    images: none      whoever finds it so can make no increment
//	after the commit                  images: the new checkpoint's id
//
// so that an increment is made of nothing but the very checkpoint that the tracking began anew with.
#pragma once
#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

struct tracked {
	pid_t pid;
	uint64_t start;	   // clock ticks after boot: tells it from another process with its pid
	int uffd;	   // planted in it: mm_track_begin()'s. -1: its pager tracks it
	uint64_t uffd_id;  // mm_track_id()
	bool discards;	   // it has, or had, a device that gives memory back
	bool known;	   // all that was written since the checkpoint images_id is known
	uint64_t images_id;
};

// Nobody else dumps the process until tracked_unlock(), whatever run directory he has. -EBUSY (logged): somebody does. *fd: a
// descriptor; or -1 after an error.
int tracked_lock(pid_t pid, int *fd);
void tracked_unlock(pid_t pid, int fd); // accepts -1
// -ENOENT: it is not tracked. Records of processes that have ended are removed.
int tracked_load(const char *run_root, pid_t pid, struct tracked *t);
// Makes run_root if need be. Logs.
int tracked_save(const char *run_root, const struct tracked *t);
void tracked_remove(const char *run_root, pid_t pid);
