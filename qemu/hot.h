// SPDX-License-Identifier: GPL-2.0-only
// What is touched first of a VM that is loaded elsewhere.
#pragma once
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct qemu_vm;

// Addresses of such pages in QEMU's memory, page-aligned, not sorted, perhaps some twice: the first page of each ring of its virtio queues,
// which loading the device state reads; with registers also where each processor's instruction and stack pointers, its descriptor
// tables and its page table are, which QEMU finds by reading the guest's page tables. The VM runs on; a query each, about 0.2 ms. What QEMU cannot tell is
// left out. *hvas is the caller's (free()). -ENOMEM, or the monitor was lost; logs.
int qemu_hot_pages(struct qemu_vm *vm, bool registers, uint64_t **hvas, size_t *nr);
