// SPDX-License-Identifier: GPL-2.0-only
// What a control message may hold: docs/wire-protocol.md, "Messages". Silent, no I/O.
#pragma once
#include <stddef.h>
#include <stdint.h>

#include "util/size.h"
#include "wire/wire.pb-c.h"

#define WIRE_VM_NAME_MAX 64
#define WIRE_NAME_MAX 255  // of a block, a netdev
#define WIRE_TEXT_MAX 512  // a reason, a software
#define WIRE_PATH_LEN 4095 // a swap image, a checkpoint's folder
#define WIRE_BLOCKS_MAX 256
#define WIRE_BLOCK_LEN_MAX (16384 * GiB)
#define WIRE_RAM_MAX (65536 * GiB)
#define WIRE_CHUNKS_MAX (WIRE_RAM_MAX / MiB + WIRE_BLOCKS_MAX) // the last of each block may be shorter
#define WIRE_NETS_MAX 64
#define WIRE_VLANS_MAX 4094
#define WIRE_QUEUES_MAX 256
#define WIRE_ROUND_MAX 65535

// NULL, or the rule that is broken.
const char *wire_msg_fault(const WireMsg *m);

// *m is freed with wire_msg__free_unpacked(m, NULL). -EBADMSG: it is none, or a rule is broken; -EPROTO: none of a kind that is known
// here. *fault says why.
int wire_msg_parse(const void *buf, size_t len, WireMsg **m, const char **fault);

// The kind of a message that holds exactly one, as offsetof(WireMsg, KIND), and its name in wire.proto.
size_t wire_msg_kind(const WireMsg *m);
const char *wire_kind_name(size_t kind);
