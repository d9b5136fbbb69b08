// SPDX-License-Identifier: GPL-2.0-only
#pragma once
#include <stdbool.h>
#include <stdio.h>

// Prints one image file, as text or, in the shape of crit's, as one JSON object. Bulk data is said by its size. Nothing in the
// file is trusted, strings are escaped. Logged: -EBADMSG if it is damaged or no image, -EINVAL if it is another image than a VM's
// checkpoint has, -EIO if out cannot be written, else what the system said.
int img_show(const char *path, bool json, FILE *out);
