// SPDX-License-Identifier: GPL-2.0-only
// Parsers of what QEMU's human monitor and the kernel print. Pure functions: 0, -EBADMSG or -ENOMEM, nothing logged; what
// they return is the caller's (free()).
#pragma once
#include <limits.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

// A line of `info ramblock`. Before QEMU 8 it has no host address: hva is 0.
struct qemu_ram_info {
	char name[256];
	uint64_t page_size, offset, used, max, hva;
};

int qemu_parse_ramblocks(const char *text, struct qemu_ram_info **v, size_t *nr);

// A range of `info mtree -f` that is RAM or ROM, as guest and devices see it: of the address space "memory" only.
struct qemu_flat_range {
	uint64_t gpa, offset; // of its first byte: in guest-physical memory, in its region
	char region[256]; // a block's name without its device
};

int qemu_parse_mtree(const char *text, struct qemu_flat_range **v, size_t *nr);

// "Host virtual address for 0x1000 (pc.ram) is 0x7f..." of `gpa2hva`.
int qemu_parse_gpa2hva(const char *text, char region[256], uint64_t *hva);

// A mapping of /proc/PID/smaps.
struct qemu_mapping {
	uint64_t start, end, file_off;
	bool readable, writable, shared;
	bool dontfork; // MADV_DONTFORK, which QEMU sets on RAM blocks
	dev_t dev;
	ino_t ino;
	char path[PATH_MAX];
};

int qemu_parse_smaps(const char *text, struct qemu_mapping **v, size_t *nr);
