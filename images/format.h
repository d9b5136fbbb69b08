// SPDX-License-Identifier: GPL-2.0-only
// Constants of the image format; docs/image-format.md is normative.
#pragma once
#include <stdint.h>

#include "util/size.h"

#define IMG_CHUNK_PAGES 256U
#define IMG_CHUNK_SIZE (IMG_CHUNK_PAGES * PAGE_SIZE)
#define IMG_CHUNK_WORDS (IMG_CHUNK_PAGES / 64)

// CRIU's: common and service images have a magic before their own; CRTOOLS_IMAGES_V1_1; PE_PRESENT of a pagemap entry.
#define IMG_MAGIC_COMMON 0x54564319U
#define IMG_MAGIC_SERVICE 0x55105940U
#define IMG_MAGIC_INVENTORY 0x58313116U
#define IMG_MAGIC_PAGEMAP 0x56084025U
#define IMG_MAGIC_STATS 0x57093306U
#define IMG_CRIU_VERSION 2U
#define IMG_PE_PARENT (1U << 0)
#define IMG_PE_PRESENT (1U << 2)

// Ours: "VM01", "DS01", "RS01" in the file's byte order.
#define IMG_MAGIC_VM 0x31304d56U
#define IMG_MAGIC_DEVICE_STATE 0x31305344U
#define IMG_MAGIC_RESIDENT 0x31305352U
#define IMG_FORMAT 2U

// inventory_entry.vm_features: what a reader must understand.
#define IMG_FEATURE_ZSTD (1ULL << 0)	 // what is stored of a chunk is a zstd frame
#define IMG_FEATURE_PARENT (1ULL << 1)	 // pages without an entry here may be in the parent
#define IMG_FEATURE_RAM_ONLY (1ULL << 2) // a pre-dump: no device state
#define IMG_FEATURE_RESIDENT (1ULL << 3) // it has resident.img
#define IMG_FEATURES (IMG_FEATURE_ZSTD | IMG_FEATURE_PARENT | IMG_FEATURE_RAM_ONLY | IMG_FEATURE_RESIDENT)

// Limits on what a file may say.
#define IMG_BLOCKS_MAX 256U
#define IMG_BLOCK_LEN_MAX (16384 * GiB)
#define IMG_CHAIN_MAX 64U
#define IMG_SMALL_BLOCKS_MAX 1024U
#define IMG_SMALL_BLOCK_LEN_MAX GiB
#define IMG_INVENTORY_MAX ((uint32_t)MiB)
#define IMG_PAGEMAP_ENTRY_MAX 256U
#define IMG_STATS_MAX ((uint32_t)(4 * KiB))
#define IMG_VM_MAX ((uint32_t)MiB)
#define IMG_DEVICE_STATE_MAX ((uint32_t)GiB)
#define IMG_RESIDENT_GROUP 1024U // chunks an entry
#define IMG_RESIDENT_ENTRY_MAX ((uint32_t)(40 * KiB))

#define IMG_NAME_INVENTORY "inventory.img"
#define IMG_NAME_VM "vm.img"
#define IMG_NAME_DEVICE_STATE "device-state.img"
#define IMG_NAME_STATS "stats-dump.img"
#define IMG_NAME_RESIDENT "resident.img"
#define IMG_NAME_PAGEMAP "pagemap-%u.img"
#define IMG_NAME_PAGES "pages-1.img"
#define IMG_NAME_PARENT "parent"
