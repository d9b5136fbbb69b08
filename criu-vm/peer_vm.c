// SPDX-License-Identifier: GPL-2.0-only
#include "criu-vm/peer_vm.h"

#include <errno.h>
#include <pwd.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "util/cleanup.h"
#include "util/log.h"

int peer_vm_user(const char *value, uid_t *uid, gid_t *gid)
{
	const struct passwd *pw = getpwnam(value);
	char *end;

	if (!pw && *value >= '0' && *value <= '9') {
		unsigned long n = strtoul(value, &end, 10);

		pw = *end || n >= UINT32_MAX ? NULL : getpwuid((uid_t)n);
	}
	if (!pw)
		return -ENOENT;
	*uid = pw->pw_uid;
	*gid = pw->pw_gid;
	return 0;
}

const char *peer_vm_fault(const VmEntry *vm)
{
	return vm->cwd[0] == '/' ? NULL : "its folder is no absolute path";
}

// What root runs because another host says so has to be a QEMU, and root's.
static int check_qemu(const struct peer_vm_opts *o, const VmEntry *vm)
{
	const char *path = o->qemu ? o->qemu : vm->qemu_path;
	_cleanup_free_ char *real = realpath(path, NULL);
	const char *base = real ? strrchr(real, '/') + 1 : "";
	struct stat st;

	if (!real || path[0] != '/' || stat(real, &st) < 0 || !S_ISREG(st.st_mode) || access(real, X_OK) < 0) {
		log_err("there is no QEMU %s on this host; %s", path, o->give_qemu);
		return -ENOENT;
	}
	if (o->qemu || geteuid())
		return 0;
	if (strncmp(base, "qemu-", 5) != 0 && strcmp(base, "kvm") != 0) {
		log_err("%s does not look like a QEMU; if it is one, %s", real, o->give_qemu);
		return -EPERM;
	}
	if (!st.st_uid && !(st.st_mode & (S_IWGRP | S_IWOTH)))
		return 0;
	log_err("%s is not root's, or others may write it; if you trust it, %s", real, o->give_qemu);
	return -EPERM;
}

// -1 is nobody, but becoming that changes nothing.
static bool is_root(const VmEntry *vm)
{
	return !vm->uid || !vm->gid || vm->uid == (uid_t)-1 || vm->gid == (gid_t)-1;
}

static int choose_user(const struct peer_vm_opts *o, VmEntry *vm, const char *name)
{
	uid_t uid;
	gid_t gid;

	if (!o->user && !geteuid() && !o->is_root && is_root(vm)) {
		log_err("VM '%s' runs as user %u of group %u, and other hosts do not decide what runs as root here: %s", name, vm->uid, vm->gid,
			o->give_user);
		return -EPERM;
	}
	if (!o->user)
		return 0;
	if (peer_vm_user(o->user, &uid, &gid)) {
		log_err("there is no user '%s' on this host, as whom VM '%s' was to run", o->user, name);
		return -ENOENT;
	}
	vm->uid = uid;
	vm->gid = gid;
	return 0;
}

static int choose_folder(VmEntry *vm)
{
	struct stat st;
	char *root;

	if (!stat(vm->cwd, &st) && S_ISDIR(st.st_mode))
		return 0;
	log_warn("there is no folder %s here, in which the VM was started: it is started in /, so all its paths have to be absolute", vm->cwd);
	root = strdup("/");
	if (!root)
		return -ENOMEM;
	free(vm->cwd);
	vm->cwd = root;
	return 0;
}

int peer_vm_check(const struct peer_vm_opts *o, VmEntry *vm, const char *name)
{
	int err = check_qemu(o, vm);

	if (!err)
		err = choose_user(o, vm, name);
	return err ? err : choose_folder(vm);
}
