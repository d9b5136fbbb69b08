// SPDX-License-Identifier: GPL-2.0-only
//
// DOC: what is recorded of a running VM
//
//   RUN_DIR/NAME/           locked (flock) by the VM's pager, for as long as it lives
//     state                 JSON: what a pager needs to find its VM again; replaced whole, by rename
//     pages                 where each page is: struct pv_pages a chunk, mapped shared by the pager
//     qmp.sock              criu-vm's own QMP monitor of the VM
//     control.sock          the pager's
#pragma once
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#include "pvmem/chunk.h"

#define RUN_DIR_DEFAULT "/run/criu-vm"
#define LOG_DIR_DEFAULT "/var/log/criu-vm"
#define SWAP_DIR_DEFAULT "/var/lib/criu-vm/swap"
#define RUN_DIR_NAME_MAX 64

struct run_dir {
	char *root, *name, *path; // absolute
	int fd; // of the directory: carries the lock. -1: not open
};

struct vm_state_block {
	uint64_t off, len, hva; // as struct pv_block
	int memfd;              // number of the descriptor in QEMU
};

struct vm_state {
	pid_t qemu;
	uint64_t qemu_start; // clock ticks after boot: tells it from another process with its pid
	bool run;            // the VM is to run, not to stay paused
	bool paging;         // guest RAM is in private virtual memory
	int target_uffd, target_ring; // planted in QEMU
	unsigned ring_entries;
	uint64_t budget, ram;  // bytes
	uint64_t nr_chunks;
	char *swap_path;       // NULL: no swap image
	uint64_t swap_ino, swap_born_ns; // of that file: another one may have got its path, and even its inode, since
	bool swap_sparse;
	char *images;          // directory of the page source, or NULL
	char *log;
	struct vm_state_block *blocks;
	size_t nr_blocks;
};

#define RUN_DIR_NONE ((struct run_dir){ .fd = -1 })

// [A-Za-z0-9][A-Za-z0-9._-]{0,63}
bool run_dir_name_ok(const char *name);

// A new directory, locked. What a VM that has ended left behind under that name is removed first. -EEXIST: the name is in
// use. Logs.
int run_dir_create(const char *root, const char *name, struct run_dir *rd);
// An existing one, not locked. -ENOENT is not logged.
int run_dir_open(const char *root, const char *name, struct run_dir *rd);
// A pager has it locked.
bool run_dir_is_locked(const struct run_dir *rd);
void run_dir_close(struct run_dir *rd);
// Deletes it, and the swap image that its state names. Closes.
void run_dir_destroy(struct run_dir *rd);
// RUN_DIR/NAME/FILE. Returns buf.
const char *run_dir_file(const struct run_dir *rd, const char *file, char *buf, size_t size);

// A new unix socket RUN_DIR/NAME/FILE, mode 0600, that listens: the caller's. Or -errno, logged.
int run_dir_listen(const struct run_dir *rd, const char *file);

int vm_state_save(const struct run_dir *rd, const struct vm_state *s);
// Logs but -ENOENT.
int vm_state_load(const struct run_dir *rd, struct vm_state *s);
void vm_state_fini(struct vm_state *s);
// Is the QEMU of this state alive? *pidfd (if not NULL) is then the caller's.
bool vm_state_qemu_alive(const struct vm_state *s, int *pidfd);

// The page table. create: a new one, of zeros. Unmap with munmap(pages, nr_chunks * sizeof).
int run_dir_map_pages(const struct run_dir *rd, uint64_t nr_chunks, bool create, struct pv_pages **pages);

// What tells a file from others that have its path before or after it: inode and time of birth (0 where unknown).
int file_identity(int fd, uint64_t *ino, uint64_t *born_ns);

// Start of a process in clock ticks after boot, 0 if there is none.
uint64_t process_start(pid_t pid);
