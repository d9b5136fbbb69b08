// SPDX-License-Identifier: GPL-2.0-only
//
// DOC: what is recorded of a running VM
//
//   RUN_DIR/NAME/           locked (flock) by the VM's pager, for as long as it lives
//     state                 JSON: what a pager needs to find its VM again; replaced whole, by rename
//     running               is there once the VM runs by itself, its restore done
//     token                 of a VM that arrives, or has arrived, from another host: the record that decides whether it is ours
//     monitors              of one that arrives: whose QEMU's monitors have other names until it is ours, and which (arrival.h)
//     supervisor            locked by the VM's supervisor
//     exe                   the criu-vm that its next pager is started from
//     vcpus                 their thread ids
//     status                how it ended, where a pager saw it
//     reason                why QEMU said that it would end
//     pages                 where each page is: struct pv_pages a chunk, mapped shared by the pager
//     ages                  how recently each chunk was used, a byte a chunk, when somebody asked last
//     hotness               how recently each chunk was used where the VM was before, a byte a chunk, if that is known (vm_hot.h)
//     in-images             and that has pages in images, too: which, 32 bytes a chunk; does not change
//     qmp.sock              QEMU's monitor for the pager
//     commands.sock         and one for commands, one at a time
//     control.sock          the pager's
#pragma once
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#include "criu-vm/cgroup.h"
#include "pvmem/chunk.h"
#include "pvmem/tuning.h"

#define RUN_DIR_DEFAULT "/run/criu-vm"
#define LOG_DIR_DEFAULT "/var/log/criu-vm"
#define RUN_DIR_NAME_MAX 64

struct pv_swap;

struct run_dir {
	char *root, *name, *path; // absolute
	int fd; // of the directory: carries the lock. -1: not open
};

struct vm_state_block {
	uint64_t off, len, hva; // as struct pv_block
	int memfd;              // number of the descriptor in QEMU
	char *name;             // as the machine calls it; NULL: an earlier version did not write it
};

struct vm_state {
	pid_t qemu;
	uint64_t qemu_start; // clock ticks after boot: tells it from another process with its pid
	bool run;            // the VM is to run, not to stay paused
	bool paging;         // guest RAM is in private virtual memory
	int target_uffd, target_ring; // planted in QEMU
	unsigned ring_entries;
	int target_io;         // in QEMU: the ring of the pager's reads and writes
	unsigned io_entries;
	uint64_t budget, ram;  // bytes
	uint64_t nr_chunks;
	char *swap_path;       // NULL: no swap image
	char *swap_token;      // struct pv_swap's
	bool swap_sparse;
	char *images;          // directory of the page source, or NULL
	uint64_t images_id;    // img_dir_id() of it
	bool fill;             // all that it has is wanted, in the background
	struct pv_tuning tuning;
	char *remote;          // whose page lines the pages that have not come yet come over, or NULL: HOST:PORT, or an address for messages
	bool remote_connects;  // the pager connects (a served checkpoint); else the other side does, by the server (vm_remote.h)
	char *remote_id;       // WIRE_LINE_ID_LEN bytes, hexadecimal
	char *remote_key;      // of a migration: WIRE_KEY_LEN bytes, hexadecimal
	char *remote_tls;      // folder of credentials, or NULL
	bool remote_insecure;  // without: whoever answers there is believed
	unsigned remote_lines;
	bool arriving;         // its first pager looks at no page before it is told that all have arrived
	char *taps;            // its network interfaces, which go up when it is to run: names with spaces between; or NULL
	char *log;
	struct cgroup cgroup;  // of QEMU, its pager and its supervisor
	struct vm_state_block *blocks;
	size_t nr_blocks;
};

#define RUN_DIR_NONE ((struct run_dir){ .fd = -1 })
#define VM_STATE_NONE ((struct vm_state){ .target_uffd = -1, .target_ring = -1, .target_io = -1, .tuning = PV_TUNING_DEFAULT })

// [A-Za-z0-9][A-Za-z0-9._-]{0,63}
bool run_dir_name_ok(const char *name);

// A new directory, locked. What a VM that has ended left behind under that name is removed first. -EEXIST: the name is in
// use. Logs.
int run_dir_create(const char *root, const char *name, struct run_dir *rd);
// An existing one, not locked. -ENOENT is not logged.
int run_dir_open(const char *root, const char *name, struct run_dir *rd);
// A pager has it locked.
bool run_dir_is_locked(const struct run_dir *rd);
// Locks it, unless another process has it locked. 0 or -errno.
int run_dir_lock(const struct run_dir *rd);
// The lock is others' from now on, who have the same descriptor.
void run_dir_let_go(struct run_dir *rd);
// Makes and locks RUN_DIR/NAME/FILE, for as long as the descriptor that is returned, or any copy of it, is open. -errno: another
// process has it.
int run_dir_hold(const struct run_dir *rd, const char *file);
bool run_dir_is_held(const struct run_dir *rd, const char *file);
// Small files that say something by being there, and by their text; written whole or not at all. -errno, logged.
int run_dir_mark(const struct run_dir *rd, const char *file, const char *text);
bool run_dir_has(const struct run_dir *rd, const char *file);
void run_dir_close(struct run_dir *rd);
// Deletes it, the swap image that its state names, and the control group. It is locked by the caller. Closes.
void run_dir_destroy(struct run_dir *rd);
// RUN_DIR/NAME/FILE. Returns buf.
const char *run_dir_file(const struct run_dir *rd, const char *file, char *buf, size_t size);

// A new unix socket RUN_DIR/NAME/FILE, mode 0600, that listens: the caller's. Or -errno, logged.
int run_dir_listen(const struct run_dir *rd, const char *file);

int vm_state_save(const struct run_dir *rd, const struct vm_state *s);
// Logs but -ENOENT.
int vm_state_load(const struct run_dir *rd, struct vm_state *s);
void vm_state_fini(struct vm_state *s);
// Notes the swap image of the VM. -ENOMEM.
int vm_state_set_swap(struct vm_state *s, const struct pv_swap *swap);
// Is the QEMU of this state alive? Yes if that cannot be told. *pidfd (if not NULL) is then the caller's; -1: it could not be
// opened.
bool vm_state_qemu_alive(const struct vm_state *s, int *pidfd);

// The page table. create: a new one, of zeros. Unmap with munmap(pages, nr_chunks * sizeof).
int run_dir_map_pages(const struct run_dir *rd, uint64_t nr_chunks, bool create, struct pv_pages **pages);
