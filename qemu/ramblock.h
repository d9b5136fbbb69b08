// SPDX-License-Identifier: GPL-2.0-only
// The RAM blocks of a VM and where they lie in QEMU's address space.
#pragma once
#include <limits.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

struct qemu_vm;

enum qemu_ram_kind {
	QEMU_RAM_ANON, // private anonymous memory
	QEMU_RAM_FILE_SHARED, // a file, a memfd or shared anonymous memory, mapped MAP_SHARED
	QEMU_RAM_FILE_PRIVATE, // a file, mapped MAP_PRIVATE: what was written is QEMU's own
};

struct qemu_ramblock {
	char name[256]; // as in QEMU's migration stream: "pc.ram", "0000:00:02.0/vga.vram"
	uint64_t len; // used length
	uint64_t max_len; // mapped length: more than len in a block that can grow, as the ACPI tables can
	uint64_t page_size; // of its memory: 4096, or that of its huge pages
	uint64_t hva; // first byte, in QEMU's address space
	uint64_t gpa; // lowest guest-physical address it is mapped at, UINT64_MAX if it is at none
	bool guest_ram; // belongs to a memory backend (-m's own included); else ROM, video memory, tables, flash
	enum qemu_ram_kind kind;
	uint64_t map_off; // QEMU_RAM_FILE_*: where hva lies in the file
	char map_path[PATH_MAX]; // QEMU_RAM_FILE_*: as the kernel names it ("/memfd:x (deleted)"), else ""
	dev_t map_dev; // QEMU_RAM_FILE_*
	ino_t map_ino;
	char backend_id[256]; // guest RAM: id of its -object, "" for the RAM that a plain -m makes
};

// All named blocks, guest RAM first in guest-physical order, then the others by name. Each block's address is verified
// against QEMU's mappings, or the call fails and names the block. *blocks is the caller's (free()). Blocks on QMP; changes
// nothing in the VM, which may run. Logs and returns -EOPNOTSUPP (a block whose address cannot be told), -EBADMSG (QEMU's
// answer is not understood), and those of qmp_call().
int qemu_ramblocks(struct qemu_vm *vm, struct qemu_ramblock **blocks, size_t *nr);
