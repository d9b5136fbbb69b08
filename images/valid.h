// SPDX-License-Identifier: GPL-2.0-only
// What vm.img and device-state.img may say: the writer's promise, and what the reader does not take on trust.
#pragma once
#include "images/vm.pb-c.h"

// NULL, or the rule that is broken.
const char *img_vm_fault(const VmEntry *vm);
const char *img_device_state_fault(const DeviceStateEntry *ds);
const char *img_small_blocks_fault(const DeviceStateEntry *ds); // of its blocks only: it needs no stream
