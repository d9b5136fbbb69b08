// SPDX-License-Identifier: GPL-2.0-only
#include "criu-vm/owner.h"

#include <errno.h>
#include <unistd.h>

#include "util/log.h"
#include "util/user.h"

int owner_check(const struct stat *holder, const VmEntry *vm, const char *what)
{
	uid_t owner = holder->st_uid;

	if (geteuid())
		return 0;
	if (holder->st_mode & (S_IWGRP | S_IWOTH) || (owner && owner != vm->uid)) {
		log_err("%s belongs to user %u, or others may write it, but its VM is to run as user %u; if you trust it: chown -R root, "
			"chmod go-w", what, owner, vm->uid);
		return -EPERM;
	}
	if (owner && !user_in_group(owner, vm->gid)) {
		log_err("%s belongs to user %u, who is not in group %u, as which its VM is to run; if you trust it: chown -R root", what, owner,
			vm->gid);
		return -EPERM;
	}
	return 0;
}

int owner_check_chain(const struct img_dir *newest)
{
	struct stat st;
	int err = 0;

	for (const struct img_dir *d = newest; d && !err; d = img_dir_parent(d)) {
		err = img_dir_stat(d, &st);
		if (!err)
			err = owner_check(&st, img_dir_vm(newest), img_dir_path(d));
	}
	return err;
}
