// SPDX-License-Identifier: GPL-2.0-only
// Guest RAM of a running VM as a dump reads it: of an ordinary VM from QEMU's memory, of one in private virtual memory each page
// from where it lies, while its pager goes on (pvmem/reader.h).
//
// DOC: an increment
//
//	take      the pages that were written since the last take: the kernel's note of them is gone then
//	drain     the block I/O that began before: it may be writing to pages that count as written already
//	read      whatever else is written meanwhile is found by the next take
//
// A page that is not there any more is zero, not as it was.
#pragma once
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#include "qemu/ramblock.h"

struct mm_range;
struct ram;

struct ram_opts {
	pid_t pid;	    // QEMU's
	const struct qemu_ramblock *blocks; // guest RAM: name, len, hva
	size_t nr_blocks;
	const char *run_root;
	const char *name; // of a VM that criu-vm runs, else NULL
};

// Changes nothing in the VM. What o points to must outlive it. Logs.
int ram_open(const struct ram_opts *o, struct ram **r);
void ram_close(struct ram *r); // accepts NULL

// It is in private virtual memory.
bool ram_is_paged(const struct ram *r);
// The blocks as the tracker wants them, of an ordinary VM. Borrowed.
const struct mm_range *ram_ranges(const struct ram *r);

// The pages of a chunk that may hold something other than zeros. Others are zero, or were written after the last ram_take(). A chunk
// is asked for once after each of these and, of protected memory, after mm_protect_instant().
int ram_present(struct ram *r, uint32_t block, uint64_t chunk, uint64_t map[4]);
// Reads these pages: page i to buf + i * 4096. buf: 1 MiB, page-aligned. Blocks on disks. Several threads may read at once. Logs.
int ram_read(struct ram *r, uint32_t block, uint64_t chunk, const uint64_t map[4], char *buf);

// What ram_read() has read was the VM's: its process was there, stopped, with its memory, after that; or it has ended, and what was read
// does not go with it. Of a VM that is stopped, as nobody else may notice its end in time. Several threads may ask at once. pidfd: the
// process's. -ESRCH: it has gone with its process. -EBUSY: the process is not stopped.
int ram_vouch(struct ram *r, int pidfd, uint32_t block);

// Of a VM with pages that are in images yet: where, and which checkpoint that is; NULL: there are none.
const char *ram_images(const struct ram *r, uint64_t *id);
// The pages of a chunk that are as in the images, but for what was written since the last ram_take().
void ram_in_images(struct ram *r, uint32_t block, uint64_t chunk, uint64_t map[4]);

// How recently each chunk was used (pv_engine_ages()), a byte a chunk of all blocks, each block beginning anew on one. Of a VM in private
// virtual memory. Logs.
int ram_ages(struct ram *r, uint8_t *ages);

// Its pager is there.
bool ram_has_pager(const struct ram *r);
// The pages of a chunk that are in memory now, of a VM in private virtual memory; others may come and go meanwhile.
void ram_resident(const struct ram *r, uint32_t block, uint64_t chunk, uint64_t map[4]);

// Takes all that was written since it was taken before; of an ordinary VM, since mm_track_begin(). discards: the VM may have given
// pages back, which shared memory does not tell from pages that nobody touched. Logs.
int ram_take(struct ram *r, bool discards);
// The pages of a chunk that the last ram_take() has found, and perhaps some that are not present.
const uint64_t *ram_written(const struct ram *r, uint32_t block, uint64_t chunk);
// Of the present pages of a chunk, those that are as they were before the last ram_take(). May read them all.
int ram_unchanged(struct ram *r, uint32_t block, uint64_t chunk, const uint64_t present[4], uint64_t map[4]);

// The same for who remembers of each page what he has read, and looks for the rest by himself; nothing is read for these.
// Pages of the block that were given back and touched again count as not written, though they are zero by now: ram_zero() finds them.
bool ram_hides_discards(const struct ram *r, uint32_t block);
// Whether these, which must be present, are all zero now. buf as of ram_read(). Several threads may ask at once. -errno is logged.
// It takes as long as reading them; but a hundredth of that of a file in memory, true, of what ram_expect_zero() was told of.
int ram_zero(struct ram *r, uint32_t block, uint64_t chunk, const uint64_t candidates[4], uint64_t zero[4], char *buf);
bool ram_expect_zero(struct ram *r, uint32_t block, uint64_t chunk, const uint64_t map[4]);
// Of a private mapping of a file: these pages of the chunk are not the file's, QEMU wrote to them. They are as they were if they were
// not written; the others are what is in the file. -errno is logged.
bool ram_is_of_file(const struct ram *r, uint32_t block);
int ram_copied(struct ram *r, uint32_t block, uint64_t chunk, uint64_t map[4]);
// The file of such a block is, by its times and its size, as it was when this was asked before. False: it is not, or may not be.
bool ram_file_stands(struct ram *r, uint32_t block);

// Of a VM in private virtual memory: its RAM as it is at one instant, while it runs on (pvmem/snapshot.h). Between prepare and
// instant the caller stops the VM. Then the VM may go on, and ram_present() and ram_read() are of the instant; each chunk that was
// read is done, and those that the guest waits for are wanted before all others. What was read is good if ram_snapshot_finish() says
// so, after the last one and a round trip to QEMU: a page is given back before that is told. Logs.
int ram_snapshot_prepare(struct ram *r);
int ram_snapshot_instant(struct ram *r);
bool ram_snapshot_wanted(struct ram *r, uint32_t *block, uint64_t *chunk);
void ram_snapshot_done(struct ram *r, uint32_t block, uint64_t chunk);
int ram_snapshot_finish(struct ram *r); // 0, or -ESTALE
void ram_snapshot_end(struct ram *r); // of one that is given up; harmless if there is none
