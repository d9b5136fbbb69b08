// SPDX-License-Identifier: GPL-2.0-only
// The device state of a VM: saved by its QEMU, checked, and made into a stream that a new QEMU loads.
//
// DOC: the stream (all integers big-endian)
//
//	as QEMU saves it           as migrate-incoming takes it
//	"QEVM", version 3          "QEVM", version 3
//	                           CONFIGURATION: the machine type's full name
//	                           START ram: the small blocks' names and lengths
//	                           END   ram: the small blocks' pages
//	FULL section               FULL section
//	...                        ...
//	EOF                        EOF
//	                           VMDESCRIPTION: JSON that describes nothing
//
//	FULL section: 4, section id, name (a byte of length before it), instance, version, body, 0x7e, section id
//
// A small block is RAM that is not guest RAM: firmware, option ROMs, ACPI tables, video memory, flash. A QEMU started with -incoming
// leaves ROMs empty and expects them in the stream; xen-save-devices-state leaves all RAM out of it. So they are put in here. Guest
// RAM is big, travels by itself, and has to be in place, or served, before this stream is loaded: loading touches it.
#pragma once
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct qmp;

#define QEMU_DEVSTATE_MAX (64UL << 20) // longest device state that is taken; 15-350 KiB is usual

// Borrowed by the function that takes it.
struct qemu_small_block {
	const char *name; // in the QEMU that will load it
	uint64_t len; // its used length there, a multiple of 4096
	const uint8_t *data;
};

// Saves the device state of a VM that is stopped already, into memory. live: also inactivates its disks, as the source of a
// migration does before its destination starts; undone by `cont`, and never asked for twice without one (QEMU 7.2 aborts).
// The state passes through a memfd, so it does not matter as whom QEMU runs and which files it sees. Blocks for as long as qmp_call().
// *buf is the caller's (free()). Logs; -EOPNOTSUPP (QEMU names migration blockers), -EBADMSG (what QEMU wrote is no device
// state), -EFBIG, -ENOMEM, or qmp_call()'s error.
int qemu_devstate_save(struct qmp *q, bool live, uint8_t **buf, size_t *len);

// Is this a device state as QEMU 7.2 to 10 saves it? 0, or -EBADMSG with the reason logged.
//
// Only the devices know how long their bodies are, so what is checked is that borders can be found at all: the magic and version,
// then FULL sections and no others, each with a bounded printable name and with a footer that repeats its id, the next section's
// header or EOF directly behind each footer, and nothing behind EOF. So truncation and damage to a header or footer are found; damage
// within a body, or a whole section that is missing, is not: whoever stores the bytes must checksum them. (No machine type older
// than 2.4 passes: those have no footers.)
int qemu_devstate_check(const uint8_t *buf, size_t len);

// The stream that migrate-incoming takes, from a saved device state, which is checked first. machine is the full machine type
// ("pc-i440fx-7.2"). Every page of the small blocks is in the stream, one that is all zero as such, in 9 bytes.
// *out is the caller's (free()). Logs; -EBADMSG, -EINVAL (a name or length that no stream can hold), -ENOMEM.
int qemu_devstate_build(const uint8_t *saved, size_t len, const char *machine, const struct qemu_small_block *small, size_t nr,
			uint8_t **out, size_t *out_len);
