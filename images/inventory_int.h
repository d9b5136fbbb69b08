// SPDX-License-Identifier: GPL-2.0-only
// inventory.img: written last, it makes the other files a checkpoint. Errors are logged here.
#pragma once
#include "images/criu.pb-c.h"

// Creates dirfd/inventory.img. Of *inv the caller sets the files, the features and the parent; its version, format and checksum are
// filled in here. dir is only for messages.
int img_inventory_put(int dirfd, const char *dir, InventoryEntry *inv);

// Checked: it is a VM's, of this format, and undamaged. Errors as of img_dir_open(). Freed with inventory_entry__free_unpacked().
int img_inventory_get(int dirfd, const char *dir, InventoryEntry **inv);
