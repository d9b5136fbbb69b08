// SPDX-License-Identifier: GPL-2.0-only
//
// DOC: the swap images of this host
//
//   /var/lib/criu-vm/swap/       this host's alone; mode 0700
//     NAME.swap                  an image, where no other place was wanted
//     NAME-TOKEN.swap -> PATH    one that is elsewhere, TOKEN being the first 16 digits of its token
//     .clean                     the boot of this host that has been tidied up after
//
// What runs is recorded in /run, which a reboot empties; this folder says what is left of it then (leftovers.h). It is
// only for that: nothing is found by it while the host is up, so that a disk which does not answer holds up nobody.
// CRIU_VM_STATE_DIR in the environment replaces /var/lib/criu-vm.
#pragma once
#include <limits.h>
#include <stdbool.h>

#include "criu-vm/state_dir.h"
#include "pvmem/swap.h"

#define SWAP_DIR_DEFAULT STATE_DIR_DEFAULT "/swap"
#define SWAP_REGISTRY_TOKEN_LEN 16

// The folder. Returns buf.
const char *swap_registry_dir(char buf[PATH_MAX]);
// Makes the folder, if it is not there. 0 or -errno; does not log.
int swap_registry_make(void);
// A new image for a VM (pv_swap_prepare()). at: where, a file or a folder; NULL: in our folder. Blocks on the disk. Logs.
int swap_registry_prepare_image(const char *name, const char *at, uint64_t len, bool sparse, struct pv_swap *s);
// Publishes and registers it, or closes it.
int swap_registry_publish_image(const char *name, struct pv_swap *s);
// Deletes it again, with its registration.
void swap_registry_destroy_image(const char *name, struct pv_swap *s);
// The image at path (absolute, without symbolic links) is this VM's; replaces what was registered for that token. Logs a
// warning where it cannot: the image works, but a reboot of the host would leave it behind.
void swap_registry_add(const char *name, const char *path, const char *token);
void swap_registry_remove(const char *name, const char *token);

// Has the host been tidied up after since it was booted?
bool swap_registry_is_clean(void);
void swap_registry_set_clean(void);
