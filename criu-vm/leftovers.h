// SPDX-License-Identifier: GPL-2.0-only
#pragma once

// What VMs left that ended with the host: the first command after a reboot deletes their swap images, as registered
// (swap_registry.h), and says of each that it did. An image goes only if its trailer is whole and of an earlier boot, and if
// nobody uses it; of other files none is touched. Later commands return at once. Blocks on the disks of these images.
void leftovers_remove(void);
